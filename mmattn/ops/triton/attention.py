"""All of DRTAM: its pools and gates are those of the other modules; here are the layers between.

The three descriptors c (N, C), h (N, H) and w (N, W) are normalised together, each as of one
channel, by programs that take an equal part of one of them.
"""

import torch
import triton
import triton.language as tl

from ..dispatch import full_precision
from .common import cdiv, floats, launch, pow2
from .gate import rank1_gate, rank1_gate_grad
from .planes import rank1_pool, rank1_pool_grad
from .strip import strip_pool, strip_pool_grad

RULES = ('momentum_c', 'eps_c', 'momentum_h', 'eps_h', 'momentum_w', 'eps_w')


@triton.jit
def _mine(a, b, c, which):
    """That one of three that a program works on."""
    found = a
    if which == 1:
        found = b
    if which == 2:
        found = c
    return found


@triton.jit
def _part(samples, c, h, w, which, part, PARTS: tl.constexpr):
    """The elements of a descriptor that a program takes: begin, end; and how many it has."""
    total = samples * _mine(c, h, w, which)
    each = (total + PARTS - 1) // PARTS
    return part * each, tl.minimum((part + 1) * each, total), total


@triton.jit(do_not_specialize=['samples', 'channels', 'height', 'width'])
def moments_of_kernel(
    c_ptr,
    h_ptr,
    w_ptr,
    parts_ptr,
    samples,
    channels,
    height,
    width,
    PARTS: tl.constexpr,
    B: tl.constexpr,
):
    """parts (3, PARTS, 3): count, mean and sum of squared distances from it."""
    pid = tl.program_id(0)
    which = pid // PARTS
    v_ptr = _mine(c_ptr, h_ptr, w_ptr, which)
    begin, end, _ = _part(samples, channels, height, width, which, pid % PARTS, PARTS)
    sums = tl.zeros([B], tl.float32)
    for start in range(begin, end, B):
        i = start + tl.arange(0, B)
        sums += tl.load(v_ptr + i, mask=i < end, other=0.0)
    count = tl.maximum(end - begin, 0).to(tl.float32)
    mean = tl.sum(sums, 0) / tl.maximum(count, 1.0)
    squares = tl.zeros([B], tl.float32)
    for start in range(begin, end, B):
        i = start + tl.arange(0, B)
        away = tl.where(i < end, tl.load(v_ptr + i, mask=i < end, other=0.0) - mean, 0.0)
        squares += away * away
    tl.store(parts_ptr + 3 * pid, count)
    tl.store(parts_ptr + 3 * pid + 1, mean)
    tl.store(parts_ptr + 3 * pid + 2, tl.sum(squares, 0))


