"""The Triton kernels on a GPU, at the sizes of real networks. Run them wherever there is one."""

import attention_cases
import conv_cases
import min_max_cases
import pytest
import rank1_cases
import torch
import triton_cases as cases

from mmattn.ops import examples
from mmattn.ops.triton import selfcheck

if not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 0):
    pytest.skip('needs a CUDA GPU of compute capability 8.0 or more', allow_module_level=True)

DTYPES = pytest.mark.parametrize('dtype', (torch.float32, torch.bfloat16, torch.float16), ids=str)
LAYOUTS = pytest.mark.parametrize('last', (False, True), ids=('contiguous', 'channels_last'))
# A stage of ResNet-50 each, MobileNetV2's widths, a detector's map, a map of odd size, a vector.
SHAPES = (
    (4, 256, 56, 56),
    (8, 1024, 14, 14),
    (8, 2048, 7, 7),
    (3, 24, 75, 41),
    (2, 96, 100, 168),
    (5, 33, 17, 1),
    (300, 64, 1, 1),
)


@DTYPES
@LAYOUTS
@pytest.mark.parametrize('shape', SHAPES, ids=str)
@pytest.mark.parametrize('name', cases.OPS)
def test_op(name, shape, dtype, last):
    cases.compare(name, shape, dtype, last, device='cuda')


@LAYOUTS
@pytest.mark.parametrize('fill', cases.FILLS)
@pytest.mark.parametrize('name', cases.POOLS)
def test_unusual_values(name, fill, last):
    cases.compare(name, (2, 40, 30, 21), torch.float32, last, fill, device='cuda')


@LAYOUTS
@pytest.mark.parametrize('name', cases.OPS)
def test_nan(name, last):
    cases.compare(name, (2, 40, 30, 21), torch.float32, last, device='cuda', nan=True)


@pytest.mark.parametrize('taken', (False, True), ids=('first', 'taken'))
@pytest.mark.parametrize(
    'shape, chunks',
    (
        *rank1_cases.SIZES,
        ((8, 256, 56, 56), (3, 1)),
        ((4, 2048, 7, 7), (3, 4)),
        ((2, 96, 200, 336), (3, 1)),
    ),
    ids=str,
)
def test_planes(shape, chunks, taken):
    cases.compare_planes(shape, chunks, taken, device='cuda')


@LAYOUTS
@pytest.mark.parametrize('dtype', (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize(
    'shape, chunks, modules',
    (
        *attention_cases.SIZES,
        ((8, 256, 56, 56), (3, 1), 2),
        ((64, 2048, 7, 7), (3, 4), 2),
        ((2, 96, 200, 336), (3, 1), 1),
    ),
    ids=str,
)
def test_attention(shape, chunks, modules, dtype, last):
    # Sums of many terms of both signs.
    cases.compare_attention(shape, chunks, modules, dtype, last, device='cuda', sums=1e-3)


@pytest.mark.parametrize('values', min_max_cases.VALUES)
@pytest.mark.parametrize('shape', (*min_max_cases.SHAPES, (8, 2048), (4, 200, 336)), ids=str)
def test_min_max(shape, values):
    cases.compare_min_max(values, shape, device='cuda')


@pytest.mark.parametrize(
    'shape, k',
    (
        *conv_cases.SIZES,
        ((8, 2, 56, 56), (7, 7)),
        ((2, 1, 200, 336), (7, 7)),
        ((256, 1, 1, 2048), (1, 7)),
    ),
    ids=str,
)
def test_spatial_conv(shape, k):
    cases.compare_conv(shape, k, device='cuda')


@LAYOUTS
@pytest.mark.parametrize('size', (1, 3, 5, 7))
def test_filter_sizes(size, last):
    taps = torch.hann_window(size + 2, periodic=False)[1:-1]
    cases.compare(
        'entropy_pool_max',
        (2, 40, 30, 21),
        torch.float32,
        last,
        device='cuda',
        taps=tuple((taps / taps.sum()).tolist()),
    )


@LAYOUTS
@pytest.mark.parametrize('name', ('SE', 'ECA', 'CBAM', 'CoordAttention', 'CAT', 'DRTAM'))
def test_gate(name, last):
    cases.compare_gate(name, (4, 64, 28, 28), last, device='cuda')


@DTYPES
@pytest.mark.parametrize('op', examples.ARGUMENTS)
def test_self_check(op, dtype):
    assert selfcheck.examine(op, 'cuda', dtype) is None


@pytest.mark.parametrize('op', ('se', 'drtam'))
def test_self_check_in_a_process_of_its_own(op):
    assert selfcheck.run_check(op, torch.device('cuda:0'), torch.bfloat16) == (None, True)


def test_two_runs_give_the_same_bits():
    assert cases.digest((8, 96, 56, 56), 'cuda') == cases.digest((8, 96, 56, 56), 'cuda')


@LAYOUTS
def test_more_than_two_to_the_31_elements(last):
    """The last sample lies beyond what 32-bit offsets reach."""
    shape = (700, 1024, 56, 56)
    if torch.cuda.mem_get_info()[0] < 16 * 2**30:
        pytest.skip('needs 16 GiB of free GPU memory')
    x = torch.empty(
        shape,
        dtype=torch.bfloat16,
        device='cuda',
        memory_format=(torch.channels_last if last else torch.contiguous_format),
    ).normal_()
    c = torch.rand(shape[:2], device='cuda')
    y = cases.kernels.channel_scale(x, c)
    expected = (x[-1].double() * c[-1].double()[:, None, None]).cpu()
    cases.close(y[-1], expected, 4 * torch.finfo(x.dtype).eps, 'y')
    ch, cw, hw = cases.kernels.strip_pool(x, channel=True)
    for got, dim in ((ch, 2), (cw, 1), (hw, 0)):
        cases.close(got[-1], x[-1].double().mean(dim).cpu(), 1e-5, 'mean')


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason='needs two GPUs')
def test_a_device_that_is_not_the_current_one():
    cases.compare('entropy_pool', (2, 40, 30, 21), torch.bfloat16, True, device='cuda:1')
