"""Where the runs of a plan are, as their records and leases say: from any shell, at any time.

A driver shows the same table while it runs (`progress.py`), and knows some things better.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mmattn.lines import one_line
from mmattn.papers.plan import Run, title

from . import leases, record
from .form import Record

NAMES = ('run', 'state', 'epoch', 'loss', 'metric', 'left')


@dataclass(frozen=True)
class Status:
    """Of one run.

    `state` is 'missing', 'waiting' (for the result of the run that it starts from), 'running',
    'stopped' (or lost), 'failed', 'done', 'damaged', or where a driver says that it is ('queued as
    job 12'); the leaderboard's words mean the same. `done` is the part of its
    steps that are done, in [0, 1], `remaining` seconds; None is unknown. `metric` is the last
    evaluation's first.
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
            self.state + (part if self.state in ('running', 'stopped') else ''),
            '' if self.epoch is None else str(self.epoch),
            '' if self.loss is None else f'{self.loss:.4g}',
            metric,
            '' if self.remaining is None else duration(self.remaining),
        )


def status(run: Run, work_dir: str | Path, where: str | None = None) -> Status:
    """Where a run is.

    Args:
        where (str, optional): What its driver says: 'running', 'idle' or other words. Nobody
            else's lease is looked at then, which for a moment would keep others from taking it.
    """
    folder = run.folder(work_dir)
    held = leases.is_held(folder / leases.NAME) if where is None else where == 'running'
    elsewhere = None if where in ('idle', 'running') else where
    try:
        found = record.find(folder)
    except record.RecordError as error:
        return Status(run, 'damaged', message=str(error))
    if found is None:
        return Status(run, 'running' if held else elsewhere or _before_its_start(run, work_dir))
    state = found['state']
    if state in ('running', 'stopped'):
        moves = held or (where is None and state == 'running' and _moves(found))
        state = 'running' if moves else elsewhere or 'stopped'
    progress = found.get('progress')
    last = found['evaluations'][-1] if found['evaluations'] else None
    name, value = next(iter(last['metrics'].items()), ('', None)) if last else ('', None)
    message = next((s['message'] for s in reversed(found['starts']) if s['message']), '')
    return Status(
        run,
        state,
        progress['epoch'] if progress else last['epoch'] if last else None,
        _part(found),
        progress['loss'] if progress else None,
        None if value is None else (name, value),
        _remaining(found) if state == 'running' else None,
        message if state == 'failed' else '',
    )


def _before_its_start(run: Run, work_dir: str | Path) -> str:
    """Of a run of which nothing is known: whether another one has to be done first."""
    if run.waits_for is None:
        return 'missing'
    try:
        before = record.find(run.waits_for.folder(work_dir))
    except record.RecordError:
        return 'waiting'
    return 'missing' if before is not None and before['state'] == 'done' else 'waiting'


def _part(found: Record) -> float | None:
    """How much of its steps a run has done."""
    progress = found.get('progress')
    if found['state'] == 'done':
        return 1.0
    return progress['iter'] / progress['max_iters'] if progress and progress['max_iters'] else None


def show(runs: Sequence[Run], work_dir: str | Path, console: Console) -> None:
    """One table on a terminal, plain lines elsewhere."""
    found = [status(run, work_dir) for run in runs]
    if console.is_terminal:
        console.print(table(found))
    else:
        for item in found:
            words = [f'{n} {c}' for n, c in zip(NAMES[1:], item.cells()[1:], strict=True) if c]
            line = one_line(f'{item.cells()[0]}: {", ".join(words)}')
            console.print(line, markup=False, soft_wrap=True)
    console.print(summary(found), markup=False, highlight=False)


def table(found: Sequence[Status]) -> Table:
    """For rich."""
    made = Table(*NAMES)
    for item in found:
        made.add_row(*(Text(one_line(cell)) for cell in item.cells()))
    return made


def summary(found: Sequence[Status]) -> str:
    """Of all runs: how many are in which state, and how much of their steps is done."""
    states = ['queued' if item.state.startswith('queued') else item.state for item in found]
    counts = ', '.join(f'{states.count(state)} {state}' for state in dict.fromkeys(states))
    return f'{len(found)} runs: {counts}; {100 * part_of_all(found):.0f} % of all steps'


def part_of_all(found: Sequence[Status]) -> float:
    """How much is done of runs that count alike, whatever their lengths; in [0, 1]."""
    return sum(item.done or 0 for item in found) / len(found) if found else 1.0


def duration(seconds: float) -> str:
    """'2 d 3 h', '3 h 20 min', '20 min' or '20 s'."""
    if seconds < 60:
        return f'{seconds:.0f} s'
    minutes = round(seconds / 60)
    days, hours, minutes = minutes // 1440, minutes // 60 % 24, minutes % 60
    if days:
        return f'{days} d {hours} h'
    return f'{hours} h {minutes} min' if hours else f'{minutes} min'


def _moves(found: Record) -> bool:
    """Whether a record was written a moment ago, as a training on another machine does."""
    progress = found.get('progress')
    times = [evaluation['at'] for evaluation in found['evaluations'][-1:]]
    times += [start['at'] for start in found['starts'][-1:]]
    times += [progress['at']] if progress else []
    return time.time() - max(times) < 5 * leases.STALE if times else False


def _remaining(found: Record) -> float | None:
    """Seconds, by the speed since the last start."""
    progress = found.get('progress')
    if not found['starts'] or not progress:
        return None
    began = found['starts'][-1]['at']
    first = next((e['iter'] for e in reversed(found['evaluations']) if e['at'] < began), 0)
    steps = progress['iter'] - first
    if steps <= 0 or progress['at'] <= began:
        return None
    return (progress['max_iters'] - progress['iter']) * (progress['at'] - began) / steps