@triton.jit(do_not_specialize=['samples', 'channels', 'height', 'width', *RULES])
def rank1_norm_kernel(
    c_ptr,
    h_ptr,
    w_ptr,
    parts_ptr,
    weight_c,
    weight_h,
    weight_w,
    bias_c,
    bias_h,
    bias_w,
    mean_c,
    mean_h,
    mean_w,
    var_c,
    var_h,
    var_w,
    moments_ptr,
    oc_ptr,
    oh_ptr,
    ow_ptr,
    momentum_c,
    eps_c,
    momentum_h,
    eps_h,
    momentum_w,
    eps_w,
    samples,
    channels,
    height,
    width,
    PARTS: tl.constexpr,
    B: tl.constexpr,
):
    """The descriptors normalised, h and w through a sigmoid; moments (3, 2): mean, 1 / deviation.

    A negative momentum: by the running mean and var.
    """
    pid = tl.program_id(0)
    which = pid // PARTS
    v_ptr = _mine(c_ptr, h_ptr, w_ptr, which)
    o_ptr = _mine(oc_ptr, oh_ptr, ow_ptr, which)
    mean_ptr = _mine(mean_c, mean_h, mean_w, which)
    var_ptr = _mine(var_c, var_h, var_w, which)
    begin, end, total = _part(samples, channels, height, width, which, pid % PARTS, PARTS)
    momentum = _mine(momentum_c, momentum_h, momentum_w, which)
    eps = _mine(eps_c, eps_h, eps_w, which)
    mean = 0.0
    var = 0.0
    if momentum < 0:
        mean = tl.load(mean_ptr)
        var = tl.load(var_ptr)
    else:
        p = 3 * (which * PARTS + tl.arange(0, PARTS))
        counts = tl.load(parts_ptr + p)
        means = tl.load(parts_ptr + p + 1)
        mean = tl.sum(counts * means, 0) / total
        away = means - mean
        squares = tl.sum(tl.load(parts_ptr + p + 2) + counts * away * away, 0)
        var = squares / total
        if pid % PARTS == 0:
            tl.store(mean_ptr, tl.load(mean_ptr) * (1 - momentum) + momentum * mean)
            tl.store(
                var_ptr,
                tl.load(var_ptr) * (1 - momentum) + momentum * (squares / tl.maximum(total - 1, 1)),
            )
    scale = 1.0 / tl.sqrt(var + eps)
    if pid % PARTS == 0:
        tl.store(moments_ptr + 2 * which, mean)
        tl.store(moments_ptr + 2 * which + 1, scale)
    scale *= tl.load(_mine(weight_c, weight_h, weight_w, which))
    bias = tl.load(_mine(bias_c, bias_h, bias_w, which))
    for start in range(begin, end, B):
        i = start + tl.arange(0, B)
        v = (tl.load(v_ptr + i, mask=i < end, other=0.0) - mean) * scale + bias
        v = tl.where(which > 0, 1 / (1 + tl.exp(-v)), v)
        tl.store(o_ptr + i, v, mask=i < end)


@triton.jit
def _incoming(v_ptr, mean, scale, g_ptr, o_ptr, i, end, which):
    """The gradient of what a norm gave (h's and w's before the sigmoid), the unit descriptor."""
    g = tl.load(g_ptr + i, mask=i < end, other=0.0)
    if which > 0:
        y = tl.load(o_ptr + i, mask=i < end, other=0.0)
        g = g * y * (1 - y)
    return g, (tl.load(v_ptr + i, mask=i < end, other=0.0) - mean) * scale


@triton.jit(do_not_specialize=['samples', 'channels', 'height', 'width'])
def rank1_norm_sums_kernel(
    c_ptr,
    h_ptr,
    w_ptr,
    moments_ptr,
    oh_ptr,
    ow_ptr,
    gc_ptr,
    gh_ptr,
    gw_ptr,
    parts_ptr,
    samples,
    channels,
    height,
    width,
    PARTS: tl.constexpr,
    B: tl.constexpr,
):
    """parts (3, PARTS, 2): sums of the incoming gradient, and of it times the unit descriptor."""
    pid = tl.program_id(0)
    which = pid // PARTS
    v_ptr = _mine(c_ptr, h_ptr, w_ptr, which)
    o_ptr = _mine(c_ptr, oh_ptr, ow_ptr, which)
    g_ptr = _mine(gc_ptr, gh_ptr, gw_ptr, which)
    begin, end, _ = _part(samples, channels, height, width, which, pid % PARTS, PARTS)
    mean = tl.load(moments_ptr + 2 * which)
    scale = tl.load(moments_ptr + 2 * which + 1)
    sums = tl.zeros([B], tl.float32)
    dots = tl.zeros([B], tl.float32)
    for start in range(begin, end, B):
        i = start + tl.arange(0, B)
        g, unit = _incoming(v_ptr, mean, scale, g_ptr, o_ptr, i, end, which)
        sums += g
        dots += g * unit
    tl.store(parts_ptr + 2 * pid, tl.sum(sums, 0))
    tl.store(parts_ptr + 2 * pid + 1, tl.sum(dots, 0))


