"""Ops used one step beside what they are made for: an error in words or the right numbers, never a
crash of the process."""

import textwrap
import warnings

import fast_cases
import forked
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from needs import needs_kernels

from mmattn import attention, ops
from mmattn.ops import dispatch, native

_HEAD = """
import torch
from mmattn import attention, ops
from mmattn.ops import native
native.SMALL = 0
ops.set_impl('fast')
torch.manual_seed(0)
GATES = ('SE', 'ECA', 'CBAM', 'CoordAttention', 'CAT', 'DRTAM')
def made(name, **kwargs):
    torch.manual_seed(0)
    return getattr(attention, name)(16, **kwargs)
def refused(run, error=RuntimeError, words=''):
    try:
        run()
    except error as e:
        assert words in str(e), e
    else:
        raise AssertionError('not refused')
"""


def _run(code):
    warnings.simplefilter('ignore')
    exec(_HEAD + textwrap.dedent(code), {})


@pytest.fixture
def alone(tmp_path):
    """Runs code in a process of its own, whose death is a failure of this test alone."""

    def run(code):
        log = tmp_path / 'log'
        code = forked.alone(log, _run, code)
        assert code == 0, f'exit code {code}: {log.read_text()[-2000:]}'

    return run


@needs_kernels
@pytest.mark.parametrize('how', ('set_default_device', 'with'))
def test_default_device_is_not_that_of_the_results(how, alone):
    """Results and gradients lie where the input does, whatever device new tensors go to."""
    alone(f"""
    x = torch.randn(2, 16, 9, 8)
    gates = {{name: made(name).eval() for name in GATES}}
    def results():
        found = []
        for name in GATES:
            leaf = x.detach().requires_grad_()
            y = gates[name](leaf)
            found += [y, *torch.autograd.grad(y.sum(), [leaf, *gates[name].parameters()])]
        return found
    expected = results()
    if {how == 'with'}:
        with torch.device('meta'):
            found = results()
    else:
        torch.set_default_device('meta')
        found = results()
    assert all(t.device.type == 'cpu' for t in found)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    """)


_SAME = 'Expected all tensors to be on the same device'


@needs_kernels
def test_factors_on_another_device_are_refused(alone):
    alone(f"""
    def refuse(run): refused(run, RuntimeError, {_SAME!r})
    x = torch.randn(2, 16, 9, 8)
    def t(*size): return torch.rand(size, device='meta')
    c, s, h, w = t(2, 16), t(2, 9, 8), t(2, 9), t(2, 8)
    refuse(lambda: ops.channel_scale(x, c))
    refuse(lambda: ops.spatial_scale(x, s))
    refuse(lambda: ops.spatial_pool(x, c))
    refuse(lambda: ops.product_scale(x, torch.rand(2, 16), s))
    refuse(lambda: ops.sum_scale(x, c, torch.rand(2, 9, 8)))
    refuse(lambda: ops.coord_scale(x, t(2, 16, 9), torch.rand(2, 16, 8)))
    refuse(lambda: ops.rank1_scale(x, (torch.rand(2, 16), h, w)))
    planes = [torch.rand(s) for s in ((2, 16, 9), (2, 16, 8), (2, 9, 8))]
    weights = [torch.rand(s) for s in ((1, 12), (1, 5, 3), (1, 5, 3))]
    refuse(lambda: ops.rank1_pool([*planes[:2], s], weights, (3, 1)))
    refuse(lambda: ops.rank1_pool(planes, [*weights[:2], t(1, 5, 3)], (3, 1)))
    refuse(lambda: ops.rank1_pool(planes, weights, (3, 1), (c, h, w)))
    refuse(lambda: ops.spatial_conv(x, t(1, 16, 3, 3)))
    """)


@needs_kernels
def test_parameters_on_another_device_are_refused(alone):
    """By every gate, in training and evaluation, by the kernels as by PyTorch's own layers."""
    alone("""
    x = torch.randn(2, 16, 9, 8)
    for name in GATES:
        for impl in ('fast', 'reference'):
            for train in (True, False):
                gate = made(name, impl=impl).train(train).to('meta')
                refused(lambda: gate(x), RuntimeError, 'device')
    """)


