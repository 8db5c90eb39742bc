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
place where nobody else can see the buffer, into a new tensor otherwise. `rank1_attention`, which is
pool and gate in one, saves one more: its gate's backward makes only the factors' gradients, and dy
is gated in the pass that adds the pool's terms.
"""

import functools
import sys

import torch
from torch.autograd import forward_ad


def _recorded(*tensors):
    """Whether autograd has to know of an op on these tensors (None among them is ignored)."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _last(x):
    return not x.is_contiguous()


def _dense(g, last):
    """A full-size gradient in the memory format of the op's input, or that input, which hooks on
    saved tensors may bring back in another."""
    layout = torch.channels_last if last else torch.contiguous_format
    if g.is_contiguous(memory_format=layout) and not g.is_neg():
        return g
    return g.resolve_neg().contiguous(memory_format=layout)


def _vector(g):
    if g is None or g.is_contiguous() and not g.is_neg():
        return g
    return g.resolve_neg().contiguous()


_TWICE = (
    "trying to differentiate twice: the fast ops have a first derivative only; impl='reference' "
    'and MMATTN_IMPL=reference have all'
)


_BATCHED = (
    'the fast ops take no batch of gradients (is_grads_batched=True, vectorize=True): '
    "impl='reference' and MMATTN_IMPL=reference do"
)


def _is_batched(g):
    functorch = torch._C._functorch
    return functorch.is_legacy_batchedtensor(g) or functorch.is_batchedtensor(g)


class _Refusal(torch.autograd.Function):
    """The first tensors as they are, for a graph that ends here: who walks it gets an error."""

    @staticmethod
    def forward(ctx, count, *tensors):
        return tuple(None if t is None else t.detach() for t in tensors[:count])

    @staticmethod
    def backward(ctx, *_):
        raise RuntimeError(_TWICE)


def _once(backward):
    """A backward whose gradients raise an error when they are differentiated again.

    PyTorch's `once_differentiable` does so where an incoming gradient requires one. But a gradient
    also depends on what was saved, unless the op is linear: without an error it would be taken for
    a constant. A forward derivative of a backward is refused, too.

    It is called with what was saved, which is unpacked once: checkpointing unpacks nothing twice.
    """

    @functools.wraps(backward)
    def refusing(ctx, *grads):
        if forward_ad._current_level >= 0 and any(
            g is not None and forward_ad.unpack_dual(g).tangent is not None for g in grads
        ):
            raise RuntimeError(_TWICE)
        saved = ctx.saved_tensors
        try:
            with torch.no_grad():
                outputs = backward(ctx, saved, *grads)
        except RuntimeError as error:
            if any(g is not None and _is_batched(g) for g in grads):
                raise RuntimeError(_BATCHED) from error
            raise
        if not torch.is_grad_enabled():
            return outputs
        causes = grads if ctx.linear else (*grads, *saved)
        causes = [t for t in causes if t is not None and t.requires_grad]
        return _Refusal.apply(len(outputs), *outputs, *causes) if causes else outputs

    return refusing


def _references(g):
    """How often a gradient is referred to: by PyTorch, by Python, and its memory."""
    memory = torch._C._storage_Use_Count(g.untyped_storage()._cdata)
    return g._use_count(), sys.getrefcount(g), memory


class _Pool(torch.autograd.Function):
    """What the pools share: x comes first among the outputs, and its gradient ends here.

    A subclass has `terms(ctx, saved, gx, inplace, *grads)`, the gradients of the inputs after
    `kernels`.
    """

    alone = None  # the references to a gradient that only the engine and `backward` hold

    @staticmethod
    def open(ctx, kernels, x, terms):
        ctx.set_materialize_grads(False)
        ctx.kernels, ctx.terms, ctx.last, ctx.linear = kernels, terms, _last(x), True
        ctx.like = dict(size=x.shape, dtype=x.dtype, device=x.device)
        if _Pool.alone is None and kernels is not None:
            _Pool.alone = _learnt()

    @staticmethod
    @_once
    def backward(ctx, saved, gx, *grads):
        if gx is None:
            layout = torch.channels_last if ctx.last else torch.contiguous_format
            ours = torch.empty(**ctx.like, memory_format=layout).zero_()
        else:
            ours = _dense(gx, ctx.last)
        # A copy is ours; what came is, where no hook and no caller of autograd.grad has it, too.
        inplace = ours is not gx or _references(gx) == _Pool.alone
        return None, *ctx.terms(ctx, saved, ours, inplace, *grads)


