"""Arguments to call every forward operator with: for what tries all of them.

The self-check on a GPU (`mmattn.ops.triton.selfcheck`) compares an operator with its equations on
these, and `mmattn.analysis.launches` counts what it launches. They come from a generator of their
own, so that nobody's random numbers move.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .dispatch import stats_dtype
from .tensors import layout

TAPS = (0.05, 0.2, 0.5, 0.2, 0.05)
CHUNKS = [3, 1]


class Maker:
    """Makes tensors of one map's shape, dtype, memory format and device."""

    def __init__(
        self, shape: Sequence[int], dtype: torch.dtype, last: bool, device: str | torch.device
    ) -> None:
        self.shape, self.dtype, self.last, self.device = tuple(shape), dtype, last, device
        self.acc = stats_dtype(torch.empty(0, dtype=dtype))
        self.generator = torch.Generator().manual_seed(0)

    def x(self) -> Tensor:
        """A map with one clear maximum a channel: which of several gets the gradient is open."""
        n, c, h, w = self.shape
        if torch.device(self.device).type == 'meta':
            made = torch.empty(self.shape)
        else:
            made = torch.randn(self.shape, generator=self.generator).clamp_(max=2.5).flatten(2)
            at = torch.arange(n * c).mul_(5).remainder_(h * w).view(n, c, 1)
            made.scatter_(2, at, 3.0)
        made = made.view(self.shape).to(self.device, self.dtype)
        return made.contiguous(memory_format=layout(self.last)).requires_grad_()

    def rand(self, *size: int) -> Tensor:
        """Of (0.25, 1), as factors and weights are that amplify no rounding."""
        if torch.device(self.device).type == 'meta':
            return torch.empty(size, dtype=self.acc, device='meta').requires_grad_()
        made = torch.rand(size, generator=self.generator, dtype=torch.float64) * 0.75 + 0.25
        return made.to(self.device, self.acc).requires_grad_()

    def around(self, *size: int) -> Tensor:
        """Of (-1, 1) / the square root of the last size but one, as layers start from."""
        made = self.rand(*size).detach()
        return made.sub_(0.625).mul_(2.6 / size[-1] ** 0.5).requires_grad_()

    def constant(self, *size: int) -> Tensor:
        return self.rand(*size).detach()

    def taps(self) -> Tensor:
        return torch.tensor(TAPS, dtype=self.acc, device=self.device)

    def rank1(self) -> list[Tensor]:
        n, c, h, w = self.shape
        return [self.rand(n, c), self.rand(n, h), self.rand(n, w)]

    def mlp(self, hidden: int = 8) -> list[Tensor]:
        c = self.shape[1]
        return [self.around(hidden, c), self.rand(hidden), self.around(c, hidden), self.rand(c)]


def _scale(name, axes):
    def make(m):
        sizes = dict(zip('nchw', m.shape, strict=True))
        return m.x(), [m.rand(*(sizes[a] for a in names)) for names in axes.split()]

    return {name: make}


def _se(m):
    w1, _, w2, _ = m.mlp()
    return m.x(), w1, None, w2, None, None


def _cat(m):
    w1, _, w2, _ = m.mlp()
    vectors = m.rand(3), m.rand(3), m.rand(2)
    return m.x(), m.taps(), w1, w2, m.around(1, 1, 7, 7), *vectors, [True] * 3, 0.0, 1.0, True, None


def _cbam(m):
    norm = [m.rand(1), m.rand(1), m.constant(1), m.constant(1)]
    return m.x(), *m.mlp(), m.around(1, 2, 7, 7), norm, True, 1e-5, None


def _coord(m):
    c = m.shape[1]
    first = m.around(8, c), m.rand(8), m.rand(8), m.rand(8), m.constant(8), m.constant(8)
    second = m.around(c, 8), m.rand(c), m.around(c, 8), m.rand(c)
    return m.x(), *first, *second, True, 1e-5, None


def _convs(m):
    return [m.around(1, 4 * CHUNKS[0]), *(m.around(1, sum(CHUNKS) + 1, 3) for _ in range(2))]


def _drtam(m):
    params = m.mlp()
    for _ in range(2):
        params += [*_convs(m), *(m.rand(1) for _ in range(6))]
    running = [m.constant(1) for _ in range(12)]
    return m.x(), params, running, [True] * 6, [1e-5] * 6, CHUNKS, None


def _rank1_pool(m):
    n, c, h, w = m.shape
    planes = [m.rand(n, c, h), m.rand(n, c, w), m.rand(n, h, w)]
    return planes, _convs(m), m.rank1(), CHUNKS


def _spatial_conv(m):
    n, _, h, w = m.shape
    return m.rand(n, 2, h, w), m.around(1, 2, 7, 7)


# What an operator is called with, of a `Maker`.
ARGUMENTS: dict[str, Callable[[Maker], tuple[Any, ...]]] = {
    'se': _se,
    'eca': lambda m: (m.x(), m.around(1, 1, 3), None),
    'cbam': _cbam,
    'coord': _coord,
    'cat': _cat,
    'drtam': _drtam,
    'channel_pool': lambda m: (m.x(), True),
    'spatial_pool': lambda m: (m.x(), m.rand(*m.shape[:2])),
    'strip_pool': lambda m: (m.x(), True),
    'entropy_pool': lambda m: (m.x(), m.taps(), *[True] * 5),
    'rank1_pool': _rank1_pool,
    'min_max': lambda m: (m.rand(m.shape[0], 1, m.shape[2] * m.shape[3]), 0.0, 1.0),
    'spatial_conv': _spatial_conv,
    **_scale('channel_scale', 'nc'),
    **_scale('spatial_scale', 'nhw'),
    **_scale('product_scale', 'nc nhw'),
    **_scale('sum_scale', 'nc nhw'),
    **_scale('affine_scale', 'nc nc nhw'),
    **_scale('coord_scale', 'nch ncw'),
    **_scale('rank1_scale', 'nc nh nw nc nh nw'),
}


def arguments(
    name: str,
    shape: Sequence[int],
    dtype: torch.dtype,
    last: bool,
    device: str | torch.device = 'cpu',
) -> tuple[Any, ...]:
    """What `torch.ops.mmattn.<name>` is called with, of a map of this shape."""
    return ARGUMENTS[name](Maker(shape, dtype, last, device))
