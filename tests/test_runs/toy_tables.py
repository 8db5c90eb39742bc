"""Tables of trainings that take a moment, for tests of what carries tables through."""

from pathlib import Path

import torch
import toy
import yaml
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, METRICS, MODELS
from torch import nn

STEPS = 12


class Backbone(BaseModel):
    def __init__(self, init_cfg=None):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return self.layer(x)


class Network(BaseModel):
    """A backbone that can start from another's, and a head."""

    def __init__(self, backbone, scale=1.0):
        super().__init__()
        self.backbone, self.head, self.scale = Backbone(), nn.Linear(4, 1), scale

    def forward(self, inputs, data_samples=None, mode='tensor'):
        out = self.head(self.backbone(torch.stack(list(inputs)))) * self.scale
        return dict(loss=out.square().mean()) if mode == 'loss' else out


class Still(toy.Digits):
    """To evaluate on: the same inputs every time."""

    def __getitem__(self, index):
        inputs = torch.full((4,), index / self.size)
        return dict(inputs=inputs, data_samples=toy.Sample(index))


class Score(BaseMetric):
    """The mean square of what the model says, which the weights decide."""

    def process(self, data_batch, data_samples):
        self.results += [float(value) ** 2 for value in data_samples]

    def compute_metrics(self, results):
        return {'accuracy/top1': sum(results) / len(results)}


def config(folder, name, pause=0.0, **model):
    """Writes a config of three epochs of four steps, with an evaluation after each."""
    cfg = toy.config(
        'nowhere',
        epochs=3,
        size=STEPS // 3 * 2,
        val_dataloader=dict(
            batch_size=2,
            num_workers=0,
            dataset=dict(type='StillDigits', size=4),
            sampler=dict(type='DefaultSampler', shuffle=False),
        ),
        val_evaluator=dict(type='ToyScore'),
        val_cfg=dict(),
    )
    cfg['model'] = dict(type='ToyNetwork', backbone=dict(type='ToyBackbone'), **model)
    cfg['train_dataloader']['dataset']['pause'] = pause
    for key in ('work_dir', 'randomness', 'experiment_name'):
        del cfg[key]
    modules = ['mmattn.runs', 'toy', Path(__file__).stem]
    cfg['custom_imports'] = dict(imports=modules, allow_failed_imports=False)
    path = folder / f'{name}.py'
    path.write_text(''.join(f'{key} = {value!r}\n' for key, value in cfg.items()))
    return path


def tables(root, rows, pause=0.0):
    """Writes `root/mine/tables.yml` with one table and its configs.

    Args:
        rows (dict): From each row's name to the one it starts from, or None.
    """
    folder = root / 'mine'
    folder.mkdir(parents=True)
    listed = []
    for number, (name, start) in enumerate(rows.items()):
        config(folder, name, pause, scale=1 + number / 10)
        row = dict(group='toys', method=name, config=f'mine/{name}.py')
        listed.append(row | ({'pretrained': f'mine/{start}.py'} if start else {}))
    table = dict(
        id=1,
        caption='Toys.',
        task='image-classification',
        dataset='toys',
        metrics=['top1'],
        checkpoint='last',
        rows=listed,
    )
    path = folder / 'tables.yml'
    path.write_text(yaml.safe_dump(dict(tables=[table])))
    return path


DATASETS.register_module(name='StillDigits', module=Still, force=True)
METRICS.register_module(name='ToyScore', module=Score, force=True)
MODELS.register_module(name='ToyBackbone', module=Backbone, force=True)
MODELS.register_module(name='ToyNetwork', module=Network, force=True)
