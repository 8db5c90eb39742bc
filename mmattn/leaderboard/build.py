"""Builds boards: rows of a table with what is known of their runs."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from mmattn.papers.alternatives import PRETRAINED, of_start, titled
from mmattn.papers.metrics import COUNTED, Metric, metrics_of
from mmattn.papers.own import Table, select
from mmattn.papers.tables import PAPERS, Entry

from . import judge
from .board import NO_PAPER, Board, Cell, Row
from .collect import Fault, Known, Run, collect
from .gains import with_gains
from .sources import Source


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
    by_config: dict[str, dict[tuple[str, ...], list[Run]]] = {}
    for run in runs:
        by_config.setdefault(run.config, {}).setdefault(run.alternatives, []).append(run)
    configs = {entry.config for entry, _ in listed}
    ours = {run.seed for run in runs if run.config in configs}
    expected = list(range(seeds)) if seeds else sorted(ours)
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
                counted.get(entry.config, {}),
                is_own,
            )
            if PRETRAINED in names and entry.pretrained is not None:
                start = of_start(entry.config, names)
                sources = by_config.get(entry.pretrained, {}).get(start, [])
                row = _with_waiting(row, titled(entry.pretrained, start), sources, expected)
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
        with_gains(rows, metrics, known),
        expected,
        list(faults),
    )


def _complexities(table: Table) -> dict[str, dict[str, float]]:
    """The counted columns of each config of a paper's; imported here, as it builds models."""
    if table.paper not in PAPERS:
        return {}
    from mmattn.analysis.complexity import table_rows

    found = {}
    for row in table_rows(table.paper, table.number):
        # gmac is 10^9 as gflops is
        found[row.config] = {'params': row.params, 'gflops': row.flops, 'gmac': row.flops}
    return found


def _row(
    entry: Entry,
    names: tuple[str, ...],
    runs: list[Run],
    metrics: dict[str, Metric],
    checkpoint: str,
    counted: dict[str, float],
    own: bool,
) -> Row:
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


def _with_waiting(row: Row, source: str, sources: Iterable[Run], expected: Iterable[int]) -> Row:
    """The row with those of its seeds that cannot start yet: what they start from is not done."""
    there = {run.seed for run in row.runs} | {run.seed for run in sources if run.counts}
    return replace(row, waiting={seed: source for seed in expected if seed not in there})


def _with_missing(row: Row, expected: Iterable[int]) -> Row:
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


def _values(runs: Iterable[Run], metric: Metric, which: str) -> dict[int, float]:
    values = {}
    for run in runs:
        if run.counts:
            final = run.record['final']
            found = {} if final is None else final['best' if which == 'best' else 'last']
            value = metric.read(found)
            if value is not None:
                values[run.seed] = value
    return values


def _unjudged(values: Sequence[float], margin: float, step: float) -> judge.Verdict:
    """Mean and spread of a row that no paper has."""
    mean = sum(values) / len(values) if values else 0.0
    found = judge.against_paper(values, mean, margin, step)
    word = NO_PAPER if values else judge.NOT_RUN
    return replace(found, word=word, difference=None, more=None)
