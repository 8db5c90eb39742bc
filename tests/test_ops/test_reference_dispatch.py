"""The switch between the equations and the fast kernels."""

import runpy
import types

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mmattn import ops
from mmattn.ops import dispatch


@pytest.fixture
def kernels(monkeypatch):
    """A backend that takes every tensor, and only notes that it was asked."""
    module = types.SimpleNamespace(supports=lambda x: True)
    monkeypatch.setattr(dispatch, 'backend', lambda device_type: module)
    return module


def test_the_default_can_be_set_and_borrowed(kernels):
    x = torch.ones(1, 2, 3, 3)
    before = ops.get_impl()
    with ops.use_impl('fast'):
        assert dispatch.kernels_for(x) is kernels
        with ops.use_impl('reference'):
            assert ops.get_impl() == 'reference'
            assert dispatch.kernels_for(x) is None
            assert dispatch.kernels_for(x, 'fast') is kernels
        assert dispatch.kernels_for(x, 'reference') is None
        with pytest.raises(RuntimeError), ops.use_impl('reference'):
            raise RuntimeError
        assert ops.get_impl() == 'fast'
        ops.set_impl('reference')
        assert ops.get_impl() == 'reference'
    assert ops.get_impl() == before


@pytest.mark.parametrize('bad', ('slow', '', None, 'Fast'))
def test_wrong_impl(bad):
    for call in (ops.set_impl, ops.check_impl, lambda impl: ops.use_impl(impl).__enter__()):
        with pytest.raises(ValueError, match="must be one of \\('fast', 'reference'\\)"):
            call(bad)


def test_environment_variable(monkeypatch):
    def fresh(value):
        monkeypatch.setenv('MMATTN_IMPL', value)
        return runpy.run_path(dispatch.__file__)

    assert [fresh(value)['get_impl']() for value in ('reference', 'fast', '')] == [
        'reference',
        'fast',
        'fast',
    ]
    with pytest.raises(ValueError, match='environment variable MMATTN_IMPL must be one of'):
        fresh('quick')
    monkeypatch.delenv('MMATTN_IMPL')
    assert runpy.run_path(dispatch.__file__)['get_impl']() == 'fast'


def test_no_kernels_no_fast_path(monkeypatch):
    x = torch.ones(1, 2, 3, 3)
    assert dispatch.kernels_for(x.to('meta'), 'fast') is None
    monkeypatch.setattr(dispatch, 'backend', lambda device_type: None)
    assert dispatch.kernels_for(x, 'fast') is None
    refusing = types.SimpleNamespace(supports=lambda x: False)
    monkeypatch.setattr(dispatch, 'backend', lambda device_type: refusing)
    assert dispatch.kernels_for(x, 'fast') is None


def seen_inside(run):
    """What the dispatch answers to a tensor while `run(function, x)` works on it."""
    seen = []

    def function(x):
        seen.append(dispatch.kernels_for(x, 'fast'))
        return x * 2

    run(function, torch.ones(2, 2, 3, 3))
    return seen


def test_whatever_must_see_inside_gets_the_equations(kernels):
    assert seen_inside(lambda f, x: f(x)) == [kernels]
    assert seen_inside(lambda f, x: f(torch.nn.Parameter(x))) == [kernels]
    with FlopCounterMode(display=False):
        assert seen_inside(lambda f, x: f(x)) == [None]
    for run in (
        lambda f, x: torch.jit.trace(f, x, check_trace=False),
        lambda f, x: torch.vmap(f)(x[None]),
        lambda f, x: torch.func.grad(lambda y: f(y).sum())(x),
        lambda f, x: torch.func.jvp(f, (x,), (x,)),
        # A plain tensor beside a transformed parameter.
        lambda f, x: torch.func.grad(lambda p: (p * f(x)).sum())(torch.ones(())),
        lambda f, x: f(x.as_subclass(type('Special', (torch.Tensor,), {}))),
    ):
        answers = seen_inside(run)
        assert answers and set(answers) == {None}
    with torch.autograd.forward_ad.dual_level():
        assert seen_inside(lambda f, x: f(x)) == [None]
    assert seen_inside(lambda f, x: f(x)) == [kernels]


def test_compilation_gets_the_equations(kernels):
    torch._dynamo.reset()

    @torch.compile(backend='eager', fullgraph=True)
    def function(x):
        return x + 1 if dispatch.kernels_for(x, 'fast') is None else x - 1

    assert function(torch.zeros(1)).item() == 1


def test_factors_are_brought_to_the_precision_of_statistics():
    x = torch.ones(1, 2, 3, 3)
    c = torch.ones(1, 2, dtype=torch.float16)
    assert ops.channel_gate(x, c).dtype == torch.float32
    assert ops.channel_gate(x.half(), c.float()).dtype == torch.float16
    assert ops.channel_gate(x.double(), c).dtype == torch.float64
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        assert ops.stats_dtype(x.to(dtype)) == torch.float32
    assert ops.stats_dtype(x.double()) == torch.float64
