"""What an operator does on a GPU that is not there: its launches, the bytes that they move.

Operators run on tensors without data (meta), with the Triton kernels' launches written down in
place of made; PyTorch's own calls between them count as one launch each, which is the least: a
product may be split, a batch norm's gradient takes two. From launches and bytes, and figures of a
GPU that its maker prints, `modelled` makes a time. It is a model, not a measurement: bytes are
those of a launch's arguments, each read or written once, from memory; caches and arithmetic are
left out.
"""

import contextlib
import importlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mmattn.ops import dispatch, examples, library
from mmattn.ops import triton as backend
from mmattn.ops.tensors import layout

GATES = dict(SE='se', ECA='eca', CBAM='cbam', CoordAttention='coord', CAT='cat', DRTAM='drtam')
SHAPES = ((8, 256, 56, 56), (256, 256, 56, 56), (256, 1024, 14, 14))


class GPU(NamedTuple):
    """`bandwidth` of its memory in bytes a second, and where that is printed."""

    bandwidth: float
    source: str


GPUS = {
    'A100': GPU(2.039e12, 'A100 80 GB SXM, data sheet: 2039 GB/s'),
    'H100': GPU(3.35e12, 'H100 SXM, data sheet: 3.35 TB/s'),
    'RTX 4090': GPU(1.008e12, 'Ada architecture white paper: 1008 GB/s'),
}
ACHIEVED = 0.9  # of the printed bandwidth: assumed, for kernels that stream


class Overhead(NamedTuple):
    """Seconds that a launch takes at least: one of Triton, one of PyTorch."""

    triton: float
    aten: float


OVERHEADS = {
    # Assumed: a kernel of no work and the gap after it, where a CUDA graph replays them.
    'graph': Overhead(2e-6, 2e-6),
    # The host's time, which the GPU waits for. Triton's launcher: about 11 us (tritonbench's
    # launch_latency, pull request 1002; with 19 arguments 13 us in 669). A call of CUDA's runtime
    # is some 4 to 6 us; PyTorch's dispatcher is left out.
    'eager': Overhead(11e-6, 5e-6),
}


class Launch(NamedTuple):
    """One launch: a Triton kernel's name, or 'aten::' and PyTorch's."""

    name: str
    bytes: int


class Counts(NamedTuple):
    forward: list[Launch]
    backward: list[Launch]


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)


def _bytes(*values: Any) -> int:
    """Of the tensors, each counted once."""
    unique = {id(t): t for t in _tensors(values)}
    return sum(t.numel() * t.element_size() for t in unique.values())


# Calls of PyTorch that run nothing on a device; views say so themselves.
_NOTHING = {'empty', 'empty_like', 'new_empty', 'empty_strided', '_unsafe_view', 'detach', 'lift'}


def _launches(function: Any) -> bool:
    schema = function._schema
    if schema.name.partition('::')[2] in _NOTHING:
        return False
    return not any(r.alias_info is not None and not r.alias_info.is_write for r in schema.returns)


