"""A paper's table beside our runs of it, judged: one `Board` a table, which every format renders.

The paper's numbers stand in fields called `paper`, ours in fields called `ours`; no field has both.
"""

import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from . import judge
from .alternatives import PRETRAINED
from .collect import Fault, Known, Run, Source, collect
from .metrics import COUNTED, Metric, is_number, metrics_of
from .own import Table, select
from .tables import PAPERS, config_root

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
    'A gain or loss is "seen" if ours differs from none at 5 %. It is "reproduced" if it has the '
    "sign of the paper's, too, and two one-sided tests, corrected as well, show it to lie within "
    'the margin of the paper\'s; otherwise it is called "gain" or "loss". Within the margin but '
    'not seen it is "equivalent", which reproduces nothing: none at all is equivalent to a gain '
    "smaller than the margin. Power is the chance to see a gain as large as the paper's with so "
    'many runs and such a spread, before the correction.',
    'Metrics are those of the checkpoint that the table counts, best or last; the other one is '
    'shown, never mixed in. A run whose config is not that of the repository is modified and never '
    'averaged in, and neither is a run that is not done.',
)
OF_PAPERS = 2  # the first so many of these, which say how a paper's number is judged


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
            those = [run for run in self.runs if _state(run) == state]
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
            return RULES[OF_PAPERS:]
        return RULES[-1:]


def boards(
    paper: str,
    tables: Sequence[int],
    sources: Iterable[Source],
    seeds: int | None = None,
    files: Sequence[str | Path] = (),
    complexity: bool = False,
) -> list[Board]:
    """Tables of a paper, or of a user's file, with all that is known of their runs.

    Args:
        paper (str): One of `PAPERS`, or what a user's file calls itself.
        tables (Sequence[int]): Numbers of its tables; all if empty.
        sources (Iterable[Source]): Where the records are.
        seeds (int, optional): How many seeds (0, 1, ...) each row should have; by default those
            that any run of the table has.
        files (Sequence[str or Path]): Tables and rows of a user's own, see own.py.
        complexity (bool): Whether to count parameters and FLOPs, which takes a second a row.

    Raises:
        ValueError: as `own.select` does.
        NotADirectoryError: if the folder of a source is not there.
    """
    chosen = select(paper, tables, files)
    known = Known.with_files(files)
    runs, faults = collect(sources, known)
    found = [build(table, runs, faults, seeds, known, complexity) for table in chosen]
    return [replace(board, files=tuple(map(str, files))) for board in found]


def build(
    table: Table,
    runs: Sequence[Run],
    faults: Sequence[Fault] = (),
    seeds: int | None = None,
    known: Known | None = None,
    complexity: bool = False,
) -> Board:
    """One table; `runs` and `faults` are those of `collect`, to which `known` was given; the other
    arguments as those of `boards`."""
    known, described = known or Known.of_papers(), table.described
    metrics = metrics_of(described)
    listed = [(entry, False) for entry in table.entries]
    listed += [(entry, True) for entry in table.joined]
    by_config = {}
    for run in runs:
        by_config.setdefault(run.config, {}).setdefault(run.alternatives, []).append(run)
    configs = {entry.config for entry, _ in listed}
    expected = range(seeds) if seeds else {run.seed for run in runs if run.config in configs}
    expected = sorted(expected)
    counted = _complexities(table) if complexity else {}
    rows = []
    started = any(PRETRAINED in run.alternatives for run in runs if run.config in configs)
    for entry, is_own in listed:
        found = by_config.get(entry.config, {})
        planned = {(), *found}
        if started and PRETRAINED in known.fitting(entry.config):
            planned.add((PRETRAINED,))  # the others of the table are to follow
        if table.paper not in PAPERS and len(planned) > 1 and () not in found:
            planned.remove(())  # a user's own table is what was trained of it
        for names in sorted(planned):
            row = _row(
                entry,
                names,
                sorted(found.get(names, []), key=lambda run: run.seed),
                metrics,
                described['checkpoint'],
                expected,
                counted.get(entry.config, {}),
                is_own,
            )
            if PRETRAINED in names:
                sources = by_config.get(entry.pretrained, {}).get((), [])
                row = _with_waiting(row, entry.pretrained, sources, expected)
            rows.append(_with_missing(row, expected))
    return Board(
        table.paper,
        table.number,
        described['caption'],
        described['dataset'],
        described['task'],
        described['checkpoint'],
        metrics,
        [name for name in described['metrics'] if name in COUNTED],
        _with_gains(rows, metrics, known),
        expected,
        list(faults),
    )


def _complexities(table):
    """The counted columns of each config of a paper's; imported here, as it builds models."""
    if table.paper not in PAPERS:
        return {}
    from mmattn.analysis.complexity import table_rows

    found = {}
    for row in table_rows(table.paper, table.number):
        # gmac is 10^9 as gflops is
        found[row.config] = {'params': row.params, 'gflops': row.flops, 'gmac': row.flops}
    return found


def _state(run):
    return 'modified' if run.modified else run.state


