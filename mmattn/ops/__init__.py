"""The arithmetic of the gates: pooling a feature map into descriptors, applying factors to it.

A gate is pool -> middle (layers on descriptors) -> apply. `rank1_attention` is all three of DRTAM
in one; what others compose is here in parts: pools of a feature map, scales of it, and of the
middles `rank1_pool`, `min_max` and `spatial_conv`; the rest of these is plain PyTorch modules.

Feature maps `x` and outputs `y` are (N, C, H, W) of one dtype and one memory format. Descriptors
are float32 (float64 for a float64 `x`); factors are brought to that. `c` is (N, C), `s` (N, H, W);
a factor of another shape is a ValueError.
Gates and scales take an `identity_scale` a, (1,) or (C,): y = x + a (g(x) - x), at no cost.
Every op takes `impl`: None (the default of `mmattn.ops.dispatch`), 'fast' or 'reference'. A fast
one is an operator of PyTorch, `torch.ops.mmattn.*` (`mmattn.ops.library`).
"""

from .cat import cat
from .cbam import cbam
from .channel import eca, se
from .convolution import spatial_conv
from .coord import coord
from .dispatch import (
    PLAIN,
    backend_of,
    check_impl,
    declines,
    get_impl,
    knows_identity,
    runs_kernels,
    set_impl,
    stats_dtype,
    two_devices,
    use_impl,
)
from .drtam import Norm, rank1_attention, rank1_pool, rank1_strips
from .library import decompositions
from .normalise import min_max
from .pool import channel_pool, entropy_pool, spatial_pool, strip_pool
from .record import Record, record
from .scale import channel_scale, coord_scale, product_scale, rank1_scale, spatial_scale, sum_scale

__all__ = [
    'PLAIN',
    'Norm',
    'Record',
    'backend_of',
    'cat',
    'cbam',
    'channel_scale',
    'channel_pool',
    'check_impl',
    'coord',
    'coord_scale',
    'declines',
    'decompositions',
    'eca',
    'entropy_pool',
    'get_impl',
    'knows_identity',
    'min_max',
    'product_scale',
    'rank1_attention',
    'rank1_scale',
    'rank1_pool',
    'rank1_strips',
    'record',
    'runs_kernels',
    'se',
    'set_impl',
    'spatial_conv',
    'spatial_scale',
    'spatial_pool',
    'stats_dtype',
    'strip_pool',
    'sum_scale',
    'two_devices',
    'use_impl',
]
