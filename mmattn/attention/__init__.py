"""The gates. Each maps (N, C, H, W) to (N, C, H, W). They need torch alone; where mmengine is
installed, they register in its root `MODELS`."""

from .cat import CAT
from .cbam import CBAM
from .coord import CoordAttention
from .drtam import DRTAM
from .eca import ECA
from .se import SE

__all__ = ['CAT', 'CBAM', 'DRTAM', 'ECA', 'SE', 'CoordAttention']
