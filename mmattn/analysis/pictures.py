"""A trained model of any of the codebases, and pictures as its own test pipeline makes them."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import mmcv
import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import DATASETS, MODELS, DefaultScope
from torch import Tensor, nn

from mmattn.hosts.plug import plug_entries
from mmattn.runs import checkpoint
from mmattn.runs.errors import UserError

# scikit-learn's `load_sample_images`, which need no download.
SAMPLES = ('china', 'flower')


@dataclass
class Picture:
    """A picture, and what the model takes of it.

    Args:
        name (str): For titles and files.
        rgb (ndarray): (H, W, 3) of bytes, as the test pipeline left it.
        data (dict): As a data loader gives it, a batch of one.
        label (int, optional): The class of one of a classifier's test set.
    """

    name: str
    rgb: np.ndarray
    data: dict[str, Any]
    label: int | None = None


def enter_scope(cfg: Config) -> str:
    """Make a config's codebase the one whose names are looked up, and import its classes."""
    scope = cfg.get('default_scope') or 'mmengine'
    if scope != 'mmengine':
        for registry in ('MODELS', 'DATASETS', 'TRANSFORMS'):
            getattr(import_module(f'{scope}.registry'), registry).import_from_location()
    now = DefaultScope.get_current_instance()
    if now is None or now.scope_name != scope:
        DefaultScope.get_instance(f'{scope}-{time.time_ns()}', scope_name=scope)
    return scope


def load_model(cfg: Config, path: str | Path, device: str = 'cpu') -> nn.Module:
    """The config's model with a checkpoint's weights, in eval mode.

    Raises:
        UserError: if the checkpoint lacks one of the model's weights, or one has another shape.
    """
    enter_scope(cfg)
    described = cfg.model.copy()
    if 'data_preprocessor' in cfg:
        described.setdefault('data_preprocessor', cfg.data_preprocessor)
    _no_pretraining(described)
    model = MODELS.build(described)
    plug_entries(model, _plugs(cfg))
    found = checkpoint.load(path)
    weights = found.get('state_dict', found)
    weights = {str(name).removeprefix('module.'): t for name, t in weights.items()}
    own = model.state_dict()
    wrong = [n for n, t in own.items() if n not in weights and not n.endswith('batches_tracked')]
    wrong += [n for n, t in own.items() if n in weights and weights[n].shape != t.shape]
    if wrong:
        raise UserError(
            f'{path} does not fit the config: {len(wrong)} of the {len(own)} weights are missing '
            f'or of another shape, as {wrong[0]}'
        )
    model.load_state_dict(weights, strict=False)
    return model.to(device).eval()


def _plugs(cfg: Config) -> list[dict[str, Any]]:
    """What the config plugs: by the key that our runner reads, or by a hook of another's."""
    hooks = [hook for hook in cfg.get('custom_hooks') or () if hook.get('type') == 'PlugHook']
    return [*(cfg.get('plug') or ()), *(entry for hook in hooks for entry in hook['plug'])]


def _no_pretraining(described: Any) -> None:
    """Take out what would fetch weights that the checkpoint replaces."""
    if isinstance(described, dict):
        described.pop('init_cfg', None)
        if 'pretrained' in described:
            described['pretrained'] = None
        for value in described.values():
            _no_pretraining(value)
    elif isinstance(described, (list, tuple)):
        for value in described:
            _no_pretraining(value)


def innermost(dataset: Any) -> Any:
    """The data set of a config inside its wrappers (`RepeatDataset`, ...)."""
    while 'pipeline' not in dataset and ('dataset' in dataset or dataset.get('datasets')):
        dataset = dataset.get('dataset') or dataset['datasets'][0]
    return dataset


