"""The convolution of a few maps to one, of CBAM's, CAT's and ECA's layers."""

import torch
from torch import Tensor

from . import reference
from .dispatch import runs_kernels, stats_dtype
from .library import Gradient, define
from .tensors import acc, flat


def spatial_conv(maps: Tensor, weight: Tensor, impl: str | None = None) -> Tensor:
    """The zero-padded convolution of maps (N, M, H, W) by a weight (1, M, kh, kw): (N, H, W).

    kh and kw are odd. Maps and weight are of one dtype, which the result has.
    """
    if not torch.jit.is_tracing() and (
        maps.dim() != 4
        or weight.dim() != 4
        or weight.shape[:2] != (1, maps.shape[1])
        or weight.shape[2] % 2 == 0
        or weight.shape[3] % 2 == 0
        or maps.dtype != weight.dtype
    ):
        raise ValueError(
            'spatial_conv takes maps (N, M, H, W), a weight (1, M, odd, odd) of one dtype, got '
            f'{maps.dtype} of {tuple(maps.shape)} and {weight.dtype} of {tuple(weight.shape)}'
        )
    # No kernel takes 16 bits: of a map, descriptors are float32.
    if maps.dtype != stats_dtype(maps) or not runs_kernels(maps, impl, weight):
        return reference.spatial_conv(maps, weight)
    return torch.ops.mmattn.spatial_conv(maps, weight)


def _keep(ctx, args, outputs):
    return args


define(
    'spatial_conv(Tensor maps, Tensor weight) -> Tensor',
    kernel=lambda kernels, maps, weight: kernels.spatial_conv(flat(maps), flat(weight)),
    fake=lambda maps, weight: acc(maps, maps.shape[0], *maps.shape[2:]),
    equations=reference.spatial_conv,
    gradient=Gradient(_keep, lambda ctx, saved, dy: ctx.backward_op(dy, *saved)),
)
define(
    'spatial_conv_backward(Tensor dy, Tensor maps, Tensor weight) -> (Tensor, Tensor)',
    kernel=lambda kernels, dy, maps, weight: kernels.spatial_conv_grad(
        flat(maps), flat(weight), dy=flat(dy)
    ),
    fake=lambda dy, maps, weight: (acc(maps, *maps.shape), acc(maps, *weight.shape)),
)
