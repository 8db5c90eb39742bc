"""What a gate costs in two checkouts of this project, side by side: before a change and after it.

Each checkout is run by two processes, all four in turns, so that whatever slows the machine slows
both, and what one process is lucky with (where its memory lies) shows as noise. Processor time of
one thread counts, forward and backward.
"""

import contextlib
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

# Run by itself in the checkout's folder, of which it takes nothing but the gates.
WORKER = """
import json, sys, time
import torch
import mmattn
from mmattn import attention
from mmattn.analysis.benchmark import keep_memory

torch.set_num_threads(1)
keep_memory()
given = None
for line in sys.stdin:
    gate, shape, repeats = json.loads(line)
    if (gate, shape) != given:
        torch.manual_seed(0)
        given, module = (gate, shape), getattr(attention, gate)(shape[1]).train()
        x = torch.randn(shape).requires_grad_()
        dy, leaves = torch.randn_like(x), [x, *module.parameters()]
        for _ in range(2):
            torch.autograd.grad(module(x), leaves, dy)
    start = time.process_time()
    for _ in range(repeats):
        torch.autograd.grad(module(x), leaves, dy)
    ms = (time.process_time() - start) / repeats * 1e3
    print(json.dumps([mmattn.__file__, ms]), flush=True)
"""


class Worker:
    """A process that times gates of one checkout."""

    def __init__(self, checkout: Path) -> None:
        self.checkout = checkout.resolve()
        path = os.pathsep.join(filter(None, (str(self.checkout), os.environ.get('PYTHONPATH'))))
        self.process = subprocess.Popen(
            [sys.executable, '-c', WORKER],
            cwd=self.checkout,
            env=dict(os.environ, PYTHONPATH=path, OMP_NUM_THREADS='1'),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ms(self, gate: str, shape: Sequence[int], repeats: int) -> float:
        """Milliseconds of a step.

        Raises:
            RuntimeError: if the process ended, or runs the code of another checkout.
        """
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps([gate, list(shape), repeats]) + '\n')
            self.process.stdin.flush()
        except BrokenPipeError:
            pass
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f'{self.checkout} could not run {gate}: see what it said above')
        file, ms = json.loads(line)
        if file is None or not Path(file).is_relative_to(self.checkout):
            raise RuntimeError(f'{self.checkout} ran the code of {file or "a folder without any"}')
        return ms


@contextlib.contextmanager
def _workers(checkouts: Sequence[Path]) -> Iterator[list[Worker]]:
    workers = [Worker(checkout) for _ in range(2) for checkout in checkouts]
    try:
        yield workers
    finally:
        for worker in workers:
            worker.process.kill()
            worker.process.communicate()


def compare(
    before: Path, after: Path, gates: Sequence[str], shapes: Sequence[Sequence[int]], rounds: int
) -> list[dict[str, Any]]:
    """A row for each shape and gate: the least milliseconds before and after, and the median ratio
    of a round, after / before."""
    rows = []
    with _workers((before, after)) as workers:
        for shape in shapes:
            for gate in gates:
                slowest = max(worker.ms(gate, shape, 1) for worker in workers)
                repeats = max(1, min(50, round(20 / slowest)))
                times = [
                    [worker.ms(gate, shape, repeats) for worker in workers] for _ in range(rounds)
                ]
                ratios = [t[i + 1] / t[i] for t in times for i in (0, 2)]
                rows.append(
                    dict(
                        shape='x'.join(map(str, shape)),
                        gate=gate,
                        before=min(min(t[0], t[2]) for t in times),
                        after=min(min(t[1], t[3]) for t in times),
                        ratio=statistics.median(ratios),
                    )
                )
    return rows
