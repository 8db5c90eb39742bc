"""The equations as written in the papers, in eager PyTorch, differentiated by autograd."""

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
from .scaling import (
    affine_scale,
    channel_scale,
    coord_scale,
    product_scale,
    rank1,
    rank1_scale,
    spatial_scale,
    sum_scale,
)

__all__ = [
    'affine_scale',
    'channel_scale',
    'channel_pool',
    'coord_scale',
    'entropy_pool',
    'min_max',
    'product_scale',
    'rank1',
    'rank1_scale',
    'rank1_layers',
    'rank1_pool',
    'spatial_conv',
    'spatial_scale',
    'spatial_pool',
    'strip_pool',
    'sum_scale',
]