@needs_kernels
def test_a_tensor_without_memory_is_refused(alone):
    """A parameter freed, as sharding frees it, before forward or backward; zeros that have none."""
    alone("""
    x = torch.randn(2, 16, 9, 8, requires_grad=True)
    c = torch.rand(2, 16, requires_grad=True)
    y = ops.channel_scale(x, c)
    c.untyped_storage().resize_(0)
    refused(lambda: torch.autograd.grad(y.sum(), x), RuntimeError, 'has no memory')
    refused(lambda: ops.channel_scale(x, c), RuntimeError, 'has no memory')
    y = ops.channel_scale(x, torch.rand(2, 16))
    zeros = torch._efficientzerotensor(y.shape)  # of which PyTorch makes ordinary ones
    assert not torch.autograd.grad(y, x, zeros)[0].any()
    assert not ops.channel_scale(zeros, torch.rand(2, 16)).any()
    """)


@needs_kernels
@pytest.mark.parametrize('threads', (1, 2))
def test_out_of_memory_is_a_memory_error(threads, alone):
    """Of a kernel's own scratch, inside and outside a parallel region; and all works afterwards."""
    alone(f"""
    import resource
    torch.set_num_threads({threads})
    def pool(x):
        return ops.entropy_pool(x, taps, spatial=False, avg=False, ent=False)
    taps = torch.ones(3)
    pool(torch.ones(2, 1, 256, 256))  # starts the threads, which take memory of their own
    x = torch.ones(2, 1, 2048, 2048)
    with open('/proc/self/statm') as f:
        used = int(f.read().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**21, hard))
    refused(lambda: pool(x), MemoryError, 'entropy')
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert pool(x)[0][1].eq(3).all()
    """)


@needs_kernels
def test_the_library_says_how_its_functions_are_called():
    """The letters are made from the types of the C++ functions: they stand nowhere else."""
    functions = native.library()
    assert len(functions) == 32
    function, count, pointers = functions['strips_grad']
    assert count == 10
    assert pointers == [(0, 'x'), (1, 'x'), (7, 's'), (8, 's'), (9, 's')]
    assert [t.__name__ for t in function.argtypes[1:3]] == ['c_void_p'] * 2
    assert len(function.argtypes) == count + 2  # the dtype, the number of threads
    x = torch.ones(1, 2, 3, 3)
    for more in ((None, None), (None,) * 4):
        with pytest.raises(TypeError, match='takes 10 arguments'):
            native.run('strips_grad', x, x, x, 1, 2, 3, 3, False, *more)


@needs_kernels
def test_only_what_a_kernel_can_read_becomes_a_pointer():
    x, c = torch.ones(2, 4, 3, 3), torch.ones(2, 4)
    last = x.to(memory_format=torch.channels_last)
    for bad, error, words in (
        (c.double(), TypeError, 'takes torch.float32 here, got torch.float64'),
        (c.to('meta'), RuntimeError, 'Expected all tensors to be on the same device'),
        (torch.ones(4, 2).t(), ValueError, 'contiguous'),
        (c.as_subclass(type('Special', (torch.Tensor,), {})), TypeError, 'got Special'),
    ):
        with pytest.raises(error, match=words):
            native.channel_scale(x, bad)
    with pytest.raises(ValueError, match='channels_last'):
        native.channel_scale_grad(last, c, dy=x, need_x=True)
    with pytest.raises(ValueError, match='contiguous'):
        native.channel_scale_grad(x, c, dy=last, need_x=True)


