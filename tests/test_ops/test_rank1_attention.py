"""All of DRTAM in one op: the CPU kernels against float64 equations, and refusals."""

import attention_cases as cases
import on_kernels
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from needs import needs_kernels
from torch.utils.checkpoint import checkpoint

from mmattn import ops
from mmattn.attention import DRTAM
from mmattn.ops import native

LAYOUTS = pytest.mark.parametrize('last', (False, True), ids=('contiguous', 'channels_last'))


@needs_kernels
@LAYOUTS
@pytest.mark.parametrize(
    'dtype', (torch.float64, torch.float32, torch.bfloat16, torch.float16), ids=str
)
@pytest.mark.parametrize('shape, chunks, modules', cases.SIZES, ids=str)
def test_like_equations(shape, chunks, modules, dtype, last):
    cases.compare(native, shape, chunks, modules, dtype, last)


@needs_kernels
@LAYOUTS
@pytest.mark.parametrize('momenta', (cases.EVAL, cases.MIXED), ids=('eval', 'mixed'))
@pytest.mark.parametrize('modules', (1, 2))
def test_running_statistics(modules, momenta, last):
    cases.compare(native, (3, 6, 7, 18), (3, 2), modules, torch.float64, last, momenta)
    cases.compare(native, (3, 6, 7, 18), (3, 2), modules, torch.float32, last, momenta)


