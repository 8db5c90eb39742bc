"""Whether the data of a config is there, decodes, is labelled as it can be, and leaks nowhere.

    python tools/check_data.py CONFIG...

The data sets are those of the config, built by its codebase; the images go through the loading
transforms of its pipelines.
"""

import contextlib
import gc
import io
import json
import os
import random
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.registry import DATASETS, DefaultScope

from mmattn.datasets.prepare import DataError
from mmattn.datasets.progress import track

from . import annotations, samples
from .report import Checked, Problem, Report, error, warning

SPLITS = ('train', 'val', 'test')
QUICK = 1000  # random samples of a data set, beside the first and the last
CHUNK = 32  # samples a worker takes at once


def check(
    configs: Mapping[str, Config],
    quick: bool = False,
    workers: int | None = None,
    seed: int = 0,
) -> Report:
    """Checks the data of configs; a data set that several read is read once.

    Args:
        configs (Mapping): Path -> config, as `mmattn.runs.cli.load_config` returns them.
        quick (bool): Decode the first, the last and a thousand random samples of each data set
            only. Annotations are read whole all the same.
        workers (int, optional): Processes; one a processor by default, 0 for this one alone.
        seed (int): Chooses the random samples.

    Returns:
        Report

    Raises:
        DataError: If a worker process dies.
    """
    try:
        return _check(configs, quick, workers, seed)
    finally:
        gc.unfreeze()  # the annotations are gone by now


def _check(configs: Mapping[str, Config], quick: bool, workers: int | None, seed: int) -> Report:
    keys: dict[str, int] = {}
    data_sets: list[Checked] = []
    loaders: dict[int, samples.Loader] = {}  # of those data sets that can be read
    numbers: dict[str, dict[str, list[int]]] = {path: {} for path in configs}
    problems: dict[str, list[Problem]] = {path: [] for path in configs}
    for path, cfg in configs.items():
        classes = _classes_of_model(cfg)
        for split in SPLITS:
            for leaf in leaves((cfg.get(f'{split}_dataloader') or {}).get('dataset') or {}):
                key = _key(cfg.get('default_scope'), leaf, classes)
                if key not in keys:
                    keys[key] = len(data_sets)
                    scope = DefaultScope.overwrite_default_scope(cfg.get('default_scope'))
                    with scope, _no_garbage():
                        data_set, loader = _load(leaf, classes, quick)
                    if loader is not None:
                        loaders[len(data_sets)] = loader
                    data_sets.append(data_set)
                numbers[path].setdefault(split, []).append(keys[key])
    _read(data_sets, loaders, quick, workers, seed)
    for path, splits in numbers.items():
        problems[path] += _evaluators(configs[path])
        train = [data_sets[number] for number in splits.get('train', [])]
        tests = {number for split in ('val', 'test') for number in splits.get(split, [])}
        for number in sorted(tests):
            for data_set in train:
                problems[path] += leaks(data_set, data_sets[number])
    return Report(data_sets, numbers, problems, quick)


@contextlib.contextmanager
def _no_garbage() -> Iterator[None]:
    """Annotations are millions of objects, through which Python would look again and again.

    Here, at the end of it, and in each worker, which would copy them for it.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if enabled:
            gc.enable()


def leaves(data_set: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The data sets that others of the config concatenate, repeat or mix."""
    if 'datasets' in data_set:
        for inner in data_set['datasets']:
            yield from leaves(inner)
    elif 'dataset' in data_set:
        yield from leaves(data_set['dataset'])
    elif data_set:
        yield data_set


def _key(scope: str | None, leaf: Mapping[str, Any], classes: set[int]) -> str:
    """What makes two configs' data sets the same to us: all but transforms that do not load."""
    pipeline = [step for step in leaf.get('pipeline', []) if str(step['type']).startswith('Load')]
    return json.dumps([scope, dict(leaf, pipeline=pipeline), sorted(classes)], default=str)


def _evaluators(cfg: Config) -> Iterator[Problem]:
    """Annotation files that evaluators read for themselves."""
    files = set()
    for split in SPLITS[1:]:
        evaluators = cfg.get(f'{split}_evaluator') or []
        for evaluator in [evaluators] if isinstance(evaluators, dict) else evaluators:
            if evaluator.get('ann_file') is not None:
                files.add(evaluator['ann_file'])
    for file in sorted(files):
        if not os.path.isfile(file):
            yield error('missing', file, 'an evaluator of the config reads it')


def _classes_of_model(cfg: Config) -> set[int]:
    """Every `num_classes` of the model."""

    def found(item: Any) -> Iterator[int]:
        if isinstance(item, dict):
            for key, value in item.items():
                if key == 'num_classes' and isinstance(value, int):
                    yield value
                yield from found(value)
        elif isinstance(item, (list, tuple)):
            for value in item:
                yield from found(value)

    return set(found(cfg.get('model', {})))


def _name(leaf: Mapping[str, Any]) -> str:
    """A data set in words: its type, root, list and split."""
    words = [leaf['type'] if isinstance(leaf['type'], str) else leaf['type'].__name__]
    place = os.path.join(leaf.get('data_root') or '', leaf.get('ann_file') or '')
    words.append(place.rstrip('/'))
    words += [leaf['split']] if leaf.get('split') else []
    return ' '.join(words)


def _not_built(name: str, problem: Exception) -> Problem:
    what = ' '.join(f'{type(problem).__name__}: {problem}'.split())
    return error('config', name, f'cannot be built: {what}')


