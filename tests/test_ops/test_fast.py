"""The CPU kernels against the float64 reference: values and gradients."""

import fast_cases
import pytest
import torch
from fast_cases import LAYOUTS, NAMES, alone, cases, check, compare
from hypothesis import given, settings
from hypothesis import strategies as st
from needs import needs_kernels

from mmattn.ops import native, reference

pytestmark = needs_kernels
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def test_kernels_are_tested_here():
    """With a compiler on the path the kernels must have built, and nothing below be skipped."""
    import shutil

    assert native.library() is not None or not shutil.which('c++')


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('dtype', DTYPES, ids=str)
@pytest.mark.parametrize('name', NAMES)
def test_like_reference(name, dtype, layout):
    torch.manual_seed(0)
    # Long rows, short rows, several cuts of rows and of tiles, tails of every vector width.
    for shape in ((2, 5, 4, 5), (1, 1, 1, 1), (1, 70, 1, 1), (2, 40, 7, 7), (1, 65, 33, 50)):
        x = torch.randn(shape, dtype=torch.float64).to(dtype)
        check(cases(*shape)[name], x, layout)


@settings(max_examples=12)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(1, 20), st.integers(1, 20)),
    dtype=st.sampled_from(DTYPES),
    layout=st.sampled_from(tuple(LAYOUTS)),
    scale=st.sampled_from((1e-3, 1.0, 8.0)),
    seed=st.integers(0, 99),
)
def test_any_shape(shape, dtype, layout, scale, seed):
    torch.manual_seed(seed)
    x = (torch.randn(shape, dtype=torch.float64) * scale).to(dtype)
    for case in cases(*shape).values():
        check(case, x, layout, slack=4)


# Few positions, of which a sample is turned, and more.
AREAS = ((9, 7), (11, 13))
each_area = pytest.mark.parametrize('area', AREAS, ids=str)


@each_area
@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('values', ('large', 'far', 'spread', 'denormal', 'constant', 'zero'))
def test_extreme_values(values, layout, area):
    torch.manual_seed(0)
    shape = (2, 20, *area)
    x = torch.randn(shape, dtype=torch.float64)
    x = dict(
        large=x * 1e4,
        far=x + 1e4,
        spread=x * torch.tensor([1.0, 300.0]).reshape(2, 1, 1, 1),
        denormal=x * 1e-40,
        constant=x * 0 + 3.25,
        zero=x * 0,
    )[values].float()
    for name, case in cases(*shape).items():
        if values in ('constant', 'zero') and (
            'max' in name or name in ('spatial_pool', 'entropy_pool') or 'entropy_pool-' in name
        ):
            continue  # ties: see test_ties
        if values == 'far' and case[0] == 'entropy_pool' and name != 'entropy_pool-ent':
            continue  # float32 cannot tell the filtered maxima apart there
        check(case, x, layout, slack=4)


@pytest.mark.parametrize('layout', LAYOUTS)
def test_entropy_of_constant_map(layout):
    x = torch.full((2, 6, 5, 4), 7.5).contiguous(memory_format=LAYOUTS[layout]).requires_grad_()
    (_, _, c_ent), (_, _, s_ent) = fast_cases.fast('entropy_pool')(
        x, fast_cases.TAPS.float(), avg=False, max=False
    )
    torch.testing.assert_close(c_ent, torch.full((2, 6), 20.0).log())
    torch.testing.assert_close(s_ent, torch.full((2, 5, 4), 6.0).log())
    (dx,) = torch.autograd.grad((c_ent.sum() + s_ent.sum()), x)
    assert dx.abs().max() < 1e-6  # a maximum of the entropy


