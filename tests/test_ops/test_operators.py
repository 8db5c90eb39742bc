"""Every operator of the library `mmattn`, as PyTorch itself checks it, and under its transforms."""

import warnings

import pytest
import torch
from needs import needs_kernels
from torch.library import opcheck
from torch.utils._python_dispatch import TorchDispatchMode

import mmattn.attention as attention
from mmattn import ops
from mmattn.ops import dispatch, library

pytestmark = needs_kernels
N, C, H, W = SHAPE = 2, 6, 5, 4
LAYOUTS = dict(contiguous=torch.contiguous_format, channels_last=torch.channels_last)


def cases(dtype, layout, grad):
    """Arguments of every forward operator, by a name that begins with the operator's."""
    torch.manual_seed(0)
    acc = torch.float64 if dtype == torch.float64 else torch.float32

    def rand(*size):
        return torch.rand(size, dtype=acc).requires_grad_(grad)

    def x():
        made = torch.randn(SHAPE).to(dtype).contiguous(memory_format=LAYOUTS[layout])
        return made.requires_grad_(grad)

    def rank1():
        return [rand(N, C), rand(N, H), rand(N, W)]

    taps = torch.tensor([0.2, 0.5, 0.3], dtype=acc)
    module = [rand(1, 12), rand(1, 5, 3), rand(1, 5, 3), *(rand(1) for _ in range(6))]
    mlp = [rand(8, C), rand(8), rand(C, 8), rand(C)]
    running = [torch.rand(1, dtype=acc) for _ in range(12)]
    norm = [rand(1), rand(1), *running[:2]]
    four = [rand(8), rand(8), torch.rand(8, dtype=acc), torch.rand(8, dtype=acc)]
    second = [rand(C, 8), rand(C), rand(C, 8), rand(C)]
    made = {
        'channel_pool': (x(), False),
        'channel_pool-max': (x(), True),
        'spatial_pool': (x(), rand(N, C)),
        'strip_pool': (x(), False),
        'strip_pool-channel': (x(), True),
        'entropy_pool': (x(), taps, True, True, True, True, True),
        'entropy_pool-few': (x(), taps, True, False, False, True, False),
        'channel_scale': (x(), [rand(N, C)]),
        'spatial_scale': (x(), [rand(N, H, W)]),
        'product_scale': (x(), [rand(N, C), rand(N, H, W)]),
        'sum_scale': (x(), [rand(N, C), rand(N, H, W)]),
        'affine_scale': (x(), [rand(N, C), rand(N, C), rand(N, H, W)]),
        'coord_scale': (x(), [rand(N, C, H), rand(N, C, W)]),
        'coord_scale-identity': (x(), [rand(N, C, H), rand(N, C, W), rand(N, C)]),
        'rank1_scale': (x(), rank1()),
        'rank1_scale-dual': (x(), rank1() + rank1()),
        'rank1_scale-identity': (x(), [*rank1(), *rank1(), rand(N, C)]),
        'drtam': (x(), mlp + module, [], [True] * 3, [1e-5] * 3, [3, 1], None),
        'drtam-eval': (x(), mlp + module, running[:6], [False] * 3, [1e-5] * 3, [3, 1], None),
        'drtam-dual': (
            x(), mlp + 2 * module, running, [True, False] * 3, [1e-5] * 6, [3, 1], None,
        ),
        'drtam-identity': (
            x(), mlp + module, running[:6], [True] * 3, [1e-5] * 3, [3, 1], rand(1),
        ),
        'drtam-dual-identity': (
            x(), mlp + 2 * module, running, [True, False] * 3, [1e-5] * 6, [3, 1], rand(C),
        ),
        'se': (x(), rand(8, C), rand(8), rand(C, 8), rand(C), None),
        'se-identity': (x(), rand(8, C), rand(8), rand(C, 8), rand(C), rand(C)),
        'se-no-bias': (x(), rand(8, C), None, rand(C, 8), None, rand(1)),
        'eca': (x(), rand(1, 1, 3), None),
        'eca-identity': (x(), rand(1, 1, 3), rand(C)),
        'cbam': (x(), *mlp, rand(1, 2, 3, 3), norm, True, 1e-5, None),
        'cbam-identity': (x(), *mlp, rand(1, 2, 3, 3), norm, True, 1e-5, rand(C)),
        'cbam-eval': (x(), *mlp, rand(1, 2, 3, 3), norm, False, 1e-5, rand(1)),
        'cbam-no-norm': (x(), mlp[0], None, mlp[2], None, rand(1, 2, 3, 3), [], False, 0.0, None),
        'coord': (x(), rand(8, C), rand(8), *four, *second, True, 1e-5, None),
        'coord-identity': (x(), rand(8, C), rand(8), *four, *second, True, 1e-5, rand(C)),
        'coord-eval': (x(), rand(8, C), rand(8), *four, *second, False, 1e-5, rand(1)),
        'cat': (x(), taps, rand(8, C), rand(C, 8), rand(1, 1, 3, 3), rand(3), rand(3), rand(2),
                [True] * 3, 0.0, 1.0, True, None),
        'cat-identity': (x(), taps, rand(8, C), rand(C, 8), rand(1, 1, 3, 3), rand(3), rand(3),
                         rand(2), [True] * 3, 0.0, 1.0, True, rand(C)),
        'cat-algorithm': (x(), taps, rand(8, C), rand(C, 8), rand(1, 3, 3, 3), rand(3), rand(3),
                          rand(2), [True] * 3, -1.0, 1.0, False, rand(1)),
        'cat-few': (x(), taps, rand(8, C), rand(C, 8), rand(1, 1, 3, 3), None, None, None,
                    [False, True, True], 0.0, 1.0, True, None),
        'cat-plain': (x(), taps, rand(8, C), rand(C, 8), rand(1, 2, 3, 3), None, None, None,
                      [True, True, False], 0.0, 1.0, True, None),
        'min_max': (rand(N, 1, 7), 0.0, 1.0),
        'spatial_conv': (rand(N, 2, H, W), rand(1, 2, 3, 3)),
        'rank1_pool': (
            [rand(N, C, H), rand(N, C, W), rand(N, H, W)], module[:3], rank1(), [3, 1],
        ),
    }  # fmt: skip
    return made