class _Probe(_Pool):
    """Counts in its backward the references that `_Pool.backward` counts in its own."""

    @staticmethod
    def forward(ctx, x, counts):
        _Pool.open(ctx, None, x, None)
        ctx.counts = counts
        return x

    @staticmethod
    @_once
    def backward(ctx, saved, gx, *grads):
        ours = _dense(gx, ctx.last)
        inplace = ours is not gx or ctx.counts.append(_references(gx))
        return ours, inplace


def _learnt():
    """The references to a gradient that nobody else can see, or None where they cannot be learnt.

    How many they are is up to the versions of Python and PyTorch; but one that the caller of
    `torch.autograd.grad` will get must have more of them.
    """
    if sys.gettrace() or sys.getprofile():  # which may hold on to what they watch
        return None
    counts = []
    try:
        for seen in (False, True):
            with torch.enable_grad():
                x = torch.ones(1, 1, 1, 2, device='cpu', dtype=torch.float32, requires_grad=True)
                same = _Probe.apply(x, counts)
                torch.autograd.grad((same * 2.0).sum(), [x, same] if seen else [x])
    except (AttributeError, RuntimeError):
        return ()
    return counts[0] if counts[0] != counts[1] else ()


class _Gate(torch.autograd.Function):
    """What the gates share: y = x * f(factors), linear in x."""

    @staticmethod
    def forward(ctx, kernels, name, x, *factors):
        ctx.kernels, ctx.op, ctx.last = kernels, name, _last(x)
        ctx.linear = not any(ctx.needs_input_grad[3:])
        ctx.save_for_backward(x, *factors)
        return getattr(kernels, name)(x, *factors)

    @staticmethod
    @_once
    def backward(ctx, saved, dy):
        x, *factors = saved
        x, dy = _dense(x, ctx.last), _dense(dy, ctx.last)
        need_x = ctx.needs_input_grad[2]
        if any(ctx.needs_input_grad[3:]):
            dx, *grads = getattr(ctx.kernels, ctx.op + '_grad')(x, *factors, dy=dy, need_x=need_x)
        else:
            dx, grads = getattr(ctx.kernels, ctx.op)(dy, *factors), [None] * len(factors)
        return None, None, dx, *grads


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
        _Pool.open(ctx, kernels, x, _ChannelPool.terms)
        avg, peak, argmax = kernels.channel_pool(x, maximum=maximum)
        ctx.save_for_backward(argmax)
        return (x, avg, peak) if maximum else (x, avg)

    @staticmethod
    def terms(ctx, saved, gx, inplace, gavg, gmax=None):
        dx = ctx.kernels.channel_pool_grad(
            gx, _vector(gavg), _vector(gmax), *saved, inplace=inplace
        )
        return dx, None


def channel_pool(kernels, x, maximum=False):
    """`x, avg[, max]` of each channel."""
    if _recorded(x):
        return _ChannelPool.apply(kernels, x, maximum)
    return (x, *kernels.channel_pool(x, maximum=maximum)[: 2 if maximum else 1])


class _StripPool(_Pool):
    @staticmethod
    def forward(ctx, kernels, x, channel):
        _Pool.open(ctx, kernels, x, _StripPool.terms)
        ch, cw, hw = kernels.strip_pool(x, channel=channel)
        return (x, ch, cw, hw) if channel else (x, ch, cw)

    @staticmethod
    def terms(ctx, saved, gx, inplace, gch, gcw, ghw=None):
        dx = ctx.kernels.strip_pool_grad(
            gx, _vector(gch), _vector(gcw), _vector(ghw), inplace=inplace
        )
        return dx, None


def strip_pool(kernels, x, channel=False):
    """`x, ch, cw[, hw]`: the means over W, over H and over C."""
    if _recorded(x):
        return _StripPool.apply(kernels, x, channel)
    return (x, *kernels.strip_pool(x, channel=channel)[: 3 if channel else 2])


