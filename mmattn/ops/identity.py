"""The identity in part: y = x + a (g(x) - x) of a gate g, a its `identity_scale`.

Every gate is a product, g(x) = x f, so y = x (1 + a (f - 1)): a goes into the factors, and costs no
pass over the map. With a = 0 what x is multiplied by is 1 to the bit, and a still has its gradient,
the sum of dy x (f - 1).

    SE, ECA   f = c                  c' = 1 + a (c - 1)
    CBAM      f = c s                u + v s with u = 1 - a, v = a c
    CAT       f = c + s              u + v s with u = 1 + a (c - 1), v = a
    CA        f = h w                u + v w with u = 1 - a, v = a h
    DRTAM     f = A + (1 - A) A2     1 - a (1 - A) (1 - A2)

a is one number, or one for each channel.
"""

import torch
from torch import Tensor


def check_identity_scale(a: Tensor | None, channels: int) -> None:
    """Raise ValueError unless a is one number or (C,)."""
    if a is not None and not (a.numel() == 1 or tuple(a.shape) == (channels,)):
        raise ValueError(
            f'identity_scale must hold one number, or one for each of {channels} channels, got '
            f'{tuple(a.shape)}'
        )


def per_channel(a: Tensor, c: Tensor) -> Tensor:
    """a as (N, C), which c is; or already so."""
    return a if a.dim() == 2 else a.reshape(-1).expand_as(c).contiguous()


def summed(da: Tensor, a: Tensor) -> Tensor:
    """The gradient of a, made of that of each sample's channels (N, C)."""
    return (da.sum() if a.numel() == 1 else da.sum(0)).view(a.shape)


def part(c: Tensor, a: Tensor | None) -> Tensor:
    """1 + a (c - 1), c (N, C)."""
    return c if a is None else torch.lerp(c.new_ones(1), c, a.reshape(-1))


def part_grad(dc: Tensor, c: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of c and of a, dc that of `part`."""
    return dc * a.reshape(-1), summed(dc * (c - 1), a)


def part_of_product(c: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    """u and v (N, C) of 1 + a (c s - 1) = u + v s."""
    a = per_channel(a, c)
    return 1 - a, a * c


def part_of_product_grad(du: Tensor, dv: Tensor, c: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of c and of a, du and dv those of u and v."""
    return dv * a.reshape(-1), summed(dv * c - du, a)


def part_of_sum(c: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    """u and v (N, C) of 1 + a (c + s - 1) = u + v s."""
    return part(c, a), per_channel(a, c)


def part_of_sum_grad(du: Tensor, dv: Tensor, c: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of c and of a, du and dv those of u and v."""
    return du * a.reshape(-1), summed(du * (c - 1) + dv, a)


def part_of_rows(h: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    """u (N, C) and v (N, C, H) of 1 + a (h w - 1) = u + v w, h (N, C, H)."""
    a = per_channel(a, h[..., 0])
    return 1 - a, a[..., None] * h


def part_of_rows_grad(du: Tensor, dv: Tensor, h: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of h and of a, du and dv those of u and v."""
    return dv * a.reshape(-1, 1), summed((dv * h).sum(2) - du, a)
