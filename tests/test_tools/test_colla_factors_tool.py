"""A training that tells of its gates, and tools/visualization/colla_factors.py on what it told."""

import json
from pathlib import Path

import pytest
from mmengine.registry import VISBACKENDS
from mmengine.visualization import BaseVisBackend

from mmattn.analysis import colla

CONFIG = Path(__file__).parents[2] / 'configs' / 'quickstart' / 'resnet18-cat_digits-cifar.py'
TOOL = 'visualization/colla_factors'
TEXT = f"""
_base_ = '{CONFIG}'
max_epochs = 2
train_cfg = dict(max_epochs=max_epochs, val_begin=3)
param_scheduler = dict(total_steps=max_epochs)
train_dataloader = dict(batch_size=4)
visualizer = dict(vis_backends=[dict(type='LocalVisBackend'), dict(type='Told')])
"""


@pytest.fixture
def told():
    """What a backend such as mmengine's for TensorBoard or W&B is given."""
    found = []

    class Told(BaseVisBackend):
        experiment = None

        def _init_env(self):
            pass

        def add_scalars(self, scalar_dict, step=0, file_path=None, **kwargs):
            found.append((step, dict(scalar_dict)))

    VISBACKENDS.register_module(module=Told, force=True)
    yield found
    VISBACKENDS.module_dict.pop('Told')


def test_a_training_s_factors(run_tool, error_of, told, tmp_path, capsys):
    config = tmp_path / 'cat.py'
    config.write_text(TEXT)
    run = tmp_path / 'run'
    run_tool('train', config, '--log-gates', 2, '--work-dir', run)

    course = colla.from_logs(run)
    assert len(course.gates) == 8
    for factors in course.gates.values():
        assert set(factors) == set(colla.FACTORS)
        assert [step for step, _ in factors['C_w']] == [0, 2, 4, 6]
        assert factors['C_w'][0] == (0, 0.5) and factors['C_w'][-1][1] != 0.5
    last = colla.from_checkpoint(run / 'epoch_2.pth')
    assert list(last.gates) == list(course.gates)
    for name, factors in last.gates.items():
        for factor, value in factors.items():
            assert course.gates[name][factor][-1][1] == pytest.approx(value, abs=1e-6)

    (file,) = run.rglob('vis_data/scalars.json')
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    logged = [(line.pop('step'), line) for line in lines if 'colla/' in str(line)]
    assert logged == [(step, values) for step, values in told if 'colla/' in str(values)]
    stats = [(step, values) for step, values in told if 'gates/' in str(values)]
    assert [step for step, _ in stats] == [2, 4, 6] and len(stats[0][1]) == 24

    capsys.readouterr()
    run_tool(TOOL, run / 'epoch_2.pth', '--out', tmp_path / 'depth.png')
    run_tool(TOOL, '--over-training', run, run, '--labels', 'a', 'b', '--out', tmp_path / 'c.png')
    assert capsys.readouterr().out.split() == [str(tmp_path / 'depth.png'), str(tmp_path / 'c.png')]
    assert 'checkpoint not found' in error_of(TOOL, run)
    assert '--out must end in .png, .jpg, .pdf, .svg, got c.gif' in error_of(
        TOOL, run / 'epoch_2.pth', '--out', 'c.gif'
    )
    assert '1 --labels for 2 runs' in error_of(TOOL, run, run, '--labels', 'a')
    for other in (tmp_path / 'nothing', run / 'epoch_2.pth'):
        assert 'no colla-factors are logged' in error_of(TOOL, '--over-training', other)
