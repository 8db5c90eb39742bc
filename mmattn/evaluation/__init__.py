"""Metrics of the papers that the codebases lack."""

from mmattn.registry import register_when_used

register_when_used('mmdet', 'METRICS', f'{__name__}.voc_ap')
