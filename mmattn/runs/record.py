"""The record of a run: one JSON file that says what was trained, how it went, what came out.

It lies in the run's folder, `<root>/<paper>/<row>[+<alternative>...]/seed<k>/record.json`, and is
replaced as a whole (:mod:`mmattn.runs.atomic`). A run is done only if its record says so. The keys
are those of `KEYS`; what is not known, as after a failure before the first step, is None.
"""

import hashlib
import json
import math
import reprlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from mmengine.config import Config

from mmattn.papers.alternatives import combined_name, effective

from . import atomic

NAME = 'record.json'
VERSION = 1
STATES = ('running', 'stopped', 'failed', 'done')
OUTCOMES = (None, 'done', 'stopped', 'failed', 'lost')

NUMBER = (int, float)
# The kinds of a record's values; those that may be None as well end with `type(None)`.
NONE = type(None)
KEYS = {
    'version': int,
    'config': str,  # relative to the folder of configs: 'cat/resnet50_1xb128_cifar100.py'
    'alternatives': list,
    'seed': int,
    'config_sha256': (str, NONE),  # of config_text
    'config_text': (str, NONE),  # as `resolved` gives it
    'commit': (str, NONE),
    'diff_sha256': (str, NONE),  # None if the tree is clean
    'versions': dict,
    'data_sha256': (str, NONE),
    'machines': list,
    'gpus': (int, NONE),
    'processes': (int, NONE),
    'batch': (int, NONE),  # images a step of the optimiser, over all processes
    'lr': (*NUMBER, NONE),  # the optimiser's, scaled if the run scaled it
    'pretrained': (dict, NONE),  # config, seed, checkpoint_sha256
    'starts': list,
    'evaluations': list,
    'final': (dict, NONE),  # last, best, best_epoch
    'checkpoint': (dict, NONE),  # the last: name, sha256 of it, weights_sha256 of what is in it
    'state': str,
}
OPTIONAL = {
    'progress': (dict, NONE),  # of the running training
    'best_checkpoint': (dict, NONE),  # as `checkpoint`; None if the config keeps no best one
}
PROGRESS = {'epoch': int, 'iter': int, 'max_iters': int, 'loss': (*NUMBER, NONE), 'at': NUMBER}
START = {
    'at': NUMBER,  # seconds since 1970, as all times here
    'host': str,
    'pid': int,
    'resumed_from': (str, NONE),  # the checkpoint's name
    'ended': (*NUMBER, NONE),
    'outcome': (str, NONE),
    'message': (str, NONE),  # the last line of one that failed
}
EVALUATION = {'epoch': int, 'iter': int, 'at': NUMBER, 'metrics': dict}
CHECKPOINT = {'name': str, 'sha256': str, 'weights_sha256': str}
FINAL = {'last': dict, 'best': dict, 'best_epoch': (int, NONE)}

# What of a config says where a run is, whether it goes on and how it is told about.
PLACE: tuple[str, ...] = ('work_dir', 'launcher', 'resume', 'load_from', 'experiment_name', 'cfg')
PLACE += ('log_level', 'log_processor', 'visualizer')
TOLD = ('logger', 'timer', 'visualization')  # of the default hooks
# What of a data loader changes its speed alone: samples are seeded by their number (seeding.py).
LOADER = ('num_workers', 'persistent_workers', 'pin_memory', 'prefetch_factor')


class RecordError(ValueError):
    """A record that is missing, truncated, foreign or of another form, in one line."""


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


def digest(text: str) -> str:
    """SHA-256 of a text, in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def new(config: str, alternatives: Sequence[str], seed: int) -> dict[str, Any]:
    """The record of a run of which nothing is known yet. Its state is 'stopped': it may start."""
    empty = dict.fromkeys(KEYS)
    empty.update(version=VERSION, config=config, alternatives=sorted(set(alternatives)), seed=seed)
    return {**empty, 'versions': {}, 'machines': [], 'starts': [], 'evaluations': []} | {
        'state': 'stopped'
    }


def read(folder: str | Path) -> dict[str, Any]:
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


def find(folder: str | Path) -> dict[str, Any] | None:
    """The record in a folder, None if there is none; raises RecordError as `read` does."""
    try:
        return read(folder)
    except FileNotFoundError:
        return None


def write(folder: str | Path, record: dict[str, Any]) -> None:
    """Replace the record in a folder by this one; either is there at every moment.

    Raises:
        RecordError: if it is not of the form that `read` takes.
        OSError: if it cannot be written; the former one is still there.
    """
    record = finite(record)
    check(record)
    # In ASCII, as a path's own bytes may be no UTF-8.
    text = json.dumps(record, indent=1, allow_nan=False)
    atomic.write_text(Path(folder) / NAME, f'{text}\n')


def end(record: dict[str, Any], outcome: str, message: str | None = None) -> None:
    """Note the end of the last start in a record, if it has none yet, and the run's state."""
    if record['starts'] and record['starts'][-1]['ended'] is None:
        record['starts'][-1].update(ended=time.time(), outcome=outcome, message=message)
    record['state'] = 'stopped' if outcome == 'lost' else outcome


