"""The fast path of the ops: one `torch.autograd.Function` per op, over plain kernels.

A kernel backend (`mmattn.ops.native` on the CPU, `mmattn.ops.triton` on CUDA) is a module of
functions on plain tensors that know nothing of autograd. The functions of this module take such
a backend as first argument and give the op with its gradient; a backend stays in place for
backward.

What the autograd side (this module) guarantees to a backend
------------------------------------------------------------
- `x` passed `supports(x)`; it is dense and non-empty, (N, C, H, W), contiguous or channels_last.
- `dy` and `gx` have x's shape, dtype and strides. `gx` is never None.
- Vectors (c, s, h, w, g*) are contiguous (row-major in the shape written here), on x's device and
  of the accumulator type `acc`: float64 for float64 x, else float32. A `g*` may be None: zero.
- Gradients need not be differentiable; grad mode is off or irrelevant.

What a backend guarantees
-------------------------
- Full-size results (y, dx) have x's dtype and strides; vectors are `acc` and contiguous.
- One element's arithmetic is done in `acc` and rounded once. NaN in, NaN out. Of tied maxima any
  one (the same one each time) gets the gradient. Two runs give the same bits: no atomics.
- `inplace=True`: gx is a buffer of our own, it may be overwritten and returned as dx; with False
  it must be left alone.
- `need_x=False`: the first item of the result may be None (and its pass over memory saved).
- An argmax or `saved` is opaque: its type and shape are the backend's own business.

The functions of a backend
--------------------------
Shapes: avg, max, c: (N, C) (of `spatial_pool` avg, max: (N, H, W)); s: (N, H, W); ch: (N, C, H);
cw: (N, C, W); hw: (N, H, W); coord h: (N, C, H), w: (N, C, W); rank-1 c: (N, C), h: (N, H),
w: (N, W).

    supports(x) -> bool                 # dtype, device, layout, toolchain; never raises
    declines(op, x, **options) -> bool  # whether PyTorch's own calls are quicker for this op and x

    channel_pool(x, maximum) -> avg, max | None, argmax | None
    channel_pool_grad(gx, gavg, gmax, argmax, inplace) -> dx

    strip_pool(x, channel) -> ch, cw, hw | None         # means over W, over H, over C
    strip_pool_grad(gx, gch, gcw, ghw, inplace) -> dx

    rank1_pool(planes, weights, chunks, taken) -> (c, h, w), saved
        # planes: ch, cw, hw; weights: (1, 4 S), (1, S + M + 1, 3) twice; chunks: S, M; taken:
        # rank-1 c, h, w or None; all `acc` and contiguous; supports(ch), which is 3-D
    rank1_pool_grad(planes, weights, chunks, taken, grads, saved) -> dplanes, dweights, dtaken
        # grads: of c, h, w, each may be None; each result a tuple, dtaken None without taken

    rank1_attention(x, params, states, chunks) -> y, saved
        # all of DRTAM. params: the MLP's weight, bias, weight, bias, then of each of the one or two
        # modules three weights of rank1_pool, three weights and three biases of norms; states: mean
        # and var (updated in place), momentum or None, eps of each norm; `acc` and contiguous
    rank1_attention_grad(x, params, rules, chunks, saved, dy, need_x) -> dx, dparams
        # rules: momentum and eps of each norm

    spatial_pool(x, c) -> avg, max, argmax              # over the channels of x * c
    spatial_pool_grad(x, c, gx, gavg, gmax, argmax, inplace) -> dx, dc

    spatial_conv(maps, weight) -> out                   # (N, M, H, W), (1, M, kh, kw) -> (N, H, W)
    spatial_conv_grad(maps, weight, dy) -> dmaps, dweight
        # all `acc` and contiguous; kh, kw odd, zero padding

    entropy_pool(x, taps, channel, spatial, avg, max, ent)
        -> (c_avg, c_max, c_ent, s_avg, s_max, s_ent), saved
        # None where not asked for; taps: 1-D `acc` tensor of odd length on x's device;
        # c_max: maximum of the map filtered along H, s_max: of the map filtered along H and W,
        # zero padded; saved: a tuple of small tensors
    entropy_pool_grad(x, taps, gx, grads, saved, inplace) -> dx
        # grads: the six gradients in the order of the statistics, each may be None

    min_max(v, low, high) -> u          # v: `acc`, (N, ...), contiguous; each sample
    min_max_grad(v, low, high, dy) -> dv

    channel_gate(x, c) -> y             # x * c
    channel_gate_grad(x, c, dy, need_x) -> dx, dc
    spatial_gate(x, s) -> y             # x * s
    spatial_gate_grad(x, s, dy, need_x) -> dx, ds
    product_gate(x, c, s) -> y          # x * c * s
    product_gate_grad(x, c, s, dy, need_x) -> dx, dc, ds
    sum_gate(x, c, s) -> y              # x * (c + s)
    sum_gate_grad(x, c, s, dy, need_x) -> dx, dc, ds
    coord_gate(x, h, w) -> y            # x * h[..., :, None] * w[..., None, :]
    coord_gate_grad(x, h, w, dy, need_x) -> dx, dh, dw
    rank1_gate(x, c, h, w) -> y                         # A = c o h o w; x * A
    rank1_gate(x, c, h, w, c2, h2, w2) -> y             # x * (A + (1 - A) * A2)
    rank1_gate_grad(x, c, h, w, dy, need_x) -> dx, dc, dh, dw
    rank1_gate_grad(x, c, h, w, c2, h2, w2, dy, need_x) -> dx, dc, dh, dw, dc2, dh2, dw2

Arguments named `maximum, channel, spatial, avg, max, ent, inplace, need_x, dy` are passed by
keyword, the others by position.

How backward saves a pass
-------------------------
A pool returns x itself first, and the gate applies its factors to that x. The gradient of the
apply op with respect to x therefore arrives in the pool's backward, which adds its own terms: in
place where the buffer is one that our own apply op made for this very pool (it carries the pool's
token), into a new tensor otherwise. `rank1_attention`, which is pool and gate in one, saves one
more: its gate's backward makes only the factors' gradients, and dy is gated in the pass that adds
the pool's terms.
"""

