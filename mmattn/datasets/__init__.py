"""Data sets the codebases lack."""

from importlib.util import find_spec

__all__ = []

if find_spec('mmpretrain'):
    from .digits_cifar import DigitsCIFAR100  # noqa: F401

    __all__ += ['DigitsCIFAR100']