def finite(item: Any) -> Any:
    """The same with None for numbers that JSON has not: not a number, infinity."""
    if isinstance(item, dict):
        return {key: finite(value) for key, value in item.items()}
    if isinstance(item, (list, tuple)):
        return [finite(value) for value in item]
    return None if isinstance(item, float) and not math.isfinite(item) else item


def check(record: Any) -> None:
    """Raise RecordError if this is not of the form of a record."""
    _check(record, KEYS, OPTIONAL, 'it')
    if record['version'] != VERSION:
        raise RecordError(f'its version must be {VERSION}, got {record["version"]}')
    if record['state'] not in STATES:
        raise RecordError(f'state must be one of {STATES}, got {reprlib.repr(record["state"])}')
    if not all(isinstance(name, str) for name in record['alternatives']):
        raise RecordError(f'alternatives must be names, got {reprlib.repr(record["alternatives"])}')
    text, sha = record['config_text'], record['config_sha256']
    if (text is None) != (sha is None) or (text is not None and digest(text) != sha):
        raise RecordError('config_sha256 is not the hash of config_text')
    for start in record['starts']:
        _check(start, START, {}, 'a start')
        if start['outcome'] not in OUTCOMES:
            raise RecordError(
                f'outcome must be one of {OUTCOMES}, got {reprlib.repr(start["outcome"])}'
            )
    for evaluation in record['evaluations']:
        _check(evaluation, EVALUATION, {}, 'an evaluation')
        _check_metrics(evaluation['metrics'])
    if record.get('progress') is not None:
        _check(record['progress'], PROGRESS, {}, 'progress')
    if record['final'] is not None:
        _check(record['final'], FINAL, {}, 'final')
        _check_metrics(record['final']['last'])
        _check_metrics(record['final']['best'])
    for key in ('checkpoint', 'best_checkpoint'):
        if record.get(key) is not None:
            _check(record[key], CHECKPOINT, {}, key)
    if record['state'] == 'done' and None in (record['checkpoint'], record['config_text']):
        raise RecordError('it says done, without a config and a checkpoint')


def _check(item: Any, keys: Mapping[str, Any], optional: Mapping[str, Any], what: str) -> None:
    if not isinstance(item, dict) or not keys.keys() <= item.keys() <= {**keys, **optional}.keys():
        found = reprlib.repr(sorted(map(str, item)) if isinstance(item, dict) else item)
        raise RecordError(f'{what} must have the keys {sorted(keys)}, got {found}')
    for key, value in item.items():
        kinds = {**keys, **optional}[key]
        kinds = kinds if isinstance(kinds, tuple) else (kinds,)
        if not isinstance(value, kinds) or isinstance(value, bool):
            names = ' or '.join('None' if kind is NONE else kind.__name__ for kind in kinds)
            raise RecordError(f'{key} must be of {names}, got {reprlib.repr(value)}')
        _check_size(key, value)


def _check_metrics(metrics: dict[str, Any]) -> None:
    for name, value in metrics.items():
        if value is not None and (not isinstance(value, NUMBER) or isinstance(value, bool)):
            what = f'the metric {reprlib.repr(name)}'
            raise RecordError(f'{what} must be a number, got {reprlib.repr(value)}')
        _check_size(name, value)


def _check_size(name: str, value: Any) -> None:
    """JSON has integers of any length, and reads 1e999 as infinity."""
    if isinstance(value, NUMBER) and not -(2**63) <= value < 2**63:
        raise RecordError(f'{reprlib.repr(name)} must be a number of 64 bits')


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