@needs_kernels
@pytest.mark.parametrize('name', ('SE', 'ECA', 'CBAM', 'CoordAttention', 'CAT', 'DRTAM'))
@pytest.mark.parametrize('constant', (True, False), ids=('constant dy', 'dy of the input'))
def test_a_second_derivative_is_exact_or_refused(name, constant):
    """Never is a gradient silently taken for a constant."""
    found = []
    for impl in ('reference', 'fast'):
        torch.manual_seed(0)
        gate = getattr(attention, name)(8, impl=impl).double()
        x = torch.randn(2, 8, 5, 4, dtype=torch.float64, requires_grad=True)
        y = gate(x)
        (dx,) = torch.autograd.grad((y if constant else y * x).sum(), x, create_graph=True)
        assert dx.requires_grad
        found.append(dx.detach())
        if impl == 'fast':
            for leaf in (x, next(gate.parameters())):
                with pytest.raises(RuntimeError, match="impl='reference'"):
                    torch.autograd.grad(
                        dx.square().sum(), leaf, retain_graph=True, allow_unused=True
                    )
        else:
            dx.square().sum().backward()
            assert x.grad.isfinite().all()
    torch.testing.assert_close(*found)


@needs_kernels
def test_a_linear_op_has_an_exact_second_derivative():
    """It is zero, so that a gradient without history is right."""
    x = torch.randn(2, 6, 7, 5, requires_grad=True)
    (avg,) = ops.channel_pool(x, impl='fast')
    y = ops.channel_scale(x, torch.rand(2, 6), impl='fast')
    (dx,) = torch.autograd.grad(y.sum() + avg.sum(), x, create_graph=True)
    assert not dx.requires_grad
    scale = torch.ones((), requires_grad=True)  # the gradient of a scaled loss has the scale in it
    (avg,) = ops.channel_pool(x, impl='fast')
    (dx,) = torch.autograd.grad(scale * avg.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="impl='reference'"):
        torch.autograd.grad(dx.sum(), scale, allow_unused=True)


@needs_kernels
def test_a_forward_derivative_of_a_backward_is_exact_or_refused():
    x, c = torch.randn(2, 6, 7, 5, requires_grad=True), torch.rand(2, 6)
    forward_ad = torch.autograd.forward_ad
    for factor in (c, c.clone().requires_grad_()):
        y = ops.channel_scale(x, factor, impl='fast')
        with forward_ad.dual_level():
            dy = forward_ad.make_dual(torch.ones_like(y), torch.ones_like(y))
            if factor is c:  # linear
                moved = forward_ad.unpack_dual(torch.autograd.grad(y, x, dy)[0]).tangent
                torch.testing.assert_close(moved, c[:, :, None, None].expand_as(x))
            else:
                with pytest.raises(RuntimeError, match="impl='reference'"):
                    torch.autograd.grad(y, x, dy)


@needs_kernels
def test_a_batch_of_gradients_is_refused_in_words():
    for name in ('SE', 'CBAM', 'CAT', 'DRTAM'):
        x = torch.randn(2, 8, 5, 4, requires_grad=True)
        for impl in ('reference', 'fast'):
            y = getattr(attention, name)(8, impl=impl).eval()(x)
            dy = torch.randn(3, *y.shape)
            if impl == 'reference':
                torch.autograd.grad(y, x, dy, is_grads_batched=True)
                continue
            with pytest.raises(RuntimeError, match="impl='reference'"):
                torch.autograd.grad(y, x, dy, is_grads_batched=True)


# ------------------------------------------------------------------------ what an op is given

X = torch.ones(2, 16, 9, 8)


