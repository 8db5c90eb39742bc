"""The graph of runs behind tables: what is trained, for which rows, and what waits for what."""

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from mmengine.config import Config

from mmattn.runs import record

from .alternatives import (
    PRETRAINED,
    AlternativeError,
    combine,
    combined_name,
    fitting,
    of_row,
    of_start,
    start_from,
)
from .own import select
from .tables import Entry, config_name


class PlanError(ValueError):
    """Something asked for that the tables do not have, in one line that says what they have."""


@dataclass(frozen=True)
class Run:
    """One training: a row's config, with alternatives, and a seed.

    `config` is relative to `root`, `waits_for` the run whose last checkpoint it starts from.
    `rows` are the rows, as ``cat 1: Faster-RCNN ResNet50, + CAT``, that it is for; a run that is
    there for others to start from has none.
    """

    config: str
    alternatives: tuple[str, ...]
    seed: int
    root: Path = field(compare=False)
    waits_for: 'Run | None' = None
    rows: tuple[str, ...] = field(default=(), compare=False)

    @property
    def name(self) -> str:
        """As its folder: ``cat/resnet50_1xb128_cifar100/seed0``."""
        return record.folder_of('', self.config, self.alternatives, self.seed).as_posix()

    @property
    def path(self) -> Path:
        """Of its config."""
        return self.root / self.config

    @property
    def _merged(self) -> list[str]:
        """Its alternatives that have a file for it; `pretrained` of an own table has none."""
        return [name for name in self.alternatives if name in of_row(self.config)]

    def expected(self) -> str:
        """The `config_text` of its record, if it ran as the repository has it."""
        return record.resolved(expected(self.path, self.alternatives))

    def folder(self, work_dir: str | Path) -> Path:
        """Its folder below that of all runs."""
        return Path(work_dir) / self.name

    def arguments(self, work_dir: str | Path, checkpoint: str | None = None) -> list[str]:
        """Those of `tools/train.py` or, without the first, what follows the number of processes in
        `tools/dist_train.sh`.

        Args:
            checkpoint (str, optional): What it starts from.
        """
        found = [str(self.path), '--work-dir', str(self.folder(work_dir)), '--seed', str(self.seed)]
        found += ['--record', '--resume']
        if self._merged:
            found += ['--alternative', *self._merged]
        if checkpoint is not None:
            found += ['--pretrained', checkpoint]
        return found


def make(
    paper: str,
    tables: Sequence[int],
    seeds: int = 1,
    rows: Sequence[str] = (),
    alternatives: Sequence[str] = (),
    files: Sequence[str | Path] = (),
) -> list[Run]:
    """The runs of tables, each once, those that others start from before them.

    Args:
        paper (str): 'cat', 'drtam', or the folder of a file with tables of its own.
        tables (Sequence[int]): Their numbers; none are all of the paper.
        seeds (int): Seeds 0, ..., `seeds` - 1 of each row.
        rows (Sequence[str]): Globs for the names of methods or of configs, without their folder;
            none are all rows.
        alternatives (Sequence[str]): For every row that each fits.
        files (Sequence[str or Path]): A user's tables and rows, see own.py.

    Raises:
        PlanError: for a row or alternative that is not there.
        ValueError: as `own.select` does.
    """
    if seeds < 1:
        raise PlanError(f'the number of seeds must be at least 1, got {seeds}')
    found = [entry for table in select(paper, tables, files) for entry in table.all_entries]
    chosen = [entry for entry in found if not rows or any(_fits(entry, glob) for glob in rows)]
    for glob in rows:
        if not any(_fits(entry, glob) for entry in found):
            known = ', '.join(dict.fromkeys(entry.name for entry in found))
            raise PlanError(f'no row fits {glob!r}; the rows are {known}')
    _check_alternatives(chosen, alternatives)
    runs: dict[str, Run] = {}
    for seed in range(seeds):
        for entry in chosen:
            names = _names(entry, alternatives)
            waits_for = None
            if PRETRAINED in names and entry.pretrained is not None:
                start = _run(entry, entry.pretrained, of_start(entry.config, names), seed)
                waits_for = runs.setdefault(start.name, start)
            row = f'{entry.paper} {entry.table}: {entry.group}, {entry.name}'
            run = _run(entry, entry.config, names, seed, waits_for)
            rows_before = runs[run.name].rows if run.name in runs else ()
            # Replaced, not changed, as others may wait for it: they compare equal.
            runs[run.name] = replace(run, rows=(*rows_before, row))
    return in_order(runs.values())


