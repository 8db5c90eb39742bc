"""A feature map into descriptors, in `stats_dtype`. A maximum's gradient goes to one arg-max."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..chunks import windows
from ..dispatch import stats_dtype


def channel_pool(x: Tensor, maximum: bool = False) -> tuple[Tensor, ...]:
    z = x.to(stats_dtype(x))
    avg = z.mean((2, 3))
    return (avg, z.flatten(2).max(-1).values) if maximum else (avg,)


def spatial_pool(x: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    z = x.to(stats_dtype(x)) * c[:, :, None, None]
    return z.mean(1), z.max(1).values


def strip_pool(x: Tensor, channel: bool = False) -> tuple[Tensor, ...]:
    z = x.to(stats_dtype(x))
    ch, cw = z.mean(3), z.mean(2)
    return (ch, cw, z.mean(1)) if channel else (ch, cw)


def chunk_pool(x: Tensor, chunks: int, mode: str, dim: int = 2) -> Tensor:
    """Cut axis `dim` (1 or 2) of a 3-D x into `ops.chunks.windows`, pool each by 'avg' or 'max'."""
    length = int(x.shape[dim])  # a plain integer while tracing, too: chunks are fixed by the size
    size = -(-length // chunks)
    if -(-length // size) != chunks:
        pool = torch.mean if mode == 'avg' else torch.amax
        pieces = [pool(x.narrow(dim, a, b - a), dim) for a, b in windows(length, chunks)]
        return torch.stack(pieces, dim)
    if size * chunks == length:
        x = x.unflatten(dim, (chunks, size))
        return x.mean(dim + 1) if mode == 'avg' else x.max(dim + 1).values
    kernel = (size, 1) if dim == 1 else (1, size)
    x = x.unsqueeze(1)
    if mode == 'max':
        return F.max_pool2d(x, kernel, kernel, ceil_mode=True).squeeze(1)
    return F.avg_pool2d(x, kernel, kernel, ceil_mode=True, count_include_pad=False).squeeze(1)


def _strips(plane, side, kernel, chunks, maxima):
    """DRTAM, eq. 7-10: a plane (N, other axis, L) and a side (N, C, L) to strips, and to (N, L)."""
    plane_max, chunk_max = maxima
    strips = [
        *(chunk_pool(plane, chunks[0], mode, dim=1) for mode in ('avg', 'max')[: 1 + plane_max]),
        chunk_pool(side, chunks[1], 'avg', dim=1),
        chunk_pool(side, chunks[1] if chunk_max else 1, 'max', dim=1),
    ]
    return F.conv1d(torch.cat(strips, 1), kernel, padding=1).squeeze(1)


def rank1_pool(
    planes: Sequence[Tensor],
    weights: Sequence[Tensor],
    chunks: Sequence[int],
    taken: Sequence[Tensor] | None = None,
    maxima: Sequence[bool] = (False, False),
) -> tuple[Tensor, Tensor, Tensor]:
    ch, cw, hw = planes
    if taken is not None:  # DRTAM, eq. 12-14
        c, h, w = taken
        ch = ch * (1 - c[:, :, None] * h[:, None])
        cw = cw * (1 - c[:, :, None] * w[:, None])
        hw = hw * (1 - h[:, :, None] * w[:, None])
    # Eq. 3-5: average and maximum of each of the S chunks of cw and of ch, then a (1, 4 S) kernel.
    pooled = [chunk_pool(d, chunks[0], mode) for d in (cw, ch) for mode in ('avg', 'max')]
    c = F.linear(torch.stack(pooled, 3).flatten(2), weights[0]).squeeze(2)
    h = _strips(hw.transpose(1, 2), ch, weights[1], chunks, maxima)
    return c, h, _strips(hw, cw, weights[2], chunks, maxima)


def _normalise(v, weight, bias, mean, var, by_batch, eps):
    """DRTAM's batch norm of a vector (N, L), as of one channel; and the batch's mean and variance
    (of a population), or None."""
    if not by_batch:
        moments = None
        y = F.batch_norm(v.unsqueeze(1), mean, var, weight, bias, False, 0.0, eps)
    else:
        with torch.no_grad():
            wide = v.to(stats_dtype(v))  # a variance overflows 16 bits before a norm does
            moments = torch.stack((wide.mean(), wide.var()))
        y = F.batch_norm(v.unsqueeze(1), None, None, weight, bias, True, 0.0, eps)
    return y.squeeze(1), moments


def rank1_layers(
    vectors: Sequence[Tensor], norms: Sequence[Sequence[Any]], mlp: Sequence[Any]
) -> tuple[tuple[Tensor, Tensor, Tensor], list[Tensor | None]]:
    """The factors of an attention module (eq. 6 and 11), and the moments of its norms.

    `norms`: of each descriptor weight, bias, mean, var, by_batch, eps, as `_normalise` takes them.
    """
    done = [_normalise(v.to(norm[0].dtype), *norm) for v, norm in zip(vectors, norms, strict=True)]
    (c, _), (h, _), (w, _) = done
    weight, bias, weight2, bias2 = mlp
    c = F.linear(F.linear(c, weight, bias).relu(), weight2, bias2)
    return (c.sigmoid(), h.sigmoid(), w.sigmoid()), [moments for _, moments in done]


def spatial_conv(maps: Tensor, weight: Tensor) -> Tensor:
    padding = int(weight.shape[2]) // 2, int(weight.shape[3]) // 2
    return F.conv2d(maps, weight, padding=padding).squeeze(1)


def _entropy(z, dim):
    log_p = F.log_softmax(z, dim)
    return -(log_p.exp() * log_p).sum(dim)


def _low_pass(z, taps, axis):
    """Convolve each channel with `taps` along `axis` (2 or 3), zero-padded."""
    channels = int(z.shape[1])  # a plain integer while tracing, too
    kernel = taps.reshape((1, 1, -1, 1) if axis == 2 else (1, 1, 1, -1))
    return F.conv2d(z, kernel.expand(channels, -1, -1, -1), padding='same', groups=channels)


def min_max(v: Tensor, low: float, high: float) -> Tensor:
    flat = v.flatten(1)
    least, most = flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)
    spread = most - least
    # Entropies are below 16 nats, where one rounding step is 8 eps.
    spread = torch.where(spread > 64 * torch.finfo(v.dtype).eps, spread, 1)
    unit = ((flat - least) / spread).view_as(v)
    return unit if (low, high) == (0, 1) else low + (high - low) * unit


def entropy_pool(
    x: Tensor,
    taps: Tensor,
    channel: bool = True,
    spatial: bool = True,
    avg: bool = True,
    max: bool = True,
    ent: bool = True,
) -> tuple[tuple[Tensor | None, ...], tuple[Tensor | None, ...]]:
    z = x.to(stats_dtype(x))
    c_avg = c_max = c_ent = s_avg = s_max = s_ent = None
    if avg:
        c_avg = z.mean((2, 3)) if channel else None
        s_avg = z.mean(1) if spatial else None
    if max:
        # CAT 3.2 and 3.3: k x 1 before the channel maximum, k x k before the spatial one.
        smooth = _low_pass(z, taps, 2)
        c_max = smooth.flatten(2).max(-1).values if channel else None
        s_max = _low_pass(smooth, taps, 3).max(1).values if spatial else None
    if ent:
        c_ent = _entropy(z.flatten(2), -1) if channel else None
        s_ent = _entropy(z, 1) if spatial else None
    return (c_avg, c_max, c_ent), (s_avg, s_max, s_ent)