@pytest.mark.parametrize('impl', ops.dispatch.IMPLS)
@pytest.mark.parametrize(
    'call, words',
    (
        (lambda **k: ops.channel_pool(X[0], **k), 'map'),
        (lambda **k: ops.channel_pool(X.int(), **k), 'floating-point'),
        (lambda **k: ops.strip_pool(X.flatten(2), **k), 'map'),
        (lambda **k: ops.channel_scale(X[0], torch.ones(16, 9), **k), 'map'),
        (lambda **k: ops.channel_scale(X, torch.ones(2, 16, dtype=torch.complex64), **k), 'real'),
        (lambda **k: ops.entropy_pool(X, torch.ones(4), **k), 'odd'),
        (lambda **k: ops.entropy_pool(X, torch.ones(0), **k), 'odd'),
        (lambda **k: ops.entropy_pool(X, torch.ones(3, 3), **k), '1-D'),
        (lambda **k: ops.spatial_conv(X, torch.ones(1, 16, 3, 3).double(), **k), 'one dtype'),
        (lambda **k: ops.min_max(torch.ones(3), 0, 1, **k), 'samples'),
        (lambda **k: ops.min_max(torch.ones(3, 4).int(), 0, 1, **k), 'floating-point'),
        (lambda **k: ops.rank1_pool(PLANES, WEIGHTS, (0, 1), **k), 'chunks must be'),
        (lambda **k: ops.rank1_pool(PLANES, WEIGHTS, (3, 1), maxima=(True,), **k), 'maxima must'),
        (
            lambda **k: ops.rank1_pool(PLANES, WEIGHTS, (3, 1), maxima=(True, False), **k),
            'and .True, False. maxima the weights must be',
        ),
    ),
)
def test_wrong_inputs(call, words, impl):
    with pytest.raises(ValueError, match=words):
        call(impl=impl)


PLANES = [torch.rand(s) for s in ((2, 16, 9), (2, 16, 8), (2, 9, 8))]
WEIGHTS = [torch.rand(s) for s in ((1, 12), (1, 5, 3), (1, 5, 3))]


@needs_kernels
@pytest.mark.parametrize('dtype', (torch.bfloat16, torch.float16, torch.float64), ids=str)
def test_planes_of_any_dtype(dtype):
    """Kernels read float32 of 16-bit planes, too: not their memory as if it were."""
    planes = [plane.to(dtype) for plane in PLANES]
    ours = ops.rank1_pool(planes, WEIGHTS, (3, 1), impl='fast')
    theirs = ops.rank1_pool(planes, WEIGHTS, (3, 1), impl='reference')
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)
    mixed = [planes[0], *PLANES[1:]]
    for a, b in zip(ops.rank1_pool(mixed, WEIGHTS, (3, 1)), theirs, strict=True):
        torch.testing.assert_close(a, b.to(a.dtype), rtol=1e-2, atol=1e-1)


@needs_kernels
def test_taps_that_are_strided_or_learned():
    x = torch.randn(2, 6, 9, 8)
    found = []
    for impl in ('fast', 'reference'):
        taps = torch.linspace(0, 1, 10, requires_grad=True)
        with torch.no_grad():
            (_, peak, _), _ = ops.entropy_pool(x, taps[::2], impl=impl)
        (_, again, _), _ = ops.entropy_pool(x, taps[::2], impl=impl)
        found.append((peak, again.detach(), *torch.autograd.grad(again.sum(), taps)))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


@needs_kernels
def test_a_tensor_whose_sign_is_a_flag():
    """The imaginary part of a conjugate: its memory holds the opposite."""
    z = torch.complex(torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1)).conj().imag
    assert z.is_neg() and z.is_contiguous()
    one = torch.ones(1, 1, 1, 1, requires_grad=True)
    assert ops.channel_scale(z, torch.ones(1, 1), impl='fast').item() == -1
    y = ops.channel_scale(one, z.view(1, 1), impl='fast')
    assert y.item() == -1
    y = ops.channel_scale(one, torch.ones(1, 1), impl='fast')
    y = torch.complex(torch.zeros(1, 1, 1, 1), y).conj().imag
    assert torch.autograd.grad(y.sum(), one)[0].item() == -1


