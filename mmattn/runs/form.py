"""The form of a record (record.py): its keys and their kinds, for mypy and for readers."""

import functools
import hashlib
import reprlib
from collections.abc import Iterator, Mapping
from types import NoneType, UnionType
from typing import Any, TypedDict, get_args, get_origin, get_type_hints, is_typeddict

VERSION = 1
STATES = ('running', 'stopped', 'failed', 'done')
OUTCOMES = (None, 'done', 'stopped', 'failed', 'lost')
NUMBER = (int, float)

Metrics = dict[str, float | None]  # None for what is no finite number


class Pretrained(TypedDict):
    """What a `pretrained` run starts from."""

    config: str | None
    seed: int | None
    checkpoint_sha256: str


class Start(TypedDict):
    """A start of a training, be it the first or one that goes on."""

    at: float  # seconds since 1970, as all times here
    host: str
    pid: int
    resumed_from: str | None  # the checkpoint's name
    ended: float | None
    outcome: str | None
    message: str | None  # the last line of one that failed


class Evaluation(TypedDict):
    epoch: int
    iter: int
    at: float
    metrics: Metrics


class Progress(TypedDict):
    """Where a training was when it said so last."""

    epoch: int
    iter: int
    max_iters: int
    loss: float | None
    at: float


class Checkpoint(TypedDict):
    """`weights_sha256` is of what is in it: equal weights have the same."""

    name: str
    sha256: str
    weights_sha256: str


class Final(TypedDict):
    last: Metrics
    best: Metrics
    best_epoch: int | None


class _Always(TypedDict):
    version: int
    config: str  # relative to the folder of configs: 'cat/resnet50_1xb128_cifar100.py'
    alternatives: list[str]
    seed: int
    config_sha256: str | None  # of config_text
    config_text: str | None  # as `record.resolved` gives it
    commit: str | None
    diff_sha256: str | None  # None if the tree is clean
    versions: dict[str, str]
    data_sha256: str | None
    machines: list[str]
    gpus: int | None
    processes: int | None
    batch: int | None  # images a step of the optimiser, over all processes
    lr: float | None  # the optimiser's, scaled if the run scaled it
    pretrained: Pretrained | None
    starts: list[Start]
    evaluations: list[Evaluation]
    final: Final | None
    checkpoint: Checkpoint | None  # the last
    state: str  # one of `STATES`


class Record(_Always, total=False):
    progress: Progress | None  # of the running training
    best_checkpoint: Checkpoint | None  # None if the config keeps no best one


class RecordError(ValueError):
    """A record that is missing, truncated, foreign or of another form, in one line."""


def digest(text: str) -> str:
    """SHA-256 of a text, in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def check(record: Any) -> None:
    """Raise RecordError if this is not of the form of a `Record`."""
    _check(record, Record, 'it')
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
        _check(start, Start, 'a start')
        if start['outcome'] not in OUTCOMES:
            raise RecordError(
                f'outcome must be one of {OUTCOMES}, got {reprlib.repr(start["outcome"])}'
            )
    for evaluation in record['evaluations']:
        _check(evaluation, Evaluation, 'an evaluation')
        _check_metrics(evaluation['metrics'])
    if record.get('progress') is not None:
        _check(record['progress'], Progress, 'progress')
    if record['final'] is not None:
        _check(record['final'], Final, 'final')
        _check_metrics(record['final']['last'])
        _check_metrics(record['final']['best'])
    for key in ('checkpoint', 'best_checkpoint'):
        if record.get(key) is not None:
            _check(record[key], Checkpoint, key)
    if record['state'] == 'done' and None in (record['checkpoint'], record['config_text']):
        raise RecordError('it says done, without a config and a checkpoint')


def _check(item: Any, form: Any, what: str) -> None:
    kinds, required = _kinds(form), form.__required_keys__
    if not isinstance(item, dict) or not required <= item.keys() <= kinds.keys():
        found = reprlib.repr(sorted(map(str, item)) if isinstance(item, dict) else item)
        raise RecordError(f'{what} must have the keys {sorted(required)}, got {found}')
    for key, value in item.items():
        if not isinstance(value, kinds[key]) or isinstance(value, bool):
            names = ' or '.join(
                'None' if kind is NoneType else kind.__name__ for kind in kinds[key]
            )
            raise RecordError(f'{key} must be of {names}, got {reprlib.repr(value)}')
        _check_size(key, value)


@functools.cache
def _kinds(form: type) -> Mapping[str, tuple[type, ...]]:
    """The classes of which the values of a form's keys may be."""
    return {key: tuple(_classes(hint)) for key, hint in get_type_hints(form).items()}


def _classes(hint: Any) -> Iterator[type]:
    for part in get_args(hint) if isinstance(hint, UnionType) else (hint,):
        kind = get_origin(part) or part
        if kind is float:  # JSON's 1 is one, too
            yield from NUMBER
        else:
            yield dict if is_typeddict(kind) else kind


def _check_metrics(metrics: Mapping[str, Any]) -> None:
    for name, value in metrics.items():
        if value is not None and (not isinstance(value, NUMBER) or isinstance(value, bool)):
            what = f'the metric {reprlib.repr(name)}'
            raise RecordError(f'{what} must be a number, got {reprlib.repr(value)}')
        _check_size(name, value)


def _check_size(name: str, value: Any) -> None:
    """JSON has integers of any length, and reads 1e999 as infinity."""
    if isinstance(value, NUMBER) and not -(2**63) <= value < 2**63:
        raise RecordError(f'{reprlib.repr(name)} must be a number of 64 bits')
