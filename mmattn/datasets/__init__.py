"""Data sets and transforms that the codebases lack."""

from mmattn.registry import register_when_used

register_when_used('mmpretrain', 'DATASETS', f'{__name__}.digits_cifar')
register_when_used('mmdet', 'TRANSFORMS', f'{__name__}.difficult')
