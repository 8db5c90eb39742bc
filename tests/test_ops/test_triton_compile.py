"""Every Triton kernel, as it is launched for real shapes, compiled for a GPU that need not exist.

The interpreter accepts what the compiler refuses; the compiler needs no GPU. Triton is told of one
by a driver that knows nothing else, and the launches stop once the machine code is there.
"""

import pytest
import torch

pytest.importorskip('triton', reason='Triton does not come with this build of PyTorch')
from mmattn.analysis import launches, machine_code  # noqa: E402
from mmattn.ops import examples  # noqa: E402

KERNELS = {
    'scale_kernel',
    'scale_grad_kernel',
    'mlp_kernel',
    'mlp_grad_kernel',
    'mlp_weights_kernel',
    'eca_kernel',
    'eca_grad_kernel',
    'outer_grad_kernel',
    'pool_kernel',
    'merge_pool_kernel',
    'cbam_norm_kernel',
    'cbam_norm_grad_kernel',
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
    'rank1_factors_kernel',
    'rank1_factors_grad_kernel',
    'rank1_weights_kernel',
    'coord_kernel',
    'coord_factors_kernel',
    'coord_factors_grad_kernel',
    'coord_strips_grad_kernel',
    'coord_weights_kernel',
    'coord_scale_kernel',
    'coord_scale_grad_kernel',
    'cat_factors_kernel',
    'cat_factors_grad_kernel',
    'cat_maps_grad_kernel',
    'moments_kernel',
    'merge_kernel',
    'maxima_kernel',
    'entropy_grad_kernel',
}


@pytest.fixture
def compiled(monkeypatch, pytestconfig):
    """Compile what operators launch, in place of launching it; the names of what was compiled.

    Triton keeps what it has compiled by its source and target, here for all tests together: many
    kernels do not depend on a test's shape, layout or dtype.
    """
    monkeypatch.setenv('TRITON_CACHE_DIR', str(pytestconfig.cache.mkdir('triton')))
    names = set()

    def launch(kernel, programs, *args, **options):
        done = machine_code.compile_only(kernel, programs, *args, **options)
        assert len(done.asm['cubin']) > 0
        assert done.metadata.shared <= 48 * 1024
        assert 0 < programs < 2**31
        names.add(kernel.__name__)

    def compile_all(ops, shape, dtype, last, target=90):
        with machine_code.compiling_for(target), launches.replaced_launch(launch):
            for op in ops:
                launches.run(op, shape, dtype, last, [])
        return names

    return compile_all


LAYOUTS = pytest.mark.parametrize('last', (False, True), ids=('contiguous', 'channels_last'))


@pytest.mark.parametrize(
    'dtype, last',
    (
        pytest.param(torch.float32, False, id='float32'),
        pytest.param(torch.bfloat16, True, id='bfloat16-channels_last'),
        pytest.param(torch.float32, True, id='float32-channels_last', marks=pytest.mark.slow),
        pytest.param(torch.bfloat16, False, id='bfloat16', marks=pytest.mark.slow),
        # The two halves differ in the instructions that convert them.
        pytest.param(torch.float16, False, id='float16', marks=pytest.mark.slow),
        pytest.param(torch.float16, True, id='float16-channels_last', marks=pytest.mark.slow),
    ),
)
def test_every_kernel_compiles(compiled, dtype, last):
    assert compiled(examples.ARGUMENTS, (16, 64, 28, 28), dtype, last) == KERNELS


@pytest.mark.slow
@pytest.mark.parametrize('target', (80, 100))
@LAYOUTS
def test_every_kernel_compiles_for_other_gpus(compiled, target, last):
    shape = (16, 64, 28, 28)
    assert compiled(examples.ARGUMENTS, shape, torch.bfloat16, last, target) == KERNELS


@pytest.mark.parametrize(
    'name',
    (
        'rank1_scale',
        'channel_pool',
        'strip_pool',
        'rank1_pool',
        'spatial_pool',
        'spatial_conv',
        'min_max',
        'coord_scale',
        'drtam',
        'entropy_pool',
    ),
)
def test_shapes_of_the_benchmark_compile(compiled, name):
    assert compiled([name], (256, 256, 56, 56), torch.bfloat16, True)


@pytest.mark.parametrize(
    'name', ('rank1_scale', 'strip_pool', 'rank1_pool', 'drtam', 'entropy_pool')
)
def test_odd_shapes_compile(compiled, name):
    assert compiled([name], (1, 3, 1, 5), torch.bfloat16, False)