NAMES = tuple(cases(torch.float32, 'contiguous', False))


GATES = [name for name in NAMES if name.startswith(('se', 'eca', 'cbam', 'cat', 'drtam'))]
GATES += [name for name in NAMES if name.partition('-')[0] == 'coord']


def operator(name):
    return getattr(torch.ops.mmattn, name.partition('-')[0]).default


def test_every_operator_is_tried_here():
    assert {operator(name) for name in NAMES} == set(ops.decompositions)


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('dtype', (torch.float64, torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize('name', NAMES)
def test_opcheck(name, dtype, layout):
    """Schema, fake results, and where the gradient is registered; of its backward as well."""
    for grad in (False, True):
        args = cases(dtype, layout, grad)[name]
        checks = ('test_schema', 'test_faketensor', 'test_autograd_registration')
        opcheck(operator(name), args, test_utils=checks)


@pytest.mark.slow
@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('name', NAMES)
def test_opcheck_of_aot_dispatch(name, layout):
    args = cases(torch.float64, layout, True)[name]
    opcheck(operator(name), args, test_utils='test_aot_dispatch_dynamic')


def loss(call, args):
    """A number made of all results of a call that have a gradient."""
    found = call(*args)
    found = found if isinstance(found, tuple) else (found,)
    return sum(
        (t * torch.linspace(0.5, 1, t.numel(), dtype=t.dtype).view_as(t)).sum()
        for t in found
        if isinstance(t, torch.Tensor) and t.numel() and t.is_floating_point()
    )


def split(args):
    """The tensors, and a function that makes the arguments of such tensors."""
    tensors = list(library._tensors(args))

    def join(given):
        given = iter(given)
        return [
            next(given) if isinstance(a, torch.Tensor)
            else [next(given) if isinstance(t, torch.Tensor) else t for t in a]
            if isinstance(a, list) else a
            for a in args
        ]  # fmt: skip

    return tensors, join


@pytest.mark.parametrize('name', NAMES)
def test_transforms_give_what_equations_give(name):
    args = cases(torch.float64, 'contiguous', False)[name]
    tensors, join = split(args)
    op = operator(name)
    tangent = torch.randn_like(tensors[0])

    def by(call):
        # A norm's moments have no gradient.
        only = (lambda *a: call(*a)[0]) if name in GATES else call
        return lambda x: loss(only, join([x, *tensors[1:]]))

    fast, exact = by(op), by(ops.decompositions[op])
    x = tensors[0]
    for transform in (
        lambda f: torch.func.grad(f)(x),
        lambda f: torch.func.jvp(f, (x,), (tangent,)),
        lambda f: torch.func.vjp(f, x)[1](torch.ones((), dtype=x.dtype)),
        lambda f: torch.func.jvp(torch.func.grad(f), (x,), (tangent,)),
        lambda f: _dual(f, x, tangent),
    ):
        torch.testing.assert_close(transform(fast), transform(exact), rtol=1e-9, atol=1e-9)
    many = torch.stack((x, 2 * x))
    torch.testing.assert_close(torch.vmap(fast)(many), torch.stack([exact(t) for t in many]))


def _dual(function, x, tangent):
    forward_ad = torch.autograd.forward_ad
    with forward_ad.dual_level():
        found = forward_ad.unpack_dual(function(forward_ad.make_dual(x, tangent)))
        assert found.tangent is not None
        return found.primal.clone(), found.tangent.clone()


@pytest.mark.parametrize('name', NAMES)
def test_gradients_are_those_of_the_equations(name):
    results = []
    for of in ('kernels', 'equations'):
        args = cases(torch.float64, 'channels_last', True)[name]
        call = operator(name) if of == 'kernels' else ops.decompositions[operator(name)]
        tensors = [t for t in library._tensors(args) if t.requires_grad]
        results.append(torch.autograd.grad(loss(call, args), tensors, allow_unused=True))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, torch.zeros_like(a) if b is None else b)


def _flat(found):
    found = found if isinstance(found, (list, tuple)) else [found]
    return [t for item in found for t in (item if isinstance(item, list) else [item])]


@pytest.mark.parametrize('name', NAMES)
def test_an_eager_backward_is_its_kernel(name, monkeypatch):
    """Not the operator, which is called where a gradient is more than its memory."""
    op, of, calls = operator(name), name.partition('-')[0] + '_backward', []
    backward = getattr(torch.ops.mmattn, of)
    monkeypatch.setattr(torch.ops.mmattn, of, lambda *a: calls.append(a) or backward(*a))
    args = cases(torch.float32, 'contiguous', True)[name]
    leaves = [t for t in library._tensors(args) if t.requires_grad]
    y = next(t for t in _flat(op(*args)) if t.numel())
    dy = torch.randn_like(y)
    expected = torch.autograd.grad(y, leaves, dy, retain_graph=True, allow_unused=True)
    assert not calls
    flagged = torch.complex(torch.zeros_like(dy), -dy).conj().imag
    assert flagged.is_neg()
    found = torch.autograd.grad(y, leaves, flagged, allow_unused=True)
    assert len(calls) == 1
    torch.testing.assert_close(found, expected)


class _Calls(TorchDispatchMode):
    """Notes the operators of mmattn that are called, and with what."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == 'mmattn':
            self.found.append((function, args))
        return function(*args, **(kwargs or {}))


def of_other_strides(arg):
    """The same values with the first axis innermost."""
    if isinstance(arg, torch.Tensor):
        axes = [*reversed(range(arg.dim()))]
        return arg.detach().permute(axes).contiguous().permute(axes)
    return [of_other_strides(item) for item in arg] if isinstance(arg, (list, tuple)) else arg


@pytest.mark.parametrize('name', NAMES)
def test_tensors_of_any_strides(name):
    """Of a backward as well: a compiler may restride what is kept for it."""
    args = cases(torch.float64, 'contiguous', True)[name]
    with _Calls() as calls:
        loss(operator(name), args).backward()
    assert len(calls.found) == 2
    for function, given in calls.found:
        with torch.no_grad():
            expected, found = function(*given), function(*map(of_other_strides, given))
        torch.testing.assert_close(_flat(found), _flat(expected))


@pytest.mark.parametrize('name', NAMES)
def test_an_empty_map(name):
    if name in ('min_max', 'spatial_conv', 'rank1_pool'):
        pytest.skip('these take no map')
    x, *rest = cases(torch.float32, 'contiguous', False)[name]
    if '_scale' in name:
        rest = [[factor[:0] for factor in rest[0]]]
    if name == 'spatial_pool':
        rest = [rest[0][:0]]
    x = x[:0].requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        found = operator(name)(x, *rest)
    found = found if isinstance(found, tuple) else (found,)
    (dx,) = torch.autograd.grad(found[0].sum() + 0 * x.sum(), x)
    assert dx.shape == x.shape


@pytest.mark.parametrize('name', ('SE', 'ECA', 'CBAM', 'CoordAttention', 'CAT', 'DRTAM'))
def test_no_kernel_on_a_device_is_an_error_in_words(name, monkeypatch):
    """Of an exported program that came to a machine without a compiler, say."""
    x = torch.randn(1, 8, 3, 3)
    monkeypatch.setattr(dispatch, 'backend', lambda device_type: None)
    with pytest.raises(RuntimeError, match="impl='reference' needs neither"):
        torch.ops.mmattn.channel_pool(x, True)
    assert getattr(attention, name)(8).eval()(x).isfinite().all()