def _stopping(checked: Checked) -> bool:
    """Whether something was named at which the codebase stops as well."""
    return any(problem.loses_file for problem in checked.problems)


def _load(
    leaf: Mapping[str, Any], classes: set[int], quick: bool
) -> tuple[Checked, samples.Loader | None]:
    """The annotations of a data set; a loader for its samples, where they can be listed."""
    checked = Checked(_name(leaf))
    root = leaf.get('data_root')
    if root and not os.path.isdir(root):
        checked.problems.append(error('missing', root, 'no such folder'))
        return checked, None
    options = ConfigDict(leaf)
    if 'CIFAR' in str(leaf['type']):
        options.setdefault('download', False)  # which mmpretrain would begin for a wrong checksum
    try:
        # Serialized, worker processes share the samples; else they are quicker to be had.
        data_set = DATASETS.build({**options, 'lazy_init': True, 'serialize_data': not quick})
    except Exception as problem:
        checked.problems.append(_not_built(checked.name, problem))
        return checked, None
    check = annotations.checker(data_set)
    at_once = annotations.keep_content(data_set)
    if check and not at_once:
        # Before the codebase, which stops at a fault with less to say, and unpickles what it finds.
        checked.problems += check(data_set)
        if _stopping(checked):
            return checked, None
    failure = None
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools'
            data_set.full_init()
    except Exception as problem:
        failure = _not_built(checked.name, problem)
    if check and at_once:
        checked.problems += check(data_set)
    if failure is not None:
        checked.problems += [] if _stopping(checked) else [failure]
        return checked, None
    own = data_set.metainfo.get('classes')
    if own and classes and len(own) not in classes:
        model = ', '.join(map(str, sorted(classes)))
        checked.problems.append(
            error('config', checked.name, f'{len(own)} classes, the model has {model}')
        )
    checked.samples = len(data_set)
    if not checked.samples:
        checked.problems.append(error('list', checked.name, 'has no samples'))
    transforms = [
        transform
        for transform in data_set.pipeline.transforms
        if type(transform).__name__.startswith('Load')
    ]
    limit = min([*classes, len(own)] if own else classes, default=0)
    return checked, samples.Loader(data_set, transforms, limit)


def _read(
    data_sets: list[Checked],
    loaders: dict[int, samples.Loader],
    quick: bool,
    workers: int | None,
    seed: int,
) -> None:
    """Decodes the samples of all data sets, in processes that inherit them."""
    tasks = []
    for number, loader in loaders.items():
        chosen = _chosen(len(loader.data_set), quick, seed)
        tasks += [(number, chosen[i : i + CHUNK]) for i in range(0, len(chosen), CHUNK)]
        data_sets[number].files = _files(loader.data_set)
    if not tasks:
        return
    if workers is None:
        workers = len(os.sched_getaffinity(0))
    with contextlib.ExitStack() as stack:
        if workers:
            context = get_context('fork')
            pool = ProcessPoolExecutor(
                workers, context, initializer=samples.start, initargs=(loaders,)
            )
            results = stack.enter_context(pool).map(samples.check_some, tasks)
            total = sum(len(indices) for _, indices in tasks)
            advance = stack.enter_context(track('decoding', total, 'files'))
        else:
            samples.loaders = loaders
            results, advance = map(samples.check_some, tasks), lambda done: None
        try:
            for number, done, decoded, problems, digests in results:
                data_sets[number].checked += done
                data_sets[number].decoded += decoded
                data_sets[number].problems += problems
                data_sets[number].digests.update(digests)
                advance(done)
        except BrokenProcessPool:
            raise DataError(
                'a process died while decoding: the memory ran out, or a file crashes its decoder '
                '(--workers 0 decodes in one process)'
            ) from None


def _chosen(length: int, quick: bool, seed: int) -> list[int]:
    if not quick or length <= QUICK + 2:
        return list(range(length))
    inner = random.Random(seed).sample(range(1, length - 1), QUICK)
    return [0, *sorted(inner), length - 1]


def _files(data_set: Any) -> list[str]:
    """The real paths of all images; links to files themselves are not followed."""
    folders, files = {}, []
    infos = data_set.data_list
    if data_set.serialize_data:
        infos = (data_set.get_data_info(index) for index in range(len(data_set)))
    for index, info in enumerate(infos):
        folder, name = os.path.split(samples.file_of(info, index))
        if folder not in folders:
            folders[folder] = os.path.realpath(folder) if folder else ''
        files.append(os.path.join(folders[folder], name) if folder else '')
    return files


def leaks(train: Checked, test: Checked) -> list[Problem]:
    """Samples of a test set that are in a training set: the same file, or a copy of it.

    A copy is a warning, as published data sets have some.
    """
    found = []
    trained = set(train.files) - {''}
    same = [file for file in test.files if file in trained]
    found += [error('leak', file, f'is in {train.name} and in {test.name}') for file in same]
    for digest, number in test.digests.items():
        other = train.digests.get(digest)
        if other is not None:
            mine, theirs = _named(test, number), _named(train, other)
            if mine != theirs:
                found.append(warning('leak', mine, f'has the content of {theirs}'))
    return found


def _named(data_set: Checked, number: int) -> str:
    return data_set.files[number] or f'image {number} of {data_set.name}'


__all__ = ['Checked', 'Problem', 'Report', 'check', 'leaks', 'leaves']
