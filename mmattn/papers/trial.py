"""A trial of a paper's config on the digits data: its whole pipeline and two optimiser steps."""

import json
import math
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.hooks import Hook
from mmengine.registry import DefaultScope
from mmengine.utils import import_modules_from_strings

from mmattn.datasets import digits
from mmattn.hosts.building import build_model
from mmattn.runs import Runner

from . import alternatives
from .tables import config_root, entries

STEPS = 2
# Sizes in pixels are divided by this; 32 is the coarsest stride of the networks.
SHRINK, SMALLEST = 8, 32
SIZES = ('scale', 'scales', 'crop_size', 'size')


@dataclass(frozen=True)
class Trial:
    """The loss of each step, the metrics of the validation, the time taken."""

    losses: list[float]
    metrics: dict[str, float]
    seconds: float


class Recorder(Hook):
    """Keeps the loss of each step and the metrics of the last validation."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.metrics: dict[str, float] = {}

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        self.losses.append(outputs['loss'].item())

    def after_val_epoch(self, runner: Runner, metrics: Any = None) -> None:
        self.metrics = {name: float(value) for name, value in metrics.items()}


def config_paths() -> list[str]:
    """The distinct configs of all tables, relative to `config_root()`, in the papers' order."""
    return list(dict.fromkeys(entry.config for entry in entries()))


def one_for_each_pipeline(paths: Iterable[str]) -> list[str]:
    """Of configs that share model type, data, pipelines and evaluator, one: with a gate of the
    papers' own, else with any gate, else the bare one."""
    found: dict[str, tuple[int, str]] = {}
    for path in paths:
        cfg = Config.fromfile(config_root() / path, import_custom_modules=False)
        loaders = [
            dict(cfg[name], batch_size=None) for name in ('train_dataloader', 'val_dataloader')
        ]
        key = json.dumps([cfg.model.type, loaders, cfg.val_evaluator], default=str, sort_keys=True)
        gates = [plugin.cfg.type for plugin in cfg.model.backbone.get('plugins', [])]
        rank = bool(gates) + any(gate in ('CAT', 'DRTAM') for gate in gates)
        if key not in found or rank > found[key][0]:
            found[key] = rank, path
    return [path for _, path in found.values()]


def one_for_each_alternative() -> list[tuple[str, str]]:
    """A (config, name) pair for each table's alternatives: a shallow network among those that one
    fits, with the gate of the paper's own where it can be."""

    def rank(path: str) -> tuple[bool, bool]:
        paper, name = path.split('/')
        return '101' in name, f'-{paper}' not in name

    found = [(min(item.configs, key=rank), item.name) for item in alternatives.listed()]
    return list(dict.fromkeys(found))


def overlay(cfg: Config, data_root: str | Path) -> Config:
    """The config for a trial: digits for data, small images and batches, no download, two steps.

    What is made smaller: images (sizes by 8), batches (2), a detector's proposals and detections.
    ImageNet's and CIFAR-100's readers are replaced by ones that do not insist on the published
    files. No pretrained weights are loaded, and no residual starts at zero for the lack of them:
    gates would get zeros; pixels are scaled to 1 where only such weights would do that. The model,
    its depth and number of classes, the other arguments of the transforms and their order, losses,
    optimiser, schedule and evaluator stay as they are.

    Args:
        cfg (Config): Of one of the papers' rows.
        data_root (str or Path): Holds the digits as `tools/dataset_converters/make_digits.py` made
            them; takes the place of `data/`.

    Returns:
        Config: a changed copy.
    """
    cfg = cfg.copy()
    for name in ('train_dataloader', 'val_dataloader'):
        cfg[name] = _shrink(_move(cfg[name].to_dict(), data_root))
        cfg[name].update(
            batch_size=min(2, cfg[name].batch_size), num_workers=0, persistent_workers=False
        )
        if cfg.default_scope == 'mmpretrain':
            cfg[name].setdefault('collate_fn', dict(type='default_collate'))
    cfg.val_evaluator = _move(cfg.val_evaluator.to_dict(), data_root)
    if cfg.default_scope in ('mmdet', 'mmseg'):
        # Without torchvision's weights these hosts start residuals, hence gates' inputs, at zero.
        cfg.model.backbone.zero_init_residual = False
    cfg.model.backbone.init_cfg = None
    preprocessor = cfg.model.get('data_preprocessor', {})
    if preprocessor.get('std') == [1.0, 1.0, 1.0]:
        # MSRA's weights take pixels as they are; untrained ones make infinities of them.
        preprocessor.std = [58.0, 58.0, 58.0]
    if 'size' in cfg.model.get('data_preprocessor', {}):
        cfg.model.data_preprocessor = _shrink(cfg.model.data_preprocessor.to_dict())
    if cfg.default_scope == 'mmdet':
        _fewer_boxes(cfg.model)
    cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=STEPS, val_interval=STEPS)
    cfg.test_dataloader = cfg.test_evaluator = cfg.test_cfg = None
    cfg.default_hooks.checkpoint = None
    cfg.randomness = dict(seed=0)
    cfg.log_level = 'ERROR'
    return cfg


