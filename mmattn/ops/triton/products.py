"""Products of small matrices and vectors, for kernels of one program a sample.

What one thread of a program wrote to memory, others read after `tl.debug_barrier()`, the barrier of
the program: no such value is read before one.
"""

import triton
import triton.language as tl


@triton.jit
def relu(v):
    # NaN stays.
    return tl.where(v < 0, 0.0, v)


@triton.jit
def products(
    w_ptr,
    v_ptr,
    i,
    outputs,
    terms,
    P: tl.constexpr,
    FLIP: tl.constexpr,
    BP: tl.constexpr,
    BI: tl.constexpr,
    BT: tl.constexpr,
):
    """The sums over t of W[i, t] v[p, t], (BP, BI), for outputs i. W is (outputs, terms), with FLIP
    (terms, outputs); v is (P, terms)."""
    p = tl.arange(0, BP)
    sums = tl.zeros([BP, BI, BT], tl.float32)
    for start in range(0, terms, BT):
        t = start + tl.arange(0, BT)
        mask = (i < outputs)[:, None] & (t < terms)[None, :]
        at = t[None, :] * outputs + i[:, None] if FLIP else i[:, None] * terms + t[None, :]
        w = tl.load(w_ptr + at, mask=mask, other=0.0)
        in_v = (p < P)[:, None] & (t < terms)[None, :]
        v = tl.load(v_ptr + p[:, None] * terms + t[None, :], mask=in_v, other=0.0)
        sums += w[None, :, :] * v[:, None, :]
    return tl.sum(sums, 2)


@triton.jit
def summed(ptr, first, step, parts, mask):
    """The sum of `parts` partial results, from `first` on, `step` apart."""
    sums = tl.load(ptr + first, mask=mask, other=0.0)
    for j in range(1, parts):
        sums += tl.load(ptr + first + j * step, mask=mask, other=0.0)
    return sums


@triton.jit
def outer_sums(sums, a_ptr, step_a, b_ptr, step_b, i, j, ni, nj, rows, BR: tl.constexpr):
    """sums (BI, BJ) + the sums over rows r of a[r, i] b[r, j]; rows lie `step` apart."""
    for start in range(0, rows, BR):
        r = (start + tl.arange(0, BR)).to(tl.int64)
        in_r = start + tl.arange(0, BR) < rows
        a = tl.load(
            a_ptr + r[None, :] * step_a + i[:, None],
            mask=(i < ni)[:, None] & in_r[None, :],
            other=0.0,
        )
        b = tl.load(
            b_ptr + r[:, None] * step_b + j[None, :],
            mask=in_r[:, None] & (j < nj)[None, :],
            other=0.0,
        )
        sums = tl.dot(a, b, sums, input_precision='ieee')
    return sums


@triton.jit
def store_row_sums(to_ptr, a_ptr, step, i, ni, rows, scale, BI: tl.constexpr, BR: tl.constexpr):
    """to[i] = scale times the sum over rows r of a[r, i]; rows lie `step` apart."""
    sums = tl.zeros([BR, BI], tl.float32)
    for start in range(0, rows, BR):
        r = (start + tl.arange(0, BR)).to(tl.int64)
        mask = (start + tl.arange(0, BR) < rows)[:, None] & (i < ni)[None, :]
        sums += tl.load(a_ptr + r[:, None] * step + i[None, :], mask=mask, other=0.0)
    tl.store(to_ptr + i, tl.sum(sums, 0) * scale, mask=i < ni)
