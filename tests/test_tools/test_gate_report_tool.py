"""tools/analysis_tools/gate_report.py on the quickstart's digits."""

import json
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from mmattn.analysis.pictures import enter_scope
from mmattn.runs import plain_config

CONFIG = Path(__file__).parents[2] / 'configs' / 'quickstart' / 'resnet18-cat_digits-cifar.py'
TOOL = 'analysis_tools/gate_report'


@pytest.fixture(autouse=True)
def restricted(monkeypatch):
    """It would hold for the life of this process, which is not the tool's own."""
    calls = []
    monkeypatch.setattr(plain_config, 'restrict', lambda: calls.append(True))
    return calls


@pytest.fixture
def save(tmp_path):
    def make(text=None):
        from mmengine.registry import MODELS

        cfg = Config.fromfile(CONFIG)
        enter_scope(cfg)
        path = tmp_path / 'model.pth'
        text = cfg.pretty_text if text is None else text
        state = MODELS.build(cfg.model).state_dict()
        torch.save(dict(state_dict=state, meta=dict(cfg=text)), path)
        return path

    return make


def test_from_the_checkpoint_alone(run_tool, save, capsys, tmp_path, restricted):
    run_tool(TOOL, save(), '--out', tmp_path / 'report.json')
    found = json.loads((tmp_path / 'report.json').read_text())
    assert (found['images'], found['metric'], len(found['rows'])) == (4, 'accuracy/top1', 8)
    assert {row['kind'] for row in found['rows']} == {'CAT'}
    assert all(row['change'] == row['metric'] - found['value'] for row in found['rows'])
    assert restricted == [True]


def test_with_a_config_and_without_a_metric(run_tool, save, capsys, restricted):
    run_tool(TOOL, save('nothing of use'), CONFIG, '--no-metric', '--images', 2)
    out = capsys.readouterr().out
    assert out.startswith('2 pictures\n') and 'accuracy' not in out and not restricted
    assert out.count('| CAT ') == 8 and '| all replaced' in out


@pytest.mark.parametrize(
    'text, words',
    [
        ('import os', 'its config:1: Import; allowed: assignments of literals'),
        ("model = dict(type='os.system', command='id')", "type 'os.system' could be anything"),
        ('', 'carries no config: give one'),
    ],
)
def test_a_config_inside_is_data(error_of, save, text, words):
    assert words in error_of(TOOL, save(text))


@pytest.mark.parametrize(
    'args, words',
    [
        (['--images', 0], '--images must be 1 or more, got 0'),
        (['--out', 'report.txt'], '--out must end in .json or .md'),
        (['--metric', 'mIoU'], 'no metric is called mIoU; the evaluator gives accuracy/top1'),
    ],
)
def test_mistakes(error_of, save, args, words):
    assert words in error_of(TOOL, save(), *args)
