"""Others' gated ImageNet weights under the names of our hosts: timm's, and the papers' releases."""

from .releases import RELEASES, from_release
from .resnet import Converted
from .timm import NAMES, from_timm

__all__ = ['NAMES', 'RELEASES', 'Converted', 'from_release', 'from_timm']
