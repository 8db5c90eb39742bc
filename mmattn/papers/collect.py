"""The records of runs, read, checked and compared with the repository: what may be counted, what not.

A run's record lies in `<root>/<paper>/<config stem>[+alternative...]/seed<k>/record.json`. Whatever
is no whole, consistent record of a row at its own place is named as a `Fault` and never counted. A
run that was trained by another config than the repository's is kept, as modified, with the keys.

Nothing of a record is executed: its config is read as data.
"""

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from mmattn.runs import plain_config

from . import alternatives
from .metrics import is_number
from .tables import config_root, entries

RECORD = 'record.json'
VERSION = 1
STATES = ('running', 'stopped', 'failed', 'done')
PLACE = re.compile(r'([\w.-]+)/([\w.+-]+)/seed(0|[1-9]\d{0,8})/record\.json')
# A record's own bounds: evaluations of hundreds of epochs and a config are some 100 kB.
MOST_BYTES = 20 * 10**6
TAIL_BYTES, TAIL_LINES = 8000, 20

# What a record must have, and of which kind; others may be missing.
KINDS = {
    'config': str,
    'alternatives': list,
    'seed': int,
    'config_sha256': str,
    'config_text': str,
    'starts': list,
    'evaluations': list,
    'state': str,
}
OPTIONAL = {
    'commit': str,
    'diff_sha256': str,
    'versions': dict,
    'data_sha256': str,
    'machines': list,
    'gpus': int,
    'processes': int,
    'batch': int,
    'lr': (int, float),
    'pretrained': dict,
    'final': dict,
    'checkpoint': dict,
    'host_sha256': str,
}
# What differs between two trainings of the same: places, machines, the seed, what is printed.
NO_CHANGE = re.compile(
    r'(work_dir|launcher|resume|randomness|record|experiment_name|log_level|cfg'
    r'|visualizer|env_cfg|log_processor|default_hooks\.(logger|visualization|timer|record)'
    r'|default_hooks\.checkpoint\.(max_keep_ckpts|out_dir|save_last)'
    r'|default_hooks\.pretrained\.checkpoint|auto_scale_lr\.enable|custom_imports\.allow_failed_imports'
    r'|(train|val|test)_dataloader\.(num_workers|persistent_workers|pin_memory|prefetch_factor'
    r'|collate_fn)|test_(dataloader|cfg|evaluator))(\..*)?'
)
PER_GPU = 'train_dataloader.batch_size'  # judged by the batch over all processes


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
    record: dict[str, Any] = field(repr=False)
    modified: tuple[str, ...] = ()
    deviations: tuple[str, ...] = ()
    progress: float | None = None
    last_lines: str = field(default='', repr=False)

    @property
    def counts(self) -> bool:
        return self.state == 'done' and not self.modified

    @property
    def identity(self) -> tuple[str, tuple[str, ...], int]:
        return self.config, self.alternatives, self.seed


class RecordError(ValueError):
    """A record that cannot be counted, and why."""


class Source(Protocol):
    """Where records come from: a folder, or a pack (see `mmattn.papers.packs`)."""

    name: str

    def records(self) -> Iterator[tuple[str, bytes]]:
        """Each record's (or would-be record's) place and contents."""

    def last_lines(self, place: str) -> str:
        """Of the log of the run whose record has that place; empty if there is none."""


@dataclass(frozen=True)
class Folder:
    """The root below which runs lie."""

    root: Path

    @property
    def name(self) -> str:
        return str(self.root)

    def records(self) -> Iterator[tuple[str, bytes]]:
        """In the alphabet's order. Looks for `record.json*` three folders down and not into what a
        run wrote; links are not followed.

        Raises:
            NotADirectoryError: if there is no such folder.
        """
        if not self.root.is_dir():
            raise NotADirectoryError(f'there is no folder {self.root}')
        yield from self._below(self.root, '', 0)

    def last_lines(self, place: str) -> str:
        logs = sorted((self.root / place).parent.glob('*/*.log'), key=lambda log: log.name)
        if not logs or not logs[-1].is_file():
            return ''
        with open(logs[-1], 'rb') as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES))
            text = file.read(TAIL_BYTES).decode(errors='replace')
        return '\n'.join(text.splitlines()[-TAIL_LINES:])

    def _below(self, folder, place, depth):
        for item in sorted(os.scandir(folder), key=lambda item: item.name):
            inner = f'{place}{item.name}'
            if item.is_dir(follow_symlinks=False):
                if depth < 3:
                    yield from self._below(item.path, f'{inner}/', depth + 1)
            elif item.name.startswith(RECORD):
                yield inner, _contents(item)


@dataclass(frozen=True)
class Known:
    """The rows that records may be of: configs by their name, and the folder that holds each."""

    roots: dict[str, Path]

    @staticmethod
    def of_papers() -> 'Known':
        root, listed = config_root(), entries()
        names = [entry.config for entry in listed]
        names += [entry.pretrained for entry in listed if entry.pretrained]
        return Known(dict.fromkeys(names, root))

    def having(self, configs: Iterable[str], root: Path) -> 'Known':
        """With rows of a user's own, which do not replace the papers'."""
        return Known({**dict.fromkeys(configs, root), **self.roots})


