"""Calls of the CPU kernels as operators make them, with their memory before and after, so that
another processor can make them again (replay.cpp)."""

import contextlib
import ctypes
import sys
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import torch

from mmattn.ops import examples, native
from mmattn.ops.dispatch import stats_dtype
from mmattn.ops.native import call

ALIGNED = 64  # bytes
# Rows with whole vectors and what is left over; a map that is cut into several parts.
SHAPES = {
    (2, 11, 7, 6): (torch.float32, torch.float64, torch.bfloat16, torch.float16),
    (1, 40, 24, 23): (torch.float32,),
}


# Which leave a share of the identity, their last argument.
GATES = ('se', 'eca', 'cbam', 'coord', 'cat', 'drtam')


class Region(NamedTuple):
    """What a call was given to read or write, as it left it."""

    function: str
    offset: int
    values: torch.Tensor


class Recording:
    """All calls, one after the other: each has memory of its own."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.memory = bytearray()
        self.regions: list[Region] = []

    def run(self, name, x, *args):
        """In the place of `call.run`."""
        given: dict[int, tuple[int, torch.Tensor]] = {}
        words = [f'{name} {len(args) + 2}', f'i {call.DTYPES[x.dtype]}']
        words += [self._word(arg, given) for arg in args]
        self.lines.append(' '.join([*words, 'i 1']))
        result = call.run(name, x, *args)
        for offset, tensor in given.values():
            self.regions.append(Region(name, offset, _values(tensor, _bytes(tensor))))
        return result

    def _word(self, arg, given) -> str:
        if arg is None:
            return 'p -1'
        if isinstance(arg, float):
            return f'd {arg.hex()}'
        if isinstance(arg, int):
            return f'i {int(arg)}'
        if isinstance(arg, torch.Tensor):
            return f'p {self._offset(arg, given)}'
        if isinstance(arg, ctypes.Array):
            return f'p {self._put(bytes(arg))}'
        places = [-1 if t is None else self._offset(t, given) for t in arg]
        return ' '.join(map(str, ['l', len(places), *places]))

    def _offset(self, tensor, given) -> int:
        """Where a tensor is in the memory, which two arguments of a call may share."""
        if tensor.data_ptr() not in given:
            given[tensor.data_ptr()] = self._put(_bytes(tensor)), tensor
        return given[tensor.data_ptr()][0]

    def _put(self, data) -> int:
        self.memory += bytes(-len(self.memory) % ALIGNED)
        self.memory += data
        return len(self.memory) - len(data)

    def write(self, folder: Path) -> None:
        (folder / 'calls').write_text('\n'.join(self.lines) + '\n')
        (folder / 'memory').write_bytes(self.memory)

    def compare(self, result: bytes) -> list[str]:
        """What another processor left otherwise than rounding explains, a line each."""
        found = []
        for function, offset, expected in self.regions:
            data = result[offset : offset + expected.numel() * expected.element_size()]
            problem = _difference(_values(expected, data), expected)
            if problem:
                found.append(f'{function}, {expected.dtype}: {problem}')
        return found


def _bytes(tensor) -> bytes:
    """A dense tensor's memory, in whatever order."""
    return ctypes.string_at(tensor.data_ptr(), tensor.numel() * tensor.element_size())


def _values(like, data) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=like.dtype)


def _difference(got, expected):
    if not expected.dtype.is_floating_point:
        wrong = int((got != expected).sum())
        return f'{wrong} of {expected.numel()} indices differ' if wrong else ''
    # Sums of some thousand terms in another order; the map's own dtype rounds once.
    bound = max(2e-5, 2 * torch.finfo(expected.dtype).eps)
    got, expected = got.double(), expected.double()
    finite = expected.isfinite()
    if not torch.equal(got[~finite].nan_to_num(), expected[~finite].nan_to_num()):
        return 'NaNs or infinities differ'
    if not finite.any():
        return ''
    error = (got - expected)[finite].abs().max() / expected[finite].abs().max().clamp_min(1e-6)
    return '' if error <= bound else f'off by {error:.2g} of the largest value'


def record() -> Recording:
    """Every operator, forward and backward, in every dtype and both memory formats; of gates also
    with a share of the identity."""
    found = Recording()
    # What a call has to write is NaN before, so that what it leaves out differs from what it wrote.
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with contextlib.ExitStack() as stack:
            for module in _callers():
                stack.enter_context(mock.patch.object(module, 'run', found.run))
            for shape, dtypes in SHAPES.items():
                for dtype in dtypes:
                    for last in (False, True):
                        for op in examples.ARGUMENTS:
                            _step(op, examples.arguments(op, shape, dtype, last))
                        for op in GATES:
                            *args, _ = examples.arguments(op, shape, dtype, last)
                            share = torch.linspace(-0.5, 1, shape[1]).to(stats_dtype(args[0]))
                            _step(op, [*args, share.requires_grad_()])
    finally:
        torch.use_deterministic_algorithms(before)
    return found


def _callers():
    """The backend's modules that call kernels."""
    modules = [module for name, module in sys.modules.items() if name.startswith(native.__name__)]
    return [m for m in modules if m is not call and getattr(m, 'run', None) is call.run]


def _step(op, args):
    results = getattr(torch.ops.mmattn, op)(*args)
    results = [results] if isinstance(results, torch.Tensor) else results
    results = [t for t in results if isinstance(t, torch.Tensor) and t.requires_grad]
    generator = torch.Generator().manual_seed(1)
    grads = [torch.randn(t.shape, generator=generator).to(t) for t in results]
    torch.autograd.backward(results, grads)
