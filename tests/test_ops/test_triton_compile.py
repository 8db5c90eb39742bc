"""Every Triton kernel, as it is launched for real shapes, compiled for a GPU that need not exist.

The interpreter accepts what the compiler refuses; the compiler needs no GPU. Triton is told of an
H100 by a driver that knows nothing else, and the launches stop once the machine code is there.
"""

import importlib

import pytest
import torch
import triton_cases as cases

triton = pytest.importorskip('triton', reason='Triton does not come with this build of PyTorch')
from triton.backends.compiler import GPUTarget  # noqa: E402

KERNELS = {
    'gate_kernel',
    'gate_grad_kernel',
    'outer_grad_kernel',
    'pool_kernel',
    'best_kernel',
    'channel_pool_grad_kernel',
    'spatial_pool_grad_kernel',
    'strip_pool_kernel',
    'strip_pool_grad_kernel',
    'rank1_pool_kernel',
    'rank1_conv_kernel',
    'rank1_conv_grad_kernel',
    'rank1_pool_grad_kernel',
    'spatial_conv_kernel',
    'spatial_conv_grad_kernel',
    'min_max_kernel',
    'min_max_grad_kernel',
    'moments_of_kernel',
    'rank1_norm_kernel',
    'rank1_norm_sums_kernel',
    'rank1_norm_grad_kernel',
    'coord_gate_kernel',
    'coord_gate_grad_kernel',
    'moments_kernel',
    'merge_kernel',
    'maxima_kernel',
    'entropy_grad_kernel',
}


class Driver:
    """As much of a Triton driver as compiling takes."""

    def get_current_target(self):
        return GPUTarget('cuda', 90, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0


@pytest.fixture
def compiled(monkeypatch, pytestconfig):
    """Compile in place of launching; the names of what was compiled.

    Triton keeps what it has compiled by its source and target, here for all tests together: many
    kernels do not depend on a test's shape, layout or dtype.
    """
    monkeypatch.setenv('TRITON_CACHE_DIR', str(pytestconfig.cache.mkdir('triton')))
    names = []

    def compile_only(kernel, programs, *args, num_warps=4, maxnreg=None, **constants):
        done = kernel.warmup(
            *args, grid=(programs,), num_warps=num_warps, maxnreg=maxnreg, **constants
        )
        assert len(done.asm['cubin']) > 0
        assert done.metadata.shared <= 48 * 1024
        assert 0 < programs < 2**31
        names.append(kernel.__name__)

    for module in cases.MODULES:
        module = importlib.import_module(f'mmattn.ops.triton.{module}')
        monkeypatch.setattr(module, 'launch', compile_only)
    # Put back by hand: reset_active() asks for the machine's own driver, and newer Tritons raise
    # where there is none.
    driver = triton.runtime.driver
    before = dict(vars(driver))
    driver.set_active(Driver())
    yield names
    vars(driver).update(before)


def launch_all(x, only=None):
    """Every function of the backend, on tensors without data."""
    from mmattn.ops import triton as kernels

    n, c, h, w = x.shape
    axes = dict(n=n, c=c, h=h, w=w)

    def floats(names):
        return torch.empty([axes[a] for a in names], device='meta')

    for name, factors in cases.GATES.items():
        factors = [floats(names) for names in factors]
        name = name.replace('dual', 'rank1')
        if only in (None, name):
            getattr(kernels, name)(x, *factors)
            getattr(kernels, name + '_grad')(x, *factors, dy=x, need_x=True)
    nc, nhw, nch, ncw = (floats(names) for names in ('nc', 'nhw', 'nch', 'ncw'))
    if only in (None, 'channel_pool'):
        for maximum in (False, True):
            _, top, arg = kernels.channel_pool(x, maximum=maximum)
            kernels.channel_pool_grad(x, nc, top, arg, inplace=True)
    if only in (None, 'strip_pool'):
        for channel in (False, True):
            kernels.strip_pool(x, channel=channel)
            kernels.strip_pool_grad(x, nch, ncw, nhw if channel else None, inplace=False)
    if only in (None, 'rank1_pool'):
        nh, nw, weights = (
            floats('nh'),
            floats('nw'),
            [torch.empty(s, device='meta') for s in ((1, 12), (1, 5, 3), (1, 5, 3))],
        )
        for taken in (None, (nc, nh, nw)):
            args = (nch, ncw, nhw), weights, (3, 1), taken
            out, saved = kernels.rank1_pool(*args)
            kernels.rank1_pool_grad(*args, out, saved)
    if only in (None, 'rank1_attention'):
        params = [
            torch.empty(s, device='meta')
            for s in ((8, c), (8,), (c, 8), (c,), *((1, 12), (1, 5, 3), (1, 5, 3), *[(1,)] * 6) * 2)
        ]
        states = [(torch.empty(1, device='meta'), torch.empty(1, device='meta'), 0.1, 1e-5)] * 6
        _, saved = kernels.rank1_attention(x, params, states, (3, 1))
        rules = [state[2:] for state in states]
        kernels.rank1_attention_grad(x, params, rules, (3, 1), saved, dy=x, need_x=True)
    if only in (None, 'min_max'):
        kernels.min_max(nhw.flatten(1), 0.0, 1.0)
        kernels.min_max_grad(nhw.flatten(1), 0.0, 1.0, dy=nhw.flatten(1))
    if only in (None, 'spatial_conv'):
        maps = torch.empty(n, 2, h, w, device='meta')
        weight = torch.empty(1, 2, 7, 7, device='meta')
        kernels.spatial_conv(maps, weight)
        kernels.spatial_conv_grad(maps, weight, dy=nhw)
    if only in (None, 'spatial_pool'):
        avg, top, arg = kernels.spatial_pool(x, nc)
        kernels.spatial_pool_grad(x, nc, x, avg, top, arg, inplace=True)
    if only in (None, 'entropy_pool'):
        taps = torch.empty(5, device='meta')
        stats, saved = kernels.entropy_pool(
            x, taps, channel=True, spatial=True, avg=True, max=True, ent=True
        )
        kernels.entropy_pool_grad(x, taps, x, stats, saved, inplace=True)


def empty(shape, dtype, last):
    layout = torch.channels_last if last else torch.contiguous_format
    return torch.empty(shape, dtype=dtype, device='meta', memory_format=layout)


@pytest.mark.parametrize(
    'dtype',
    # The two halves differ in the instructions that convert them.
    (torch.float32, torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.slow)),
    ids=str,
)
@pytest.mark.parametrize('last', (False, True), ids=('contiguous', 'channels_last'))
def test_every_kernel_compiles(compiled, dtype, last):
    launch_all(empty((16, 64, 28, 28), dtype, last))
    assert set(compiled) == KERNELS


@pytest.mark.parametrize(
    'name',
    (
        'rank1_gate',
        'channel_pool',
        'strip_pool',
        'rank1_pool',
        'spatial_pool',
        'spatial_conv',
        'min_max',
        'coord_gate',
        'rank1_attention',
        'entropy_pool',
    ),
)
def test_shapes_of_the_benchmark_compile(compiled, name):
    launch_all(empty((256, 256, 56, 56), torch.bfloat16, True), name)
    assert compiled


@pytest.mark.parametrize(
    'name', ('rank1_gate', 'strip_pool', 'rank1_pool', 'rank1_attention', 'entropy_pool')
)
def test_odd_shapes_compile(compiled, name):
    launch_all(empty((1, 3, 1, 5), torch.bfloat16, False), name)
    assert compiled
