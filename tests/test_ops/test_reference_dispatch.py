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
    module = types.SimpleNamespace(takes=lambda device, dtype: True)
    monkeypatch.setattr(dispatch, 'backend', lambda device_type: module)
    return module


def test_the_default_can_be_set_and_borrowed(kernels):
    x = torch.ones(1, 2, 3, 3)
    before = ops.get_impl()
    with ops.use_impl('fast'):
        assert dispatch.runs_kernels(x)
        with ops.use_impl('reference'):
            assert ops.get_impl() == 'reference'
            assert not dispatch.runs_kernels(x)
            assert dispatch.runs_kernels(x, 'fast')
        assert not dispatch.runs_kernels(x, 'reference')
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
    assert not dispatch.runs_kernels(x.to('meta'), 'fast')
    monkeypatch.setattr(dispatch, 'backend', lambda device_type: None)
    assert not dispatch.runs_kernels(x, 'fast')
    refusing = types.SimpleNamespace(takes=lambda device, dtype: False)
    monkeypatch.setattr(dispatch, 'backend', lambda device_type: refusing)
    assert not dispatch.runs_kernels(x, 'fast')


def seen_inside(run):
    """What the dispatch answers to a tensor while `run(function, x)` works on it."""
    seen = []

    def function(x):
        seen.append(dispatch.runs_kernels(x, 'fast'))
        return x * 2

    run(function, torch.ones(2, 2, 3, 3))
    return seen


def test_whatever_must_see_inside_gets_the_equations(kernels):
    assert seen_inside(lambda f, x: f(x)) == [True]
    assert seen_inside(lambda f, x: f(torch.nn.Parameter(x))) == [True]
    with FlopCounterMode(display=False):
        assert seen_inside(lambda f, x: f(x)) == [False]
    for run in (
        lambda f, x: torch.jit.trace(f, x, check_trace=False),
        lambda f, x: f(x.as_subclass(type('Special', (torch.Tensor,), {}))),
    ):
        answers = seen_inside(run)
        assert answers and set(answers) == {False}
    assert seen_inside(lambda f, x: f(x)) == [True]


def test_what_traces_gets_operators(kernels):
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx

    with FakeTensorMode() as mode:
        x = mode.from_tensor(torch.ones(2, 2, 3, 3))
        assert dispatch.runs_kernels(x, 'fast')
    assert seen_inside(lambda f, x: make_fx(f)(x)) == [True]
    assert seen_inside(lambda f, x: make_fx(f, tracing_mode='symbolic')(x)) == [True]


def test_private_words_of_pytorch():
    """The two that are asked for say what they are taken to say."""
    assert dispatch.forward_level() == -1
    with torch.autograd.forward_ad.dual_level():
        assert dispatch.forward_level() == 0
    assert not dispatch.watched()
    with FlopCounterMode(display=False):
        assert dispatch.watched()


def test_compilation_keeps_the_choice(kernels):
    torch._dynamo.reset()

    @torch.compile(backend='eager', fullgraph=True)
    def function(x):
        return x + 1 if dispatch.runs_kernels(x) else x - 1

    x = torch.zeros(1, 2, 3, 3)
    assert function(x).eq(1).all()
    with ops.use_impl('reference'):
        assert function(x).eq(1).all()
        torch._dynamo.reset()
        assert function(x).eq(-1).all()
    torch._dynamo.reset()


def test_factors_are_brought_to_the_precision_of_statistics():
    x = torch.ones(1, 2, 3, 3)
    c = torch.ones(1, 2, dtype=torch.float16)
    assert ops.channel_scale(x, c).dtype == torch.float32
    assert ops.channel_scale(x.half(), c.float()).dtype == torch.float16
    assert ops.channel_scale(x.double(), c).dtype == torch.float64
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        assert ops.stats_dtype(x.to(dtype)) == torch.float32
    assert ops.stats_dtype(x.double()) == torch.float64