@triton.jit(do_not_specialize=['samples', 'channels', 'height', 'width', *RULES])
def rank1_norm_grad_kernel(
    c_ptr,
    h_ptr,
    w_ptr,
    moments_ptr,
    oh_ptr,
    ow_ptr,
    gc_ptr,
    gh_ptr,
    gw_ptr,
    parts_ptr,
    weight_c,
    weight_h,
    weight_w,
    dc_ptr,
    dh_ptr,
    dw_ptr,
    dlayers_ptr,
    momentum_c,
    eps_c,
    momentum_h,
    eps_h,
    momentum_w,
    eps_w,
    samples,
    channels,
    height,
    width,
    PARTS: tl.constexpr,
    B: tl.constexpr,
):
    """The gradients of the descriptors; dlayers (2, 3): of the norms' weights and biases."""
    pid = tl.program_id(0)
    which = pid // PARTS
    v_ptr = _mine(c_ptr, h_ptr, w_ptr, which)
    o_ptr = _mine(c_ptr, oh_ptr, ow_ptr, which)
    g_ptr = _mine(gc_ptr, gh_ptr, gw_ptr, which)
    dv_ptr = _mine(dc_ptr, dh_ptr, dw_ptr, which)
    begin, end, total = _part(samples, channels, height, width, which, pid % PARTS, PARTS)
    p = 2 * (which * PARTS + tl.arange(0, PARTS))
    level = tl.sum(tl.load(parts_ptr + p), 0)
    slope = tl.sum(tl.load(parts_ptr + p + 1), 0)
    if pid % PARTS == 0:
        tl.store(dlayers_ptr + which, slope)
        tl.store(dlayers_ptr + 3 + which, level)
    by_batch = tl.where(_mine(momentum_c, momentum_h, momentum_w, which) < 0, 0.0, 1.0 / total)
    mean = tl.load(moments_ptr + 2 * which)
    scale = tl.load(moments_ptr + 2 * which + 1)
    weight = tl.load(_mine(weight_c, weight_h, weight_w, which))
    for start in range(begin, end, B):
        i = start + tl.arange(0, B)
        g, unit = _incoming(v_ptr, mean, scale, g_ptr, o_ptr, i, end, which)
        g -= (level + unit * slope) * by_batch
        tl.store(dv_ptr + i, g * (scale * weight), mask=i < end)


def _launch(kernel, vectors, *args):
    n, lengths = vectors[0].shape[0], [v.shape[1] for v in vectors]
    parts = pow2(cdiv(n * max(lengths), 4096), 64)
    launch(
        kernel,
        3 * parts,
        *vectors,
        *args,
        n,
        *lengths,
        PARTS=parts,
        B=pow2(cdiv(n * max(lengths), parts), 1024),
    )


def _partial(vectors, columns):
    return floats(vectors[0], 3, 64, columns)


def _rules(rules):
    """Momentum, negative where there is none, and eps of each norm of a module."""
    return [r for momentum, eps in rules for r in (-1.0 if momentum is None else momentum, eps)]


def _layers(vectors, weights, biases, running, rules, mlp):
    """The factors, and what backward needs: moments, c normalised, the MLP's hidden values."""
    w1, b1, w2, b2 = mlp
    parts, moments = _partial(vectors, 3), floats(vectors[0], 3, 2)
    v, h, w = (torch.empty_like(t) for t in vectors)
    _launch(moments_of_kernel, vectors, parts)
    means, variances = running[::2], running[1::2]
    _launch(
        rank1_norm_kernel,
        vectors,
        parts,
        *weights,
        *biases,
        *means,
        *variances,
        moments,
        v,
        h,
        w,
        *rules,
    )
    hidden = torch.addmm(b1, v, w1.t()).relu_()
    c = torch.addmm(b2, hidden, w2.t()).sigmoid_()
    return (c, h, w), (moments, v, hidden)


