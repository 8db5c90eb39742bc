"""Class activation maps by the `grad-cam` package, and how far they can be trusted.

A map says which positions of a layer's output a score rests on. Faithfulness asks the model itself:
ROAD fills in the pixels that a map calls important, and those that it calls unimportant, and looks
what becomes of the score; the confidence change shows the picture times the map.
"""

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS
from torch import Tensor, nn

from mmattn.runs.errors import UserError

# Those of the package that take a forward and at most one backward a picture.
METHODS = (
    'GradCAM',
    'GradCAMPlusPlus',
    'HiResCAM',
    'XGradCAM',
    'LayerCAM',
    'EigenGradCAM',
    'EigenCAM',
)
GRADIENT_FREE = ('EigenCAM',)
PERCENTILES = (20, 40, 60, 80)


def package() -> Any:
    """The `pytorch_grad_cam` module, or a UserError that says how to get it."""
    if importlib.util.find_spec('pytorch_grad_cam') is None:
        raise UserError(
            'class activation maps need the package grad-cam: '
            'pip install --no-deps -r requirements/visual.txt'
        )
    import pytorch_grad_cam

    return pytorch_grad_cam


class Scores(nn.Module):
    """The scores of a model as one tensor: (N, classes) of a classifier, (N, classes, h, w) of a
    segmentor. Of a detector, whose scores belong to boxes, only that it ran: (N,)."""

    def __init__(self, model: nn.Module, scope: str) -> None:
        super().__init__()
        self.model, self.scope = model, scope

    def forward(self, x: Tensor) -> Tensor:
        if self.scope == 'mmdet':
            self.model.extract_feat(x)
            return x.new_zeros(len(x))
        return self.model(x, mode='tensor')


def layer_of(model: nn.Module, name: str | None) -> nn.Module:
    """A module by its name; without one, the last stage of the backbone.

    Raises:
        UserError: if there is none of that name.
    """
    if name is None:
        backbone = model.backbone
        stages = getattr(backbone, 'res_layers', None) or getattr(backbone, 'layers', None)
        if not stages:
            raise UserError(f'{type(backbone).__name__} names no stages: give a --layer')
        last = stages[-1]
        return getattr(backbone, last) if isinstance(last, str) else last
    try:
        return model.get_submodule(name)
    except AttributeError:
        near = [n for n, _ in model.named_modules() if n.rpartition('.')[0] == 'backbone']
        raise UserError(f'no layer is called {name}; there are {", ".join(near)}, ...') from None


class Cam:
    """Maps of one model.

    Args:
        model (nn.Module): In eval mode.
        scope (str): Its codebase.
        method (str): One of `METHODS`; None is GradCAM, and for detectors EigenCAM, as a detector
            has no score of the picture as a whole.
        layer (str, optional): As `layer_of` takes it.

    Raises:
        UserError: without the package, for another method, layer, or one that needs gradients of a
            detector.
    """

    def __init__(
        self, model: nn.Module, scope: str, method: str | None = None, layer: str | None = None
    ) -> None:
        found = package()
        method = method or ('EigenCAM' if scope == 'mmdet' else 'GradCAM')
        if method not in METHODS:
            raise UserError(f'no method is called {method}; there are {", ".join(METHODS)}')
        if scope == 'mmdet' and method not in GRADIENT_FREE:
            raise UserError(f'{method} needs a score, and a detector has none of the whole picture')
        self.scope, self.method = scope, method
        self.scores = Scores(model, scope).eval()
        self.layers = [layer_of(model, layer)]
        self.make = getattr(found, method)

    def target(self, scores: Tensor, category: int | None = None) -> tuple[int, Callable]:
        """The class of a picture's scores, by default the likeliest, and what is explained of it:
        its score, for a segmentor the sum over the positions where it is the likeliest."""
        if scores.dim() == 0:
            return -1, lambda out: out
        if category is not None and not 0 <= category < len(scores):
            raise UserError(f'--target must be from 0 to {len(scores) - 1}, got {category}')
        if scores.dim() == 1:
            category = int(scores.argmax()) if category is None else category
            return category, lambda out: out[category]
        likeliest = scores.argmax(0)
        if category is None:  # of the classes there but background (0), the largest
            counts = torch.bincount(likeliest.flatten(), minlength=len(scores))
            counts[0] = 0 if counts[1:].any() else counts[0]
            category = int(counts.argmax())
        where = likeliest == category
        return category, lambda out: (out[category] * where).sum()

    def maps(self, inputs: Tensor, targets: Sequence[Callable]) -> np.ndarray:
        """(N, H, W) from 0 to 1, of network inputs (N, 3, H, W)."""
        cam = self.make(self.scores, self.layers)
        try:
            # Frozen stages have gradients where their input has.
            return cam(inputs.detach().clone().requires_grad_(), targets=list(targets))
        finally:
            cam.activations_and_grads.release()

    def look(self, inputs: Tensor, category: int | None = None) -> tuple[np.ndarray, str]:
        """The map of one picture (1, 3, H, W), and in words what of."""
        with torch.no_grad():
            scores = self.scores(inputs)[0]
        number, target = self.target(scores, category)
        (found,) = self.maps(inputs, [target])
        if number < 0:
            return found, self.method
        share = f' ({float(scores.softmax(0)[number]):.0%})' if scores.dim() == 1 else ''
        return found, f'class {number}{share}'