def collect(sources: Iterable[Source], known: Known | None = None) -> tuple[list[Run], list[Fault]]:
    """All runs of some sources, and what cannot be counted.

    A run that is there twice is counted once if both records are the same, and not at all if they
    are not: which one is right nobody can tell from here. Nor do two seeds of a row count whose
    checkpoints are the same file.

    Args:
        sources (Iterable[Source]): Folders and packs.
        known (Known, optional): By default the rows of both papers.

    Raises:
        NotADirectoryError: if a folder is not there.
    """
    known = known or Known.of_papers()
    runs, faults, texts = {}, [], {}
    twice = {}
    for source in sources:
        for place, contents in source.records():
            full = f'{source.name}/{place}'
            try:
                run = read(full, place, contents, known)
                if run.state in ('failed', 'stopped'):
                    run = replace(run, last_lines=source.last_lines(place))
            except RecordError as error:
                faults.append(Fault(full, str(error)))
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
            faults.append(Fault(place, f'the same run as {others} with another record: none counts'))
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
    paper, name = config.split('/')[0], alternatives.combined_name(config, names)
    right = f'{paper}/{name}/seed{seed}/{RECORD}'
    if place != right:
        raise RecordError(f'not at its place, which is {right}')
    if len(set(names)) < len(names) or not set(names) <= set(_fitting(config)):
        raise RecordError(
            f'alternatives {", ".join(names)}: allowed are {", ".join(_fitting(config)) or "none"}'
        )
    if hashlib.sha256(record['config_text'].encode()).hexdigest() != record['config_sha256']:
        raise RecordError('tampered with: config_sha256 is not that of config_text')
    _check_evaluations(record)
    expected = expected_config(str(known.roots[config] / config), names)
    text = re.sub(r'(\bseed"?\s?[=:]\s?)\d+', r'\g<1>0', record['config_text'])
    modified, deviations = [*_changed(expected.path, names, text)], []
    batch, lr = record.get('batch'), record.get('lr')
    if expected.batch is not None and batch is not None:
        if batch != expected.batch:
            modified.append(f'batch {batch} for {expected.batch}')
        elif PER_GPU in modified:
            modified.remove(PER_GPU)
    if expected.lr is not None and lr is not None and abs(lr - expected.lr) > 1e-9 * expected.lr:
        modified.append(f'rate {lr:g} for {expected.lr:g}')
    gpus = record.get('gpus')
    if gpus is not None and expected.gpus is not None and gpus != expected.gpus:
        deviations.append(f'{gpus or "no"} GPU{"" if gpus == 1 else "s"} for {expected.gpus}')
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
        _progress(record, expected.length),
    )


@dataclass(frozen=True)
class Expected:
    """What a row's own config says; `length` as ('epoch' or 'iter', how many)."""

    path: str
    config: dict[str, Any]
    batch: int | None
    lr: float | None
    gpus: int | None
    length: tuple[str, int] | None


@lru_cache(maxsize=None)
def expected_config(path: str, names: tuple[str, ...]) -> Expected:
    """The repository's config of a row with alternatives.

    Raises:
        RecordError: if it cannot be read.
    """
    try:
        cfg = _with_bodies(Path(path), names)
    except (OSError, plain_config.PlainConfigError) as error:
        raise RecordError(f"the repository's config cannot be read: {error}") from error
    train = cfg.get('train_cfg') or {}
    length = next(
        (
            (unit, train[key])
            for unit, key in (('epoch', 'max_epochs'), ('iter', 'max_iters'))
            if is_number(train.get(key)) and train[key] > 0
        ),
        None,
    )
    sizes = re.search(r'_(\d+)xb(\d+)', Path(path).stem)
    batch = (cfg.get('auto_scale_lr') or {}).get('base_batch_size')
    if batch is None and sizes:
        batch = int(sizes[1]) * int(sizes[2])
    lr = ((cfg.get('optim_wrapper') or {}).get('optimizer') or {}).get('lr')
    gpus = int(sizes[1]) if sizes else None
    return Expected(path, _plain(alternatives.effective(cfg)), batch, lr, gpus, length)


def _contents(item):
    """Of a file, as far as a record may go, without waiting for what is no plain file."""
    if not item.is_file(follow_symlinks=False):
        return b''
    try:
        with open(item.path, 'rb') as file:
            return file.read(MOST_BYTES + 1)
    except OSError:
        return b''


