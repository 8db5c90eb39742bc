"""Who supplies `mmcv._ext`: the compiled module where it loads, else torchvision's operators."""

import ctypes
import importlib.util
import os
import sys
from collections.abc import Sequence
from importlib import metadata
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

VARIABLE = 'MMATTN_MMCV_OPS'
EXTENSION = 'mmcv._ext'


class InUse(NamedTuple):
    """Which operators `mmcv.ops` runs on."""

    name: str
    """'compiled', 'torchvision', or 'none' where `mmcv.ops` cannot be imported."""
    reason: str
    """Why these, in a few words."""

    def __str__(self) -> str:
        return f"mmcv's operators: {self.name} ({self.reason})"


def install() -> None:
    """Puts the finder in front of Python's own, once; imports nothing unless there is a choice.

    Raises:
        ValueError: MMATTN_MMCV_OPS is neither 'torchvision' nor 'compiled'.
        ImportError: MMATTN_MMCV_OPS=torchvision comes too late, as the compiled ones are imported,
            or MMATTN_MMCV_OPS=compiled and there are none that load.
    """
    choice = chosen()
    if not any(isinstance(finder, OperatorsFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, OperatorsFinder())
    imported = sys.modules.get(EXTENSION)
    if choice == 'torchvision' and imported is not None and not _is_ours(imported.__spec__):
        raise ImportError(
            f'{VARIABLE}=torchvision, but the compiled operators of mmcv are imported already: '
            'import mmattn before mmcv.ops, mmdet and mmseg.'
        )
    if choice == 'compiled' and importlib.util.find_spec('mmcv'):
        importlib.util.find_spec(EXTENSION)  # said here, not in the middle of mmdet's import


def in_use() -> InUse:
    """Which operators `mmcv.ops` runs on, or would run on if it were imported now."""
    try:
        spec = importlib.util.find_spec(EXTENSION)
    except ImportError as error:
        return InUse('none', str(error))
    if spec is None:
        return InUse('none', 'mmcv has no compiled operators, and mmattn.mmcv_ops is not installed')
    if isinstance(spec.loader, OperatorsLoader):
        return InUse('torchvision', spec.loader.reason)
    return InUse('compiled', str(spec.origin))


def recipe() -> str:
    """How to get compiled operators for the mmcv that is installed."""
    for name in ('onedl-mmcv', 'mmcv', 'mmcv-lite'):
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        # Without --no-cache-dir, pip installs the wheel without operators that it built before.
        return (
            f'pip uninstall -y {name}; MMCV_WITH_OPS=1 pip install --no-build-isolation '
            f'--no-cache-dir --no-deps {name.removesuffix("-lite")}=={version} '
            '(needs a C++ compiler, for a GPU also nvcc, and takes 10 to 20 minutes)'
        )
    return 'pip install mmcv'


def chosen() -> str | None:
    """The choice made by hand: 'torchvision', 'compiled', or None where none was made."""
    choice = os.environ.get(VARIABLE) or None
    if choice not in (None, 'torchvision', 'compiled'):
        raise ValueError(
            f"{VARIABLE}={choice}: must be 'torchvision' or 'compiled'; unset, the compiled "
            'operators are used where they load.'
        )
    return choice


class OperatorsFinder(MetaPathFinder):
    """Answers for `mmcv._ext` alone, and only where the compiled one is missing or unwanted."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != EXTENSION:
            return None
        choice = chosen()
        fault = self._fault(path)
        if choice == 'compiled' and fault:
            raise ImportError(f'{VARIABLE}=compiled, but {fault}. To get them: {recipe()}')
        if choice != 'torchvision' and not fault:
            return None
        by_hand = f'{VARIABLE}=torchvision'
        loader = OperatorsLoader(fault if fault is not None and choice is None else by_hand)
        spec = ModuleSpec(fullname, loader, origin=str(Path(__file__).with_name('operators.py')))
        spec.has_location = True
        return spec

    @staticmethod
    def _fault(path: Sequence[str] | None) -> str | None:
        """Why the compiled module cannot be used, None where it can."""
        others = (finder for finder in sys.meta_path if not isinstance(finder, OperatorsFinder))
        specs = (finder.find_spec(EXTENSION, path, None) for finder in others)
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is None:
            return 'mmcv was installed without compiled operators'
        import torch  # noqa: F401  (its libraries are the extension's)

        try:
            # Looks every symbol up, as an import does, but runs nothing of the module.
            ctypes.CDLL(spec.origin)
        except OSError as error:
            return f'the compiled operators of mmcv do not load: {error}'
        return None


class OperatorsLoader(Loader):
    """Fills `mmcv._ext` with the operators of torch and torchvision.

    Args:
        reason (str): Why the compiled ones are not used.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason

    def exec_module(self, module: ModuleType) -> None:
        from . import operators

        module.__doc__ = operators.__doc__
        vars(module)['__getattr__'] = operators.missing
        for name in operators.__all__:
            setattr(module, name, getattr(operators, name))


def _is_ours(spec: ModuleSpec | None) -> bool:
    return spec is not None and isinstance(spec.loader, OperatorsLoader)
