"""The records of runs, read, checked and compared with the repository: which may be counted.

A run's record lies in `<root>/<paper>/<row>[+<alternative>...]/seed<k>/record.json`. Whatever is no
whole, consistent record of a row at its own place is named as a `Fault` and never counted. A run
that was trained by another config than the repository's is kept, as modified, with the keys.

Nothing of a record is executed: its config is read as data.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mmattn.lines import one_line
from mmattn.papers import alternatives, own
from mmattn.papers.tables import config_root, entries
from mmattn.runs.atomic import TEMPORARY
from mmattn.runs.form import Record
from mmattn.runs.record import NAME as RECORD
from mmattn.runs.record import RecordError, check, folder_of

from .expected import PER_GPU, changed, expected_config, fitting, refuse
from .sources import MOST_BYTES, Source

Identity = tuple[str, tuple[str, ...], int]  # config, alternatives, seed


@dataclass(frozen=True)
class Fault:
    """A file, or a set of runs, that is not counted, and why."""

    place: str
    reason: str


@dataclass(frozen=True)
class Run:
    """One training. `place` names its record; `modified` the keys in which its config is not the
    repository's; `deviations` what else was other than the row's recipe."""

    place: str
    config: str
    alternatives: tuple[str, ...]
    seed: int
    state: str
    record: Record = field(repr=False)
    modified: tuple[str, ...] = ()
    deviations: tuple[str, ...] = ()
    progress: float | None = None
    last_lines: str = field(default='', repr=False)

    @property
    def counts(self) -> bool:
        """Whether its result is one of the row: done, by the repository's config."""
        return self.state == 'done' and not self.modified

    @property
    def identity(self) -> Identity:
        """What no two runs share: config, alternatives and seed."""
        return self.config, self.alternatives, self.seed


@dataclass(frozen=True)
class Known:
    """The rows that records may be of: configs by their name, and the folder that holds each.

    `starting` are those of a user's tables that can start from another run's checkpoint.
    """

    roots: dict[str, Path]
    starting: frozenset[str] = frozenset()

    @staticmethod
    def of_papers() -> 'Known':
        """The rows of the papers' tables."""
        names = [name for entry in entries() for name in entry.configs]
        return Known(dict.fromkeys(names, config_root()))

    @staticmethod
    def with_files(files: Iterable[str | Path]) -> 'Known':
        """With the rows of users' files (own.py), too; raises ValueError as `own.read` does."""
        roots, starting = {}, set()
        for entry in (entry for path in files for entry in own.read(path).entries):
            for config in entry.configs:
                roots[config] = entry.root_of(config)
            if entry.pretrained is not None:
                starting.add(entry.config)
        return Known({**roots, **Known.of_papers().roots}, frozenset(starting))

    def fitting(self, config: str) -> tuple[str, ...]:
        """The names of a row's alternatives."""
        more = [alternatives.PRETRAINED] if config in self.starting else []
        return tuple(sorted({*fitting(config), *more}))


def collect(sources: Iterable[Source], known: Known | None = None) -> tuple[list[Run], list[Fault]]:
    """All runs of some sources, and what cannot be counted.

    A run that is there twice is counted once if both records are the same, and not at all if they
    are not: which one is right nobody can tell from here. Nor do runs count whose checkpoints hold
    the same weights.

    Args:
        sources (Iterable[Source]): Folders and packs.
        known (Known, optional): By default the rows of both papers.

    Raises:
        NotADirectoryError: if a folder is not there.
    """
    known = known or Known.of_papers()
    runs: dict[Identity, Run] = {}
    texts: dict[Identity, bytes] = {}
    twice: dict[Identity, list[str]] = {}
    faults: list[Fault] = []
    for source in sources:
        for place, contents in source.records():
            full = f'{source.name}/{place}'
            try:
                run = read(full, place, contents, known)
                if run.state in ('failed', 'stopped'):
                    run = replace(run, last_lines=source.last_lines(place))
            except RecordError as error:
                faults.append(Fault(full, one_line(error)))
                continue
            before = runs.setdefault(run.identity, run)
            if before is run:
                texts[run.identity] = contents
            elif texts[run.identity] == contents:
                faults.append(Fault(full, f'the same record as {before.place}: counted once'))
            else:
                twice.setdefault(run.identity, [before.place]).append(full)
    for identity, places in twice.items():
        del runs[identity]
        for place in places:
            others = ', '.join(other for other in places if other != place)
            faults.append(Fault(place, f'the same run as {others}, another record: none counts'))
    _drop_copies(runs, faults)
    return list(runs.values()), faults


