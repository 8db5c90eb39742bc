"""The fast ops inside PyTorch: gates, what is saved, in-place buffers, fallbacks, processes."""

import copy
import os
import warnings

import forked
import pytest
import torch
from needs import needs_kernels
from nodes import OURS, nodes
from torch.utils.checkpoint import checkpoint

import mmattn.attention as attention
from mmattn import ops
from mmattn.analysis.benchmark import saved_bytes
from mmattn.ops import dispatch, native

pytestmark = needs_kernels
GATES = ('SE', 'ECA', 'CBAM', 'CoordAttention', 'CAT', 'DRTAM')
LAYOUTS = dict(contiguous=torch.contiguous_format, channels_last=torch.channels_last)


def gate(name, channels, impl='fast'):
    torch.manual_seed(0)
    made = getattr(attention, name)(channels, impl=impl)
    with torch.no_grad():  # away from a start where gradients vanish: CAT's factors are 0
        for p in made.parameters():
            p.add_(torch.randn_like(p) * 0.3)
    return made


def step(module, x, dy):
    y = module(x)
    leaves = [t for t in (x, *module.parameters()) if t.requires_grad]
    return y, torch.autograd.grad(y, leaves, dy.to(y.dtype))


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize(
    'dtype', (torch.float64, torch.float32, torch.bfloat16, torch.float16), ids=str
)
@pytest.mark.parametrize('name', GATES)
def test_gate_like_reference(name, dtype, layout):
    acc = torch.float64 if dtype == torch.float64 else torch.float32
    fast = gate(name, 48).to(acc)
    reference = copy.deepcopy(fast).double()
    reference.impl = 'reference'
    torch.manual_seed(1)
    x = torch.randn(4, 48, 14, 10, dtype=torch.float64).to(dtype)
    dy = torch.randn(x.shape, dtype=torch.float64).to(dtype)
    x64 = x.double().requires_grad_()
    x = x.contiguous(memory_format=LAYOUTS[layout]).requires_grad_()
    y, grads = step(fast, x, dy)
    y64, grads64 = step(reference, x64, dy)
    assert y.dtype == dtype and y.is_contiguous(memory_format=LAYOUTS[layout])
    slack = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 8e-3, torch.float16: 1e-3}[
        dtype
    ]
    for i, (a, b) in enumerate(zip((y, *grads), (y64, *grads64), strict=True)):
        # A sum over a batch may cancel: allow for it by the scale of all gradients.
        scale = max(float(b.abs().max()), 1e-2 * float(grads64[0].abs().max()))
        # Batch norms of a handful of values amplify what rounding x and y to 16 bits does.
        error = float((a.double() - b).abs().max())
        assert error <= slack * scale * (1 if i < 2 else 4), f'{i}: {error:.3g} of {scale:.3g}'


@pytest.mark.parametrize('name', GATES)
def test_gate_takes_the_fast_path_and_saves_little(name):
    x = torch.randn(2, 256, 56, 56, requires_grad=True)
    fast, reference = gate(name, 256), gate(name, 256, 'reference')
    x_bytes = x.numel() * x.element_size()
    saved = saved_bytes(fast, x) / x_bytes
    assert saved <= (1.2 if name in ('DRTAM', 'CAT') else 1.1)
    assert saved <= saved_bytes(reference, x) / x_bytes
    assert nodes(fast(x)) & OURS
    assert not nodes(reference(x)) & OURS


@pytest.mark.parametrize('name', GATES)
def test_without_gradients_nothing_is_saved(name):
    fast, x = gate(name, 16), torch.randn(2, 16, 9, 8)
    y = fast.eval()(x.clone().requires_grad_())
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            torch.testing.assert_close(fast(x), y, rtol=0, atol=0)
            assert saved_bytes(fast, x) == 0


@pytest.mark.parametrize('name', GATES)
def test_frozen_input_or_parameters(name):
    fast = gate(name, 16).eval()
    x, dy = torch.randn(2, 16, 9, 8), torch.randn(2, 16, 9, 8)
    _, (dx, *dp) = step(fast, x.clone().requires_grad_(), dy)
    _, only_parameters = step(fast, x, dy)
    for a, b in zip(only_parameters, dp, strict=True):
        torch.testing.assert_close(a, b)
    _, (only_x,) = step(fast.requires_grad_(False), x.clone().requires_grad_(), dy)
    torch.testing.assert_close(only_x, dx)


