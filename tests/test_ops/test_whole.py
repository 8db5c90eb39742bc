"""Gates as one call of C++: the bits of the same gate made of the backend's functions."""

import itertools

import pytest
import torch
from needs import needs_kernels

from mmattn.ops import native
from mmattn.ops.library import kernels

pytestmark = needs_kernels
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
N, C, K, H, W = 3, 37, 5, 11, 6


def same(found, expected):
    """Both as operators return them."""
    for a, b in zip(found, expected, strict=True):
        if isinstance(a, torch.Tensor):
            assert a.dtype == b.dtype
            assert a.stride() == b.stride()
            assert torch.equal(a, b)
        else:
            same(a, b)


def maps(dtype, last):
    """x and dy."""
    torch.manual_seed(0)
    layout = torch.channels_last if last else torch.contiguous_format
    return [torch.randn(N, C, H, W).to(dtype).to(memory_format=layout) for _ in range(2)]


def vectors(dtype, *shapes):
    total = torch.float64 if dtype is torch.float64 else torch.float32
    return [torch.randn(shape, dtype=total) for shape in shapes]


def check(name, args, backward_args):
    """Forward, then backward of what it kept, with and without each gradient."""
    y, *factors, saved = native.operator(name)(*args)
    same((y, *factors, saved), kernels[name](native, *args))
    for backward in backward_args(factors[:2], saved):
        same(
            native.operator(f'{name}_backward')(*backward),
            kernels[f'{name}_backward'](native, *backward),
        )


def given(dy, factors):
    """The gradients of y and of both factors, of which some are not there; whether x has one."""
    grads = [torch.randn_like(t) for t in factors]
    return (
        (dy, *grads, True),
        (dy, None, None, True),
        (dy, None, grads[1], False),
        (None, grads[0], None, True),
    )


@pytest.mark.parametrize('last', (False, True))
@pytest.mark.parametrize('dtype', DTYPES, ids=str)
def test_cbam(dtype, last):
    x, dy = maps(dtype, last)
    w1, b1, w2, b2, kernel, weight, bias, mean = vectors(
        dtype, (K, C), K, (C, K), C, (1, 2, 7, 7), 1, 1, 1
    )
    norms = (
        ([weight, bias, mean, mean.square() + 0.5], True),
        ([weight, bias, mean, mean.square() + 0.5], False),
        ([], False),
    )
    for biases, (norm, by_batch) in itertools.product(((b1, b2), (None, None)), norms):
        mlp = w1, biases[0], w2, biases[1]

        def backward(factors, saved, mlp=mlp, norm=norm, by_batch=by_batch):
            for dy_, gc, gs, need_x in given(dy, factors):
                yield (
                    dy_, gc, gs, x, *mlp, kernel, None, norm[:1], [*factors, *saved], by_batch,
                    1e-3, last, need_x,
                )  # fmt: skip

        check('cbam', (x, *mlp, kernel, norm, by_batch, 1e-3, None), backward)


@pytest.mark.parametrize('last', (False, True))
@pytest.mark.parametrize('dtype', DTYPES, ids=str)
def test_cat(dtype, last):
    x, dy = maps(dtype, last)
    for pools, equation, side_by_side, weighed in (
        ((True, True, True), True, False, True),
        ((True, True, True), False, True, False),
        ((False, True, False), True, False, True),
        ((True, False, False), False, False, False),
        ((False, False, True), True, True, True),
    ):
        count = sum(pools)
        w1, w2, kernel, alpha, beta, outer, taps = vectors(
            dtype, (K, C), (C, K), (1, count if side_by_side else 1, 3, 3), count, count, 2, 5
        )
        if not weighed:
            alpha = beta = outer = None
        weights = w1, w2, kernel, alpha, beta, outer
        options = list(pools), -1.0, 1.0, equation

        def backward(factors, saved, taps=taps, weights=weights, options=options):
            for dy_, gc, gs, need_x in given(dy, factors):
                yield (
                    dy_, gc, gs, x, taps, *weights, None, *factors, saved, *options, last, need_x,
                )  # fmt: skip

        check('cat', (x, taps, *weights, *options, None), backward)


def test_a_share_of_the_identity_is_left_to_the_functions():
    x, _ = maps(torch.float32, False)
    (a,) = vectors(torch.float32, 1)
    assert native.operator('cbam')(x, *[None] * 8, a) is NotImplemented
    assert native.operator('cat')(x, *[None] * 11, a) is NotImplemented
