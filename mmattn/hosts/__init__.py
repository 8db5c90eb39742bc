"""Backbones with plugin slots, in the registry of each installed codebase (vocabulary: `slots`)."""

import importlib
import importlib.util
import warnings


def _register(codebase: str) -> None:
    """Import the hosts of `codebase` if it is installed; warn if it is, but cannot be imported."""
    spec = importlib.util.find_spec(codebase)
    # A mere folder of that name in the working directory has a spec, but no origin.
    if spec is None or spec.origin is None:
        return
    try:
        importlib.import_module(f'{codebase}.models')
    except Exception as error:
        warnings.warn(
            f'{codebase} is installed but fails to import, so its hosts are missing: '
            f'{type(error).__name__}: {error}',
            stacklevel=2,
        )
    else:
        importlib.import_module(f'{__name__}.{codebase}')


for _codebase in ('mmpretrain', 'mmdet', 'mmseg'):
    _register(_codebase)
