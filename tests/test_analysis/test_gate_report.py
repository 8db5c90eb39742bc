"""The gate report's numbers, on a network small enough to count them once more."""

import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from torch import nn

from mmattn.analysis import gate_report
from mmattn.analysis.gates import gates_of
from mmattn.attention import CAT, SE
from mmattn.runs.errors import UserError


class Block(nn.Module):
    """Twice the map, less a third of its mean: no gate of ours."""

    def forward(self, x):
        return 2 * x - x.mean() / 3


class Net(nn.Module):
    """What `Trial` asks of a classifier."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 3), SE(8, 2), CAT(8, 2), Block())
        self.foreign = self.backbone[3]
        with torch.no_grad():
            for parameter in self.backbone[2].parameters():
                parameter.normal_()
            for parameter in self.backbone[1].parameters():
                parameter.zero_()  # so it multiplies by 1/2

    def _plugin_modules(self):
        return [(None, self.foreign)]


class Trial(gate_report.Trial):
    """Batches of tensors; the metric is the mean of the features."""

    def __init__(self, model, batches):
        self.model, self.batches, self.metric = model, batches, 'mean'

    images = 6

    def run(self, after_batch=lambda: None):
        MMLogger.get_current_instance().info('a table of classes')
        features = []
        with torch.no_grad():
            for batch in self.batches:
                features.append(self.model.backbone(batch).flatten(1))
                after_batch()
        return float(torch.cat(features).mean()), features


@pytest.fixture
def trial():
    return Trial(Net().eval(), [torch.randn(3, 3, 9, 7) for _ in range(2)])


def test_means_and_spreads_are_those_of_the_gates(trial):
    whole = gate_report.report(trial)
    assert [row.kind for row in whole.rows] == ['SE', 'CAT', 'Block']
    se, cat, block = whole.rows
    assert (se.mean, se.spread, se.output) == pytest.approx((0.5, 0, 0), abs=1e-6)
    assert se.metric == pytest.approx(whole.value) and se.change == pytest.approx(0, abs=1e-6)

    conv, half, gate, _ = trial.model.backbone
    with torch.no_grad():
        x = half(conv(torch.cat(trial.batches)))
        g = gate(x) / x
    assert cat.mean == pytest.approx(float(g.mean()), rel=1e-4)
    assert cat.spread == pytest.approx(float(g.std(correction=0)), rel=1e-4)
    by_channel = g.mean((2, 3))
    assert cat.channels == pytest.approx(float(by_channel.mean(0).std(correction=0)), rel=1e-4)
    pictures = by_channel.var(0, correction=0).mean().sqrt()
    assert cat.pictures == pytest.approx(float(pictures), rel=1e-4)
    positions = g.mean(1).var((1, 2), correction=0).mean().sqrt()
    assert cat.positions == pytest.approx(float(positions), rel=1e-4)


def test_a_gate_is_replaced_by_its_mean_of_each_channel(trial):
    whole = gate_report.report(trial)
    conv, half, gate, block = trial.model.backbone
    with torch.no_grad():
        x = half(conv(torch.cat(trial.batches)))
        means = (gate(x) / x).mean((0, 2, 3))
        right, wrong = [], []
        for batch in x.split(3):
            right.append(block(gate(batch)).flatten(1))
            wrong.append(block(batch * means[:, None, None]).flatten(1))
    right, wrong = torch.cat(right), torch.cat(wrong)
    moved = ((wrong - right).norm(dim=1) / right.norm(dim=1)).mean()
    row = whole.rows[1]
    assert row.output == pytest.approx(float(moved), rel=1e-3) and row.output > 0.01
    assert row.metric == pytest.approx(float(wrong.mean()), rel=1e-4)
    assert row.change == pytest.approx(float(wrong.mean() - right.mean()), rel=1e-3, abs=1e-6)


def test_a_foreign_gate_is_replaced_by_what_fits_it(trial):
    whole = gate_report.report(trial)
    row = whole.rows[2]
    assert row.mean == pytest.approx(2, rel=0.2) and row.identity is None
    assert 0 < row.output < 0.2


def test_nothing_is_left_behind(trial, capsys):
    level = MMLogger.get_current_instance().level
    gate_report.report(trial)
    assert 'table of classes' not in ''.join(capsys.readouterr())
    assert MMLogger.get_current_instance().level == level
    for place in gates_of(trial.model):
        assert not place.module._forward_hooks and not place.module._forward_pre_hooks
    assert trial.model.backbone[2].impl is None


def test_tables(trial):
    text = gate_report.markdown(gate_report.report(trial))
    lines = text.splitlines()
    assert lines[0].startswith('6 pictures: mean ')
    assert len({len(line) for line in lines[2:]}) == 1 and len(lines) == 2 + 2 + 3 + 1
    assert lines[-1].startswith('| all replaced ')
    whole = gate_report.Whole(2, None, None, [gate_report.Report('a', 'SE', *[0.5] * 5, [0, 1, 2])])
    text = gate_report.markdown(whole)
    assert '1.000 (0.000 to 2.000)' in text and 'change' not in text


def test_refusals():
    with pytest.raises(UserError, match='the model has no gates'):
        gate_report.report(Trial(nn.Module(), []))
    with pytest.raises(UserError, match='no test_dataloader'):
        gate_report.Trial(Config(dict()), nn.Module())
    cfg = Config(
        dict(
            test_dataloader=dict(dataset=dict(type='X', pipeline=[])),
            test_evaluator=dict(type='CocoMetric'),
        )
    )
    with pytest.raises(UserError, match='CocoMetric evaluates on all pictures'):
        gate_report.Trial(cfg, nn.Module(), images=3)
