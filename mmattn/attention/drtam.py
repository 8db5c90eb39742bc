import torch
from mmengine.registry import MODELS
from torch import nn
from torch.nn import functional as F

from mmattn import ops

from .checks import check_flags, check_int
from .gate import Gate, batch_norm, mlp


def _windows(length, chunks):
    """Cut range(length) evenly into `chunks` windows; let them overlap where there are too few."""
    if length < chunks:
        return [(i * length // chunks, -(-(i + 1) * length // chunks)) for i in range(chunks)]
    size, longer = divmod(length, chunks)
    edges = [i * size + min(i, longer) for i in range(chunks + 1)]
    return list(zip(edges[:-1], edges[1:], strict=True))


def chunk_pool(x, chunks, mode, dim=2):
    """Cut axis `dim` (1 or 2) of a 3-D x into chunks and pool each, by mode 'avg' or 'max'.

    Chunks are those of `torch.chunk` (7 into 3 is 3 + 3 + 1) wherever it makes as many as asked.
    Else they are as even as possible (4 into 3 is 2 + 1 + 1), and on an axis shorter than `chunks`
    they overlap as in adaptive pooling: never is a chunk empty.
    """
    length = int(x.shape[dim])  # a plain integer while tracing, too: chunks are fixed by the size
    size = -(-length // chunks)
    if -(-length // size) != chunks:
        pool = torch.mean if mode == 'avg' else torch.amax
        pieces = [pool(x.narrow(dim, a, b - a), dim) for a, b in _windows(length, chunks)]
        return torch.stack(pieces, dim)
    if size * chunks == length:
        x = x.unflatten(dim, (chunks, size))
        return x.mean(dim + 1) if mode == 'avg' else x.max(dim + 1).values
    kernel = (size, 1) if dim == 1 else (1, size)
    x = x.unsqueeze(1)
    if mode == 'max':
        return F.max_pool2d(x, kernel, kernel, ceil_mode=True).squeeze(1)
    return F.avg_pool2d(x, kernel, kernel, ceil_mode=True, count_include_pad=False).squeeze(1)


class RTAM(nn.Module):
    """Rank-1 tensor attention (3.1): planes (N, C, H), (N, C, W), (N, H, W) -> factors c, h, w."""

    def __init__(self, num_chunks, num_channel_chunks):
        super().__init__()
        self.num_chunks = num_chunks
        self.num_channel_chunks = num_channel_chunks
        strips = num_chunks + num_channel_chunks + 1
        # Eq. 5's convolution of kernel (1, 4S), on channels that lie last.
        self.channel_conv = nn.Linear(4 * num_chunks, 1, bias=False)
        self.channel_norm = nn.BatchNorm1d(1)
        self.height_conv = nn.Conv1d(strips, 1, 3, padding=1, bias=False)
        self.height_norm = nn.BatchNorm1d(1)
        self.width_conv = nn.Conv1d(strips, 1, 3, padding=1, bias=False)
        self.width_norm = nn.BatchNorm1d(1)

    def forward(self, ch, cw, hw, mlp):
        c = self.channel_conv(self._chunks(ch, cw)).transpose(1, 2)
        c = batch_norm(self.channel_norm, c)
        h = batch_norm(self.height_norm, self.height_conv(self._strips(hw.transpose(1, 2), ch)))
        w = batch_norm(self.width_norm, self.width_conv(self._strips(hw, cw)))
        return mlp(c.squeeze(1)).sigmoid(), h.squeeze(1).sigmoid(), w.squeeze(1).sigmoid()

    def _chunks(self, ch, cw):
        """Eq. 3 and 4: (N, C, 4S), average and maximum of each of the S chunks of cw and of ch."""
        pooled = [chunk_pool(d, self.num_chunks, mode) for d in (cw, ch) for mode in ('avg', 'max')]
        return torch.stack(pooled, 3).flatten(2)

    def _strips(self, plane, side):
        """Eq. 7-9: (N, S + N + 1, L) from a plane (N, other axis, L) and a side (N, C, L)."""
        return torch.cat((
            chunk_pool(plane, self.num_chunks, 'avg', dim=1),
            chunk_pool(side, self.num_channel_chunks, 'avg', dim=1),
            side.max(1, keepdim=True).values), 1)


@MODELS.register_module()
class DRTAM(Gate):
    """DRTAM: Dual Rank-1 Tensor Attention Module

    A rank-1 attention map A = c o h o w made of pooled planes of the feature map, and a second one
    that gives back a part of what the first took: y = x * (A + (1 - A) * A2) (eq. 1).
    (N, C, H, W) -> (N, C, H, W). Layers start from PyTorch's default initialisation.

    The two modules share the MLP (with biases) and nothing else. A batch norm precedes the MLP, as
    in the authors' release; the paper shows it for h and w only (eq. 11).

    Args:
        in_channels (int): C.
        reduction (int): r; the MLP's hidden width is max(8, C // r).
        num_chunks (int): S, the chunks of the height and the width axis (`chunk_pool`).
        num_channel_chunks (int): N, the chunks of the channel axis.
        dual (bool): False keeps the first attention map only: y = x * A.
        impl (str, optional): 'reference', 'fast', or None for the global default.

    Raises:
        ValueError: see `Gate`.
    """
    _abbr_ = 'drtam'

    def __init__(self, in_channels, reduction=32, num_chunks=3, num_channel_chunks=1, dual=True,
                 impl=None):
        super().__init__(in_channels, impl)
        check_int('reduction', reduction, 1)
        check_int('num_chunks', num_chunks, 1)
        check_int('num_channel_chunks', num_channel_chunks, 1)
        check_flags(dual=dual)
        self.mlp = mlp(in_channels, max(8, in_channels // reduction), bias=True)
        self.initial = RTAM(num_chunks, num_channel_chunks)
        self.complement = RTAM(num_chunks, num_channel_chunks) if dual else None

    def gate(self, x):
        x, *planes = ops.strip_pool(x, channel=True, impl=self.impl)
        ch, cw, hw = (plane.to(self.mlp[0].weight.dtype) for plane in planes)
        c, h, w = self.initial(ch, cw, hw, self.mlp)
        if self.complement is None:
            return ops.rank1_gate(x, (c, h, w), impl=self.impl)
        # Residual descriptors (eq. 12-14): what the first map took from the three planes.
        ch = ch * (1 - c.unsqueeze(2) * h.unsqueeze(1))
        cw = cw * (1 - c.unsqueeze(2) * w.unsqueeze(1))
        hw = hw * (1 - h.unsqueeze(2) * w.unsqueeze(1))
        second = self.complement(ch, cw, hw, self.mlp)
        return ops.rank1_gate(x, (c, h, w), second, impl=self.impl)
