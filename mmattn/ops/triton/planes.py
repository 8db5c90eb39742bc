"""DRTAM's descriptors of its three planes (`rank1_pool`), which are small: one program a plane."""

import triton
import triton.language as tl

from .common import BIG, floats, ints, launch, nan_max, pow2


@triton.jit
def _window(length, COUNT: tl.constexpr, i: tl.constexpr):
    """Begin, end and 1 / length of window i of COUNT along an axis (`ops.chunks.windows`)."""
    size = (length + COUNT - 1) // COUNT
    short = length // COUNT
    longer = length % COUNT
    chunked = (length + size - 1) // size == COUNT
    begin = tl.where(length < COUNT, i * length // COUNT, i * short + tl.minimum(i, longer))
    begin = tl.where(chunked, i * size, begin)
    end = tl.where(
        length < COUNT,
        ((i + 1) * length + COUNT - 1) // COUNT,
        (i + 1) * short + tl.minimum(i + 1, longer),
    )
    end = tl.where(chunked, tl.minimum((i + 1) * size, length), end)
    return begin, end, 1.0 / (end - begin).to(tl.float32)


@triton.jit
def _plane(ptr, n, i, j, rows, cols, in_rows, in_cols):
    at = (n * rows + i)[:, None] * cols + j[None, :]
    return tl.load(ptr + at, mask=in_rows[:, None] & in_cols[None, :], other=0.0)


@triton.jit
def _left(ptr, a_ptr, b_ptr, n, i, j, rows, cols, in_rows, in_cols, TAKEN: tl.constexpr):
    """What an attention map of the factors a and b leaves of a plane; all of it without TAKEN."""
    v = _plane(ptr, n, i, j, rows, cols, in_rows, in_cols)
    if TAKEN:
        a = tl.load(a_ptr + n * rows + i, mask=in_rows, other=0.0)
        b = tl.load(b_ptr + n * cols + j, mask=in_cols, other=0.0)
        v *= 1 - a[:, None] * b[None, :]
    return v


@triton.jit
def _row_means(
    ptr,
    a_ptr,
    b_ptr,
    to_ptr,
    n,
    rows,
    cols,
    COUNT: tl.constexpr,
    TAKEN: tl.constexpr,
    BR: tl.constexpr,
    BL: tl.constexpr,
):
    """The means of COUNT windows of a plane's rows, one strip after the other."""
    j = tl.arange(0, BL)
    in_cols = j < cols
    for k in tl.static_range(COUNT):
        begin, end, mean = _window(rows, COUNT, k)
        sums = tl.zeros([BR, BL], tl.float32)
        for start in range(begin, end, BR):
            i = start + tl.arange(0, BR)
            sums += _left(ptr, a_ptr, b_ptr, n, i, j, rows, cols, i < end, in_cols, TAKEN)
        tl.store(to_ptr + k * cols + j, tl.sum(sums, 0) * mean, mask=in_cols)


@triton.jit
def _side(
    plane_ptr,
    f_ptr,
    weights_ptr,
    c_ptr,
    part_ptr,
    strips_ptr,
    at_ptr,
    n,
    channels,
    length,
    S: tl.constexpr,
    M: tl.constexpr,
    TAKEN: tl.constexpr,
    BR: tl.constexpr,
    BL: tl.constexpr,
):
    """Chunks of a plane (C, L) -> part (C); its strips S to S + M, and where the last one's are."""
    j = tl.arange(0, BL)
    in_l = j < length
    best = tl.full([BR, BL], -float('inf'), tl.float32)
    arg = tl.full([BR, BL], BIG, tl.int32)
    for start in range(0, channels, BR):
        i = start + tl.arange(0, BR)
        in_c = i < channels
        v = _left(plane_ptr, c_ptr, f_ptr, n, i, j, channels, length, in_c, in_l, TAKEN)
        value = tl.zeros([BR], tl.float32)
        for s in tl.static_range(S):
            begin, end, mean = _window(length, S, s)
            inside = ((j >= begin) & (j < end))[None, :]
            value += tl.sum(tl.where(inside, v, 0.0), 1) * (mean * tl.load(weights_ptr + 4 * s))
            top = tl.reduce(tl.where(inside, v, -float('inf')), 1, nan_max)
            value += top * tl.load(weights_ptr + 4 * s + 1)
        tl.store(part_ptr + n * channels + i, value, mask=in_c)
        v = tl.where(in_c[:, None], v, -float('inf'))
        arg = tl.where(v > best, tl.broadcast_to(i[:, None], [BR, BL]), arg)
        best = nan_max(v, best)
    strips_ptr += (n * (S + M + 1) + S) * length
    top = tl.reduce(best, 0, nan_max)
    arg = tl.min(tl.where(best == top[None, :], arg, BIG), 0)
    tl.store(strips_ptr + M * length + j, top, mask=in_l)
    tl.store(at_ptr + n * length + j, tl.where(arg == BIG, 0, arg), mask=in_l)
    _row_means(plane_ptr, c_ptr, f_ptr, strips_ptr, n, channels, length, M, TAKEN, BR, BL)


@triton.jit(do_not_specialize=['samples', 'channels', 'height', 'width'])
def rank1_pool_kernel(
    ch_ptr,
    cw_ptr,
    hw_ptr,
    weights_ptr,
    c_ptr,
    h_ptr,
    w_ptr,
    parts_ptr,
    sh_ptr,
    sw_ptr,
    at_h_ptr,
    at_w_ptr,
    samples,
    channels,
    height,
    width,
    S: tl.constexpr,
    M: tl.constexpr,
    TAKEN: tl.constexpr,
    BR: tl.constexpr,
    BL: tl.constexpr,
):
    """Program n, plane: parts (2, samples, C), the strips of h and of w (samples, S + M + 1, L)."""
    pid = tl.program_id(0)
    n = (pid // 3).to(tl.int64)
    if pid % 3 == 0:
        _side(
            cw_ptr,
            w_ptr,
            weights_ptr,
            c_ptr,
            parts_ptr,
            sw_ptr,
            at_w_ptr,
            n,
            channels,
            width,
            S,
            M,
            TAKEN,
            BR,
            BL,
        )
    elif pid % 3 == 1:
        _side(
            ch_ptr,
            h_ptr,
            weights_ptr + 2,
            c_ptr,
            parts_ptr + samples * channels,
            sh_ptr,
            at_h_ptr,
            n,
            channels,
            height,
            S,
            M,
            TAKEN,
            BR,
            BL,
        )
    else:
        j = tl.arange(0, BL)
        in_w = j < width
        rows = n * (S + M + 1)
        for start in range(0, height, BR):
            i = start + tl.arange(0, BR)
            in_h = i < height
            v = _left(hw_ptr, h_ptr, w_ptr, n, i, j, height, width, in_h, in_w, TAKEN)
            for s in tl.static_range(S):
                begin, end, mean = _window(width, S, s)
                inside = ((j >= begin) & (j < end))[None, :]
                tl.store(
                    sh_ptr + (rows + s) * height + i,
                    tl.sum(tl.where(inside, v, 0.0), 1) * mean,
                    mask=in_h,
                )
        _row_means(
            hw_ptr,
            h_ptr,
            w_ptr,
            sw_ptr + rows * width,
            n,
            height,
            width,
            S,
            TAKEN,
            BR,
            BL,
        )


@triton.jit
def _conv(strips_ptr, kernel_ptr, out_ptr, n, length, ROWS: tl.constexpr, B: tl.constexpr):
    j = tl.arange(0, B)
    value = tl.zeros([B], tl.float32)
    for r in tl.static_range(ROWS):
        for k in tl.static_range(3):
            at = j + (k - 1)
            strip = tl.load(
                strips_ptr + (n * ROWS + r) * length + at, mask=(at >= 0) & (at < length), other=0.0
            )
            value += tl.load(kernel_ptr + 3 * r + k) * strip
    tl.store(out_ptr + n * length + j, value, mask=j < length)


@triton.jit(do_not_specialize=['samples', 'channels', 'height', 'width'])
def rank1_conv_kernel(
    parts_ptr,
    sh_ptr,
    sw_ptr,
    kh_ptr,
    kw_ptr,
    c_ptr,
    h_ptr,
    w_ptr,
    samples,
    channels,
    height,
    width,
    ROWS: tl.constexpr,
    BC: tl.constexpr,
    BL: tl.constexpr,
):
    """c = the sum of its parts, h and w = the convolutions of their strips."""
    n = tl.program_id(0).to(tl.int64)
    for start in range(0, channels, BC):
        i = start + tl.arange(0, BC)
        at = n * channels + i
        in_c = i < channels
        c = tl.load(parts_ptr + at, mask=in_c, other=0.0)
        c += tl.load(parts_ptr + samples * channels + at, mask=in_c, other=0.0)
        tl.store(c_ptr + at, c, mask=in_c)
    _conv(sh_ptr, kh_ptr, h_ptr, n, height, ROWS, BL)
    _conv(sw_ptr, kw_ptr, w_ptr, n, width, ROWS, BL)


@triton.jit
def _conv_grad(
    strips_ptr,
    kernel_ptr,
    g_ptr,
    to_ptr,
    dkernel_ptr,
    n,
    length,
    ROWS: tl.constexpr,
    B: tl.constexpr,
):
    j = tl.arange(0, B)
    in_l = j < length
    for r in tl.static_range(ROWS):
        strip = tl.load(strips_ptr + (n * ROWS + r) * length + j, mask=in_l, other=0.0)
        value = tl.zeros([B], tl.float32)
        for k in tl.static_range(3):
            at = j + (1 - k)
            g = tl.load(g_ptr + n * length + at, mask=(at >= 0) & (at < length), other=0.0)
            value += tl.load(kernel_ptr + 3 * r + k) * g
            tl.store(dkernel_ptr + 3 * r + k, tl.sum(tl.where(in_l, g * strip, 0.0), 0))
        tl.store(to_ptr + (n * ROWS + r) * length + j, value, mask=in_l)


@triton.jit(do_not_specialize=['height', 'width'])
def rank1_conv_grad_kernel(
    sh_ptr,
    sw_ptr,
    kh_ptr,
    kw_ptr,
    gh_ptr,
    gw_ptr,
    to_h_ptr,
    to_w_ptr,
    dweights_ptr,
    height,
    width,
    S: tl.constexpr,
    ROWS: tl.constexpr,
    BL: tl.constexpr,
):
    """The gradients of the strips, and each sample's of the kernels."""
    n = tl.program_id(0).to(tl.int64)
    to = dweights_ptr + n * (4 * S + 6 * ROWS) + 4 * S
    _conv_grad(sh_ptr, kh_ptr, gh_ptr, to_h_ptr, to, n, height, ROWS, BL)
    _conv_grad(sw_ptr, kw_ptr, gw_ptr, to_w_ptr, to + 3 * ROWS, n, width, ROWS, BL)


@triton.jit
def _side_grad(
    plane_ptr,
    f_ptr,
    weights_ptr,
    c_ptr,
    gc_ptr,
    gs_ptr,
    at_ptr,
    dplane_ptr,
    dweights_ptr,
    dc_ptr,
    df_ptr,
    n,
    channels,
    length,
    S: tl.constexpr,
    M: tl.constexpr,
    TAKEN: tl.constexpr,
    BR: tl.constexpr,
    BL: tl.constexpr,
    BS: tl.constexpr,
):
    j = tl.arange(0, BL)
    in_l = j < length
    rows = gs_ptr + (n * (S + M + 1) + S) * length + j
    gpeak = tl.load(rows + M * length, mask=in_l, other=0.0)
    at = tl.load(at_ptr + n * length + j, mask=in_l, other=-1)
    if TAKEN:
        f = tl.load(f_ptr + n * length + j, mask=in_l, other=0.0)
        lost = tl.zeros([BR, BL], tl.float32)
    slot = tl.arange(0, BS)
    dweights = tl.zeros([BS], tl.float32)
    for start in range(0, channels, BR):
        i = start + tl.arange(0, BR)
        in_c = i < channels
        raw = _plane(plane_ptr, n, i, j, channels, length, in_c, in_l)
        v = raw
        if TAKEN:
            c = tl.load(c_ptr + n * channels + i, mask=in_c, other=0.0)
            kept = 1 - c[:, None] * f[None, :]
            v *= kept
        gc = tl.load(gc_ptr + n * channels + i, mask=in_c, other=0.0)
        g = tl.where(i[:, None] == at[None, :], gpeak[None, :], 0.0)
        for m in tl.static_range(M):
            begin, end, mean = _window(channels, M, m)
            gavg = tl.load(rows + m * length, mask=in_l, other=0.0) * mean
            g += tl.where(((i >= begin) & (i < end))[:, None], gavg[None, :], 0.0)
        for s in tl.static_range(S):
            begin, end, mean = _window(length, S, s)
            inside = ((j >= begin) & (j < end))[None, :]
            top = tl.reduce(tl.where(inside, v, -float('inf')), 1, nan_max)
            place = tl.min(tl.where(inside & (v == top[:, None]), j[None, :], BIG), 1)
            first = j[None, :] == place[:, None]
            w_avg = mean * tl.load(weights_ptr + 4 * s)
            w_max = tl.load(weights_ptr + 4 * s + 1)
            g += tl.where(inside, (gc * w_avg)[:, None], 0.0)
            g += tl.where(first, (gc * w_max)[:, None], 0.0)
            d_avg = tl.sum(gc * tl.sum(tl.where(inside, v, 0.0), 1), 0) * mean
            d_max = tl.sum(tl.where(in_c, gc * top, 0.0), 0)
            dweights += tl.where(slot == 2 * s, d_avg, 0.0)
            dweights += tl.where(slot == 2 * s + 1, d_max, 0.0)
        if TAKEN:
            gd = g * raw
            tl.store(dc_ptr + n * channels + i, -tl.sum(gd * f[None, :], 1), mask=in_c)
            lost += gd * c[:, None]
            g *= kept
        tl.store(
            dplane_ptr + (n * channels + i)[:, None] * length + j[None, :],
            g,
            mask=in_c[:, None] & in_l[None, :],
        )
    tl.store(dweights_ptr + 4 * (slot // 2) + slot % 2, dweights, mask=slot < 2 * S)
    if TAKEN:
        tl.store(df_ptr + n * length + j, -tl.sum(lost, 0), mask=in_l)


@triton.jit(do_not_specialize=['samples', 'channels', 'height', 'width'])
def rank1_pool_grad_kernel(
    ch_ptr,
    cw_ptr,
    hw_ptr,
    weights_ptr,
    c_ptr,
    h_ptr,
    w_ptr,
    gc_ptr,
    gsh_ptr,
    gsw_ptr,
    at_h_ptr,
    at_w_ptr,
    dch_ptr,
    dcw_ptr,
    dhw_ptr,
    dweights_ptr,
    dtaken_ptr,
    samples,
    channels,
    height,
    width,
    S: tl.constexpr,
    M: tl.constexpr,
    TAKEN: tl.constexpr,
    BR: tl.constexpr,
    BL: tl.constexpr,
    BS: tl.constexpr,
):
    """Program n, plane: its gradient, each sample's of the channel weights, and two parts of those
    of the factors taken: dtaken is (2, samples * (C + H + W)), c, h and w one after the other."""
    pid = tl.program_id(0)
    n = (pid // 3).to(tl.int64)
    to = dweights_ptr + n * (4 * S + 6 * (S + M + 1))
    second = samples * (channels + height + width)
    dh_ptr = dtaken_ptr + samples * channels
    dw_ptr = dh_ptr + samples * height
    if pid % 3 == 0:
        _side_grad(
            cw_ptr,
            w_ptr,
            weights_ptr,
            c_ptr,
            gc_ptr,
            gsw_ptr,
            at_w_ptr,
            dcw_ptr,
            to,
            dtaken_ptr,
            dw_ptr,
            n,
            channels,
            width,
            S,
            M,
            TAKEN,
            BR,
            BL,
            BS,
        )
    elif pid % 3 == 1:
        _side_grad(
            ch_ptr,
            h_ptr,
            weights_ptr + 2,
            c_ptr,
            gc_ptr,
            gsh_ptr,
            at_h_ptr,
            dch_ptr,
            to + 2,
            dtaken_ptr + second,
            dh_ptr,
            n,
            channels,
            height,
            S,
            M,
            TAKEN,
            BR,
            BL,
            BS,
        )
    else:
        j = tl.arange(0, BL)
        in_w = j < width
        rows = n * (S + M + 1)
        lost = tl.zeros([BR, BL], tl.float32)
        for start in range(0, height, BR):
            i = start + tl.arange(0, BR)
            in_h = i < height
            g = tl.zeros([BR, BL], tl.float32)
            for s in tl.static_range(S):
                begin, end, mean = _window(width, S, s)
                along = tl.load(gsh_ptr + (rows + s) * height + i, mask=in_h, other=0.0) * mean
                g += tl.where(((j >= begin) & (j < end))[None, :], along[:, None], 0.0)
                begin, end, mean = _window(height, S, s)
                along = tl.load(gsw_ptr + (rows + s) * width + j, mask=in_w, other=0.0) * mean
                g += tl.where(((i >= begin) & (i < end))[:, None], along[None, :], 0.0)
            if TAKEN:
                h = tl.load(h_ptr + n * height + i, mask=in_h, other=0.0)
                w = tl.load(w_ptr + n * width + j, mask=in_w, other=0.0)
                gd = g * _plane(hw_ptr, n, i, j, height, width, in_h, in_w)
                tl.store(dh_ptr + second + n * height + i, -tl.sum(gd * w[None, :], 1), mask=in_h)
                lost += gd * h[:, None]
                g *= 1 - h[:, None] * w[None, :]
            tl.store(
                dhw_ptr + (n * height + i)[:, None] * width + j[None, :],
                g,
                mask=in_h[:, None] & in_w[None, :],
            )
        if TAKEN:
            tl.store(dw_ptr + second + n * width + j, -tl.sum(lost, 0), mask=in_w)


def _sizes(planes):
    """N, C, H, W; the block of a plane."""
    ch, cw, _ = planes
    n, c, h = ch.shape
    w = cw.shape[2]
    columns = pow2(max(h, w), 1 << 20)
    return (n, c, h, w), dict(BR=pow2(max(c, h), max(1, 2048 // columns)), BL=columns)


def rank1_pool(planes, weights, chunks, taken):
    (n, c, h, w), block = _sizes(planes)
    x, rows = planes[0], sum(chunks) + 1
    parts = floats(x, 2, n, c)
    strips = floats(x, n, rows, h), floats(x, n, rows, w)
    at = ints(x, n, h), ints(x, n, w)
    launch(
        rank1_pool_kernel,
        3 * n,
        *planes,
        weights[0],
        *(taken or (x, x, x)),
        parts,
        *strips,
        *at,
        n,
        c,
        h,
        w,
        S=chunks[0],
        M=chunks[1],
        TAKEN=taken is not None,
        **block,
    )
    out = floats(x, n, c), floats(x, n, h), floats(x, n, w)
    launch(
        rank1_conv_kernel,
        n,
        parts,
        *strips,
        *weights[1:],
        *out,
        n,
        c,
        h,
        w,
        ROWS=rows,
        BC=pow2(c, 1024),
        BL=block['BL'],
    )
    return out, (*strips, *at)


def rank1_pool_grad(planes, weights, chunks, taken, grads, saved):
    (n, c, h, w), block = _sizes(planes)
    x, rows = planes[0], sum(chunks) + 1
    sizes = 4 * chunks[0], 3 * rows, 3 * rows
    gc, gh, gw = (
        x.new_zeros(n, length) if g is None else g
        for g, length in zip(grads, (c, h, w), strict=True)
    )
    strips, at = saved[:2], saved[2:]
    gstrips = floats(x, *strips[0].shape), floats(x, *strips[1].shape)
    dweights = floats(x, n, sum(sizes))
    launch(
        rank1_conv_grad_kernel,
        n,
        *strips,
        *weights[1:],
        gh,
        gw,
        *gstrips,
        dweights,
        h,
        w,
        S=chunks[0],
        ROWS=rows,
        BL=block['BL'],
    )
    dplanes = tuple(floats(x, *plane.shape) for plane in planes)
    dtaken = floats(x, 2, n * (c + h + w)) if taken else x
    launch(
        rank1_pool_grad_kernel,
        3 * n,
        *planes,
        weights[0],
        *(taken or (x, x, x)),
        gc,
        *gstrips,
        *at,
        *dplanes,
        dweights,
        dtaken,
        n,
        c,
        h,
        w,
        S=chunks[0],
        M=chunks[1],
        TAKEN=taken is not None,
        BS=pow2(2 * chunks[0], 1 << 20),
        **block,
    )
    if taken:
        dtaken = dtaken.sum(0).split((n * c, n * h, n * w))
        dtaken = tuple(d.view(n, length) for d, length in zip(dtaken, (c, h, w), strict=True))
    dweights = dweights.sum(0).split(sizes)
    return (
        dplanes,
        tuple(d.view_as(t) for d, t in zip(dweights, weights, strict=True)),
        (dtaken if taken else None),
    )