class _Aten(TorchDispatchMode):
    """Writes down PyTorch's own calls."""

    def __init__(self, found: list[Launch]) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(
        self,
        function: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        results = function(*args, **(kwargs or {}))
        if _launches(function):
            self.found.append(Launch(function._schema.name, _bytes(args, results)))
        return results


class _Operators(TorchDispatchMode):
    """Runs operators of mmattn on the Triton backend, whatever their tensors' device."""

    def __init__(self, found: list[Launch]) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(
        self,
        function: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        space, _, name = function._schema.name.partition('::')
        if space != 'mmattn':
            return function(*args, **(kwargs or {}))
        with _Aten(self.found):
            results = library.call_kernel(backend, name, args)
        return tuple(results) if len(function._schema.returns) > 1 else results


@contextlib.contextmanager
def replaced_launch(launch: Any) -> Iterator[None]:
    """`launch(kernel, programs, *args, **constants)` in place of every kernel's, on any device."""
    modules: list[Any] = [
        importlib.import_module(f'{backend.__name__}.{name}') for name in backend.MODULES
    ]
    whole = [(module, module.launch) for module in modules if hasattr(module, 'launch')]
    of_device = dispatch.backend
    try:
        for module, _ in whole:
            module.launch = launch
        dispatch.backend = lambda device_type: backend  # type: ignore[assignment]
        yield
    finally:
        dispatch.backend = of_device
        for module, before in whole:
            module.launch = before


def run(op: str, shape: Sequence[int], dtype: torch.dtype, last: bool, found: list[Launch]) -> int:
    """An operator forward and backward on tensors without data: how many launches are forward."""
    args = examples.arguments(op, shape, dtype, last, 'meta')
    with _Operators(found):
        results = getattr(torch.ops.mmattn, op).default(*args)
        forward = len(found)
        results = [t for t in _tensors(results) if t.requires_grad]
        # A gate's factors are results that a network does not use.
        results = [t for t in results if t.shape == tuple(shape)] or results
        grads = [
            torch.empty(t.shape, dtype=t.dtype, device='meta').contiguous(
                memory_format=layout(last and t.dim() == 4)
            )
            for t in results
        ]
        before = len(found)
        leaves = [t for t in _tensors(args) if t.requires_grad]
        torch.autograd.grad(results, leaves, grads)
    assert before == forward
    return forward


def count(
    op: str, shape: Sequence[int], dtype: torch.dtype = torch.bfloat16, last: bool = True
) -> Counts:
    """The launches of an operator of `torch.ops.mmattn` in a training step.

    Args:
        op: its name, as 'drtam'.
        shape: N, C, H, W of the map.
        dtype: of the map.
        last: whether the map is channels_last.
    """
    found: list[Launch] = []

    def write_down(
        kernel: Any,
        programs: int,
        *args: Any,
        num_warps: int = 4,
        maxnreg: int | None = None,
        **constants: Any,
    ) -> None:
        found.append(Launch(kernel.__name__, _bytes(args)))

    with replaced_launch(write_down):
        forward = run(op, shape, dtype, last, found)
    return Counts(found[:forward], found[forward:])


def modelled(launches: Sequence[Launch], gpu: GPU, overhead: Overhead) -> float:
    """Seconds: each launch takes its bytes at 90 % of the bandwidth, and no less than a launch.

    What the host is ahead by during long kernels, it does not make up for: an upper bound.
    """
    return sum(
        max(
            overhead.aten if launch.name.startswith('aten') else overhead.triton,
            launch.bytes / (ACHIEVED * gpu.bandwidth),
        )
        for launch in launches
    )


def mul(shape: Sequence[int], dtype: torch.dtype = torch.bfloat16) -> Counts:
    """y = 1.5 x: two launches, each of which reads a map and writes one."""
    n, c, h, w = shape
    one = Launch('aten::mul', 2 * n * c * h * w * torch.finfo(dtype).bits // 8)
    return Counts([one], [one])


def rows(
    shapes: Sequence[Sequence[int]] = SHAPES, dtype: torch.dtype = torch.bfloat16
) -> list[list[str]]:
    """The table's cells, the heading first: a row a gate and a shape, `mul` among them."""
    head = ['shape', 'gate', 'launches', 'of them Triton', 'bytes / map']
    head += [f'{name}, {way}, us' for name in GPUS for way in OVERHEADS]
    table = [head]
    for shape in shapes:
        unit = torch.Size(shape).numel() * torch.finfo(dtype).bits / 8
        base = mul(shape, dtype)
        for gate in ('`mul`', *GATES):
            counts = base if gate == '`mul`' else count(GATES[gate], shape, dtype)
            row = ['x'.join(map(str, shape)), gate, *_cells(counts, unit)]
            for gpu in GPUS.values():
                for way in OVERHEADS.values():
                    time, least = (modelled([*c[0], *c[1]], gpu, way) for c in (counts, base))
                    row.append(f'{time * 1e6:.0f} ({time / least:.1f})')
            table.append(row)
    return table


def _cells(counts: Counts, unit: float) -> tuple[str, str, str]:
    ours = [sum(not one.name.startswith('aten') for one in part) for part in counts]
    moved = [sum(one.bytes for one in part) / unit for part in counts]
    return (
        f'{len(counts.forward)} + {len(counts.backward)}',
        f'{ours[0]} + {ours[1]}',
        f'{moved[0]:.1f} + {moved[1]:.1f}',
    )


def markdown(table: Sequence[Sequence[str]]) -> str:
    lines = ['| ' + ' | '.join(row) + ' |' for row in table]
    return '\n'.join([lines[0], '|' + ' --- |' * len(table[0]), *lines[1:]])
