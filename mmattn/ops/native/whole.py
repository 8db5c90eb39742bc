"""Gates as whole operators, each way one call of C++.

On small maps most of a gate's time is that between calls. What an operator returns is said where it
is defined (`results`); one that is left to the functions of this backend gives NotImplemented.
"""

from collections.abc import Callable
from typing import Any

from ..cat import backward_results as cat_backward_results
from ..cat import results as cat_results
from ..cbam import backward_results as cbam_backward_results
from ..cbam import results as cbam_results
from ..tensors import dense, dense_pair, of_given, unless_empty
from .call import run
from .sizes import meta


def operator(name: str) -> Callable[..., Any] | None:
    """The whole operator of that name, or None."""
    return _OPERATORS.get(name)


def _cbam(x, w1, b1, w2, b2, kernel, norm, by_batch, eps, a):
    if a is not None:
        return NotImplemented
    x = dense(x)
    found = cbam_results(x, w1, b1, w2, b2, kernel, norm, by_batch, eps, a)
    y, *factors, (pooled, channel_at, hidden, maps, at, *kept) = found
    run(
        'cbam', x, x, y, *meta(x), w1.shape[0], *kernel.shape[2:], (w1, b1, w2, b2), kernel,
        norm or (None,) * 4, by_batch, eps, factors,
        (pooled, hidden, maps, kept[0], *unless_empty(kept[1:])), (channel_at, at),
    )  # fmt: skip
    return found


def _cbam_backward(
    dy, gc, gs, x, w1, b1, w2, b2, kernel, a, weight, saved, by_batch, eps, last, need_x
):
    if a is not None:
        return NotImplemented
    x, dy = dense_pair(x, dy, last)
    found = cbam_backward_results(
        dy, gc, gs, x, w1, b1, w2, b2, kernel, a, weight, saved, by_batch, eps, last, need_x
    )
    dx, *grads = found
    mlp = w1, b1, w2, b2
    left = iter(grads)
    dmlp = of_given(mlp, left)
    c, s, pooled, channel_at, hidden, maps, at, *kept = saved
    run(
        'cbam_backward', x, x, dy, dx if need_x else None, *meta(x), w1.shape[0], *kernel.shape[2:],
        mlp, kernel, weight[0] if weight else None, by_batch, eps, (c, s), (gc, gs),
        (pooled, hidden, maps, kept[0], *unless_empty(kept[1:])), (channel_at, at), dmlp,
        (*left, None, None)[:3],
    )  # fmt: skip
    return found


def _kept_of_cat(saved):
    """What CAT keeps for backward: floats, integers; None of pools that are not wanted."""
    kept = unless_empty(saved)
    return (*kept[:11], *kept[12:15]), (kept[11], kept[15])


def _cat(x, taps, w1, w2, kernel, alpha, beta, outer, pools, low, high, equation, a):
    if a is not None:
        return NotImplemented
    x = dense(x)
    found = cat_results(x, taps, w1, w2, kernel, alpha, beta, outer, pools, low, high, equation, a)
    y, *factors, saved = found
    run(
        'cat', x, x, y, *meta(x), taps, taps.numel(), w1.shape[0], *kernel.shape[1:],
        (w1, w2, kernel, alpha, beta, outer), *pools, low, high, equation, factors,
        *_kept_of_cat(saved),
    )  # fmt: skip
    return found


def _cat_backward(
    dy, gc, gs, x, taps, w1, w2, kernel, alpha, beta, outer, a, c, s, saved, pools, low, high,
    equation, last, need_x,
):  # fmt: skip
    if a is not None:
        return NotImplemented
    x, dy = dense_pair(x, dy, last)
    found = cat_backward_results(
        dy, gc, gs, x, taps, w1, w2, kernel, alpha, beta, outer, a, c, s, saved, pools, low, high,
        equation, last, need_x,
    )  # fmt: skip
    dx, *grads = found
    weights = w1, w2, kernel, alpha, beta, outer
    dweights = of_given(weights, iter(grads))
    run(
        'cat_backward', x, x, dy, dx if need_x else None, *meta(x), taps, taps.numel(), w1.shape[0],
        *kernel.shape[1:], weights, *pools, low, high, equation, (c, s), (gc, gs),
        *_kept_of_cat(saved), dweights,
    )  # fmt: skip
    return found


_OPERATORS: dict[str, Callable[..., Any]] = dict(
    cbam=_cbam, cbam_backward=_cbam_backward, cat=_cat, cat_backward=_cat_backward
)