def _layers_grad(vectors, weights, rules, mlp, out, saved, grads):
    """The gradients of descriptors, norms' weights, norms' biases, and the MLP."""
    w1, _, w2, _ = mlp
    moments, v, hidden = saved
    c, h, w = out
    gc, gh, gw = grads
    gc = torch.ops.aten.sigmoid_backward(gc, c)
    inner = torch.ops.aten.threshold_backward(gc @ w2, hidden, 0)
    dmlp = inner.t() @ v, inner.sum(0), gc.t() @ hidden, gc.sum(0)
    gradients = inner @ w1, gh, gw
    parts, dlayers = _partial(vectors, 2), floats(vectors[0], 2, 3, 1)
    dvectors = tuple(torch.empty_like(t) for t in vectors)
    _launch(rank1_norm_sums_kernel, vectors, moments, h, w, *gradients, parts)
    _launch(
        rank1_norm_grad_kernel,
        vectors,
        moments,
        h,
        w,
        *gradients,
        parts,
        *weights,
        *dvectors,
        dlayers,
        *rules,
    )
    return dvectors, dlayers[0].unbind(), dlayers[1].unbind(), dmlp


def _modules(params):
    """Of each module the weights of its convolutions, of its norms, and the norms' biases."""
    return [tuple(params[i + k : i + k + 3] for k in (0, 3, 6)) for i in range(4, len(params), 9)]


def rank1_attention(x, params, states, chunks):
    planes = strip_pool(x, channel=True)
    mlp, factors, saved = params[:4], [], []
    for i, (convs, weights, biases) in enumerate(_modules(params)):
        mine = states[3 * i : 3 * i + 3]
        running, rules = [t for s in mine for t in s[:2]], _rules([s[2:] for s in mine])
        vectors, pooled = rank1_pool(planes, convs, chunks, factors[0] if factors else None)
        out, kept = _layers(vectors, weights, biases, running, rules, mlp)
        factors.append(out)
        saved += [*vectors, *pooled, *out, *kept]
    y = rank1_gate(x, *(f for out in factors for f in out))
    return y, (*planes, *saved)


def rank1_attention_grad(x, params, rules, chunks, saved, *, dy, need_x):
    planes, mlp, modules = saved[:3], params[:4], _modules(params)
    stages = [
        (saved[i : i + 3], saved[i + 3 : i + 7], saved[i + 7 : i + 10], saved[i + 10 : i + 13])
        for i in range(3, len(saved), 13)
    ]
    maps = [out for _, _, out, _ in stages]
    _, *grads = rank1_gate_grad(x, *(f for out in maps for f in out), dy=dy, need_x=False)
    dparams, dmlp, dplanes = [], None, None
    # The MLP's products stay in full precision; the meta device has no autocast to switch off.
    with full_precision(x.device.type):
        for i in reversed(range(len(modules))):
            convs, weights, _ = modules[i]
            vectors, pooled, out, kept = stages[i]
            dvectors, *dnorms, more = _layers_grad(
                vectors,
                weights,
                _rules(rules[3 * i : 3 * i + 3]),
                mlp,
                out,
                kept,
                grads[3 * i : 3 * i + 3],
            )
            found, dconvs, dtaken = rank1_pool_grad(
                planes, convs, chunks, stages[0][2] if i else None, dvectors, pooled
            )
            dparams = [*dconvs, *dnorms[0], *dnorms[1], *dparams]
            dmlp = more if dmlp is None else torch._foreach_add(dmlp, more)
            dplanes = found if dplanes is None else torch._foreach_add(dplanes, found)
            if i:
                grads = [*torch._foreach_add(grads[:3], dtaken), *grads[3:]]
    # dy is gated only here, together with the gradient of the planes: a pass less.
    dx = torch.empty_like(x) if need_x else None
    if need_x:
        strip_pool_grad(dx, *dplanes, dy=dy, maps=maps)
    return dx, [*dmlp, *dparams]