def _record(place, contents):
    if not PLACE.fullmatch(place):
        reason = 'half-written' if place.endswith(f'/{RECORD}.tmp') else 'foreign'
        raise RecordError(
            f'{reason}: a record is <paper>/<config>[+alternative...]/seed<k>/{RECORD}'
        )
    if len(contents) > MOST_BYTES:
        raise RecordError(f'more than {MOST_BYTES} bytes')
    try:
        record = json.loads(contents, parse_constant=_refuse, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise RecordError(f'truncated or no JSON: {" ".join(str(error).split())}') from error
    if not isinstance(record, dict) or record.get('version') != VERSION:
        raise RecordError(f'no record of version {VERSION}')
    for key, kind in KINDS.items():
        if not _is(record.get(key), kind):
            raise RecordError(f'{key} is missing or of another kind')
    for key, kind in OPTIONAL.items():
        if record.get(key) is not None and not _is(record[key], kind):
            raise RecordError(f'{key} is of another kind')
    for key in ('alternatives', 'machines'):
        if not all(isinstance(item, str) for item in record.get(key) or []):
            raise RecordError(f'{key} must be texts')
    for key in ('starts', 'evaluations'):
        if not all(isinstance(item, dict) for item in record[key]):
            raise RecordError(f'{key} must be objects')
    if record['state'] not in STATES:
        raise RecordError(f'state must be one of {", ".join(STATES)}, got {record["state"]!r}')
    return record


def _refuse(name):
    raise ValueError(f'{name} is no number')


def _once(pairs):
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError('a key is there twice')
    return found


def _is(value, kind):
    return isinstance(value, kind) and not isinstance(value, bool)


def _check_evaluations(record):
    """A record whose evaluations and final metrics do not say the same was changed by hand."""
    evaluations, last = record['evaluations'], -1
    for item in evaluations:
        if not is_number(item.get('iter')) or not isinstance(item.get('metrics'), dict):
            raise RecordError('an evaluation has no iter or no metrics')
        if item['iter'] <= last:
            raise RecordError('the evaluations are not in order')
        last = item['iter']
    if record['state'] != 'done':
        return
    final = record.get('final') or {}
    if not evaluations or not isinstance(final.get('last'), dict):
        raise RecordError('done, but without evaluations or final metrics')
    if final['last'] != evaluations[-1]['metrics']:
        raise RecordError('tampered with: final.last is not the last evaluation')
    best = final.get('best')
    if best is not None and not any(
        best == item['metrics']
        for item in evaluations
        if final.get('best_epoch') in (None, item.get('epoch'), item['iter'])
    ):
        raise RecordError('tampered with: final.best is not an evaluation of best_epoch')


def _drop_copies(runs, faults):
    """Runs of a row whose checkpoints have the same hash: at most one of them was trained."""
    same = {}
    for identity, run in runs.items():
        sha = (run.record.get('checkpoint') or {}).get('sha256')
        if isinstance(sha, str) and run.state == 'done':
            same.setdefault(sha, []).append(identity)
    for identities in same.values():
        if len(identities) > 1:
            places = [runs.pop(identity).place for identity in identities]
            for place in places:
                others = ', '.join(other for other in places if other != place)
                faults.append(Fault(place, f'the same checkpoint as {others}: none counts'))


def _progress(record, length):
    """How much of the training is done at the last evaluation, from 0 to 1."""
    if record['state'] == 'done':
        return 1.0
    if length is None:
        return None
    unit, most = length
    done = record['evaluations'][-1].get(unit) if record['evaluations'] else 0
    return min(1.0, max(0.0, done / most)) if is_number(done) else None


@lru_cache(maxsize=None)
def _fitting(config):
    return tuple(sorted(alternatives.of_row(config)))


def _with_bodies(path, names):
    """A config with the bodies of alternatives merged, read as data: ten times as fast as
    `alternatives.combine`, which checks whether they go together."""
    if not names:
        return plain_config.load(path)
    with tempfile.TemporaryDirectory() as scratch:
        for number, name in enumerate(sorted(names)):
            body = (alternatives.folder() / f'{name}.py').read_text(encoding='utf-8')
            base, path = Path(path).resolve(), Path(scratch) / f'{number}.py'
            path.write_text(f'_base_ = {str(base)!r}\n{body}', encoding='utf-8')
        return plain_config.load(path)


@lru_cache(maxsize=None)
def _changed(path, names, text):
    """The keys in which a config's text is not the repository's config; cached, as the seeds of a
    row have the same text but for the seed.

    Raises:
        RecordError: for a text that is no config.
    """
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / 'config.py'
        file.write_text(text, encoding='utf-8')
        try:
            found = plain_config.load(file)
        except plain_config.PlainConfigError as error:
            reason = str(error).replace(str(file), 'config_text')
            raise RecordError(f'its config is not data: {reason}') from error
    if found.get('resume'):
        found.load_from = None  # its own checkpoint
    expected = expected_config(path, names).config
    found = _plain(alternatives.effective(found))
    return tuple(
        difference.key
        for difference in alternatives.differences(expected, found)
        if not NO_CHANGE.fullmatch(difference.key) and not _moved(difference)
    )


def _moved(difference):
    """Whether a path below `data/` was read below another folder."""
    before, after = difference.before, difference.after
    return (
        isinstance(before, str)
        and isinstance(after, str)
        and before.startswith('data/')
        and after.endswith(before[len('data') :])
    )


def _plain(item):
    """Tuples as lists: a config's text may have come by way of JSON."""
    if isinstance(item, dict):
        return {key: _plain(value) for key, value in item.items()}
    if isinstance(item, (list, tuple)):
        return [_plain(value) for value in item]
    return item
