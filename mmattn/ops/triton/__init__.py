"""Triton kernels for CUDA tensors: a kernel backend (`mmattn.ops.backend`).

Importing this package imports nothing: Triton is loaded by the first tensor that could use it.
With TRITON_INTERPRET=1 the same kernels run on CPU tensors, slowly, to be tested.

Passes over memory in units of the input (read + write), vectors and maps left out:

    op                       forward  backward
    channel_pool             1        2 (gx, dx)
    strip_pool               1        2
    spatial_pool             1        3 (x, gx, dx)
    entropy_pool             2        3; 1 in place of 2 with means and entropies, or maxima, alone
    any gate                 2        3 (x, dy, dx)
    rank1_attention          3        4 (x, dy; dy, dx)

So DRTAM moves 7, with both pool and gate SE, ECA and CoordAttention 8, CBAM 14 (two pools), CAT 10
times the input in a training step's forward and backward, where y = 1.5 x moves 4.
"""

import functools
import importlib
import os
import warnings

import torch

_MODULES = {
    'gate': (
        'channel_gate',
        'channel_gate_grad',
        'spatial_gate',
        'spatial_gate_grad',
        'product_gate',
        'product_gate_grad',
        'sum_gate',
        'sum_gate_grad',
        'rank1_gate',
        'rank1_gate_grad',
    ),
    'pool': (
        'channel_pool',
        'channel_pool_grad',
        'spatial_pool',
        'spatial_pool_grad',
        'channel_dx',
        'cbam_dx',
    ),
    'strip': ('strip_pool', 'strip_pool_grad', 'coord_gate', 'coord_gate_grad', 'coord_dx'),
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
    'cat': ('cat', 'cat_backward'),
    'cbam': ('cbam', 'cbam_backward'),
    'coord': ('coord', 'coord_backward'),
    'drtam': ('drtam', 'drtam_backward'),
}
MODULES = (*_MODULES, 'mlp', 'moments', 'maxima', *_OPERATORS)
_HOME = {name: module for module, names in _MODULES.items() for name in names}

__all__ = ['MODULES', 'SAVED', 'declines', 'operator', 'passes', 'takes', 'works', *_HOME]


def __getattr__(name):
    if name not in _HOME:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    found = getattr(importlib.import_module(f'{__name__}.{_HOME[name]}'), name)
    globals()[name] = found
    return found


# What knows the identity in part (`mmattn.ops.identity`); for others with an `identity_scale` the
# equations run.
IDENTITY = frozenset(('se', 'eca', 'cbam', 'cat', 'affine_gate'))
# The last pass of a backward scales dy itself.
CARRIES = False


@functools.cache
def operator(name):
    """The whole operator of that name, or None."""
    for module, names in _OPERATORS.items():
        if name in names:
            return getattr(importlib.import_module(f'{__name__}.{module}'), name)
    return None


def affine_gate(x, u, v, s):
    return (x.float() * _affine(u, v, s)).to(x.dtype)


def affine_gate_grad(x, u, v, s, *, dy, need_x):
    # No kernel yet: PyTorch's operators, and float32 copies of the map on their way.
    p, s_, dx = x.float() * dy.float(), s[:, None], None
    if need_x:
        dx = (dy.float() * _affine(u, v, s)).to(x.dtype)
    return dx, p.sum((2, 3)), (p * s_).sum((2, 3)), (p * v[:, :, None, None]).sum(1)


def _affine(u, v, s):
    return u[:, :, None, None] + v[:, :, None, None] * s[:, None]


def rank1_attention_parts(x, params, chunks, saved):
    return saved[:3], [(saved[i : i + 3], saved[i + 7 : i + 10]) for i in range(3, len(saved), 13)]


def declines(op, x, **_):
    return False


@functools.cache
def _works(device):
    """Whether the kernels can run on a device: a CUDA GPU with bfloat16, or the interpreter."""
    interpreted = os.environ.get('TRITON_INTERPRET') == '1'
    if device.type == 'cuda':
        if interpreted or torch.version.cuda is None:
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


def works(device):
    return _works(device)


def passes(op, x):
    """Whether an operator's kernels have passed their self-check where x is, in its dtype."""
    from . import selfcheck

    return not _is_there(x.device) or selfcheck.passes(op, x)


@functools.cache
def _is_there(device):
    """Whether kernels can run here: a FakeTensor's device need not be there."""
    return (device.type != 'cuda' or torch.cuda.is_available()) and _works(device)


def takes(device, dtype):
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
