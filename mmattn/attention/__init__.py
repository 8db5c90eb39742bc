"""The gates. Each maps (N, C, H, W) to (N, C, H, W). They need torch alone; where mmengine is
installed, they register in its root `MODELS`."""

from .cat import CAT
from .cbam import CBAM
from .coord import CoordAttention
from .drtam import DRTAM
from .eca import ECA
from .ema import EMA
from .se import SE
from .simam import SimAM
from .timm_attention import TimmAttention  # noqa: F401  (for its registration: it needs timm)
from .triplet import TripletAttention

__all__ = [
    'CAT',
    'CBAM',
    'DRTAM',
    'ECA',
    'EMA',
    'SE',
    'CoordAttention',
    'SimAM',
    'TripletAttention',
]
