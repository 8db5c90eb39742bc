"""The Triton kernels in Triton's interpreter, on tiny CPU tensors, against float64 equations.

The interpreter must be chosen before Triton is imported, so the cases run in a process of their
own; see test_triton_compile.py for what the interpreter does not show, and test_triton_gpu.py for
the same comparisons on a GPU.
"""

import math
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import attention_cases
import conv_cases
import min_max_cases
import pytest
import rank1_cases
import torch
import triton_cases as cases

SHAPE = (2, 5, 6, 7)
SMALL = (1, 3, 4, 5)
CHEAP = [name for name in cases.OPS if not name.startswith('entropy')]
LAYOUTS = pytest.mark.parametrize('last', (False, True), ids=('contiguous', 'channels_last'))


def slow_if_large(cases):
    """Shapes that the interpreter takes seconds for are slow; blocks made small stand in."""
    return [
        pytest.param(*case, marks=pytest.mark.slow) if math.prod(case[0]) > 5000 else case
        for case in cases
    ]


# Each operator in one of the layouts, either in several: the other layouts are slow.
OPERATORS = ('se', 'eca', 'cbam', 'coord', 'cat', 'drtam')
BY_TURNS = pytest.mark.parametrize(
    'op, last',
    [
        pytest.param(op, last, marks=[] if last == (i % 2 == 0) else pytest.mark.slow)
        for i, op in enumerate(OPERATORS)
        for last in (False, True)
    ],
    ids=lambda value: (
        value if isinstance(value, str) else 'channels_last' if value else 'contiguous'
    ),
)


@pytest.fixture(scope='module')
def run():
    """Run a case in a process that interprets the kernels."""
    os.environ['TRITON_INTERPRET'] = '1'
    try:
        pool = ProcessPoolExecutor(1, get_context('spawn'), cases.on_cpu)
        pool.submit(os.getpid).result()
    finally:
        del os.environ['TRITON_INTERPRET']
    with pool:
        yield lambda case, *args, **kwargs: pool.submit(case, *args, **kwargs).result()


@LAYOUTS
@pytest.mark.parametrize('name', cases.OPS)
def test_op(run, name, last):
    run(cases.compare, name, SHAPE, torch.float32, last)


@LAYOUTS
@pytest.mark.parametrize('dtype', (torch.bfloat16, torch.float16), ids=str)
@pytest.mark.parametrize('name', [*CHEAP, 'entropy_pool'])
def test_half_precision(run, name, dtype, last):
    run(cases.compare, name, SMALL, dtype, last)


@LAYOUTS
@pytest.mark.parametrize('name', [*CHEAP, 'entropy_pool'])
def test_many_blocks(run, name, last):
    """Loops, splits and partial results, which tiny tensors do not need by themselves."""
    run(
        cases.compare_in_small_blocks,
        name,
        (2, 3, 5, 5) if name == 'entropy_pool' else SHAPE,
        torch.float32,
        last,
    )


@LAYOUTS
@pytest.mark.parametrize('fill', ('spread', 'large', 'constant', 'rows'))
@pytest.mark.parametrize('name', ('channel_pool', 'spatial_pool', 'entropy_pool'))
def test_unusual_values(run, name, fill, last):
    run(cases.compare, name, SMALL, torch.float32, last, fill)


@pytest.mark.parametrize('fill', ('spread', 'rows'))
def test_entropy_in_many_blocks(run, fill):
    """Parts with references of their own, in both the quick way and the one for wide ranges."""
    run(cases.compare_in_small_blocks, 'entropy_pool_ent', (1, 5, 4, 5), torch.float32, True, fill)


@LAYOUTS
@pytest.mark.parametrize('name', [*CHEAP, 'entropy_pool'])
def test_nan(run, name, last):
    run(cases.compare, name, SMALL, torch.float32, last, nan=True)


@pytest.mark.parametrize('shape', ((1, 1, 1, 1), (2, 3, 1, 4), (1, 9, 3, 1)), ids=str)
@pytest.mark.parametrize(
    'name',
    ('dual_scale', 'coord_scale', 'channel_pool', 'strip_pool', 'spatial_pool', 'entropy_pool'),
)
def test_thin_shapes(run, name, shape):
    run(cases.compare, name, shape, torch.float32, shape[0] == 1)


@pytest.mark.parametrize('taken', (False, True), ids=('first', 'taken'))
@pytest.mark.parametrize('shape, chunks', slow_if_large(rank1_cases.SIZES), ids=str)
def test_planes(run, shape, chunks, taken):
    run(cases.compare_planes, shape, chunks, taken)


@pytest.mark.parametrize(
    'shape, chunks, taken', (((1, 11, 5, 4), (3, 2), True), ((2, 9, 5, 4), (3, 4), False)), ids=str
)
def test_planes_in_many_blocks(run, shape, chunks, taken):
    run(cases.compare_in_small_blocks, shape, chunks, taken, compare=cases.compare_planes)


@pytest.mark.parametrize('used', ((0,), (1,), (0, 2)), ids=str)
def test_planes_of_partly_used_descriptors(run, used):
    run(cases.compare_planes, (2, 9, 6, 5), (3, 2), True, used=used)


@LAYOUTS
@pytest.mark.parametrize('shape, chunks, modules', slow_if_large(attention_cases.SIZES), ids=str)
def test_attention(run, shape, chunks, modules, last):
    run(cases.compare_attention, shape, chunks, modules, last=last)


@pytest.mark.parametrize(
    'momenta', (attention_cases.EVAL, attention_cases.MIXED), ids=('eval', 'mixed')
)
def test_attention_by_running_statistics(run, momenta):
    run(cases.compare_attention, (3, 6, 7, 5), (3, 2), 2, momenta=momenta)