@dataclass
class Faithfulness:
    """Of each picture: `road` (more is better), the `change` of the confidence in the right class
    when the picture is multiplied by the map, its `drop` (0 where it rises, less is better) and
    whether it is an `increase`; `confidence` is what it was."""

    road: np.ndarray
    change: np.ndarray
    confidence: np.ndarray

    @property
    def drop(self) -> np.ndarray:
        return np.maximum(-self.change, 0)

    @property
    def increase(self) -> np.ndarray:
        return (self.change > 0).astype(np.float32)

    def columns(self) -> dict[str, np.ndarray]:
        """The numbers by the names in the table."""
        return dict(
            ROAD=self.road,
            confidence=self.confidence,
            change=self.change,
            drop=self.drop,
            increase=self.increase,
        )


def faithfulness(cam: Cam, cfg: Config, count: int, batch: int = 16) -> Faithfulness:
    """The first so many pictures of a classifier's test set, explained for their right class.

    Raises:
        UserError: for a model that is no classifier.
    """
    if cam.scope != 'mmpretrain':
        raise UserError('faithfulness is asked of classifiers: it needs a score of the picture')
    package()
    from pytorch_grad_cam.metrics.cam_mult_image import CamMultImageConfidenceChange
    from pytorch_grad_cam.metrics.road import ROADCombined
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget

    torch.manual_seed(0)  # ROAD adds noise to what it fills in
    dataset = DATASETS.build(cfg.test_dataloader.dataset)
    model, road, change, before = cam.scores.model, [], [], []
    numbers = range(min(count, len(dataset)))
    for first in numbers[::batch]:
        packed = [dataset[i] for i in numbers[first : first + batch]]
        data = model.data_preprocessor(pseudo_collate(packed), False)
        labels = [int(sample.gt_label) for sample in data['data_samples']]
        inputs = data['inputs']
        found = cam.maps(inputs, [_score(label) for label in labels])
        targets = [ClassifierOutputSoftmaxTarget(label) for label in labels]
        with torch.no_grad():
            shares = cam.scores(inputs).softmax(1)
        before += [float(s[label]) for s, label in zip(shares, labels, strict=True)]
        road += [*ROADCombined([*PERCENTILES])(inputs, found, targets, cam.scores)]
        change += [*CamMultImageConfidenceChange()(inputs, found, targets, cam.scores)]
    return Faithfulness(np.array(road), np.array(change), np.array(before))


def _score(label):
    return lambda out: out[label]


def interval(values: np.ndarray) -> tuple[float, float]:
    """Mean and half the width of its 95 % interval (normal), over pictures."""
    spread = values.std(ddof=1) if len(values) > 1 else float('nan')
    return float(values.mean()), float(1.96 * spread / len(values) ** 0.5)


def table(names: Sequence[str], found: Sequence[Faithfulness]) -> str:
    """A Markdown table: a row a model, and for two their difference, paired by picture."""
    columns = [one.columns() for one in found]
    rows = [(name, one) for name, one in zip(names, columns, strict=True)]
    if len(rows) == 2:
        first, second = columns
        rows.append(('second - first', {key: second[key] - first[key] for key in first}))
    header = ['model', *columns[0]]
    lines = ['| ' + ' | '.join(header) + ' |', '|' + ' --- |' + ' ---: |' * (len(header) - 1)]
    for name, values in rows:
        cells = ['{:.3f} ± {:.3f}'.format(*interval(v)) for v in values.values()]
        lines.append(f'| {name} | ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines) + '\n'