@needs_kernels
@pytest.mark.parametrize('name', ('SE', 'ECA', 'CBAM', 'CoordAttention', 'CAT', 'DRTAM'))
def test_saved_tensors_may_come_back_in_another_layout(name):
    """As from hooks that keep them elsewhere meanwhile, packed."""
    gate = getattr(attention, name)(8, impl='fast').eval()
    x = torch.randn(2, 8, 6, 5).to(memory_format=torch.channels_last).requires_grad_()
    leaves = [x, *gate.parameters()]
    expected = torch.autograd.grad(gate(x).square().sum(), leaves)
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: t.numpy(force=True).copy(order='C'), torch.from_numpy
    ):
        y = gate(x)
    for a, b in zip(torch.autograd.grad(y.square().sum(), leaves), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def _window(x):
    """Neighbours overlap in memory."""
    n, c, h, w = x.shape
    return x.flatten().as_strided(x.shape, (h, 1, w, 1))


VIEWS = dict(
    dense=lambda x: x,
    last=lambda x: x.contiguous(memory_format=torch.channels_last),
    offset=lambda x: torch.cat((x.flatten()[:1], x.flatten()))[1:].view(x.shape),
    sliced=lambda x: torch.stack((x, x), 4)[..., 0],
    transposed=lambda x: x.transpose(0, 3).contiguous().transpose(0, 3),
    expanded=lambda x: x[:1].expand(x.shape),
    one=lambda x: x.flatten()[:1].view(1, 1, 1, 1).expand(x.shape),
    overlapping=_window,
    padded=lambda x: x.as_strided(
        x.shape, [s if n > 1 else 7 for n, s in zip(x.shape, x.stride(), strict=True)]
    ),
)


@needs_kernels
@settings(max_examples=60)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 7), st.integers(1, 7)),
    of_x=st.sampled_from(tuple(VIEWS)),
    of_dy=st.sampled_from(tuple(VIEWS)),
    of_factors=st.booleans(),
    dtype=st.sampled_from((torch.float64, torch.float32, torch.bfloat16)),
    no_grad=st.booleans(),
    device=st.sampled_from(('cpu', 'meta')),
    seed=st.integers(0, 99),
)
def test_any_view_any_gradient(shape, of_x, of_dy, of_factors, dtype, no_grad, device, seed):
    torch.manual_seed(seed)
    draw = torch.randn(shape, dtype=torch.float64).to(dtype).double()
    dy = VIEWS[of_dy](torch.randn(shape, dtype=torch.float64).to(dtype).double())
    for name, (op, args, options) in fast_cases.cases(*shape).items():
        if of_x == 'one' and ('max' in name or op in ('spatial_pool', 'entropy_pool')):
            continue  # which of equals is the largest
        results = []
        for impl in ('fast', 'reference'):
            exact = impl == 'reference'
            leaf = draw.to(torch.float64 if exact else dtype).requires_grad_()
            factors = fast_cases.cast(args, torch.float64 if exact or dtype == torch.float64
                                      else torch.float32)  # fmt: skip
            given_ = factors
            if (
                of_factors
                and op != 'entropy_pool'
                and factors
                and not isinstance(factors[0], tuple)
            ):
                given_ = tuple(torch.stack((f, f), -1)[..., 0] for f in factors)
            with torch.device('cpu' if exact else device):
                outputs = fast_cases.tensors(
                    getattr(ops, op)(VIEWS[of_x](leaf), *given_, **options, impl=impl)
                )
                leaves = [leaf, *(t for t in fast_cases.tensors(factors) if t.requires_grad)]
                grads = [
                    dy.to(o.dtype) if o.shape == dy.shape else torch.ones_like(o) for o in outputs
                ]
                with torch.set_grad_enabled(not no_grad):
                    results.append([
                        *outputs,
                        *torch.autograd.grad(outputs, leaves, grads, allow_unused=True),
                    ])  # fmt: skip
        for a, b in zip(*results, strict=True):
            assert (a is None) == (b is None), name
            if a is not None:
                fast_cases.assert_close([a], [b], dtype, 8, 1.0)


@needs_kernels
def test_a_map_of_two_to_the_31_elements_is_left_to_the_equations():
    """Kernels count within a map in 32 bits. The map here has no memory of its own to be read."""
    x = torch.ones(1).expand(2, 2**10, 2**10, 2**10)
    assert x.numel() == 2**31 and not dispatch.runs_kernels(x)
    assert dispatch.runs_kernels(x[..., 1:])
    kernel = torch.ones(1, 1, 3)
    with pytest.raises(RuntimeError, match=r'less than 2\*\*31 elements'):
        torch.ops.mmattn.eca(x, kernel, None)
