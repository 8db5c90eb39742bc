"""The Triton kernels as machine code of GPUs that are not there: registers, spills, instructions.

Every operator is run forward and backward on tensors without data, and each launch is compiled
instead, by Triton and the ptxas that comes with it, for a named target; what the code takes is read
from the code itself by cuobjdump, which comes with it, too.
"""

import contextlib
import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mmattn.ops import examples

from . import launches

TARGETS = (80, 90, 100)
SHAPE = (256, 256, 56, 56)


class Code(NamedTuple):
    """A kernel as an operator launches it, on one target.

    registers: of a thread.
    stack, shared: bytes of local memory a thread and of shared memory a program.
    spills: loads and stores of local memory among its instructions.
    instructions: in the code, each once, padding left out.
    """

    op: str
    kernel: str
    target: int
    warps: int
    registers: int
    stack: int
    shared: int
    spills: int
    instructions: int


class _Driver:
    """As much of a Triton driver as compiling takes."""

    def __init__(self, target: int) -> None:
        self.target = target

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget('cuda', self.target, 32)

    def get_current_device(self) -> int:
        return self.target  # a kernel keeps what it compiled by the number of the device

    def get_current_stream(self, device: int) -> int:
        return 0


@contextlib.contextmanager
def compiling_for(target: int) -> Iterator[None]:
    """Triton takes this compute capability, as 90, for that of the GPU in use."""
    import triton

    driver = triton.runtime.driver
    # Put back by hand: reset_active() asks for the machine's own driver, and newer Tritons raise
    # where there is none.
    before = dict(vars(driver))
    driver.set_active(_Driver(target))
    try:
        yield
    finally:
        vars(driver).clear()
        vars(driver).update(before)


def compile_only(
    kernel: Any,
    programs: int,
    *args: Any,
    num_warps: int = 4,
    maxnreg: int | None = None,
    **constants: Any,
) -> Any:
    """What is compiled of a launch: Triton's `CompiledKernel`."""
    return kernel.warmup(*args, grid=(programs,), num_warps=num_warps, maxnreg=maxnreg, **constants)


def compiled(
    op: str,
    target: int,
    shape: Sequence[int] = SHAPE,
    dtype: torch.dtype = torch.bfloat16,
    last: bool = True,
) -> list[Code]:
    """The kernels that an operator launches, forward and backward, each variant once."""
    found = {}

    def keep(kernel: Any, programs: int, *args: Any, **options: Any) -> None:
        done = compile_only(kernel, programs, *args, **options)
        key = kernel.__name__, done.asm['cubin']
        if key not in found:
            found[key] = _code(op, kernel.__name__, target, done)

    with compiling_for(target), launches.replaced_launch(keep):
        launches.run(op, shape, dtype, last, [])
    return list(found.values())


def _tool(name: str) -> Path:
    import triton

    return Path(triton.__file__).parent / 'backends' / 'nvidia' / 'bin' / name


def _code(op: str, kernel: str, target: int, done: Any) -> Code:
    with tempfile.NamedTemporaryFile(suffix='.cubin') as file:
        file.write(done.asm['cubin'])
        file.flush()
        usage, text = (
            subprocess.run(
                [_tool('cuobjdump'), option, file.name], capture_output=True, text=True, check=True
            ).stdout
            for option in ('-res-usage', '-sass')
        )
    if not re.search(rf'\bsm_{target}a?\b', text):
        raise RuntimeError(f'{kernel} was compiled for another target than sm_{target}')
    sizes = dict(re.findall(r'(REG|STACK):(\d+)', usage))
    instructions = [
        name for name in re.findall(r'/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+ )?([A-Z][\w.]*)', text)
        if name != 'NOP'
    ]  # fmt: skip
    return Code(
        op, kernel, target, done.metadata.num_warps, int(sizes['REG']), int(sizes['STACK']),
        done.metadata.shared,
        sum(name.startswith(('LDL', 'STL')) for name in instructions), len(instructions),
    )  # fmt: skip


def rows(
    ops: Sequence[str] = tuple(launches.GATES.values()),
    targets: Sequence[int] = TARGETS,
    shape: Sequence[int] = SHAPE,
    dtype: torch.dtype = torch.bfloat16,
    last: bool = True,
) -> list[list[str]]:
    """A table, the heading first: a row a kernel, of the variant that takes most registers."""
    most: dict[tuple[str, str], dict[int, Code]] = {}
    for op in ops:
        if op not in examples.ARGUMENTS:
            raise ValueError(f'op must be one of {list(examples.ARGUMENTS)}, got {op!r}')
        for target in targets:
            for code in compiled(op, target, shape, dtype, last):
                of = most.setdefault((op, code.kernel), {})
                if target not in of or of[target].registers < code.registers:
                    of[target] = code
    head = ['operator', 'kernel', 'warps']
    head += [f'sm_{t}: registers, spills, instructions' for t in targets]
    table = [head]
    for (op, kernel), of in most.items():
        cells = [f'{c.registers}, {c.spills}, {c.instructions}' for c in of.values()]
        table.append([op, kernel, str(next(iter(of.values())).warps), *cells])
    return table