class _Rank1Pool(torch.autograd.Function):
    @staticmethod
    def forward(ctx, kernels, chunks, *tensors):
        ctx.set_materialize_grads(False)
        ctx.kernels, ctx.chunks, ctx.linear = kernels, chunks, False
        out, saved = kernels.rank1_pool(tensors[:3], tensors[3:6], chunks, tensors[6:] or None)
        ctx.save_for_backward(*tensors, *saved)
        ctx.count = len(tensors)
        return out

    @staticmethod
    @_once
    def backward(ctx, kept, *grads):
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
        ctx.kernels, ctx.chunks, ctx.last, ctx.linear = kernels, chunks, _last(x), False
        ctx.rules = [state[2:] for state in states]
        ctx.count = len(params)
        ctx.save_for_backward(x, *params, *saved)
        return y

    @staticmethod
    @_once
    def backward(ctx, kept, dy):
        x, *kept = kept
        params, saved = kept[: ctx.count], kept[ctx.count :]
        dx, dparams = ctx.kernels.rank1_attention_grad(
            _dense(x, ctx.last), params, ctx.rules, ctx.chunks, saved, dy=_dense(dy, ctx.last),
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
        ctx.kernels, ctx.linear = kernels, not all(ctx.needs_input_grad[1:])
        ctx.save_for_backward(maps, weight)
        return kernels.spatial_conv(maps, weight)

    @staticmethod
    @_once
    def backward(ctx, saved, dy):
        return None, *ctx.kernels.spatial_conv_grad(*saved, dy=_vector(dy))


def spatial_conv(kernels, maps, weight):
    """The convolution of maps (N, M, H, W) to one (N, H, W)."""
    maps, weight = maps.contiguous(), weight.contiguous()
    if _recorded(maps, weight):
        return _SpatialConv.apply(kernels, maps, weight)
    return kernels.spatial_conv(maps, weight)


class _MinMax(torch.autograd.Function):
    @staticmethod
    def forward(ctx, kernels, v, low, high):
        ctx.kernels, ctx.range, ctx.linear = kernels, (low, high), False
        ctx.save_for_backward(v)
        return kernels.min_max(v, low, high)

    @staticmethod
    @_once
    def backward(ctx, saved, dy):
        (v,) = saved
        return None, ctx.kernels.min_max_grad(v, *ctx.range, dy=_vector(dy)), None, None


def min_max(kernels, v, low, high):
    """Each sample of v stretched to [low, high]."""
    v = v.contiguous()
    if _recorded(v):
        return _MinMax.apply(kernels, v, low, high)
    return kernels.min_max(v, low, high)


class _SpatialPool(_Pool):
    @staticmethod
    def forward(ctx, kernels, x, c):
        _Pool.open(ctx, kernels, x, _SpatialPool.terms)
        ctx.linear = not ctx.needs_input_grad[2]
        avg, peak, argmax = kernels.spatial_pool(x, c)
        ctx.save_for_backward(x, c, argmax)
        return x, avg, peak

    @staticmethod
    def terms(ctx, saved, gx, inplace, gavg, gmax):
        x, c, argmax = saved
        return ctx.kernels.spatial_pool_grad(
            _dense(x, ctx.last), c, gx, _vector(gavg), _vector(gmax), argmax, inplace=inplace
        )


def spatial_pool(kernels, x, c):
    """`x, avg, max` of each position, over the channels of `x * c`."""
    c = c.contiguous()
    if _recorded(x, c):
        return _SpatialPool.apply(kernels, x, c)
    return (x, *kernels.spatial_pool(x, c)[:2])


class _EntropyPool(_Pool):
    @staticmethod
    def forward(ctx, kernels, x, taps, wanted):
        _Pool.open(ctx, kernels, x, _EntropyPool.terms)
        ctx.linear = False
        stats, saved = kernels.entropy_pool(x, taps, **wanted)
        ctx.save_for_backward(x, taps, *saved)
        return x, *stats

    @staticmethod
    def terms(ctx, saved, gx, inplace, *grads):
        x, taps, *saved = saved
        dx = ctx.kernels.entropy_pool_grad(
            _dense(x, ctx.last),
            taps,
            gx,
            tuple(_vector(g) for g in grads),
            tuple(saved),
            inplace=inplace,
        )
        return dx, None, None


def entropy_pool(kernels, x, taps, channel=True, spatial=True, avg=True, max=True, ent=True):
    """`x, (c_avg, c_max, c_ent), (s_avg, s_max, s_ent)`: CAT's three pools of both axes."""
    taps = taps.contiguous()
    wanted = dict(channel=channel, spatial=spatial, avg=avg, max=max, ent=ent)
    if _recorded(x):
        stats = _EntropyPool.apply(kernels, x, taps, wanted)
    else:
        stats = (x, *kernels.entropy_pool(x, taps, **wanted)[0])
    return stats[0], tuple(stats[1:4]), tuple(stats[4:])
