"""Backbones with plugin slots, in the registry of each installed codebase (vocabulary: `slots`).

`plug`, for any module, needs torch alone.
"""

import importlib.util

from mmattn.registry import register_when_used

if importlib.util.find_spec('mmengine') is not None:
    from . import building, neck  # noqa: F401  (for their registrations)

    for _codebase in ('mmpretrain', 'mmdet', 'mmseg'):
        register_when_used(_codebase, 'MODELS', f'{__name__}.{_codebase}')