def _row(entry, names, runs, metrics, checkpoint, expected, counted, own):
    other = {'best': 'last', 'last': 'best'}[checkpoint]
    cells, notes = {}, []
    for name, metric in metrics.items():
        values = _values(runs, metric, checkpoint)
        paper = entry.values.get(name)
        if paper is None:
            verdict = _unjudged(list(values.values()), judge.MARGINS[name], metric.step)
        else:
            verdict = judge.against_paper(
                list(values.values()), paper, judge.MARGINS[name], metric.step
            )
        cells[name] = Cell(metric, paper, values, _values(runs, metric, other), verdict)
    for run in runs:
        where = f'seed {run.seed}'
        if run.modified:
            notes.append(f'{where} modified: {", ".join(run.modified)}')
        notes += [f'{where}: {deviation}' for deviation in run.deviations]
        if run.counts:
            lost = [n for n, cell in cells.items() if run.seed not in cell.ours]
            if lost:
                notes.append(f'{where} has no {", ".join(lost)} at its {checkpoint} checkpoint')
    for key, what in (('commit', 'commits'), ('versions', 'versions'), ('data_sha256', 'data')):
        kinds = {repr(run.record.get(key)) for run in runs if run.counts}
        if len(kinds) > 1:
            notes.append(f'seeds of {len(kinds)} {what}')
    return Row(
        entry.group,
        entry.name,
        entry.settings,
        entry.config,
        names,
        entry.quoted,
        dict(entry.values),
        entry.contradicts,
        counted,
        cells,
        runs,
        notes,
        own,
    )


def _with_waiting(row, source, sources, expected):
    """The row with those of its seeds that cannot start yet: what they start from is not done."""
    there = {run.seed for run in row.runs} | {run.seed for run in sources if run.counts}
    return replace(row, waiting={seed: source for seed in expected if seed not in there})


def _with_missing(row, expected):
    """The row with a note of the seeds of which there is nothing."""
    there = {run.seed for run in row.runs} | {*row.waiting}
    missing = [seed for seed in expected if seed not in there]
    notes = [*row.notes]
    if row.waiting:
        source = next(iter(row.waiting.values()))
        notes.insert(0, f'seeds that wait for {source}: {", ".join(map(str, sorted(row.waiting)))}')
    if row.runs and missing:
        notes.insert(0, f'seeds missing: {", ".join(map(str, missing))}')
    return replace(row, notes=notes)


def _values(runs, metric, which):
    values = {}
    for run in runs:
        if run.counts:
            value = metric.read((run.record['final'] or {}).get(which) or {})
            if value is not None:
                values[run.seed] = value
    return values


def _unjudged(values, margin, step):
    """Mean and spread of a row that no paper has."""
    mean = sum(values) / len(values) if values else 0.0
    found = judge.against_paper(values, mean, margin, step)
    word = NO_PAPER if values else judge.NOT_RUN
    return replace(found, word=word, difference=None, more=None)


def _with_gains(rows, metrics, known):
    """The rows with what they gain over their baselines, p-values corrected over the table."""
    plain = {}
    for row in rows:
        if not row.own:
            plain.setdefault(row.group, row)
    # A group whose first row has a gate already has no baseline.
    bases = {group: row for group, row in plain.items() if not row.method.startswith('+')}
    compared = {
        row.group for row in rows if row.group in bases and row.config != bases[row.group].config
    }
    by_name = {(row.config, row.alternatives): row for row in rows}
    gains, families, whys = {}, {}, {}
    for at, row in enumerate(rows):
        base = bases.get(row.group)
        whys[at] = BASELINE if base and row.group in compared else ALONE
        if base is None or row.config == base.config:
            continue
        names = tuple(name for name in row.alternatives if name in known.fitting(base.config))
        base = by_name.get((base.config, names))
        for name in metrics if base else ():
            gains[at, name] = found = _gain(row, base, name)
            families.setdefault((row.alternatives, row.own), []).append((at, name, found))
        whys[at] = '' if base else ALONE
    # A table with an alternative is planned to be as large as the table.
    planned = max((len(family) for (_, own), family in families.items() if not own), default=0)
    for (_, own), family in families.items():
        run = [(at, name, found) for at, name, found in family if found is not None]
        more = max(0, (len(family) if own else planned) - len(run))
        ps = judge.holm([found.p for *_, found in run] + [1.0] * more)
        equals = judge.holm(
            [1.0 if found.p_equivalent is None else found.p_equivalent for *_, found in run]
            + [1.0] * more
        )
        for (at, name, found), p, equal in zip(run, ps, equals, strict=False):
            known = found.p_equivalent is not None
            gains[at, name] = replace(found, p=p, p_equivalent=equal if known else None)
    return [
        replace(
            row,
            cells={
                name: replace(cell, gain=gains.get((at, name)), why=_why(cell, whys[at]))
                for name, cell in row.cells.items()
            },
        )
        for at, row in enumerate(rows)
    ]


def _why(cell, why):
    """Why there is no gain: the row has too few runs, or what it has to do with a baseline."""
    if not cell.ours:
        return judge.NOT_RUN
    return why if why == BASELINE else ONE_SEED if len(cell.ours) == 1 else why


def _gain(row, base, name):
    ours, theirs = row.cells[name], base.cells[name]
    sign = ours.metric.sign
    paper = None
    if is_number(ours.paper) and is_number(theirs.paper):
        paper = sign * (ours.paper - theirs.paper)
    paired = ours.ours.keys() == theirs.ours.keys() and all(
        _pair(row, base, seed) for seed in ours.ours
    )
    return judge.gain(
        [sign * value for value in ours.ours.values()],
        [sign * value for value in theirs.ours.values()],
        paper,
        judge.MARGINS[name],
        paired,
        ours.metric.step,
    )


def _pair(row, base, seed):
    """Whether a seed of both began with the same weights of the host and saw the same images: a
    gate takes nothing from the host's random numbers, so they do where code and data are the same.
    """
    first, second = (
        next(run.record for run in those.runs if run.seed == seed) for those in (row, base)
    )
    if first['pretrained'] or second['pretrained'] or first['commit'] is None:
        return False
    keys = ('commit', 'diff_sha256', 'data_sha256', 'versions', 'processes', 'batch')
    return all(first[key] == second[key] for key in keys)


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
