"""Detectors, and parts of them, that MMDetection lacks."""

from mmattn.registry import register_when_used

for _module in ('c4', 'retina'):
    register_when_used('mmdet', 'MODELS', f'{__name__}.{_module}')