def _move(item: Any, data_root: str | Path) -> Any:
    """Paths below `data/` to `data_root`, with a reader for what is there."""
    if isinstance(item, dict):
        item = {key: _move(value, data_root) for key, value in item.items()}
        if item.get('type') == 'CIFAR100':
            item['type'] = 'DigitsCIFAR100'  # knows no checksums
        elif item.get('type') == 'ImageNet':
            # ImageNet wants 1000 folders, the digits have ten.
            item.update(type='CustomDataset', data_prefix=item.pop('split'))
        return item
    if isinstance(item, (list, tuple)):
        return type(item)(_move(value, data_root) for value in item)
    if isinstance(item, str) and item.startswith('data/'):
        return str(data_root) + item[len('data') :]
    return item


def _fewer_boxes(model: ConfigDict) -> None:
    """An untrained detector sees a thousand objects, all with scores next to nothing."""
    if model.type == 'RetinaNet':
        model.test_cfg.update(score_thr=0, max_per_img=10)
        return
    model.train_cfg.rpn_proposal.update(nms_pre=100, max_per_img=50)
    model.train_cfg.rcnn.sampler.num = 32
    model.test_cfg.rpn.update(nms_pre=100, max_per_img=20)
    model.test_cfg.rcnn.update(score_thr=0, max_per_img=5)


def _shrink(item: Any, inside: bool = False) -> Any:
    """Every number below one of the keys `SIZES`, divided."""
    if isinstance(item, dict):
        return {key: _shrink(value, inside or key in SIZES) for key, value in item.items()}
    if isinstance(item, (list, tuple)):
        return type(item)(_shrink(value, inside) for value in item)
    return max(SMALLEST, item // SHRINK) if inside and isinstance(item, int) else item


def prepare(data_root: str | Path) -> None:
    """Make the digits in all formats below `data_root`: eight images to train, two to validate."""
    for task in digits.TASKS:
        digits.make(data_root, task, num=8, num_val=2)


def build(
    path: str, data_root: str | Path, work_dir: str | Path, names: Sequence[str] = ()
) -> Runner:
    """The runner of a trial; arguments as those of `run`. It writes to `work_dir`."""
    cfg = alternatives.combine(config_root() / path, names)
    if cfg.get('custom_imports'):
        import_modules_from_strings(**cfg.custom_imports)
    cfg = overlay(cfg, data_root)
    cfg.work_dir = str(work_dir)
    if 'pretrained' in names:
        alternatives.start_from(cfg, _untrained(path, work_dir, names))
    # mmengine keeps scope, logger and visualizer under their names: they must be new each time.
    cfg.experiment_name = f'{Path(path).stem}-{time.time_ns()}'
    cfg.visualizer.update(name=cfg.experiment_name, vis_backends=[])
    return Runner.from_cfg(cfg)


def run(path: str, data_root: str | Path, names: Sequence[str] = ()) -> Trial:
    """Train a config of the papers for two steps on the digits and validate it.

    Args:
        path (str): Relative to `config_root()`.
        data_root (str or Path): See `prepare`.
        names (Sequence[str]): Of the row's alternatives, to train it with.

    Returns:
        Trial

    Raises:
        alternatives.AlternativeError: if an alternative does not fit.
        FloatingPointError: if a loss is not finite.
        RuntimeError: if a step or the validation did not run.
    """
    started = time.perf_counter()
    recorder = Recorder()
    with tempfile.TemporaryDirectory() as work_dir:
        runner = build(path, data_root, work_dir, names)
        runner.register_hook(recorder)
        runner.train()
    if len(recorder.losses) != STEPS or not recorder.metrics:
        raise RuntimeError(f'{path}: {len(recorder.losses)} steps, metrics {recorder.metrics}')
    if not all(map(math.isfinite, recorder.losses)):
        raise FloatingPointError(f'{path}: losses {recorder.losses}')
    return Trial(recorder.losses, recorder.metrics, time.perf_counter() - started)


def _untrained(path: str, folder: str | Path, names: Sequence[str]) -> str:
    """A checkpoint, untrained, of the ImageNet network that a row can start from."""
    start = str(next(entry.pretrained for entry in entries() if entry.config == path))
    cfg = alternatives.combine(config_root() / start, alternatives.of_start(path, names))
    import_module(f'{cfg.default_scope}.registry').MODELS.import_from_location()
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = build_model(cfg)
    file = Path(folder) / 'pretrained.pth'
    torch.save(dict(state_dict=model.state_dict()), file)
    return str(file)
