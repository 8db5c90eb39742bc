"""DRTAM's descriptors of its planes: the CPU kernels against float64 equations, and refusals."""

import on_kernels
import pytest
import rank1_cases
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from needs import needs_kernels

from mmattn import ops
from mmattn.ops import native, reference

TAKEN = pytest.mark.parametrize('taken', (False, True), ids=('first', 'taken'))


@needs_kernels
@TAKEN
@pytest.mark.parametrize('dtype', (torch.float64, torch.float32), ids=str)
@pytest.mark.parametrize('shape, chunks', rank1_cases.SIZES, ids=str)
def test_like_reference(shape, chunks, taken, dtype):
    rank1_cases.compare(native, rank1_cases.make(shape, chunks, taken), dtype)


@needs_kernels
@settings(max_examples=25)
@given(
    shape=st.tuples(*(st.integers(1, top) for top in (3, 70, 20, 20))),
    chunks=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    taken=st.booleans(),
    used=st.sets(st.sampled_from((0, 1, 2)), min_size=1),
    seed=st.integers(0, 99),
)
def test_any_shape(shape, chunks, taken, used, seed):
    args = rank1_cases.make(shape, chunks, taken, seed)
    rank1_cases.compare(native, args, torch.float64, used=sorted(used))


@needs_kernels
@TAKEN
def test_gradcheck(taken):
    planes, weights, chunks, factors = rank1_cases.make((2, 4, 5, 3), (2, 2), taken)
    leaves = [t.requires_grad_() for t in (*planes, *weights, *(factors or ()))]

    def op(*t):
        return on_kernels.rank1_pool(native, t[:3], t[3:6], chunks, t[6:] or None)

    assert torch.autograd.gradcheck(op, leaves)


@needs_kernels
@TAKEN
@pytest.mark.parametrize('plane', (0, 1, 2))
def test_nan_comes_out_where_it_belongs(plane, taken):
    args = rank1_cases.make((2, 20, 6, 7), (3, 2), taken)
    args[0][plane][1, 2, 3] = float('nan')
    rank1_cases.compare(native, args, outputs_only=True)
    args[0][plane][1, 2, 3] = float('-inf')
    rank1_cases.compare(native, args, outputs_only=True)


@needs_kernels
def test_threads_do_not_change_a_bit():
    args = rank1_cases.make((8, 200, 30, 28), (3, 1), True)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            op = lambda *a: on_kernels.rank1_pool(native, *a)  # noqa: E731
            results.append(rank1_cases.run(op, args, torch.float32, 'cpu', (0, 1, 2)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@needs_kernels
def test_equal_maxima_give_the_gradient_to_one():
    sizes = (1, 20, 6), (1, 20, 6), (1, 6, 6)
    planes = tuple(torch.ones(size, requires_grad=True) for size in sizes)
    weights = [torch.zeros(1, 4), torch.zeros(1, 3, 3), torch.zeros(1, 3, 3)]
    # Maxima only: of ch over its chunk, and over the channels.
    weights[0][0, 3] = weights[1][0, 2, 1] = 1
    c, h, _ = on_kernels.rank1_pool(native, planes, weights, (1, 1))
    ch, cw, _ = torch.autograd.grad((c.sum(), h.sum()), planes, allow_unused=True)
    assert ch.sum() == 20 + 6 and set(ch.flatten().tolist()) <= {0.0, 1.0, 2.0}
    assert not cw.any()


@pytest.mark.parametrize('impl', ('fast', 'reference'))
def test_wrong_shapes_are_refused(impl):
    planes, weights, chunks, taken = rank1_cases.make((2, 4, 5, 3), (2, 2), True)
    for bad in (
        dict(planes=(planes[1], planes[0], planes[2])),
        dict(planes=(planes[0], planes[1][:, :2], planes[2])),
        dict(taken=(taken[0], taken[2], taken[1])),
        dict(weights=(weights[0][:, :-1], *weights[1:])),
        dict(weights=(weights[0], weights[1][..., :2], weights[2])),
        dict(chunks=(2, 3)),
    ):
        args = {**dict(planes=planes, weights=weights, chunks=chunks, taken=taken), **bad}
        with pytest.raises(ValueError, match='must be'):
            ops.rank1_pool(**args, impl=impl)


@TAKEN
def test_reference_and_default_agree(taken):
    """The public function, in half precision weights too."""
    planes, weights, chunks, factors = rank1_cases.make((2, 6, 9, 5), (3, 1), taken)
    planes = [plane.float() for plane in planes]
    weights = [weight.half() for weight in weights]
    ours = ops.rank1_pool(planes, weights, chunks, factors)
    theirs = reference.rank1_pool(
        planes, [w.float() for w in weights], chunks, factors and [f.float() for f in factors]
    )
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