def picture(cfg: Config, source: str, size: tuple[int, int] | None = None) -> Picture:
    """A picture by the test pipeline of a config, whose scope has been entered.

    Args:
        source (str): A file; `china` or `flower`, scikit-learn's; or `test:N`, the Nth (from 0) of
            the config's test set, which may keep its pictures in no files (CIFAR).
        size (tuple of int, optional): (H, W) to which a file is resized before the pipeline.

    Raises:
        UserError: if there is no such picture, or the config has no test set.
    """
    dataset = cfg.get('test_dataloader') and cfg.test_dataloader.get('dataset')
    if not dataset:
        raise UserError('the config has no test_dataloader, whose pipeline makes the pictures')
    if size is not None and min(size) < 1:
        raise UserError(f'the size of a picture must be 1 or more, got {size[0]} {size[1]}')
    kind, _, number = source.partition(':')
    if kind == 'test' and number.isdecimal():
        packed, name, bgr = _from_test_set(dataset, int(number))
    else:
        path, name = _file(source)
        if mmcv.imread(str(path)) is None:
            raise UserError(f'{source} is no picture that can be read')
        pipeline = innermost(dataset).pipeline
        bgr, given = _is_bgr(pipeline), dict(img_path=str(path), img_id=0)
        if not any(map(_loads, pipeline)):  # a data set of arrays (CIFAR), which are RGB
            image = mmcv.imread(str(path), channel_order='rgb')
            given.update(img=image, img_shape=image.shape[:2], ori_shape=image.shape[:2])
        packed = Compose(_without_labels(pipeline, size))(given)
    if packed is None:
        raise UserError(f'the test pipeline makes nothing of {source}')
    inputs = packed['inputs']
    rgb = inputs.permute(1, 2, 0).cpu().numpy()
    if rgb.shape[2] == 1:
        rgb = rgb.repeat(3, 2)
    rgb = np.ascontiguousarray(rgb[..., ::-1] if bgr else rgb).astype(np.uint8)
    label = getattr(packed['data_samples'], 'gt_label', None)
    known = isinstance(label, Tensor) and label.numel() == 1 and kind == 'test'
    return Picture(name, rgb, pseudo_collate([packed]), int(label) if known else None)


def _file(source):
    if source in SAMPLES:
        try:
            import sklearn.datasets
        except ImportError:
            raise UserError(f'{source} is of scikit-learn: pip install scikit-learn') from None
        return Path(sklearn.datasets.__file__).parent / 'images' / f'{source}.jpg', source
    path = Path(source)
    if not path.is_file():
        raise UserError(f'no such picture: {source}; allowed: a file, {", ".join(SAMPLES)}, test:N')
    return path, path.stem


def _loads(step):
    return step['type'].rpartition('.')[2] == 'LoadImageFromFile'


def _is_bgr(pipeline):
    """Whether the pipeline's pictures are BGR, as mmcv's loader makes them; arrays are RGB."""
    return any(map(_loads, pipeline))


def _without_labels(pipeline, size):
    """The steps of a test pipeline that a picture without labels goes through."""
    steps = [step for step in pipeline if 'Annotations' not in step['type']]
    if size is not None:
        loads = [i for i, step in enumerate(steps) if _loads(step)]
        resize = dict(type='Resize', scale=(size[1], size[0]), keep_ratio=False)
        steps.insert(loads[0] + 1 if loads else 0, resize)
    return steps


def _from_test_set(dataset, number):
    built = DATASETS.build(dataset)
    if not 0 <= number < len(built):
        raise UserError(f'test:{number}: the test set has {len(built)} pictures, from test:0')
    return built[number], f'test-{number}', _is_bgr(innermost(dataset).pipeline)


def look(model: nn.Module, seen: Picture) -> tuple[Tensor, Callable[[], Any]]:
    """The network's input of a picture, (1, 3, H, W), normalised and padded, and what runs it:
    backbone and neck alone, once, whatever the model's way of testing (a sliding window, ...)."""
    data = model.data_preprocessor(seen.data, False)
    inputs = data['inputs']

    def run():
        with torch.no_grad():
            if hasattr(model, 'extract_feat'):
                return model.extract_feat(inputs)
            return model(inputs, mode='tensor')

    return inputs, run
