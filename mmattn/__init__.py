"""Attention plugins for OpenMMLab: importing this package registers them.

The gates (`SE`, `ECA`, `CBAM`, `CoordAttention`, `CAT`, `DRTAM`) go into mmengine's root registry,
the hosts (`PluginResNet`, ...) data sets and metrics into the registry of each installed codebase.
"""

import sys

from . import quiet
from .version import __version__

# `python -m mmattn.doctor` comes through here first, and imports the rest itself to say what fails.
if not (sys.argv[:1] == ['-m'] and any(arg.endswith('mmattn.doctor') for arg in sys.orig_argv)):
    with quiet.imports():
        from . import attention, datasets, evaluation, hosts  # noqa: F401  (they register)

__all__ = ['__version__']
