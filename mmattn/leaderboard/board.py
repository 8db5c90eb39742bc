"""A paper's table beside our runs of it, judged: one `Board` a table, which every format renders.

The paper's numbers stand in fields called `paper`, ours in fields called `ours`; no field has both.
"""

import re
import shlex
from dataclasses import dataclass, field
from typing import Any

from mmattn.papers.alternatives import PRETRAINED
from mmattn.papers.metrics import Metric
from mmattn.papers.tables import config_root

from . import judge
from .collect import Fault, Run

NO_PAPER = 'no paper has it'
# Why there is nothing to say of a row's gain.
BASELINE, ONE_SEED, ALONE = 'baseline', 'one seed: no verdict', 'nothing to compare with'
REPRODUCED, EQUIVALENT, GAIN, LOSS = 'reproduced', 'equivalent', 'gain', 'loss'

# What is decided before any run, as every format states it.
RULES = (
    "A paper's number is one run. Of our n runs of a row (mean m, standard deviation s), one more "
    'lies in m ± t(n − 1) s √(1 + 1/n) with 95 %. Outside of it ours is "higher" or "lower" than '
    'the paper. Inside, it "agrees" only if the half-width is within the margin of the metric; '
    'otherwise it is "undecided". Fewer than two runs have no verdict.',
    'Margins, in percent: '
    + ', '.join(f'{name} {margin:g}' for name, margin in judge.MARGINS.items())
    + '. The spread is never taken to be less than what the rounding of the evaluator hides.',
    "Gains are over the first row of a row's group, positive where ours is better (fewer errors, "
    'too). Runs are paired by their seed where both rows have the same seeds, by the same code, '
    'versions, data, processes and batch, and none started from a pretrained network of ours; '
    "else Welch's test is taken. P-values are corrected by Holm over all comparisons of the table, "
    'those not run yet included; the 95 % intervals are of each comparison alone.',
    'It is a "gain" or a "loss" if ours differs from none at 5 %, after the correction. Otherwise '
    'it is "undecided": a difference may be there, too small for so many runs and such a spread. '
    'One seed has no verdict.',
    'A gain or loss that is seen is called "reproduced" if it has the '
    "sign of the paper's, too, and two one-sided tests, corrected as well, show it to lie within "
    "the margin of the paper's. Within the margin but "
    'not seen it is "equivalent", which reproduces nothing: none at all is equivalent to a gain '
    "smaller than the margin. Power is the chance to see a gain as large as the paper's with so "
    'many runs and such a spread, before the correction.',
    'Metrics are those of the checkpoint that the table counts, best or last; the other one is '
    'shown, never mixed in. A run whose config is not that of the repository is modified and never '
    'averaged in, and neither is a run that is not done.',
)
OF_PAPERS = (0, 1, 4)  # those of these that say how a paper's numbers are judged


def state_of(run: Run) -> str:
    """That of its record, or 'modified'."""
    return 'modified' if run.modified else run.state


@dataclass(frozen=True)
class Cell:
    """Our runs of a row in one column: `ours` maps seeds to values at the checkpoint that counts,
    `other` to those at the other one."""

    metric: Metric
    paper: float | None
    ours: dict[int, float]
    other: dict[int, float]
    verdict: judge.Verdict
    gain: judge.Gain | None = None
    why: str = ''  # there is no gain

    @property
    def gain_word(self) -> str:
        """What can be said of the gain, or why there is none."""
        if self.gain is None:
            return self.why
        if self.gain.reproduced:
            return REPRODUCED
        if self.gain.seen:
            return GAIN if self.gain.mean > 0 else LOSS
        return EQUIVALENT if self.gain.equivalent else judge.UNDECIDED

    @property
    def better(self) -> bool | None:
        """Whether ours is better than the paper's where it is another, else None."""
        if self.verdict.word in (judge.HIGHER, judge.LOWER):
            return (self.verdict.word == judge.HIGHER) != self.metric.error
        return None


@dataclass(frozen=True)
class Row:
    """A row of the table, trained as it is or with alternatives; all its runs, and what is wrong
    with them."""

    group: str
    method: str
    settings: dict[str, Any]
    config: str
    alternatives: tuple[str, ...]
    quoted: str | None
    paper: dict[str, float]
    contradicts: dict[str, str]
    counted: dict[str, float]
    cells: dict[str, Cell]
    runs: list[Run]
    notes: list[str]
    own: bool = False
    waiting: dict[int, str] = field(default_factory=dict)

    @property
    def state(self) -> str:
        """In words: 'missing', or how many runs are in which state. Those that wait for the run of
        another row, which they start from, are `waiting`: seeds and that row's config."""
        words = []
        for state in ('done', 'running', 'stopped', 'failed', 'modified'):
            those = [run for run in self.runs if state_of(run) == state]
            if not those:
                continue
            word = f'{len(those)} {state}'
            known = [run.progress for run in those if run.progress is not None]
            if state in ('running', 'stopped') and known:
                word += f' ({", ".join(f"{100 * part:.0f} %" for part in known)})'
            words.append(word)
        if self.waiting:
            words.append(f'{len(self.waiting)} waiting')
        return ', '.join(words) or 'missing'


@dataclass(frozen=True)
class Board:
    """One table; `files` are the users' that have to do with it."""

    paper: str
    table: int
    caption: str
    dataset: str
    task: str
    checkpoint: str
    metrics: dict[str, Metric]
    counted: list[str]
    rows: list[Row]
    seeds: list[int]
    faults: list[Fault] = field(default_factory=list)
    files: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """A board's paper and number."""
        return f'{self.paper.upper()}, Table {self.table}'

    @property
    def has_paper(self) -> bool:
        """Whether a paper prints any of its numbers: a user's own table may be ours alone."""
        return any(cell.paper is not None for row in self.rows for cell in row.cells.values())

    @property
    def rules(self) -> tuple[str, ...]:
        """What of `RULES` is applied here."""
        cells = [cell for row in self.rows for cell in row.cells.values()]
        if self.has_paper:
            return RULES
        if any(cell.gain is not None for cell in cells):
            return tuple(rule for at, rule in enumerate(RULES) if at not in OF_PAPERS)
        return RULES[-1:]


def commands(board: Board, row: Row) -> list[str]:
    """How to train a row again and to see it; a user's own, which is not in `configs/`, from beside
    the folder that holds it."""
    is_ours = (config_root() / row.config).is_file()
    config = f'configs/{row.config}' if is_ours else row.config
    words = ''
    if named := [name for name in row.alternatives if name != PRETRAINED]:
        words += f' --alternative {" ".join(named)}'
    if PRETRAINED in row.alternatives:
        words += ' --pretrained CHECKPOINT'
    sizes = re.search(r'_(\d+)xb\d+', row.config)
    train = f'tools/dist_train.sh {config} {sizes[1] if sizes else 1}{words}'
    seeds = sorted({run.seed for run in row.runs}) or [0]
    tables = f' --tables {shlex.join(board.files)}' if board.files else ''
    return [f'{train} --seed {seed}' for seed in seeds] + [
        f'python tools/leaderboard.py {board.paper} {board.table}{tables}'
    ]
