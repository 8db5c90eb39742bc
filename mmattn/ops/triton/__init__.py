"""Triton kernels for CUDA tensors: a kernel backend (`mmattn.ops.backend`).

Importing this package imports nothing: Triton is loaded by the first tensor that could use it.
With TRITON_INTERPRET=1 the same kernels run on CPU tensors, slowly, to be tested.

Passes over memory in units of the input (read + write), vectors and maps left out:

    op                       forward  backward
    channel_pool             1        1 (dx)
    strip_pool               1        1
    spatial_pool             1        2 (x, dx)
    entropy_pool             2        2; forward 1 with means and entropies, or maxima, alone
    any scale                2        3 (x, dy, dx)
    se, eca, coord, drtam    3        4 (x, dy; dy, dx)
    cbam                     4        5 (x, dy; x; dy, dx)
    cat                      4        5 (x, dy; x, dy, dx)

where y = 1.5 x moves 2 and 2. Each gate is a whole operator here, of few launches (`_OPERATORS`):
what lies between pool and scale is a program a sample. Sums over the batch end a launch.
"""

import functools
import importlib
import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

_MODULES = {
    'scale': (
        'channel_scale',
        'spatial_scale',
        'product_scale',
        'sum_scale',
        'affine_scale',
        'rank1_scale',
    ),
    'scale_grad': (
        'channel_scale_grad',
        'spatial_scale_grad',
        'product_scale_grad',
        'sum_scale_grad',
        'affine_scale_grad',
        'rank1_scale_grad',
    ),
    'pool': ('channel_pool', 'spatial_pool'),
    'pool_grad': ('channel_pool_grad', 'spatial_pool_grad', 'channel_dx', 'cbam_dx'),
    'coord': ('coord_strips',),
    'strip': ('strip_pool', 'strip_pool_grad', 'coord_dx'),
    'strip_scale': ('coord_scale', 'coord_scale_grad'),
    'planes': ('rank1_pool',),
    'planes_grad': ('rank1_pool_grad',),
    'conv': ('spatial_conv', 'spatial_conv_grad'),
    'norm': ('min_max', 'min_max_grad'),
    'entropy': ('entropy_pool', 'entropy_pool_grad', 'entropy_dx'),
}
# Whole operators, of which the kernels take fewer launches than the functions above do. One that
# has no kernels for what it is given returns NotImplemented.
_OPERATORS = {
    'channel': ('se', 'se_backward', 'eca', 'eca_backward'),
    'cat': ('cat',),
    'cat_grad': ('cat_backward',),
    'cbam': ('cbam', 'cbam_backward'),
    'coord': ('coord',),
    'coord_grad': ('coord_backward',),
    'drtam': ('drtam',),
    'drtam_grad': ('drtam_backward',),
}
MODULES = tuple(dict.fromkeys((*_MODULES, 'mlp', 'moments', 'maxima', *_OPERATORS)))
_HOME = {name: module for module, names in _MODULES.items() for name in names}

__all__ = ['MODULES', 'SAVED', 'declines', 'operator', 'passes', 'takes', 'works', *_HOME]


def __getattr__(name):
    if name not in _HOME:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    found = getattr(importlib.import_module(f'{__name__}.{_HOME[name]}'), name)
    globals()[name] = found
    return found


# What knows the identity in part (`mmattn.ops.identity`).
IDENTITY = frozenset(
    ('se', 'eca', 'cbam', 'coord', 'cat', 'drtam', 'affine_scale', 'coord_scale', 'rank1_scale')
)


@functools.cache
def operator(name: str) -> Callable[..., Any] | None:
    """The whole operator of that name, or None."""
    for module, names in _OPERATORS.items():
        if name in names:
            return getattr(importlib.import_module(f'{__name__}.{module}'), name)
    return None


def rank1_attention_parts(
    x: Tensor, params: Sequence[Tensor], chunks: Sequence[int], saved: Sequence[Any]
) -> tuple[Sequence[Tensor], list[tuple[Any, ...]]]:
    return saved[:3], [(saved[i : i + 3], saved[i + 7 : i + 10]) for i in range(3, len(saved), 13)]


def declines(op: str, x: Tensor, **_: Any) -> bool:
    return False


@functools.cache
def _works(device):
    """Whether the kernels can run on a device: a CUDA GPU with bfloat16, or the interpreter."""
    interpreted = os.environ.get('TRITON_INTERPRET') == '1'
    if device.type == 'cuda':
        # A FakeTensor's device need not be there: what is traced without a GPU gets the equations.
        if interpreted or torch.version.cuda is None or not torch.cuda.is_available():
            return False
        if torch.cuda.get_device_capability(device) < (8, 0):
            return False
    elif device.type != 'cpu' or not interpreted:
        return False
    try:
        for module in MODULES:
            importlib.import_module(f'{__name__}.{module}')
    except Exception as error:  # no Triton, or one that does not load: the caller has another way
        warnings.warn(
            f'mmattn runs its reference ops on {device}, several times slower: Triton does not '
            f'load ({type(error).__name__}: {error}). Install the one that this PyTorch asks for; '
            'MMATTN_IMPL=reference ends this warning.',
            stacklevel=2,
        )
        return False
    return True


def works(device: torch.device) -> bool:
    return _works(device)


def passes(op: str, x: Tensor) -> bool:
    """Whether an operator's kernels have passed their self-check where x is, in its dtype."""
    from . import selfcheck

    return not _is_there(x.device) or selfcheck.passes(op, x)


@functools.cache
def _is_there(device):
    """Whether kernels can run here: a FakeTensor's device need not be there."""
    return (device.type != 'cuda' or torch.cuda.is_available()) and _works(device)


def takes(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the kernels take maps of a dtype on a device of `_works`."""
    return dtype in (torch.float32, torch.bfloat16, torch.float16) and _works(device)


def _saved_of_planes(n, h, w, chunks):
    rows = sum(chunks) + 1
    return [((n, rows, h), False), ((n, rows, w), False), ((n, h), True), ((n, w), True)]


def _saved_of_attention(x, params, chunks):
    (n, c, h, w), hidden = x.shape, params[0].shape[0]
    vectors = [((n, length), False) for length in (c, h, w)]
    layers = [((3, 2), False), ((n, c), False), ((n, hidden), False)]
    each = [*vectors, *_saved_of_planes(n, h, w, chunks), *vectors, *layers]
    planes = [((n, c, h), False), ((n, c, w), False), ((n, h, w), False)]
    return [*planes, *each * ((len(params) - 4) // 9)]


def _saved_of_entropy(x, channel, spatial, avg, max, ent):
    n, c, h, w = x.shape
    found = []
    for wanted, length in ((channel, c), (spatial, h * w)):
        found.append(((n, length) if wanted and max else (0,), True))
        found += [((n, length) if wanted and ent else (0,), False)] * 3
    return found


# What operators keep for backward, as (shape, whether of integers).
SAVED = dict(rank1_attention=_saved_of_attention, entropy_pool=_saved_of_entropy)