@pytest.mark.parametrize('name', GATES)
def test_checkpoint_deterministic_and_repeatable(name):
    fast = gate(name, 16).eval()
    x, dy = torch.randn(2, 16, 9, 8, requires_grad=True), torch.randn(2, 16, 9, 8)
    torch.use_deterministic_algorithms(True)
    try:
        y, grads = step(fast, x, dy)
        again, grads_again = step(fast, x, dy)
        for reentrant in (False, True):
            out, grads_ckpt = _checkpointed(fast, x, dy, reentrant)
            assert torch.equal(out, y)
            assert all(torch.equal(a, b) for a, b in zip(grads_ckpt, grads, strict=True))
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(y, again)
    assert all(torch.equal(a, b) for a, b in zip(grads, grads_again, strict=True))


def _checkpointed(module, x, dy, reentrant):
    x = x.detach().clone().requires_grad_()
    module.zero_grad()
    out = checkpoint(module, x, use_reentrant=reentrant)
    out.backward(dy)
    return out, (x.grad, *(p.grad for p in module.parameters()))


def test_double_backward_is_refused():
    x = torch.randn(2, 4, 5, 5, requires_grad=True)
    (dx,) = torch.autograd.grad(
        gate('SE', 16)(torch.cat([x] * 4, 1)).square().sum(), x, create_graph=True
    )
    with pytest.raises(RuntimeError, match="impl='reference'"):
        dx.sum().backward()


def test_a_map_used_twice():
    """Beside pool and scale: the gradients are added, and nobody's is overwritten."""
    kept = []

    def loss(x, impl):
        (avg,) = ops.channel_pool(x, impl=impl)
        other = x * 2
        other.register_hook(kept.append)
        return (ops.channel_scale(x, avg, impl=impl) * other).sum()

    x = torch.randn(2, 5, 6, 7, dtype=torch.float64, requires_grad=True)
    (fast,) = torch.autograd.grad(loss(x, 'fast'), x)
    (reference,) = torch.autograd.grad(loss(x, 'reference'), x)
    torch.testing.assert_close(fast, reference)
    torch.testing.assert_close(kept[0], kept[1])


@pytest.mark.parametrize(
    'make',
    (
        lambda x: x[:, ::2],
        lambda x: x[..., 1:],
        lambda x: x.transpose(2, 3),
        lambda x: x[:1].expand(3, -1, -1, -1),
    ),
)
def test_views_are_copied(make):
    x = torch.randn(3, 16, 9, 8, requires_grad=True)
    view = make(x)
    assert dispatch.runs_kernels(view, 'fast')
    fast = gate('CBAM', view.shape[1]).eval()
    y = fast(view)
    torch.testing.assert_close(y, fast(view.contiguous()), rtol=1e-5, atol=1e-5)
    y.sum().backward()


def test_empty_and_odd_inputs_fall_back():
    def runs(*shape, **options):
        return dispatch.runs_kernels(torch.zeros(shape, **options), 'fast')

    assert runs(2, 4, 5, 5) and runs(2, 4, 5)
    assert not runs(0, 4, 5, 5)
    assert not runs(2, 4, 5, 5, dtype=torch.int32)
    assert not runs(4, 5)
    assert not runs(1, 2, 3, 4, 5)
    assert not runs(2, 4, 5, 5, device='meta')
    assert gate('SE', 16)(torch.zeros(0, 16, 5, 5)).shape == (0, 16, 5, 5)


def _without(variables, warned):
    for name in ('CXX', 'MMATTN_NATIVE'):
        os.environ.pop(name, None)
    os.environ.update(variables)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        x = torch.randn(2, 16, 9, 8, requires_grad=True)
        for _ in range(3):
            attention.CBAM(16)(x).sum().backward()
    assert native.library() is None
    assert sum('reference ops' in str(w.message) for w in caught) == warned


@pytest.mark.parametrize(
    'env, warned', ((dict(CXX='/no/such/compiler'), 1), (dict(MMATTN_NATIVE='0'), 0))
)
def test_no_compiler_means_reference(tmp_path, env, warned):
    """One warning, or none where it was asked for, and the gates work."""
    log, variables = tmp_path / 'log', dict(env, XDG_CACHE_HOME=str(tmp_path))
    assert forked.alone(log, _without, variables, warned) == 0, log.read_text()


@pytest.mark.parametrize('name', ('SE', 'ECA'))
def test_small_maps_are_left_to_pytorch(name, monkeypatch):
    """Where calling the kernels costs more than they save; not in 16 bits, nor CBAM's pool."""
    monkeypatch.setattr(native, 'SMALL', 1000)
    small, large = torch.randn(1, 16, 7, 7), torch.randn(2, 16, 7, 7)
    for x, taken in ((small, False), (large, True), (small.bfloat16(), True)):
        found = nodes(gate(name, 16)(x.requires_grad_()))
        assert bool(found & OURS) == (taken or name == 'ECA')  # whose convolution is quick
    assert 'cbamBackward' in nodes(gate('CBAM', 16)(small))
