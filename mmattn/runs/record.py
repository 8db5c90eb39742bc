"""The record of a run: one JSON file that says what was trained, how it went, what came out.

It lies in the run's folder, `<root>/<paper>/<row>[+<alternative>...]/seed<k>/record.json`, and is
replaced as a whole (:mod:`mmattn.runs.atomic`). A run is done only if its record says so. The keys
are those of `form.Record`; what is not known, as after a failure before the first step, is None.
"""

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from mmengine.config import Config

from mmattn.papers.alternatives import combined_name, effective

from . import atomic
from .form import VERSION, Record, RecordError, Start, check
from .form import digest as digest

NAME = 'record.json'

# What of a config says where a run is, whether it goes on and how it is told about.
PLACE: tuple[str, ...] = ('work_dir', 'launcher', 'resume', 'load_from', 'experiment_name', 'cfg')
PLACE += ('log_level', 'log_processor', 'visualizer')
TOLD = ('logger', 'timer', 'visualization')  # of the default hooks
# What of a data loader changes its speed alone: samples are seeded by their number (seeding.py).
LOADER = ('num_workers', 'persistent_workers', 'pin_memory', 'prefetch_factor')


def folder_of(root: str | Path, config: str, alternatives: Sequence[str], seed: int) -> Path:
    """The folder of a run below `root`.

    Args:
        config (str): Relative to the folder of configs, `<paper>/<row>.py`.
    """
    return Path(root) / Path(config).parent / combined_name(config, alternatives) / f'seed{seed}'


def resolved(cfg: Config, data_root: str | Path | None = None) -> str:
    """What a run computes, as JSON with sorted keys: the same for equal runs on any machine.

    Left out are the seed, paths of the run, how it resumes and what it logs, the workers of its
    loaders, and the name of the checkpoint that a `pretrained` run starts from: the record has
    them, if they matter. A row's own text is `resolved(alternatives.combine(path, names))`, and
    where a record's text differs, `alternatives.differences` of both, read as JSON, says in what.

    Args:
        data_root (str or Path, optional): What stands in the place of `data` in the config.
    """
    text = json.dumps(effective(cfg), sort_keys=True, default=_name, skipkeys=True)
    found = json.loads(text)
    # A training that begins with the weights of a checkpoint is another one; a resumed one is not.
    begin = None if found.get('resume') else found.get('load_from')
    found = {key: value for key, value in found.items() if key not in PLACE}
    if begin is not None:
        found['load_from'] = begin
    randomness = found.get('randomness') or {}
    found['randomness'] = {k: v for k, v in randomness.items() if k != 'seed' and v}
    hooks = found.get('default_hooks') or {}
    for name in TOLD:
        hooks.pop(name, None)
    if isinstance(hooks.get('pretrained'), dict):
        hooks['pretrained'].pop('checkpoint', None)
    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        loader = found.get(name)
        if isinstance(loader, dict):
            for key in LOADER:
                loader.pop(key, None)
            if loader.get('collate_fn') == {'type': 'default_collate'}:  # the tools' default
                del loader['collate_fn']
    if data_root is not None:
        found = _moved(found, str(data_root))
    return json.dumps(found, sort_keys=True, indent=1)


def new(config: str, alternatives: Sequence[str], seed: int) -> Record:
    """The record of a run of which nothing is known yet. Its state is 'stopped': it may start."""
    return {
        'version': VERSION,
        'config': config,
        'alternatives': sorted(set(alternatives)),
        'seed': seed,
        'config_sha256': None,
        'config_text': None,
        'commit': None,
        'diff_sha256': None,
        'versions': {},
        'data_sha256': None,
        'machines': [],
        'gpus': None,
        'processes': None,
        'batch': None,
        'lr': None,
        'pretrained': None,
        'starts': [],
        'evaluations': [],
        'final': None,
        'checkpoint': None,
        'state': 'stopped',
    }


def start(host: str, pid: int, resumed_from: str | None = None) -> Start:
    """A start, now, of which the end is not known yet.

    Args:
        resumed_from (str, optional): The name of the checkpoint that it goes on from.
    """
    return {
        'at': time.time(),
        'host': host,
        'pid': pid,
        'resumed_from': resumed_from,
        'ended': None,
        'outcome': None,
        'message': None,
    }


def read(folder: str | Path) -> Record:
    """The record in a folder.

    Raises:
        FileNotFoundError: if there is none.
        RecordError: if what is there is not one, whole and of this version.
    """
    path = Path(folder) / NAME
    try:
        found = json.loads(path.read_text(encoding='utf-8'), parse_constant=_refuse)
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise RecordError(f'{path} is no record: {" ".join(str(error).split())}') from error
    try:
        check(found)
    except RecordError as error:
        raise RecordError(f'{path} is no record: {error}') from error
    return found


def find(folder: str | Path) -> Record | None:
    """The record in a folder, None if there is none; raises RecordError as `read` does."""
    try:
        return read(folder)
    except FileNotFoundError:
        return None


def write(folder: str | Path, record: Record) -> None:
    """Replace the record in a folder by this one; either is there at every moment.

    Raises:
        RecordError: if it is not of the form that `read` takes.
        OSError: if it cannot be written; the former one is still there.
    """
    written = finite(record)
    check(written)
    # In ASCII, as a path's own bytes may be no UTF-8.
    text = json.dumps(written, indent=1, allow_nan=False)
    atomic.write_text(Path(folder) / NAME, f'{text}\n')


def end(record: Record, outcome: str, message: str | None = None) -> None:
    """Note the end of the last start in a record, if it has none yet, and the run's state."""
    if record['starts'] and record['starts'][-1]['ended'] is None:
        record['starts'][-1].update({'ended': time.time(), 'outcome': outcome, 'message': message})
    record['state'] = 'stopped' if outcome == 'lost' else outcome


def finite(item: Any) -> Any:
    """The same with None for numbers that JSON has not: not a number, infinity."""
    if isinstance(item, dict):
        return {key: finite(value) for key, value in item.items()}
    if isinstance(item, (list, tuple)):
        return [finite(value) for value in item]
    return None if isinstance(item, float) and not math.isfinite(item) else item


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f'{constant} is no number of JSON')


def _name(value: Any) -> str:
    """What JSON has no form for: a class or function of a config, by its name."""
    name = getattr(value, '__qualname__', None)
    return f'{value.__module__}.{name}' if name else repr(value)


def _moved(item: Any, root: str) -> Any:
    """Paths below `root`, as below `data`."""
    if isinstance(item, dict):
        return {key: _moved(value, root) for key, value in item.items()}
    if isinstance(item, list):
        return [_moved(value, root) for value in item]
    if isinstance(item, str) and (item == root or item.startswith(f'{root.rstrip("/")}/')):
        return 'data' + item[len(root.rstrip('/')) :]
    return item
