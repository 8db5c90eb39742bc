"""Where the runs of a plan are, as their records and leases say: from any shell, at any time."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mmattn.lines import one_line
from mmattn.papers.plan import Run, title

from . import leases, record


@dataclass(frozen=True)
class Status:
    """Of one run.

    `state` is 'missing', 'waiting' (it has been stopped, or lost), 'running', 'failed', 'done' or
    'damaged'. `done` is the part of its steps that are done, in [0, 1], `remaining` seconds; None
    is unknown. `metric` is the last evaluation's first.
    """

    run: Run
    state: str
    epoch: int | None = None
    done: float | None = None
    loss: float | None = None
    metric: tuple[str, float] | None = None
    remaining: float | None = None
    message: str = ''

    def cells(self) -> tuple[str, ...]:
        part = f' {100 * self.done:.0f} %' if self.done is not None else ''
        metric = f'{self.metric[0]} {self.metric[1]:.4g}' if self.metric else ''
        return (
            title(self.run),
            self.state + (part if self.state == 'running' else ''),
            '' if self.epoch is None else str(self.epoch),
            '' if self.loss is None else f'{self.loss:.4g}',
            metric,
            '' if self.remaining is None else duration(self.remaining),
        )


def status(run: Run, work_dir: str | Path) -> Status:
    """Where a run is."""
    folder = run.folder(work_dir)
    held = leases.is_held(folder / leases.NAME)
    try:
        found = record.find(folder)
    except record.RecordError as error:
        return Status(run, 'damaged', message=str(error))
    if found is None:
        return Status(run, 'running' if held else 'missing')
    state = found['state']
    if state in ('running', 'stopped'):
        state = 'running' if held or (state == 'running' and _moves(found)) else 'waiting'
    progress = found.get('progress') or {}
    last = found['evaluations'][-1] if found['evaluations'] else {}
    metric = next(iter((last.get('metrics') or {}).items()), None)
    message = next((s['message'] for s in reversed(found['starts']) if s['message']), '')
    return Status(
        run,
        state,
        progress.get('epoch', last.get('epoch')),
        progress['iter'] / progress['max_iters'] if progress.get('max_iters') else None,
        progress.get('loss'),
        metric if metric and metric[1] is not None else None,
        _remaining(found) if state == 'running' else None,
        message if state == 'failed' else '',
    )


def gpu_seconds(found: dict[str, Any]) -> float:
    """Seconds that the starts in a record took, times its processes."""
    return (found['processes'] or 1) * sum(
        start['ended'] - start['at'] for start in found['starts'] if start['ended'] is not None
    )


def estimate(runs: Sequence[Run], work_dir: str | Path) -> tuple[float, list[str]]:
    """What is left to do, by runs of the same config that are done.

    Returns:
        tuple[float, list[str]]: seconds of GPUs (or CPU processes), and the configs of which none
        is done yet, so that nothing is known.
    """
    known, left, unknown = {}, 0.0, []
    for run in runs:
        try:
            found = record.find(run.folder(work_dir))
        except record.RecordError:
            continue
        if found is not None and found['state'] == 'done':
            known[run.config, run.alternatives] = gpu_seconds(found)
            continue
    for run in runs:
        if status(run, work_dir).state == 'done':
            continue
        key = run.config, run.alternatives
        if key in known:
            left += known[key]
        elif run.config not in unknown:
            unknown.append(run.config)
    return left, unknown


def show(runs: Sequence[Run], work_dir: str | Path, console: Console) -> None:
    """One table on a terminal, plain lines elsewhere."""
    found = [status(run, work_dir) for run in runs]
    names = ('run', 'state', 'epoch', 'loss', 'metric', 'left')
    if console.is_terminal:
        console.print(table(found, names))
    else:
        for item in found:
            words = [f'{n} {c}' for n, c in zip(names[1:], item.cells()[1:], strict=True) if c]
            line = one_line(f'{item.cells()[0]}: {", ".join(words)}')
            console.print(line, markup=False, soft_wrap=True)
    counts = ', '.join(
        f'{sum(item.state == state for item in found)} {state}'
        for state in dict.fromkeys(item.state for item in found)
    )
    console.print(f'{len(found)} runs: {counts}', markup=False, highlight=False)


def table(found: Sequence[Status], names: Sequence[str]) -> Table:
    """For rich."""
    made = Table(*names)
    for item in found:
        made.add_row(*(Text(one_line(cell)) for cell in item.cells()))
    return made


def duration(seconds: float) -> str:
    """'2 d 3 h', '3 h 20 min', '20 min' or '20 s'."""
    if seconds < 60:
        return f'{seconds:.0f} s'
    minutes = round(seconds / 60)
    days, hours, minutes = minutes // 1440, minutes // 60 % 24, minutes % 60
    if days:
        return f'{days} d {hours} h'
    return f'{hours} h {minutes} min' if hours else f'{minutes} min'


def _moves(found: dict[str, Any]) -> bool:
    """Whether a record was written a moment ago, as a training on another machine does."""
    progress = found.get('progress') or {}
    last = found['evaluations'][-1:] + found['starts'][-1:] + ([progress] if progress else [])
    return time.time() - max(item['at'] for item in last) < 5 * leases.STALE if last else False


def _remaining(found: dict[str, Any]) -> float | None:
    """Seconds, by the speed since the last start."""
    progress = found.get('progress') or {}
    if not found['starts'] or not progress:
        return None
    began = found['starts'][-1]['at']
    first = next((e['iter'] for e in reversed(found['evaluations']) if e['at'] < began), 0)
    steps = progress['iter'] - first
    if steps <= 0 or progress['at'] <= began:
        return None
    return (progress['max_iters'] - progress['iter']) * (progress['at'] - began) / steps
