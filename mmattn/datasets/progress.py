"""A progress bar on a terminal; elsewhere, as in a cluster's log, a line now and then."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SECONDS_BETWEEN_LINES = 30


@contextmanager
def track(label: str, total: int, unit: str = 'bytes') -> Iterator[Callable[[int], None]]:
    """Shows how far a task is, on stderr.

    Args:
        label (str): What is being done.
        total (int): What it will have come to at the end.
        unit (str): Of `total`; 'bytes' are printed as MB and GB.

    Yields:
        Callable: to be called with what was done since the last call.
    """
    if sys.stderr.isatty():
        with _bar(label, total, unit) as advance:
            yield advance
    else:
        yield _Lines(label, total, unit)


@contextmanager
def _bar(label: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    from rich import progress
    from rich.console import Console

    amount = progress.DownloadColumn() if unit == 'bytes' else progress.MofNCompleteColumn()
    columns = (progress.TextColumn('{task.description}'), progress.BarColumn(), amount)
    left = progress.TimeRemainingColumn()
    with progress.Progress(*columns, left, console=Console(stderr=True)) as bar:
        task = bar.add_task(label, total=total)
        yield lambda done: bar.advance(task, done)


class _Lines:
    def __init__(self, label: str, total: int, unit: str) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.done, self.last = 0, time.monotonic()

    def __call__(self, done: int) -> None:
        self.done += done
        if time.monotonic() - self.last > SECONDS_BETWEEN_LINES:
            self.last = time.monotonic()
            share = 100 * self.done / max(self.total, 1)
            print(
                f'{self.label}: {share:.0f} % of {amount(self.total, self.unit)}', file=sys.stderr
            )


def amount(number: float, unit: str = 'bytes') -> str:
    """A number with its unit: 19336861798 bytes are '19.3 GB'."""
    if unit != 'bytes':
        return f'{number} {unit}'
    for name in ('bytes', 'kB', 'MB'):
        if number < 1000:
            return f'{number:.3g} {name}' if name != 'bytes' else f'{number} bytes'
        number /= 1000
    return f'{number:.1f} GB'
