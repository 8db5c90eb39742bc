"""Colla-factors: what the hook logs, what is read of checkpoints and logs, and the two figures."""

import json

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from torch import nn

from mmattn.analysis import colla, colla_figure
from mmattn.attention import CAT
from mmattn.runs.errors import UserError

PATHS = ['backbone.layer1.0.cat', 'backbone.layer1.1.cat']
PLUGINS = "model = dict(backbone=dict(plugins=[dict(cfg=dict(type='CAT'{}), position='x')]))"


class Net(nn.Module):
    def __init__(self, **kwargs):
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.layer1 = nn.Sequential(*(nn.Module() for _ in PATHS))
        for block in self.backbone.layer1:
            block.cat = CAT(8, reduction=4, **kwargs)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if name.endswith(('factors', 'logits')):
                    parameter.normal_()


def save(model, path, cfg=''):
    torch.save(dict(state_dict=model.state_dict(), meta=dict(cfg=cfg)), path)
    return path


@pytest.mark.parametrize(
    'kwargs, words',
    [
        ({}, ''),
        (dict(interior_softmax=True), ', interior_softmax=True'),
        (dict(pools=('avg', 'max')), ", pools=('avg', 'max')"),
        (dict(exterior=False), ', exterior=False'),
        (dict(arrangement='channel'), ", arrangement='channel'"),
    ],
)
def test_a_checkpoint_s_factors_are_the_gates_own(tmp_path, kwargs, words):
    model = Net(**kwargs)
    found = colla.from_checkpoint(save(model, tmp_path / 'a.pth', PLUGINS.format(words)))
    assert list(found.gates) == PATHS
    for name in PATHS:
        assert found.gates[name] == pytest.approx(model.get_submodule(name).colla_factors())


def test_a_checkpoint_without_a_config(tmp_path):
    model = Net()
    found = colla.from_checkpoint(save(model, tmp_path / 'net.pth'))
    assert found.label == 'net'
    assert found.gates[PATHS[1]] == pytest.approx(model.get_submodule(PATHS[1]).colla_factors())
    with pytest.raises(UserError, match='carries no config'):
        colla.from_checkpoint(save(Net(pools=('ent',)), tmp_path / 'ent.pth'))
    with pytest.raises(UserError, match='holds no colla-factors'):
        colla.from_checkpoint(save(nn.Linear(2, 2), tmp_path / 'none.pth'))


class Runner:
    """As much of mmengine's runner as a hook of scalars needs."""

    def __init__(self, model):
        self.model, self.iter, self.written = model, 0, []
        self.visualizer = self

    def add_scalars(self, scalars, step):
        self.written.append((step, dict(scalars)))

    def train(self, hook, steps):
        hook.before_train(self)
        for i in range(steps):
            hook.before_train_iter(self, i)
            with torch.no_grad():
                for parameter in self.model.parameters():
                    parameter.mul_(0.9)
            hook.after_train_iter(self, i)
            self.iter += 1
        hook.after_train(self)


def test_the_hook_logs_at_start_interval_and_end():
    model = Net()
    first = {n: model.get_submodule(n).colla_factors() for n in PATHS}
    hook = HOOKS.build(dict(type='CollaFactorHook', interval=4))
    assert isinstance(hook, Hook)
    runner = Runner(model)
    runner.train(hook, 10)
    assert [step for step, _ in runner.written] == [0, 4, 8, 10]
    assert len(runner.written[0][1]) == 16
    for name in PATHS:
        last = model.get_submodule(name).colla_factors()
        for factor in colla.FACTORS:
            assert runner.written[0][1][f'colla/{name}/{factor}'] == first[name][factor]
            assert runner.written[-1][1][f'colla/{name}/{factor}'] == last[factor]


def test_the_hook_refuses():
    with pytest.raises(ValueError, match='interval must be an integer >= 1, got 0'):
        HOOKS.build(dict(type='CollaFactorHook', interval=0))
    with pytest.raises(ValueError, match='the model has no CAT'):
        HOOKS.build(dict(type='CollaFactorHook')).before_train(Runner(nn.Linear(2, 2)))


def test_logs_of_a_run_that_was_resumed(tmp_path):
    """Two starts: the second says again what came after the checkpoint that it went on from."""
    lines = [
        [dict(step=0, loss=1.0), {'step': 0, 'colla/a.cat/C_w': 0.5, 'colla/b.cat/C_w': 0.5}],
        [{'step': 10, 'colla/a.cat/C_w': 0.7}, {'step': 20, 'colla/a.cat/C_w': 0.9}],
        [{'step': 20, 'colla/a.cat/C_w': 0.8, 'colla/a.cat/other': 1.0}],
    ]
    for time, groups in (('20260101_000000', lines[:2]), ('20260102_000000', lines[2:])):
        folder = tmp_path / 'run' / time / 'vis_data'
        folder.mkdir(parents=True)
        text = ''.join(json.dumps(line) + '\n' for group in groups for line in group)
        (folder / 'scalars.json').write_text(text + '{"step": 30, "col')  # cut off
    course = colla.from_logs(tmp_path / 'run')
    assert course.label == 'run'
    assert course.gates == {
        'a.cat': {'C_w': [(0, 0.5), (10, 0.7), (20, 0.8)]},
        'b.cat': {'C_w': [(0, 0.5)]},
    }
    with pytest.raises(UserError, match="custom_hooks=\\[dict\\(type='CollaFactorHook'\\)\\]"):
        colla.from_logs(tmp_path / 'nothing')


def test_the_figures_draw_these_numbers(tmp_path):
    models = [colla.from_checkpoint(save(Net(), tmp_path / f'{n}.pth')) for n in 'ab']
    figure = colla_figure.against_depth(models)
    lines = [axis.get_lines() for axis in figure.axes]
    assert [len(found) for found in lines] == [2 + 1, 3 + 1, 3 + 1] * 2  # and where they start
    drawn = lines[4][1].get_ydata()  # model b, channel, beta
    assert list(drawn) == [models[1].gates[name]['C_beta'] for name in PATHS]
    assert [t.get_text() for t in figure.axes[3].get_xticklabels()] == ['0', '1']
    course = colla.Course('a', {'x.0.cat': {'C_w': [(0, 0.5), (5, 0.6)]}, 'x.1.cat': {}})
    axis, bar = colla_figure.over_training([course]).axes
    assert [list(line.get_ydata()) for line in axis.get_lines()] == [[0.5, 0.6], [], [0.5, 0.5]]
    assert [t.get_text() for t in bar.get_yticklabels()] == ['0', '1']


def test_labels():
    digits = 'work_dirs/digits/resnet18-cat_digits'
    assert colla.label_of(f'{digits}/seed3/epoch_9.pth') == 'resnet18-cat_digits, seed3'
    assert (
        colla.label_of(f'{digits}/20260101_000000/vis_data/scalars.json') == 'resnet18-cat_digits'
    )
    assert colla.label_of('mine.pth') == 'mine'


def test_cats_that_differ_are_not_drawn_as_one(tmp_path):
    cats = [dict(type='CAT', pools=['avg']), dict(type='mmengine.CAT')]
    cfg = Config(dict(model=dict(plugins=[dict(cfg=cat) for cat in cats])))
    with pytest.raises(UserError, match='differ in pools'):
        colla.from_checkpoint(save(Net(), tmp_path / 'a.pth', cfg.pretty_text))
