"""The gates. Each maps (N, C, H, W) to (N, C, H, W) and registers in mmengine's root `MODELS`."""

from .cat import CAT
from .cbam import CBAM
from .coord import CoordAttention
from .drtam import DRTAM
from .eca import ECA
from .se import SE

__all__ = ['CAT', 'CBAM', 'DRTAM', 'ECA', 'SE', 'CoordAttention']