@pytest.mark.parametrize('layout', LAYOUTS)
def test_ties_give_the_gradient_to_one(layout):
    x = torch.ones(2, 6, 5, 4).contiguous(memory_format=LAYOUTS[layout]).requires_grad_()
    _, peak = fast_cases.fast('channel_pool')(x, True)
    (dx,) = torch.autograd.grad(peak.sum(), x)
    assert torch.equal(dx.flatten(2).sum(2), torch.ones(2, 6)) and dx.max() == 1
    _, peak = fast_cases.fast('spatial_pool')(x, torch.ones(2, 6))
    (dx,) = torch.autograd.grad(peak.sum(), x)
    assert torch.equal(dx.sum(1), torch.ones(2, 5, 4)) and dx.max() == 1


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('dtype', DTYPES, ids=str)
def test_nan_comes_out(dtype, layout):
    """Wherever the reference turns NaN, so do the kernels: outputs and gradients."""
    torch.manual_seed(0)
    shape = (2, 18, 5, 6)
    x = torch.randn(shape, dtype=torch.float64).to(dtype)
    x[1, 3, 2, 4] = float('nan')
    for name, case in cases(*shape).items():
        ours, theirs = compare(case, x, layout)
        outputs = len(ours) - 1 - len(fast_cases.tensors(case[1])) * ('entropy' not in name)
        for a, b in zip(ours[:outputs], theirs[:outputs], strict=True):
            assert torch.equal(a.isnan(), b.isnan()), name
        for a in ours[:outputs]:
            assert not a[0].isnan().any(), f'{name}: a NaN crossed from one sample to another'


@each_area
@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('sign', (1, -1))
def test_infinity(layout, sign, area):
    """Means and maxima of an infinity are what the reference makes of it."""
    torch.manual_seed(0)
    shape = (1, 18, *area)
    x = torch.randn(shape)
    x[0, 3, 2, 4] = sign * float('inf')
    for name, case in cases(*shape).items():
        op, args, options = case
        options = (
            {**options, 'ent': False}
            if op == 'entropy_pool' and name != 'entropy_pool-ent'
            else options
        )
        if name == 'entropy_pool-ent':
            continue
        args = fast_cases.cast(args, torch.float32, grad=False)
        with torch.no_grad():
            ours = fast_cases.tensors(
                fast_cases.fast(op)(x.contiguous(memory_format=LAYOUTS[layout]), *args, **options)
            )
            theirs = fast_cases.tensors(getattr(reference, op)(x, *args, **options))
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('name', NAMES)
def test_gradcheck(name, layout):
    torch.manual_seed(0)
    shape = (2, 3, 4, 3)
    op, args, options = cases(*shape)[name]
    x = torch.randn(shape, dtype=torch.float64).contiguous(memory_format=LAYOUTS[layout])
    leaves = [
        x.requires_grad_(),
        *(t for t in fast_cases.tensors(fast_cases.cast(args, torch.float64))),
    ]

    def flat(x, *leaves):
        leaves = iter(leaves)

        def rebuild(a):
            return next(leaves) if isinstance(a, torch.Tensor) else tuple(rebuild(i) for i in a)

        return tuple(fast_cases.tensors(fast_cases.fast(op)(x, *rebuild(args), **options)))

    assert torch.autograd.gradcheck(flat, leaves)


@pytest.mark.parametrize('layout', LAYOUTS)
def test_threads_do_not_change_a_bit(layout):
    torch.manual_seed(0)
    shape = (2, 104, 20, 18)  # large enough for more than one thread
    x = torch.randn(shape)
    before = torch.get_num_threads()
    made = cases(*shape)
    try:
        results = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append([alone(case, x, layout) for case in made.values()])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for ours, theirs in zip(results[0], other, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@each_area
def test_wide_samples_do_not_touch_their_neighbours(area):
    """A batch with one sample too spread for a shared exponential: the others keep theirs."""
    torch.manual_seed(0)
    x = torch.randn(3, 20, *area)
    x[1] *= 100
    for layout in LAYOUTS:
        case = cases(*x.shape)['entropy_pool']
        check(case, x, layout)
        alone = fast_cases.fast('entropy_pool')(
            x[:1].contiguous(memory_format=LAYOUTS[layout]), fast_cases.TAPS.float()
        )
        batch = fast_cases.fast('entropy_pool')(
            x.contiguous(memory_format=LAYOUTS[layout]), fast_cases.TAPS.float()
        )
        for a, b in zip(fast_cases.tensors(alone), fast_cases.tensors(batch), strict=True):
            torch.testing.assert_close(a, b[:1], rtol=1e-6, atol=1e-6)
