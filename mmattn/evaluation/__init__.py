"""Metrics of the papers that the codebases lack."""

from importlib.util import find_spec

__all__ = []

if find_spec('mmdet') is not None:
    from .voc_ap import VOCAPMetric

    __all__ += ['VOCAPMetric']
