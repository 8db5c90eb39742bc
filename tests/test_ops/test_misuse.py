"""Ops used one step beside what they are made for: an error in words or the right numbers, never a
crash of the process."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from mmattn.ops import native

needs_kernels = pytest.mark.skipif(native.library() is None, reason='no C++ compiler')
ROOT = Path(__file__).parents[2]

_HEAD = """
import sys
for codebase in ('mmpretrain', 'mmdet', 'mmseg'):
    sys.modules[codebase] = None  # takes its time to import
import torch
from mmattn import attention, ops
from mmattn.ops import native
native.SMALL = 0
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


def alone(code):
    """Run code in a process of its own, whose death is a failure of this test alone."""
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', _HEAD + textwrap.dedent(code)],
        env=dict(os.environ, PYTHONPATH=str(ROOT), MMATTN_IMPL='fast'),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, f'exit status {done.returncode}: {done.stderr[-2000:]}'


@needs_kernels
@pytest.mark.parametrize('how', ('set_default_device', 'with'))
def test_default_device_is_not_that_of_the_results(how):
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
def test_factors_on_another_device_are_refused():
    alone(f"""
    def refuse(run): refused(run, RuntimeError, {_SAME!r})
    x = torch.randn(2, 16, 9, 8)
    def t(*size): return torch.rand(size, device='meta')
    c, s, h, w = t(2, 16), t(2, 9, 8), t(2, 9), t(2, 8)
    refuse(lambda: ops.channel_gate(x, c))
    refuse(lambda: ops.spatial_gate(x, s))
    refuse(lambda: ops.spatial_pool(x, c))
    refuse(lambda: ops.product_gate(x, torch.rand(2, 16), s))
    refuse(lambda: ops.sum_gate(x, c, torch.rand(2, 9, 8)))
    refuse(lambda: ops.coord_gate(x, t(2, 16, 9), torch.rand(2, 16, 8)))
    refuse(lambda: ops.rank1_gate(x, (torch.rand(2, 16), h, w)))
    planes = [torch.rand(s) for s in ((2, 16, 9), (2, 16, 8), (2, 9, 8))]
    weights = [torch.rand(s) for s in ((1, 12), (1, 5, 3), (1, 5, 3))]
    refuse(lambda: ops.rank1_pool([*planes[:2], s], weights, (3, 1)))
    refuse(lambda: ops.rank1_pool(planes, [*weights[:2], t(1, 5, 3)], (3, 1)))
    refuse(lambda: ops.rank1_pool(planes, weights, (3, 1), (c, h, w)))
    refuse(lambda: ops.spatial_conv(x, t(1, 16, 3, 3)))
    """)


@needs_kernels
def test_parameters_on_another_device_are_refused():
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
def test_a_tensor_without_memory_is_refused():
    """A parameter freed, as sharding frees it, before forward or backward; and zeros that have no
    memory."""
    alone("""
    x = torch.randn(2, 16, 9, 8, requires_grad=True)
    c = torch.rand(2, 16, requires_grad=True)
    y = ops.channel_gate(x, c)
    c.untyped_storage().resize_(0)
    refused(lambda: torch.autograd.grad(y.sum(), x), RuntimeError, 'has no memory')
    refused(lambda: ops.channel_gate(x, c), RuntimeError, 'has no memory')
    y = ops.channel_gate(x, torch.rand(2, 16))
    zeros = torch._efficientzerotensor(y.shape)
    refused(lambda: torch.autograd.grad(y, x, zeros), RuntimeError, 'has no memory')
    refused(lambda: ops.channel_gate(zeros, c), RuntimeError, 'has no memory')
    """)


@needs_kernels
@pytest.mark.parametrize('threads', (1, 2))
def test_out_of_memory_is_a_memory_error(threads):
    """Of a kernel's own scratch, inside and outside a parallel region; and all works afterwards."""
    alone(f"""
    import resource
    torch.set_num_threads({threads})
    def pool(size):
        return ops.entropy_pool(torch.ones(2, 1, size, size), taps, True, False, False, True, False)
    taps = torch.ones(3)
    pool(256)  # starts the threads, which take memory of their own
    x = torch.ones(2, 1, 2048, 2048)
    with open('/proc/self/statm') as f:
        used = int(f.read().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**21, hard))
    refused(lambda: ops.entropy_pool(x, taps, True, False, False, True, False), MemoryError, 'entropy')
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert pool(2048)[1][1].eq(3).all()
    """)


@needs_kernels
def test_the_library_says_how_its_functions_are_called():
    """The letters are made from the types of the C++ functions: they stand nowhere else."""
    functions = native.library()
    assert len(functions) == 20
    function, letters = functions['strips_grad']
    assert letters == 'xxnnnnisss'
    assert [t.__name__ for t in function.argtypes[1:3]] == ['c_void_p'] * 2
    assert len(function.argtypes) == len(letters) + 2  # the dtype, the number of threads
    x = torch.ones(1, 2, 3, 3)
    with pytest.raises(ValueError, match='argument'):  # one too few
        native.run('strips_grad', x, x, x, 1, 2, 3, 3, False, None, None)


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
            native.channel_gate(x, bad)
    with pytest.raises(ValueError, match='channels_last'):
        native.channel_gate_grad(last, c, dy=x, need_x=True)
    with pytest.raises(ValueError, match='contiguous'):
        native.channel_gate_grad(x, c, dy=last, need_x=True)