import torch
from torch.autograd.function import once_differentiable


def _recorded(*tensors):
    """Whether autograd has to know of an op on these tensors (None among them is ignored)."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _last(x):
    return not x.is_contiguous()


def _dense(g, last):
    """The full-size gradient g in the memory format of the op's input."""
    layout = torch.channels_last if last else torch.contiguous_format
    return g.resolve_neg().contiguous(memory_format=layout)


def _vector(g):
    return None if g is None else g.resolve_neg().contiguous()


class _Pool(torch.autograd.Function):
    """What the pools share: x comes first among the outputs, and its gradient ends here."""

    @staticmethod
    def open(ctx, kernels, x):
        ctx.set_materialize_grads(False)
        ctx.kernels, ctx.last, ctx.token = kernels, _last(x), object()
        ctx.like = dict(size=x.shape, dtype=x.dtype, device=x.device)

    @staticmethod
    def incoming(ctx, gx):
        """The gradient of the x handed on, and whether its buffer is ours to overwrite."""
        if gx is None:
            layout = torch.channels_last if ctx.last else torch.contiguous_format
            return torch.empty(**ctx.like, memory_format=layout).zero_(), True
        return _dense(gx, ctx.last), gx.__dict__.pop('_mmattn_token', None) is ctx.token


class _Gate(torch.autograd.Function):
    """What the gates share: y = x * f(factors), linear in x."""

    @staticmethod
    def forward(ctx, kernels, name, x, *factors):
        ctx.kernels, ctx.op, ctx.last = kernels, name, _last(x)
        ctx.token = _token(x)
        ctx.save_for_backward(x, *factors)
        return getattr(kernels, name)(x, *factors)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        x, *factors = ctx.saved_tensors
        dy = _dense(dy, ctx.last)
        need_x = ctx.needs_input_grad[2]
        if any(ctx.needs_input_grad[3:]):
            dx, *grads = getattr(ctx.kernels, ctx.op + '_grad')(x, *factors, dy=dy, need_x=need_x)
        else:
            dx, grads = getattr(ctx.kernels, ctx.op)(dy, *factors), [None] * len(factors)
        return None, None, _mark(dx, ctx.token) if need_x else None, *grads


def _token(x):
    """The token of the pool that handed x on, if one did."""
    return getattr(x.grad_fn, 'token', None)


def _mark(dx, token):
    # The attribute goes with the tensor object through the engine, but not into a sum made there.
    if token is not None:
        dx._mmattn_token = token
    return dx


def _gate(kernels, name, x, *factors):
    factors = [f.contiguous() for f in factors]
    if _recorded(x, *factors):
        return _Gate.apply(kernels, name, x, *factors)
    return getattr(kernels, name)(x, *factors)


def channel_gate(kernels, x, c):
    """`x * c`."""
    return _gate(kernels, 'channel_gate', x, c)


def spatial_gate(kernels, x, s):
    """`x * s`."""
    return _gate(kernels, 'spatial_gate', x, s)


