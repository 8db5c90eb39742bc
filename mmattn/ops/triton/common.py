"""What the kernels share: one view of both memory formats, block shapes, and the launch.

A sample of a 4-D tensor is read in one of two ways, in which the last axis is always the one
that is contiguous in memory, so that one kernel serves both memory formats:

- as a matrix, rows x columns: channels x positions (contiguous) or positions x channels
  (channels_last);
- as a box, A x B x K: channels x height x width, or height x width x channels.

Whole numbers are passed to kernels unspecialised, so that a new input size compiles nothing;
what the compiler must know for wide loads, the power of two that divides the contiguous axis,
is passed as the constant VEC.
"""

import contextlib
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..dispatch import two_devices

# Enough programs to fill a large GPU a few times over; an axis is split to get there.
PROGRAMS = 2048

BIG = tl.constexpr(2147483647)
LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def nan_max(a, b):
    # tl.max drops NaNs on the device.
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def nan_min(a, b):
    return tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def block_of(pid, length, BLOCK: tl.constexpr):
    """Which block of an axis a program takes, the indices in it, and what is left of the program's
    number to say which of another axis."""
    blocks = tl.cdiv(length, BLOCK)
    block = pid % blocks
    return block, block * BLOCK + tl.arange(0, BLOCK), pid // blocks


@triton.jit
def part_of(pid, length, splits, BLOCK: tl.constexpr):
    """Which of the splits of an axis (`split`) a program walks along in steps of BLOCK, its first
    index and the one after its last, and what is left of the program's number: the sample."""
    part = pid % splits
    span = tl.cdiv(tl.cdiv(length, BLOCK), splits) * BLOCK
    first = part * span
    return part, first, tl.minimum(first + span, length), (pid // splits).to(tl.int64)


def launch(
    kernel: Any,
    programs: int,
    *args: Any,
    num_warps: int = 4,
    maxnreg: int | None = None,
    **constants: Any,
) -> None:
    """Run `kernel` on the device of its first argument, which need not be the current one.

    Raises:
        RuntimeError: if a tensor lies on another device, whose memory a kernel cannot read.
    """
    device = args[0].device
    for arg in args:
        if isinstance(arg, torch.Tensor) and arg.device != device:
            raise two_devices(device, arg.device)
    with torch.cuda.device(device) if device.type == 'cuda' else contextlib.nullcontext():
        kernel[(programs,)](*args, num_warps=num_warps, maxnreg=maxnreg, **constants)


def cdiv(a: int, b: int) -> int:
    return -(-a // b)


def pow2(n: int, most: int) -> int:
    """The smallest power of two not below `n`, but no more than `most` (a power of two)."""
    return min(most, 1 << max(0, n - 1).bit_length())


def channels_last(x: Tensor) -> bool:
    return not x.is_contiguous()


def vector(length: int, x: Tensor) -> int:
    """The widest aligned access, in elements, that rows of `length` elements allow."""
    return min(length & -length, 16 // x.element_size())


def matrix(x: Tensor) -> tuple[int, int, int]:
    """Samples, rows and columns of x read as matrices."""
    n, c, h, w = x.shape
    return (n, h * w, c) if channels_last(x) else (n, c, h * w)


def box(x: Tensor) -> tuple[int, int, int, int]:
    """Samples and the three axes of x read as boxes."""
    n, c, h, w = x.shape
    return (n, h, w, c) if channels_last(x) else (n, c, h, w)


def matrix_block(x: Tensor, sums: bool) -> tuple[tuple[int, int, int], dict[str, int]]:
    """Samples, rows and columns of x read as matrices, and a program's block as kernels take it:
    VEC, BR, BK. With `sums` 32 lanes lie side by side in a row of the block, so that a sum over
    columns stays within a warp."""
    n, rows, cols = matrix(x)
    vec = vector(cols, x)
    block_cols = pow2(cols, max(64, 32 * vec) if sums else 512)
    return (n, rows, cols), dict(VEC=vec, BR=pow2(rows, 2048 // block_cols), BK=block_cols)


def split(programs: int, length: int, block: int, least: int = 4, wanted: int = PROGRAMS) -> int:
    """Into how many parts to cut a loop over `length` in steps of `block`: enough parts for
    `wanted` programs, but at least `least` steps in each, and none of them empty."""
    steps = cdiv(length, block)
    parts = max(1, min(cdiv(wanted, programs), steps // least))
    return cdiv(steps, cdiv(steps, parts))


def floats(x: Tensor, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device=x.device)


def ints(x: Tensor, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.int32, device=x.device)


def filled(x: Tensor, *tensors: Tensor | None) -> list[Tensor]:
    """The tensors, with x in the place of None: an address that a kernel then does not read."""
    return [x if t is None else t for t in tensors]


def total(parts: Tensor, dim: int) -> Tensor:
    """The sum of partial results, which is a view where there is but one."""
    return parts.squeeze(dim) if parts.shape[dim] == 1 else parts.sum(dim)
