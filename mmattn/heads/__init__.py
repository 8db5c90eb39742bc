"""Detection heads that MMDetection lacks."""

from mmattn.registry import register_when_used

register_when_used('mmdet', 'MODELS', f'{__name__}.retina')