def product_gate(kernels, x, c, s):
    """`x * c * s`."""
    return _gate(kernels, 'product_gate', x, c, s)


def sum_gate(kernels, x, c, s):
    """`x * (c + s)`."""
    return _gate(kernels, 'sum_gate', x, c, s)


def coord_gate(kernels, x, h, w):
    """`x * h * w`."""
    return _gate(kernels, 'coord_gate', x, h, w)


def rank1_gate(kernels, x, first, second=None):
    """`x * A`, or `x * (A + (1 - A) * A2)` (DRTAM, eq. 1)."""
    return _gate(kernels, 'rank1_gate', x, *first, *(second or ()))


class _ChannelPool(_Pool):
    @staticmethod
    def forward(ctx, kernels, x, maximum):
        _Pool.open(ctx, kernels, x)
        avg, peak, argmax = kernels.channel_pool(x, maximum=maximum)
        ctx.save_for_backward(argmax)
        return (x, avg, peak) if maximum else (x, avg)

    @staticmethod
    @once_differentiable
    def backward(ctx, gx, gavg, gmax=None):
        gx, inplace = _Pool.incoming(ctx, gx)
        dx = ctx.kernels.channel_pool_grad(
            gx, _vector(gavg), _vector(gmax), *ctx.saved_tensors, inplace=inplace
        )
        return None, dx, None


def channel_pool(kernels, x, maximum=False):
    """`x, avg[, max]` of each channel."""
    if _recorded(x):
        return _ChannelPool.apply(kernels, x, maximum)
    return (x, *kernels.channel_pool(x, maximum=maximum)[: 2 if maximum else 1])


class _StripPool(_Pool):
    @staticmethod
    def forward(ctx, kernels, x, channel):
        _Pool.open(ctx, kernels, x)
        ch, cw, hw = kernels.strip_pool(x, channel=channel)
        return (x, ch, cw, hw) if channel else (x, ch, cw)

    @staticmethod
    @once_differentiable
    def backward(ctx, gx, gch, gcw, ghw=None):
        gx, inplace = _Pool.incoming(ctx, gx)
        dx = ctx.kernels.strip_pool_grad(
            gx, _vector(gch), _vector(gcw), _vector(ghw), inplace=inplace
        )
        return None, dx, None


def strip_pool(kernels, x, channel=False):
    """`x, ch, cw[, hw]`: the means over W, over H and over C."""
    if _recorded(x):
        return _StripPool.apply(kernels, x, channel)
    return (x, *kernels.strip_pool(x, channel=channel)[: 3 if channel else 2])


class _Rank1Pool(torch.autograd.Function):
    @staticmethod
    def forward(ctx, kernels, chunks, *tensors):
        ctx.set_materialize_grads(False)
        ctx.kernels, ctx.chunks = kernels, chunks
        out, saved = kernels.rank1_pool(tensors[:3], tensors[3:6], chunks, tensors[6:] or None)
        ctx.save_for_backward(*tensors, *saved)
        ctx.count = len(tensors)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):
        kept = ctx.saved_tensors  # once: checkpointing unpacks no tensor twice
        tensors, saved = kept[: ctx.count], kept[ctx.count :]
        dplanes, dweights, dtaken = ctx.kernels.rank1_pool_grad(
            tensors[:3],
            tensors[3:6],
            ctx.chunks,
            tensors[6:] or None,
            tuple(_vector(g) for g in grads),
            saved,
        )
        return None, None, *dplanes, *dweights, *(dtaken or ())


def rank1_pool(kernels, planes, weights, chunks, taken=None):
    """`c, h, w`: DRTAM's descriptors before their normalisation."""
    tensors = [t.contiguous() for t in (*planes, *weights, *(taken or ()))]
    if _recorded(*tensors):
        return _Rank1Pool.apply(kernels, chunks, *tensors)
    return kernels.rank1_pool(tensors[:3], tensors[3:6], chunks, tensors[6:] or None)[0]


class _Rank1Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, kernels, states, chunks, x, *params):
        y, saved = kernels.rank1_attention(x, params, states, chunks)
        for mean, var, momentum, _ in states:
            if momentum is not None:  # the kernels wrote to them behind autograd's back
                torch.autograd.graph.increment_version(mean)
                torch.autograd.graph.increment_version(var)
        ctx.kernels, ctx.chunks, ctx.last = kernels, chunks, _last(x)
        ctx.rules = [state[2:] for state in states]
        ctx.count = len(params)
        ctx.save_for_backward(x, *params, *saved)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        x, *kept = ctx.saved_tensors
        params, saved = kept[: ctx.count], kept[ctx.count :]
        dx, dparams = ctx.kernels.rank1_attention_grad(
            x, params, ctx.rules, ctx.chunks, saved, dy=_dense(dy, ctx.last),
            need_x=ctx.needs_input_grad[3],
        )  # fmt: skip
        return None, None, None, dx, *dparams