def in_order(runs: Iterable[Run]) -> list[Run]:
    """The same, each after the one it waits for, otherwise in their order."""
    by_name = {run.name: run for run in runs}
    placed: dict[str, Run] = {}

    def place(run: Run) -> None:
        if run.name not in placed:
            if run.waits_for is not None:
                place(by_name[run.waits_for.name])
            placed[run.name] = run

    for run in by_name.values():
        place(run)
    return list(placed.values())


def expected(path: str | Path, names: Sequence[str]) -> Config:
    """What a run of a row computes; like `combine`, but `pretrained` need have no file for it.

    Args:
        path (str or Path): Of the row's config.
        names (Sequence[str]): Of alternatives, all `fitting`.
    """
    cfg = combine(path, [name for name in names if name in of_row(config_name(path))])
    if PRETRAINED in names:
        start_from(cfg, '')
    return cfg


def as_shell(runs: Sequence[Run], work_dir: str | Path, processes: int) -> str:
    """The plan as plain commands, in an order in which they can run one after the other."""
    lines = ['#!/usr/bin/env bash', 'set -euo pipefail', '']
    for run in runs:
        path, *rest = run.arguments(work_dir)
        words = ['tools/dist_train.sh', path, str(processes), *rest]
        line = f'bash {shlex.join(words)}'
        if run.waits_for is not None:
            pointer = run.waits_for.folder(work_dir) / 'last_checkpoint'
            line += f' --pretrained "$(cat {shlex.quote(str(pointer))})"'
        lines.append(line)
    return '\n'.join(lines) + '\n'


def as_data(runs: Sequence[Run], work_dir: str | Path, processes: int) -> list[dict[str, Any]]:
    """The plan for other schedulers: each run's name, rows, command, and what it waits for."""
    found = []
    for run in runs:
        path, *rest = run.arguments(work_dir)
        item = dict(
            name=run.name,
            config=run.config,
            alternatives=list(run.alternatives),
            seed=run.seed,
            rows=list(run.rows),
            folder=str(run.folder(work_dir)),
            command=['bash', 'tools/dist_train.sh', path, str(processes), *rest],
            waits_for=None,
        )
        if run.waits_for is not None:
            pointer = run.waits_for.folder(work_dir) / 'last_checkpoint'
            item['waits_for'] = run.waits_for.name
            # The path in that file is the value of one more option.
            item['pretrained_from'] = str(pointer)
        found.append(item)
    return found


def _run(
    entry: Entry, config: str, names: Iterable[str], seed: int, waits_for: Run | None = None
) -> Run:
    return Run(config, tuple(sorted(names)), seed, entry.root_of(config), waits_for)


def _fits(entry: Entry, glob: str) -> bool:
    names = (entry.name, entry.method, Path(entry.config).name, Path(entry.config).stem)
    return any(fnmatchcase(name, glob) for name in names)


def _names(entry: Entry, alternatives: Sequence[str]) -> tuple[str, ...]:
    return tuple(sorted(fitting(entry).intersection(alternatives)))


def _check_alternatives(chosen: Sequence[Entry], alternatives: Sequence[str]) -> None:
    known = sorted(set().union(*map(fitting, chosen)))
    for name in alternatives:
        if name not in known:
            listed = ', '.join(known) or 'none'
            raise PlanError(f'no row has the alternative {name!r}; they have {listed}')
    for entry in chosen:
        names = _names(entry, alternatives)
        if PRETRAINED in names and entry.pretrained is None:
            raise PlanError(f'{entry.config} names no ImageNet network to start from')
        try:
            if len(names) > 1:
                expected(entry.root_of(entry.config) / entry.config, names)
        except AlternativeError as error:
            raise PlanError(str(error)) from error


def title(run: Run) -> str:
    """For people: ``resnet50_1xb128_cifar100, seed 0``."""
    return f'{combined_name(run.config, run.alternatives)}, seed {run.seed}'
