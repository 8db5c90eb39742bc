"""Scales whose factor has a part for each row and one for each column of a sample's matrix.

A channel vector is one number a row in the contiguous format and one a column in channels_last,
a spatial map the other way round; a factor that treats both alike needs one kernel for the two
formats. Rank-1 factors belong here too: h o w is a spatial map.

The factor f by MODE, of row part r and column part q:
'row' r; 'col' q; 'product' r q; 'sum' r + q; 'dual' a + (1 - a) b of a = r q and b = r2 q2;
'rows' r + r2 q; 'cols' q + q2 r. SHARE, 'row' or 'col', where channels are: 1 + share (f - 1).
"""

import torch
import triton
import triton.language as tl

from .common import cdiv, channels_last, floats, launch, matrix, pow2, split, total, vector


@triton.jit
def _vector(ptr, w_ptr, n, length, i, mask, width, OUTER: tl.constexpr):
    """Entries i of sample n's part, `length` long; OUTER: of the map h o w, h at ptr."""
    if OUTER:
        h = tl.load(ptr + n * (length // width) + i // width, mask=mask, other=0.0)
        return h * tl.load(w_ptr + n * width + i % width, mask=mask, other=0.0)
    return tl.load(ptr + n * length + i, mask=mask, other=0.0)


@triton.jit
def _row_part(ptr, w_ptr, n, rows, i, mask, width, MODE: tl.constexpr, OUTER: tl.constexpr):
    # A part that MODE does not have is a constant that nobody reads.
    part = 0.0
    if MODE != 'col':
        part = _vector(ptr, w_ptr, n, rows, i, mask, width, OUTER == 'row')[:, None]
    return part


@triton.jit
def _col_part(ptr, w_ptr, n, cols, k, mask, width, MODE: tl.constexpr, OUTER: tl.constexpr):
    part = 0.0
    if MODE != 'row':
        part = _vector(ptr, w_ptr, n, cols, k, mask, width, OUTER == 'col')[None, :]
    return part


@triton.jit(do_not_specialize=['rows', 'groups', 'width'])
def scale_kernel(
    x_ptr,
    y_ptr,
    r_ptr,
    q_ptr,
    r2_ptr,
    q2_ptr,
    w_ptr,
    w2_ptr,
    share_ptr,
    rows,
    groups,
    width,
    VEC: tl.constexpr,
    MODE: tl.constexpr,
    OUTER: tl.constexpr,
    SHARE: tl.constexpr,
    BR: tl.constexpr,
    BK: tl.constexpr,
):
    cols = groups * VEC
    row_blocks = tl.cdiv(rows, BR)
    col_blocks = tl.cdiv(cols, BK)
    pid = tl.program_id(0)
    k = (pid % col_blocks) * BK + tl.arange(0, BK)
    pid = pid // col_blocks
    i = (pid % row_blocks) * BR + tl.arange(0, BR)
    n = (pid // row_blocks).to(tl.int64)
    in_rows = i < rows
    in_cols = k < cols
    mask = in_rows[:, None] & in_cols[None, :]
    at = n * rows * cols + (i[:, None] * cols + k[None, :])
    x = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
    r = _row_part(r_ptr, w_ptr, n, rows, i, in_rows, width, MODE, OUTER)
    q = _col_part(q_ptr, w_ptr, n, cols, k, in_cols, width, MODE, OUTER)
    if MODE == 'row':
        f = r
    elif MODE == 'col':
        f = q
    elif MODE == 'product':
        f = r * q
    elif MODE == 'sum':
        f = r + q
    elif MODE == 'rows':
        f = r + q * _row_part(r2_ptr, w2_ptr, n, rows, i, in_rows, width, MODE, '')
    elif MODE == 'cols':
        f = q + r * _col_part(q2_ptr, w2_ptr, n, cols, k, in_cols, width, MODE, '')
    else:
        r2 = _row_part(r2_ptr, w2_ptr, n, rows, i, in_rows, width, MODE, OUTER)
        q2 = _col_part(q2_ptr, w2_ptr, n, cols, k, in_cols, width, MODE, OUTER)
        a = r * q
        f = a + (1 - a) * (r2 * q2)
    if SHARE == 'row':
        f = 1 + (f - 1) * tl.load(share_ptr + n * rows + i, mask=in_rows, other=0.0)[:, None]
    if SHARE == 'col':
        f = 1 + (f - 1) * tl.load(share_ptr + n * cols + k, mask=in_cols, other=0.0)[None, :]
    y = x * f
    tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=['samples', 'rows', 'groups', 'splits', 'width'])
def scale_grad_kernel(
    x_ptr,
    dy_ptr,
    dx_ptr,
    r_ptr,
    q_ptr,
    r2_ptr,
    q2_ptr,
    w_ptr,
    w2_ptr,
    share_ptr,
    dr_ptr,
    dq_ptr,
    samples,
    rows,
    groups,
    splits,
    width,
    VEC: tl.constexpr,
    MODE: tl.constexpr,
    OUTER: tl.constexpr,
    SHARE: tl.constexpr,
    NEED_X: tl.constexpr,
    BR: tl.constexpr,
    BK: tl.constexpr,
):
    """dx, and sums of p = x dy: over each block of columns into dr (parts, samples, column
    blocks, rows), over each split of the rows into dq (parts, samples, splits, cols). With
    'dual' the three parts are the sums of p q, p q2, p q q2 and of p r, p r2, p r r2; with 'rows'
    and 'cols' the two of the side that has two vectors are the sums of p and of p q or p r.
    SHARE: sums over channels are of share p, and the others have a fourth part, of p."""
    cols = groups * VEC
    col_blocks = tl.cdiv(cols, BK)
    pid = tl.program_id(0)
    block = pid % col_blocks
    pid = pid // col_blocks
    part = pid % splits
    n = (pid // splits).to(tl.int64)
    k = block * BK + tl.arange(0, BK)
    in_cols = k < cols
    span = tl.cdiv(tl.cdiv(rows, BR), splits) * BR
    first = part * span
    last = tl.minimum(first + span, rows)

    sample = n * rows * cols
    to_rows = dr_ptr + (n * col_blocks + block) * rows
    row_part = samples.to(tl.int64) * col_blocks * rows
    to_cols = dq_ptr + (n * splits + part) * cols + k
    col_part = samples.to(tl.int64) * splits * cols

    q = _col_part(q_ptr, w_ptr, n, cols, k, in_cols, width, MODE, OUTER)
    if MODE == 'cols':
        q2 = _col_part(q2_ptr, w2_ptr, n, cols, k, in_cols, width, MODE, '')
    if MODE == 'dual':
        q2 = _col_part(q2_ptr, w2_ptr, n, cols, k, in_cols, width, MODE, OUTER)
    sum0 = tl.zeros([BR, BK], tl.float32)
    sum1 = tl.zeros([BR, BK], tl.float32)
    sum2 = tl.zeros([BR, BK], tl.float32)
    sum3 = tl.zeros([BR, BK], tl.float32)
    share = 1.0
    if SHARE == 'col':
        share = tl.load(share_ptr + n * cols + k, mask=in_cols, other=0.0)[None, :]
    for start in range(first, last, BR):
        i = start + tl.arange(0, BR)
        in_rows = i < last
        mask = in_rows[:, None] & in_cols[None, :]
        at = sample + (i[:, None] * cols + k[None, :])
        dy = tl.load(dy_ptr + at, mask=mask, other=0.0).to(tl.float32)
        p = dy * tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
        r = _row_part(r_ptr, w_ptr, n, rows, i, in_rows, width, MODE, OUTER)
        if MODE == 'row':
            f = r
            tl.store(to_rows + i, tl.sum(p, 1), mask=in_rows)
        elif MODE == 'col':
            f = q
            sum0 += p
        elif MODE == 'product':
            f = r * q
            tl.store(to_rows + i, tl.sum(p * q, 1), mask=in_rows)
            sum0 += p * r
        elif MODE == 'sum':
            f = r + q
            tl.store(to_rows + i, tl.sum(p, 1), mask=in_rows)
            sum0 += p
        elif MODE == 'rows':
            r2 = _row_part(r2_ptr, w2_ptr, n, rows, i, in_rows, width, MODE, '')
            f = r + r2 * q
            tl.store(to_rows + i, tl.sum(p, 1), mask=in_rows)
            tl.store(to_rows + row_part + i, tl.sum(p * q, 1), mask=in_rows)
            sum0 += p * r2
        elif MODE == 'cols':
            f = q + q2 * r
            tl.store(to_rows + i, tl.sum(p * q2, 1), mask=in_rows)
            sum0 += p
            sum1 += p * r
        else:
            r2 = _row_part(r2_ptr, w2_ptr, n, rows, i, in_rows, width, MODE, OUTER)
            a = r * q
            f = a + (1 - a) * (r2 * q2)
            of_rows = p
            of_cols = p
            if SHARE == 'row':
                share = tl.load(share_ptr + n * rows + i, mask=in_rows, other=0.0)[:, None]
                of_cols = p * share
                tl.store(to_rows + 3 * row_part + i, tl.sum(p, 1), mask=in_rows)
            if SHARE == 'col':
                of_rows = p * share
                sum3 += p
            if SHARE != '':
                f = 1 + share * (f - 1)
            tl.store(to_rows + i, tl.sum(of_rows * q, 1), mask=in_rows)
            tl.store(to_rows + row_part + i, tl.sum(of_rows * q2, 1), mask=in_rows)
            tl.store(to_rows + 2 * row_part + i, tl.sum(of_rows * (q * q2), 1), mask=in_rows)
            sum0 += of_cols * r
            sum1 += of_cols * r2
            sum2 += of_cols * (r * r2)
        if NEED_X:
            tl.store(dx_ptr + at, (dy * f).to(dx_ptr.dtype.element_ty), mask=mask)
    if MODE != 'row':
        tl.store(to_cols, tl.sum(sum0, 0), mask=in_cols)
    if MODE == 'dual' or MODE == 'cols':
        tl.store(to_cols + col_part, tl.sum(sum1, 0), mask=in_cols)
    if MODE == 'dual':
        tl.store(to_cols + 2 * col_part, tl.sum(sum2, 0), mask=in_cols)
    if SHARE == 'col':
        tl.store(to_cols + 3 * col_part, tl.sum(sum3, 0), mask=in_cols)


@triton.jit(do_not_specialize=['samples', 'height', 'width', 'splits'])
def outer_grad_kernel(
    s_ptr,
    h_ptr,
    w_ptr,
    h2_ptr,
    w2_ptr,
    dh_ptr,
    dw_ptr,
    dh2_ptr,
    dw2_ptr,
    samples,
    height,
    width,
    splits,
    DUAL: tl.constexpr,
    BH: tl.constexpr,
    BW: tl.constexpr,
):
    """From the spatial sums (parts, samples, splits, H, W) of scale_grad_kernel, the gradients of
    h and w, whose outer products were the spatial maps. One program a sample."""
    n = tl.program_id(0).to(tl.int64)
    size = height * width
    part = samples.to(tl.int64) * splits * size
    k = tl.arange(0, BW)
    in_width = k < width
    w = tl.load(w_ptr + n * width + k, mask=in_width, other=0.0)[None, :]
    dw = tl.zeros([BW], tl.float32)
    if DUAL:
        w2 = tl.load(w2_ptr + n * width + k, mask=in_width, other=0.0)[None, :]
        dw2 = tl.zeros([BW], tl.float32)
    for start in range(0, height, BH):
        i = start + tl.arange(0, BH)
        in_height = i < height
        mask = in_height[:, None] & in_width[None, :]
        h = tl.load(h_ptr + n * height + i, mask=in_height, other=0.0)[:, None]
        d = tl.zeros([BH, BW], tl.float32)
        d2 = tl.zeros([BH, BW], tl.float32)
        both = tl.zeros([BH, BW], tl.float32)
        for j in range(0, splits):
            at = (n * splits + j) * size + (i[:, None] * width + k[None, :])
            d += tl.load(s_ptr + at, mask=mask, other=0.0)
            if DUAL:
                d2 += tl.load(s_ptr + part + at, mask=mask, other=0.0)
                both += tl.load(s_ptr + 2 * part + at, mask=mask, other=0.0)
        if DUAL:
            h2 = tl.load(h2_ptr + n * height + i, mask=in_height, other=0.0)[:, None]
            d -= (h2 * w2) * both
            d2 -= (h * w) * both
            tl.store(dh2_ptr + n * height + i, tl.sum(d2 * w2, 1), mask=in_height)
            dw2 += tl.sum(d2 * h2, 0)
        tl.store(dh_ptr + n * height + i, tl.sum(d * w, 1), mask=in_height)
        dw += tl.sum(d * h, 0)
    tl.store(dw_ptr + n * width + k, dw, mask=in_width)
    if DUAL:
        tl.store(dw2_ptr + n * width + k, dw2, mask=in_width)


def _share(x, share):
    """Where the channels are, if there is a share."""
    return '' if share is None else 'col' if channels_last(x) else 'row'


def _outer(x, w):
    """Which part of x's matrices is a map, and its width."""
    return ('' if w is None else 'row' if channels_last(x) else 'col'), x.shape[3]


def _apply(x, mode, r, q=None, r2=None, q2=None, w=None, w2=None, share=None):
    """The scale of row parts r, r2 and column parts q, q2; a part that `mode` lacks is None. With w
    and w2 those of positions are h and h2, of the maps h o w and h2 o w2."""
    y = torch.empty_like(x)
    n, rows, cols = matrix(x)
    vec = vector(cols, x)
    block_cols = pow2(cols, 512)
    block_rows = pow2(rows, 2048 // block_cols)
    outer, width = _outer(x, w)
    launch(
        scale_kernel,
        n * cdiv(rows, block_rows) * cdiv(cols, block_cols),
        x,
        y,
        *(x if part is None else part for part in (r, q, r2, q2, w, w2, share)),
        rows,
        cols // vec,
        width,
        VEC=vec,
        MODE=mode,
        OUTER=outer,
        SHARE=_share(x, share),
        BR=block_rows,
        BK=block_cols,
    )
    return y


def apply_grad(x, dy, need_x, mode, r, q=None, r2=None, q2=None, w=None, w2=None, share=None):
    """dx and the sums of scale_grad_kernel, as it leaves them: over each block of columns (parts,
    N, blocks, rows), and over each split of the rows (parts, N, splits, cols)."""
    n, rows, cols = matrix(x)
    vec = vector(cols, x)
    # 32 lanes side by side in a row of the block: sums over columns stay within a warp.
    block_cols = pow2(cols, max(64, 32 * vec))
    block_rows = pow2(rows, 2048 // block_cols)
    blocks = cdiv(cols, block_cols)
    splits = split(n * blocks, rows, block_rows)
    of_rows = of_cols = 3 if mode == 'dual' else 1
    where = _share(x, share)
    of_rows += (where == 'row') + (mode == 'rows')
    of_cols += (where == 'col') + (mode == 'cols')
    dx = torch.empty_like(x) if need_x else None
    by_rows = None if mode == 'col' else floats(x, of_rows, n, blocks, rows)
    by_cols = None if mode == 'row' else floats(x, of_cols, n, splits, cols)
    tensors = (x if t is None else t for t in (dx, r, q, r2, q2, w, w2, share, by_rows, by_cols))
    outer, width = _outer(x, w)
    launch(
        scale_grad_kernel,
        n * splits * blocks,
        x,
        dy,
        *tensors,
        n,
        rows,
        cols // vec,
        splits,
        width,
        VEC=vec,
        MODE=mode,
        OUTER=outer,
        SHARE=_share(x, share),
        NEED_X=need_x,
        BR=block_rows,
        BK=block_cols,
    )
    return dx, by_rows, by_cols


def channel_grad_parts(x, c, dy):
    """Of a scale by c, parts of dc: (N, parts, C)."""
    if channels_last(x):
        return apply_grad(x, dy, False, 'col', None, c)[2][0]
    return apply_grad(x, dy, False, 'row', c)[1][0]


def two_sided_grad_parts(x, mode, c, s, dy):
    """Of a scale by c and s, parts of dc (N, parts, C) and of ds (N, parts, H W)."""
    first, second = (s, c) if channels_last(x) else (c, s)
    _, by_rows, by_cols = apply_grad(x, dy, False, mode, first, second)
    return (by_cols[0], by_rows[0]) if channels_last(x) else (by_rows[0], by_cols[0])


def channel_scale(x, c):
    return _apply(x, 'col', None, c) if channels_last(x) else _apply(x, 'row', c)


def channel_scale_grad(x, c, dy, *, need_x):
    if channels_last(x):
        dx, _, dc = apply_grad(x, dy, need_x, 'col', None, c)
    else:
        dx, dc, _ = apply_grad(x, dy, need_x, 'row', c)
    return dx, total(dc, 2)[0]


def spatial_scale(x, s):
    return _apply(x, 'row', s) if channels_last(x) else _apply(x, 'col', None, s)


def spatial_scale_grad(x, s, dy, *, need_x):
    if channels_last(x):
        dx, ds, _ = apply_grad(x, dy, need_x, 'row', s)
    else:
        dx, _, ds = apply_grad(x, dy, need_x, 'col', None, s)
    return dx, total(ds, 2)[0].view_as(s)


def _two_sided(x, mode, c, s):
    return _apply(x, mode, s, c) if channels_last(x) else _apply(x, mode, c, s)


def _two_sided_grad(x, mode, c, s, dy, need_x):
    first, second = (s, c) if channels_last(x) else (c, s)
    dx, by_rows, by_cols = apply_grad(x, dy, need_x, mode, first, second)
    by_rows, by_cols = total(by_rows, 2)[0], total(by_cols, 2)[0]
    dc, ds = (by_cols, by_rows) if channels_last(x) else (by_rows, by_cols)
    return dx, dc, ds.view_as(s)


def product_scale(x, c, s):
    return _two_sided(x, 'product', c, s)


def product_scale_grad(x, c, s, dy, *, need_x):
    return _two_sided_grad(x, 'product', c, s, dy, need_x)


def sum_scale(x, c, s):
    return _two_sided(x, 'sum', c, s)


def sum_scale_grad(x, c, s, dy, *, need_x):
    return _two_sided_grad(x, 'sum', c, s, dy, need_x)


def _affine(x, u, v, s):
    """What `_apply` takes after x for u + v s."""
    return ('cols', s, u, None, v) if channels_last(x) else ('rows', u, s, v)


def affine_scale(x, u, v, s):
    return _apply(x, *_affine(x, u, v, s))


def affine_grad_parts(x, u, v, s, dy):
    """Of a scale by u + v s, parts of du and dv (2, N, parts, C) and of ds (N, parts, H W)."""
    _, by_rows, by_cols = apply_grad(x, dy, False, *_affine(x, u, v, s))
    return (by_cols, by_rows[0]) if channels_last(x) else (by_rows, by_cols[0])


def affine_scale_grad(x, u, v, s, *, dy, need_x):
    dx, by_rows, by_cols = apply_grad(x, dy, need_x, *_affine(x, u, v, s))
    by_rows, by_cols = total(by_rows, 2), total(by_cols, 2)
    (du, dv), (ds,) = (by_cols, by_rows) if channels_last(x) else (by_rows, by_cols)
    return dx, du, dv, ds.view_as(s)


def _rank1(x, c, h, w, c2, h2, w2, share):
    """What `_apply` takes after x for one rank-1 map, or two."""
    mode = 'product' if c2 is None else 'dual'
    parts = (h, c, h2, c2) if channels_last(x) else (c, h, c2, h2)
    return mode, *parts, w, w2, share


def rank1_scale(x, c, h, w, c2=None, h2=None, w2=None, a=None):
    return _apply(x, *_rank1(x, c, h, w, c2, h2, w2, a))


def rank1_grad_parts(x, factors, dy, need_x, a=None):
    """dx or None; the gradients of h and w of each map, and the sums over positions that those of
    the c are made of: (1 or 3, N, parts, C).

    With p = x dy, A = c q, A2 = c2 q2 (q = h o w), the gradients of the factors are
    dc = sum p q - c2 sum p q q2, dq = sum p c - q2 sum p c c2, and the same with the two
    triples exchanged: six sums, three over positions and three over channels."""
    c, h, w, c2, h2, w2 = factors = (*factors, None, None, None)[:6]
    mode, *parts = _rank1(x, *factors, a)
    dx, by_rows, by_cols = apply_grad(x, dy, need_x, mode, *parts)
    spatial, channel = (by_rows, by_cols) if channels_last(x) else (by_cols, by_rows)
    (n, height), width, dual = h.shape, w.shape[1], c2 is not None
    dh, dw = torch.empty_like(h), torch.empty_like(w)
    dh2, dw2 = (torch.empty_like(h), torch.empty_like(w)) if dual else (dh, dw)
    block_width = pow2(width, 1 << 16)
    launch(
        outer_grad_kernel,
        n,
        spatial,
        h,
        w,
        h2 if dual else h,
        w2 if dual else w,
        dh,
        dw,
        dh2,
        dw2,
        n,
        height,
        width,
        spatial.shape[2],
        num_warps=8,
        DUAL=dual,
        BH=pow2(height, max(1, 2048 // block_width)),
        BW=block_width,
    )
    return dx, [(dh, dw), (dh2, dw2)][: 1 + dual], channel


def channel_grads(channel, c, c2, a):
    """The gradients of c, c2 and the share a, (N, C) each, None where there is none, of the sums
    over positions (1, 3 or 4, N, C)."""
    if c2 is None:
        return channel[0], None, None
    dc = torch.addcmul(channel[0], c2, channel[2], value=-1)
    dc2 = torch.addcmul(channel[1], c, channel[2], value=-1)
    if a is None:
        return dc, dc2, None
    # Of 1 - a (1 - A) (1 - A2), with the sums of p, p A, p A2, p A A2.
    return dc * a, dc2 * a, c * dc + c2 * channel[1] - channel[3]


def rank1_scale_grad(x, c, h, w, c2=None, h2=None, w2=None, a=None, *, dy, need_x):
    factors = (c, h, w) if c2 is None else (c, h, w, c2, h2, w2)
    dx, [(dh, dw), *second], channel = rank1_grad_parts(x, factors, dy, need_x, a)
    dc, dc2, da = channel_grads(total(channel, 2), c, c2, a)
    more = () if c2 is None else (dc2, *second[0])
    return dx, dc, dh, dw, *more, *(() if a is None else (da,))