def read(full: str, place: str, contents: bytes, known: Known) -> Run:
    """One record, checked.

    Args:
        full (str): What messages call it.
        place (str): Relative to its root, with slashes.
        contents (bytes): Of the file.
        known (Known): The rows it may be of.

    Raises:
        RecordError: if it is none that counts.
    """
    record = _record(place, contents)
    config, names, seed = record['config'], tuple(record['alternatives']), record['seed']
    if config not in known.roots:
        raise RecordError(f'foreign: {config!r} is in no table')
    right = (folder_of('', config, names, seed) / RECORD).as_posix()
    if place != right:
        raise RecordError(f'not at its place, which is {right}')
    allowed = known.fitting(config)
    if list(names) != sorted({*names} & {*allowed}):
        raise RecordError(
            f'alternatives {", ".join(names)}: allowed are {", ".join(allowed) or "none"}'
        )
    _check_evaluations(record)
    wanted = expected_config(str(known.roots[config] / config), names)
    modified: list[str] = []
    deviations: list[str] = []
    if record['config_text'] is not None:
        modified += changed(wanted.path, names, record['config_text'])
    batch, lr = record.get('batch'), record.get('lr')
    if wanted.batch is not None and batch is not None:
        if batch != wanted.batch:
            modified.append(f'batch {batch} for {wanted.batch}')
        elif PER_GPU in modified:
            modified.remove(PER_GPU)
    if wanted.lr is not None and lr is not None and abs(lr - wanted.lr) > 1e-9 * wanted.lr:
        modified.append(f'rate {lr:g} for {wanted.lr:g}')
    gpus = record.get('gpus')
    if gpus is not None and wanted.gpus is not None and gpus != wanted.gpus:
        deviations.append(f'{gpus or "no"} GPU{"" if gpus == 1 else "s"} for {wanted.gpus}')
    if record.get('diff_sha256'):
        deviations.append('uncommitted changes')
    return Run(
        full,
        config,
        names,
        seed,
        record['state'],
        record,
        tuple(modified),
        tuple(deviations),
        _progress(record, wanted.length),
    )


def _record(place: str, contents: bytes) -> Record:
    name = place.rsplit('/', 1)[-1]
    if name != RECORD:
        half = name.startswith(f'{RECORD}{TEMPORARY}')
        raise RecordError('half-written' if half else f'foreign: a record is called {RECORD}')
    if len(contents) > MOST_BYTES:
        raise RecordError(f'more than {MOST_BYTES} bytes')
    try:
        found = json.loads(contents, parse_constant=refuse, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise RecordError(f'truncated or no JSON: {" ".join(str(error).split())}') from error
    check(found)
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError('a key is there twice')
    return found


def _check_evaluations(record: Record) -> None:
    """A record whose evaluations and final metrics do not say the same was changed by hand."""
    evaluations, final = record['evaluations'], record['final']
    iters = [item['iter'] for item in evaluations]
    if iters != sorted(iters):
        raise RecordError('the evaluations are not in order')
    if record['state'] != 'done':
        return
    if not evaluations or final is None:
        raise RecordError('it says done, without evaluations or final metrics')
    if final['last'] != evaluations[-1]['metrics']:
        raise RecordError('tampered with: final.last is not the last evaluation')
    if not any(
        final['best'] == item['metrics']
        for item in evaluations
        if final['best_epoch'] in (None, item['epoch'])
    ):
        raise RecordError('tampered with: final.best is not the evaluation of best_epoch')


def _drop_copies(runs: dict[Identity, Run], faults: list[Fault]) -> None:
    """Runs whose checkpoints hold the same weights: at most one of them was trained."""
    same: dict[str, list[Identity]] = {}
    for identity, run in runs.items():
        checkpoint = run.record['checkpoint']
        if run.state == 'done' and checkpoint is not None:
            same.setdefault(checkpoint['weights_sha256'], []).append(identity)
    for identities in same.values():
        if len(identities) > 1:
            places = [runs.pop(identity).place for identity in identities]
            for place in places:
                others = ', '.join(other for other in places if other != place)
                faults.append(Fault(place, f'the same weights as {others}: none counts'))


def _progress(record: Record, length: tuple[str, int] | None) -> float | None:
    """How much of the training is done, from 0 to 1: by its last word, else its last evaluation."""
    if record['state'] == 'done':
        return 1.0
    now, done = record.get('progress'), 0
    if now and now['max_iters'] > 0:
        done, most = now['iter'], now['max_iters']
    elif length is None:
        return None
    else:
        unit, most = length
        if record['evaluations']:
            last = record['evaluations'][-1]
            done = last['epoch'] if unit == 'epoch' else last['iter']
    return min(1.0, max(0.0, done / most))