def test_attention_in_many_blocks(run):
    shape, chunks = (2, 11, 5, 6), (3, 4)
    run(cases.compare_in_small_blocks, shape, chunks, 2, compare=cases.compare_attention)


@pytest.mark.parametrize(
    'shape', ((3, 1, 1, 1400), pytest.param((24, 400, 2, 3), marks=pytest.mark.slow)), ids=str
)
def test_attention_in_parts(run, shape):
    """Descriptors that many programs share."""
    run(cases.compare_attention, shape, (1, 1), 1)


@pytest.mark.parametrize('values', min_max_cases.VALUES)
@pytest.mark.parametrize('shape', min_max_cases.SHAPES, ids=str)
def test_min_max(run, shape, values):
    run(cases.compare_min_max, values, shape)


@pytest.mark.parametrize('shape, k', conv_cases.SIZES, ids=str)
def test_spatial_conv(run, shape, k):
    run(cases.compare_conv, shape, k)


@pytest.mark.parametrize('taken', (False, True), ids=('first', 'taken'))
def test_planes_with_nan(run, taken):
    run(cases.compare_planes_with_nan, (2, 5, 6, 7), (3, 2), taken)


@LAYOUTS
@pytest.mark.parametrize(
    'taps', ((1.0,), (0.25, 0.5, 0.25), (0.05, 0.1, 0.2, 0.3, 0.2, 0.1, 0.05)), ids=len
)
def test_filter_sizes(run, taps, last):
    run(cases.compare, 'entropy_pool_max', SMALL, torch.float32, last, taps=taps)


@pytest.mark.parametrize(
    'dtype, last',
    (
        pytest.param(torch.float32, False, id='float32'),
        pytest.param(torch.bfloat16, True, id='bfloat16-channels_last'),
        pytest.param(torch.float32, True, id='float32-channels_last', marks=pytest.mark.slow),
        pytest.param(torch.bfloat16, False, id='bfloat16', marks=pytest.mark.slow),
        pytest.param(torch.float16, False, id='float16', marks=pytest.mark.slow),
        pytest.param(torch.float16, True, id='float16-channels_last', marks=pytest.mark.slow),
    ),
)
@pytest.mark.parametrize('op', OPERATORS)
def test_operator(run, op, dtype, last):
    run(cases.compare_operator, op, SHAPE, dtype, last)


@LAYOUTS
@pytest.mark.parametrize('op', OPERATORS)
def test_operator_is_traced_as_it_is(run, op, last):
    run(cases.check_fake, op, last)


@pytest.mark.parametrize('name', ('SE', 'CBAM', 'CoordAttention', 'CAT', 'DRTAM'))
def test_gate_records(run, name):
    run(cases.compare_record, name, True)


@pytest.mark.parametrize('name', cases.VARIANTS)
def test_operator_variants(run, name):
    run(cases.compare_variant, name, (2, 5, 3, 4), len(name) % 2 == 0)


@BY_TURNS
def test_operator_with_the_identity_in_part(run, op, last):
    run(cases.compare_in_part, op, not last, (2, 5, 3, 4), last)


@BY_TURNS
def test_operator_in_many_blocks(run, op, last):
    """Loops, partial results of the passes, and middles that take several blocks."""
    args = op, (2, 5, 3, 4), torch.float32, last
    run(cases.compare_in_small_blocks, *args, compare=cases.compare_operator)


@BY_TURNS
def test_gate(run, op, last):
    run(cases.compare_gate, cases.GATES_OF[op], (2, 8, 5, 4), last)


@pytest.mark.parametrize('name', ('SE', 'CBAM', 'CoordAttention', 'CAT', 'DRTAM'))
def test_gate_with_the_identity_in_part(run, name):
    run(cases.compare_gate, name, (2, 8, 5, 4), False, identity=True)


def test_two_runs_give_the_same_bits(run):
    assert run(cases.digest, SHAPE) == run(cases.digest, SHAPE)


def test_supports(run):
    assert run(cases.supported, SHAPE, torch.float16)
    assert not run(cases.supported, (2, 0, 3, 3), torch.float32)
    assert run(cases.supported, SHAPE[1:], torch.float32)
    assert run(cases.supported, SHAPE[1:], torch.float32, step=2)  # it is copied
    assert not run(cases.supported, SHAPE[2:], torch.float32)
    assert not run(cases.supported, SHAPE, torch.float64)
    assert run(cases.supported, SHAPE, torch.float32, step=2)


def test_a_kernel_is_given_tensors_of_one_device(run):
    run(cases.refuse_another_device)


def test_nothing_is_imported_before_it_is_needed_nor_needed_to_import():
    """Importing the package and refusing a CPU tensor load no kernel, so no Triton; and a Triton
    that does not load means that nothing is supported, not an error."""
    code = """if True:
        import os, sys, torch
        from mmattn.ops import triton
        cpu = torch.device('cpu')
        assert not triton.takes(cpu, torch.float32)
        assert not [name for name in sys.modules if name.startswith('mmattn.ops.triton.')]
        triton._works.cache_clear()
        os.environ['TRITON_INTERPRET'] = '1'
        sys.modules['triton'] = None
        import warnings
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter('always')
            for _ in range(2):
                assert not triton.takes(cpu, torch.float32)
        assert ['Triton does not load' in str(w.message) for w in said] == [True], said
    """
    env = {k: v for k, v in os.environ.items() if k != 'TRITON_INTERPRET'}
    subprocess.run([sys.executable, '-c', code], check=True, env=env, timeout=300)
