"""Backbones with plugin slots, in the registry of each installed codebase (vocabulary: `slots`)."""

from mmattn.registry import register_when_used

for _codebase in ('mmpretrain', 'mmdet', 'mmseg'):
    register_when_used(_codebase, 'MODELS', f'{__name__}.{_codebase}')