@needs_kernels
@settings(max_examples=25)
@given(
    shape=st.tuples(st.integers(2, 3), *(st.integers(1, top) for top in (40, 20, 40))),
    chunks=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    modules=st.integers(1, 2),
    last=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_shape(shape, chunks, modules, last, seed):
    cases.compare(native, shape, chunks, modules, torch.float64, last, seed=seed)


@needs_kernels
@LAYOUTS
@pytest.mark.parametrize(
    'shape, dtype',
    (
        ((2, 32, 256, 272), torch.float32),
        ((2, 33, 300, 236), torch.float32),
        ((2, 64, 256, 272), torch.bfloat16),
    ),
    ids=str,
)
def test_maps_larger_than_caches(shape, dtype, last):
    """Their results are stored past the caches; not the second's, which has rows that end within
    a cache line."""
    cases.compare(native, shape, (3, 1), 2, dtype, last, sums=2e-3)  # millions of terms


@needs_kernels
@pytest.mark.parametrize('modules', (1, 2))
@pytest.mark.parametrize('momenta', (cases.TRAIN, cases.EVAL), ids=('train', 'eval'))
def test_gradcheck(modules, momenta):
    x, made, mlp = cases.make((2, 3, 4, 5), (2, 1), modules, momenta)
    leaves = [
        x,
        *mlp,
        *(
            t
            for weights, norms in made
            for t in (*weights, *(n.weight for n in norms), *(n.bias for n in norms))
        ),
    ]
    leaves = [t.clone().requires_grad_() for t in leaves]

    def op(x, *t):
        layers = [
            (t[i : i + 3], [
                n._replace(weight=w, bias=b, mean=n.mean.clone(), var=n.var.clone())
                for n, w, b in zip(norms, t[i + 3 : i + 6], t[i + 6 : i + 9], strict=True)
            ])
            for i, (_, norms) in zip((4, 13), made)  # noqa: B905
        ]  # fmt: skip
        return on_kernels.rank1_attention(native, x, layers, t[:4], (2, 1))

    assert torch.autograd.gradcheck(op, leaves)


def gates(impl='fast', **kwargs):
    torch.manual_seed(0)
    gate = DRTAM(12, impl=impl, **kwargs).double()
    return gate, torch.randn(3, 12, 9, 20, dtype=torch.float64, requires_grad=True)


def outcome(gate, x):
    """y, gradients and buffers of a training step."""
    y = gate(x)
    grads = torch.autograd.grad(y.square().sum(), [x, *gate.parameters()])
    return [y, *grads, *gate.buffers()]


def assert_equal(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('dual', (True, False))
@pytest.mark.parametrize('training', (True, False))
def test_implementations_agree(dual, training):
    results = []
    for impl in ('fast', 'reference'):
        gate, x = gates(impl, dual=dual)
        gate.train(training)
        outcome(gate, x)
        results.append(outcome(gate, x))  # after the running statistics moved
    assert_equal(*results)


@pytest.mark.parametrize('impl', ('fast', 'reference'))
@pytest.mark.parametrize('layer', ('mlp.0', 'mlp', 'initial.channel_norm', 'complement'))
def test_layers_somebody_listens_to_are_called(layer, impl):
    heard = []
    expected = outcome(*gates(impl))
    gate, x = gates(impl)
    gate.get_submodule(layer).register_forward_hook(lambda *_: heard.append(True))
    assert_equal(outcome(gate, x), expected)
    assert heard


@pytest.mark.parametrize('impl', ('fast', 'reference'))
@pytest.mark.parametrize('momentum', (None, 0.0, 0.5))
def test_momentum_is_that_of_the_norms(impl, momentum):
    ours, x = gates(impl)
    theirs, _ = gates(impl)
    theirs.mlp.register_forward_hook(lambda *_: None)  # by its own layers
    for gate in (ours, theirs):
        for norm in gate.modules():
            if isinstance(norm, torch.nn.BatchNorm1d):
                norm.momentum = momentum
    for scale in (1, 2, 3):
        results = [outcome(gate, (scale * x).detach().requires_grad_()) for gate in (ours, theirs)]
        assert_equal(*results)
    assert ours.initial.channel_norm.num_batches_tracked == 3


@needs_kernels
def test_an_update_of_running_statistics_is_known_to_autograd():
    gate, x = gates()
    before = gate.initial.channel_norm.running_mean._version
    gate(x)
    assert gate.initial.channel_norm.running_mean._version > before


@needs_kernels
def test_evaluation_may_be_followed_by_training_before_backward():
    """What backward needs of the running statistics is kept: they may change in between."""
    gate, x = gates()
    gate.eval()
    expected = torch.autograd.grad(gate(x).square().sum(), x)
    y = gate(x)
    gate.train()
    gate(3 * x)
    assert_equal(torch.autograd.grad(y.square().sum(), x), expected)


@needs_kernels
def test_backward_twice_and_under_checkpoint():
    gate, x = gates()
    y = gate(x)
    leaves = [x, *gate.parameters()]
    first = torch.autograd.grad(y.square().sum(), leaves, retain_graph=True)
    assert_equal(torch.autograd.grad(y.square().sum(), leaves), first)
    again = checkpoint(gate, x, use_reentrant=False)
    assert_equal(torch.autograd.grad(again.square().sum(), leaves), first)


@needs_kernels
def test_backward_under_autocast_is_in_full_precision():
    gate, x = gates()
    gate, x = gate.float(), x.detach().float().requires_grad_()
    leaves = [x, *gate.parameters()]
    expected = torch.autograd.grad(gate(x).sum(), leaves)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        found = torch.autograd.grad(gate(x).sum(), leaves)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@needs_kernels
def test_only_what_is_asked_for():
    gate, x = gates()
    expected = torch.autograd.grad(gate(x).sum(), list(gate.parameters()))
    frozen = x.detach()
    assert_equal(torch.autograd.grad(gate(frozen).sum(), list(gate.parameters())), expected)
    gate.requires_grad_(False)
    assert torch.autograd.grad(gate(x).sum(), x)[0].isfinite().all()
    assert not gate(frozen).requires_grad


@needs_kernels
@LAYOUTS
@pytest.mark.parametrize('spacing', ('expanded', 'transposed'))
def test_gradients_of_any_layout(spacing, last):
    gate, x = gates()
    x = (
        x.detach()
        .contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
        .requires_grad_()
    )
    dy = (
        torch.ones(1, dtype=x.dtype).expand(x.shape)
        if spacing == 'expanded'
        else (torch.randn(20, 9, 12, 3, dtype=x.dtype).permute(3, 2, 1, 0))
    )
    expected = torch.autograd.grad(gate(x), x, dy.clone(memory_format=torch.contiguous_format))
    assert_equal(torch.autograd.grad(gate(x), x, dy), expected)


@needs_kernels
@LAYOUTS
def test_threads_do_not_change_a_bit(last):
    before, results = torch.get_num_threads(), []
    x, modules, mlp = cases.make((8, 200, 30, 28), (3, 1), 2)
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            op = lambda *a: on_kernels.rank1_attention(native, *a)  # noqa: E731
            results.append(cases.run(op, (x, modules, mlp), (3, 1), torch.float32, torch.float32,
                                     last=last))  # fmt: skip
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize('impl', ('fast', 'reference'))
@pytest.mark.parametrize('training', (True, False))
def test_a_nan_comes_out(impl, training):
    gate, x = gates(impl)
    gate.train(training)
    x = x.detach().clone()
    x[1, 2, 3, 4] = float('nan')
    y = gate(x)
    # Batch statistics carry it to every sample, running ones within its own.
    assert y[1].isnan().all()
    assert y[0].isnan().all() if training else y[0].isfinite().all()


@pytest.mark.parametrize('impl', ('fast', 'reference'))
def test_wrong_shapes_are_refused(impl):
    x, modules, mlp = cases.make((2, 4, 5, 3), (2, 2), 2)
    for bad in (mlp[:3] + (mlp[0],), (mlp[0][:, :2], *mlp[1:])):
        with pytest.raises(ValueError, match='MLP must be'):
            ops.rank1_attention(x, modules, bad, (2, 2), impl=impl)
    with pytest.raises(ValueError, match='weights must be'):
        ops.rank1_attention(x, modules, mlp, (2, 3), impl=impl)
