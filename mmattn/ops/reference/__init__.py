"""The equations as written in the papers, in eager PyTorch, differentiated by autograd."""

from .gating import (
    affine_gate,
    channel_gate,
    coord_gate,
    product_gate,
    rank1,
    rank1_gate,
    spatial_gate,
    sum_gate,
)
from .pooling import (
    channel_pool,
    entropy_pool,
    min_max,
    rank1_layers,
    rank1_pool,
    spatial_conv,
    spatial_pool,
    strip_pool,
)

__all__ = [
    'affine_gate',
    'channel_gate',
    'channel_pool',
    'coord_gate',
    'entropy_pool',
    'min_max',
    'product_gate',
    'rank1',
    'rank1_gate',
    'rank1_layers',
    'rank1_pool',
    'spatial_conv',
    'spatial_gate',
    'spatial_pool',
    'strip_pool',
    'sum_gate',
]
