"""What a driver shows while it runs: a table that changes, or lines where there is no terminal."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from mmattn.papers.plan import Run

from .watch import Status, duration, part_of_all, status, summary, table

REFRESH, TELL = 2, 300  # seconds between two tables; between two lines without a terminal
FRAME = 7  # lines of a terminal that are not rows
FIRST = ('running', 'failed', 'damaged')  # are shown if not all rows fit


class Progress:
    """Shows where runs are, each time it is called and it is time; a context manager.

    Args:
        runs (Sequence[Run]): Those to show.
        work_dir (str or Path): Holds their folders.
        console (Console, optional): By default of standard output.
        where (Callable, optional): What the driver says of a run, see `watch.status`.
    """

    def __init__(
        self,
        runs: Sequence[Run],
        work_dir: str | Path,
        console: Console | None = None,
        where: Callable[[Run], str | None] = lambda run: None,
    ) -> None:
        self.runs, self.work_dir, self.where = runs, work_dir, where
        self.console = console or Console()
        self._live = None
        if self.console.is_terminal:
            self._live = Live(console=self.console, auto_refresh=False)
        self._shown, self._told = float('-inf'), ''
        self._begun: tuple[float, float] | None = None

    def __enter__(self) -> 'Progress':
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live:
            self._live.stop()

    def say(self, line: str) -> None:
        """A line above the table."""
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def __call__(self) -> None:
        now = time.monotonic()
        if now - self._shown < (REFRESH if self._live else TELL):
            return
        self._shown = now
        found = [status(run, self.work_dir, self.where(run)) for run in self.runs]
        total = self._total(found, now)
        if self._live:
            rows, more = self._fitting(found)
            self._live.update(Group(table(rows), Text(f'{more}{total}')), refresh=True)
        elif total != self._told:
            self.say(total)
            self._told = total

    def _fitting(self, found: list[Status]) -> tuple[list[Status], str]:
        """The rows that the terminal has room for, the busy ones first, and what is left out."""
        room = max(1, self.console.height - FRAME)
        if len(found) <= room:
            return found, ''
        order = sorted(found, key=lambda item: (item.state not in FIRST, item.state == 'done'))
        chosen = {id(item) for item in order[:room]}
        return [i for i in found if id(i) in chosen], f'and {len(found) - room} more; '

    def _total(self, found: list[Status], now: float) -> str:
        """The summary, and how long it takes at the speed since this began to look."""
        part = part_of_all(found)
        if self._begun is None:
            self._begun = now, part
        since, before = self._begun
        text = summary(found)
        if before < part < 1 and any(item.state == 'running' for item in found):
            left = (1 - part) * (now - since) / (part - before)
            text += f', about {duration(left)} left'
        return text