def rank1_attention(kernels, x, modules, mlp, chunks):
    """All of DRTAM. `modules`: of each the weights of `rank1_pool` and its norms."""
    params = list(mlp)
    for weights, norms in modules:
        params += [*weights, *(norm.weight for norm in norms), *(norm.bias for norm in norms)]
    states = [norm[2:] for _, norms in modules for norm in norms]
    return _Rank1Attention.apply(kernels, states, chunks, x, *(p.contiguous() for p in params))


class _SpatialConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx, kernels, maps, weight):
        ctx.kernels = kernels
        ctx.save_for_backward(maps, weight)
        return kernels.spatial_conv(maps, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        return None, *ctx.kernels.spatial_conv_grad(*ctx.saved_tensors, dy=dy.contiguous())


def spatial_conv(kernels, maps, weight):
    """The convolution of maps (N, M, H, W) to one (N, H, W)."""
    maps, weight = maps.contiguous(), weight.contiguous()
    if _recorded(maps, weight):
        return _SpatialConv.apply(kernels, maps, weight)
    return kernels.spatial_conv(maps, weight)


class _MinMax(torch.autograd.Function):
    @staticmethod
    def forward(ctx, kernels, v, low, high):
        ctx.kernels, ctx.range = kernels, (low, high)
        ctx.save_for_backward(v)
        return kernels.min_max(v, low, high)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        (v,) = ctx.saved_tensors
        return None, ctx.kernels.min_max_grad(v, *ctx.range, dy=dy.contiguous()), None, None


def min_max(kernels, v, low, high):
    """Each sample of v stretched to [low, high]."""
    v = v.contiguous()
    if _recorded(v):
        return _MinMax.apply(kernels, v, low, high)
    return kernels.min_max(v, low, high)


class _SpatialPool(_Pool):
    @staticmethod
    def forward(ctx, kernels, x, c):
        _Pool.open(ctx, kernels, x)
        ctx.source = _token(x)
        avg, peak, argmax = kernels.spatial_pool(x, c)
        ctx.save_for_backward(x, c, argmax)
        return x, avg, peak

    @staticmethod
    @once_differentiable
    def backward(ctx, gx, gavg, gmax):
        x, c, argmax = ctx.saved_tensors
        gx, inplace = _Pool.incoming(ctx, gx)
        dx, dc = ctx.kernels.spatial_pool_grad(
            x, c, gx, _vector(gavg), _vector(gmax), argmax, inplace=inplace
        )
        return None, _mark(dx, ctx.source), dc


def spatial_pool(kernels, x, c):
    """`x, avg, max` of each position, over the channels of `x * c`."""
    c = c.contiguous()
    if _recorded(x, c):
        return _SpatialPool.apply(kernels, x, c)
    return (x, *kernels.spatial_pool(x, c)[:2])


class _EntropyPool(_Pool):
    @staticmethod
    def forward(ctx, kernels, x, taps, wanted):
        _Pool.open(ctx, kernels, x)
        stats, saved = kernels.entropy_pool(x, taps, **wanted)
        ctx.save_for_backward(x, taps, *saved)
        return x, *stats

    @staticmethod
    @once_differentiable
    def backward(ctx, gx, *grads):
        x, taps, *saved = ctx.saved_tensors
        gx, inplace = _Pool.incoming(ctx, gx)
        dx = ctx.kernels.entropy_pool_grad(
            x, taps, gx, tuple(_vector(g) for g in grads), tuple(saved), inplace=inplace
        )
        return None, dx, None, None


def entropy_pool(kernels, x, taps, channel=True, spatial=True, avg=True, max=True, ent=True):
    """`x, (c_avg, c_max, c_ent), (s_avg, s_max, s_ent)`: CAT's three pools of both axes."""
    taps = taps.contiguous()
    wanted = dict(channel=channel, spatial=spatial, avg=avg, max=max, ent=ent)
    if _recorded(x):
        stats = _EntropyPool.apply(kernels, x, taps, wanted)
    else:
        stats = (x, *kernels.entropy_pool(x, taps, **wanted)[0])
    return stats[0], tuple(stats[1:4]), tuple(stats[4:])
