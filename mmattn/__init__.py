"""Attention plugins for OpenMMLab: importing this package registers them.

The gates (`SE`, `ECA`, `CBAM`, `CoordAttention`, `CAT`, `DRTAM`, `SimAM`, `TripletAttention`,
`EMA`) go into mmengine's root registry, the hosts (`PluginResNet`, ...), detectors, data sets and
metrics into the registries of each installed codebase. Where mmengine is missing, the gates, their
operators and `plug` are all there is.
"""

import importlib.util
import os
import sys

from .version import __version__

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
    '__version__',
    'plug',
    'unplug',
]

# `python -m mmattn.doctor` comes through here first, and imports the rest itself to say what fails.
_doctor = sys.argv[:1] == ['-m'] and any(arg.endswith('mmattn.doctor') for arg in sys.orig_argv)
# What reads tables and records alone (tools/leaderboard.py) starts in a fifth of the time without.
if not _doctor and not os.environ.get('MMATTN_READ_ONLY'):
    if importlib.util.find_spec('mmengine') is not None:
        from . import mmcv_ops  # noqa: F401  (first: mmdet and mmseg import mmcv.ops)

        # isort: split
        # For their registrations.
        from . import analysis, attention, datasets, detectors, evaluation, hosts  # noqa: F401
    from .attention import (  # which need torch alone
        CAT,
        CBAM,
        DRTAM,
        ECA,
        EMA,
        SE,
        CoordAttention,
        SimAM,
        TripletAttention,
    )
    from .hosts.plug import plug, unplug  # so do these
