"""What is left of a plan takes: GPU time by trials and by runs that are done, and room on disk."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.utils import import_modules_from_strings

from mmattn.hosts.building import build_model
from mmattn.papers.alternatives import PRETRAINED, combined_name, of_row
from mmattn.papers.plan import Run, expected

from . import atomic, measure, record
from .driver import Driver
from .errors import UserError
from .form import Record
from .outcome import LOG, tail

FOLDER, SIZES = 'trials', 'sizes.json'  # of the work directory
LOGS = 20 * 10**6  # bytes of a run's logs and record
# Tensors that an optimiser keeps for each parameter, beside itself.
KEPT = {'SGD': 1, 'Adam': 2, 'AdamW': 2, 'RMSprop': 1, 'Adagrad': 1}


def model_of(run: Run) -> tuple[str, tuple[str, ...]]:
    """What runs of the same speed share: all seeds have one trial."""
    return run.config, run.alternatives


def trial_of(run: Run, work_dir: str | Path, kind: str, processes: int) -> Path:
    """The file of the trial of a run's model on a kind of GPU."""
    name = combined_name(run.config, run.alternatives)
    folder = Path(work_dir) / FOLDER / Path(run.config).parent / name
    return folder / f'{kind}-x{processes}.json'


def gpu_seconds(found: Record) -> float:
    """Seconds that the starts in a record took, times its processes."""
    return (found['processes'] or 1) * sum(
        start['ended'] - start['at'] for start in found['starts'] if start['ended'] is not None
    )


def left(runs: Sequence[Run], work_dir: str | Path) -> list[Run]:
    """The runs that are not done."""
    records = [(run, _record(run, work_dir)) for run in runs]
    return [run for run, found in records if found is None or found['state'] != 'done']


def estimate(
    runs: Sequence[Run], work_dir: str | Path, kind: str = 'cpu', processes: int = 1
) -> tuple[float, list[Run]]:
    """What is left to do, by trials on this kind of GPU, else by runs of the same model.

    Returns:
        tuple[float, list[Run]]: seconds of GPUs (or CPU processes), and a run of each model of
        which nothing is known.
    """
    done = {}
    for run in runs:
        found = _record(run, work_dir)
        if found is not None and found['state'] == 'done':
            done[model_of(run)] = gpu_seconds(found)
    seconds, unknown = 0.0, {}
    for run in left(runs, work_dir):
        trial = measure.read(trial_of(run, work_dir, kind, processes))
        known = measure.process_seconds(trial) if trial else done.get(model_of(run))
        if known is None:
            unknown.setdefault(model_of(run), run)
        else:
            seconds += known * (1 - _part(run, work_dir))
    return seconds, list(unknown.values())


def try_out(run: Run, driver: Driver, processes: int) -> None:
    """Try a run's model where its driver places runs; leaves what `estimate` reads.

    Raises:
        UserError: if that fails, with the last line of its log.
        OSError: if it could not be started.
    """
    path = trial_of(run, driver.work_dir, driver.kind, processes)
    folder = path.parent / path.stem
    folder.mkdir(parents=True, exist_ok=True)
    (folder / LOG).unlink(missing_ok=True)
    # Where it starts from does not change its speed, and need not be there yet.
    names = [name for name in run.alternatives if name != PRETRAINED]
    trained = replace(run, alternatives=tuple(names), waits_for=None)
    config, *_ = trained.arguments(driver.work_dir)
    command = [config, '--work-dir', str(folder), '--seed', '0', '--measure', str(path)]
    names = [name for name in names if name in of_row(run.config)]
    command += ['--alternative', *names] if names else []
    code = driver.try_out(folder, command)
    if measure.read(path) is None:
        last = ''.join(tail(folder / LOG, 1))
        raise UserError(f'the trial of {run.config} ended with exit code {code}: {last}')


def disk(runs: Sequence[Run], work_dir: str | Path, remember: bool = True) -> tuple[int, int]:
    """Bytes that what is left to do will write, and those that are free.

    Checkpoints are taken to be as large as model and optimiser, and as many as the config's hook
    keeps, with the best, one on demand and one that is being written.

    Args:
        remember (bool): Whether to write down how large they are, in the work directory.
    """
    work_dir, cache = Path(work_dir), Path(work_dir) / FOLDER / SIZES
    try:
        sizes = json.loads(cache.read_text(encoding='utf-8'))
    except (OSError, ValueError):
        sizes = {}
    before, keys, total = dict(sizes), {}, 0
    for run in left(runs, work_dir):
        model = model_of(run)
        if model not in keys:  # once for all seeds
            cfg = expected(run.path, run.alternatives)
            keys[model] = record.digest(record.resolved(cfg))
            if keys[model] not in sizes:
                sizes[keys[model]] = checkpoint_bytes(cfg) * checkpoints_kept(cfg)
        key = keys[model]
        there = sum(f.stat().st_size for f in run.folder(work_dir).glob('*.pth'))
        total += max(0, sizes[key] - there) + LOGS
    if remember and sizes != before:
        cache.parent.mkdir(parents=True, exist_ok=True)
        atomic.write_text(cache, json.dumps(sizes))
    place = next(folder for folder in (work_dir, *work_dir.resolve().parents) if folder.is_dir())
    return total, shutil.disk_usage(place).free


def checkpoints_kept(cfg: Config) -> int:
    """How many checkpoints a run of a config has at its largest."""
    hook = (cfg.get('default_hooks') or {}).get('checkpoint') or {}
    train = cfg.get('train_cfg') or {}
    length = train.get('max_epochs') or train.get('max_iters') or 1
    interval = hook.get('interval', 1)
    saved = -(-length // interval) if interval > 0 else 1
    most = hook.get('max_keep_ckpts', -1)
    best = hook.get('save_best') or []
    best = [best] if isinstance(best, str) else best
    return (saved if most < 0 else min(saved, most)) + len(best) + 2


def checkpoint_bytes(cfg: Config) -> int:
    """How large a checkpoint of a config is: its model is built on the CPU."""
    if cfg.get('custom_imports'):
        import_modules_from_strings(**cfg.custom_imports)
    scope = cfg.get('default_scope') or 'mmengine'
    import_module(f'{scope}.registry').MODELS.import_from_location()
    with DefaultScope.overwrite_default_scope(scope):
        model = build_model(cfg)
    optimizer: Any = (cfg.get('optim_wrapper') or {}).get('optimizer') or {}
    kept = KEPT.get(optimizer.get('type'), 2)
    if optimizer.get('type') == 'SGD' and not optimizer.get('momentum'):
        kept = 0
    learnt = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    return sum(t.numel() * t.element_size() for t in model.state_dict().values()) + kept * learnt


def _record(run: Run, work_dir: str | Path) -> Record | None:
    try:
        return record.find(run.folder(work_dir))
    except record.RecordError:
        return None


def _part(run: Run, work_dir: str | Path) -> float:
    found = _record(run, work_dir)
    progress = None if found is None else found.get('progress')
    return progress['iter'] / progress['max_iters'] if progress and progress['max_iters'] else 0.0
