"""Where a gate can go in a config, what it costs there, and the config that is written."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from mmattn.analysis import complexity, placement
from mmattn.attention.gate import Gate

ROOT = Path(__file__).parents[2]
TOOL = ROOT / 'tools' / 'analysis_tools' / 'placement.py'
FCN = ROOT / 'configs' / 'digits' / 'fcn_r18-d8_digits-voc.py'
GATE = dict(type='SE', reduction=4)


@pytest.fixture
def tool(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)

    def run(*args):
        monkeypatch.setattr(sys, 'argv', ['placement.py', *map(str, args)])
        try:
            runpy.run_path(str(TOOL), run_name='__main__')
            code = 0
        except SystemExit as stop:
            code = stop.code
        return code, capsys.readouterr()

    return run


def gates(model):
    return sorted(name for name, m in model.named_modules() if isinstance(m, Gate))


def plain(tmp_path, **backbone):
    """The FCN on the backbone of the codebase itself, or with changes."""
    cfg = dict(_base_=str(FCN), model=dict(backbone=backbone))
    path = tmp_path / 'child.py'
    path.write_text(f'_base_ = {cfg["_base_"]!r}\nmodel = {cfg["model"]!r}\n')
    return Config.fromfile(path)


def test_the_slots_of_a_host():
    pytest.importorskip('mmseg')
    config = Config.fromfile(FCN)
    found, refused = placement.candidates(config, GATE)
    places = [(c.plugin['position'], c.plugin.get('stages')) for c in found]
    one = [tuple(i == stage for i in range(4)) for stage in range(4)]
    positions = ('after_conv1', 'after_conv2', 'after_stage')
    assert places == [(p, s) for p in positions for s in (None, *one)] + [('after_stem', None)]
    assert not refused
    assert found[1].where == 'after_conv1, stage 1' and found[-1].where == 'after_stem'
    assert 'plugins' not in config.model.backbone or not config.model.backbone.plugins  # unchanged


def test_what_it_adds(monkeypatch):
    pytest.importorskip('mmseg')
    config = Config.fromfile(FCN)
    found, _ = placement.candidates(config, GATE)
    chosen = [c for c in found if c.where in ('after_conv2, every stage', 'after_stage, stage 2')]
    first, *rows = placement.measure(config, chosen, (32, 32), batch=2, rounds=2)
    assert first.number == 0 and first.ms > 0 and first.memory > 0
    bare = complexity.build(config)
    assert first.params == sum(p.numel() for p in bare.parameters())
    widths = {16: 4, 32: 4, 64: 4, 128: 4}  # of both convolutions of both blocks of each stage
    assert rows[0].params == sum(2 * 2 * c * (c // r) for c, r in widths.items())
    assert rows[1].params == 2 * 32 * 8
    # A global average of maps of 4 x 4, two products and a ReLU between.
    assert rows[1].flops == 32 * 4 * 4 + 2 * 32 * 8 + 8
    assert all(row.memory > 0 and torch.isfinite(torch.tensor(row.ms)) for row in rows)
    inferred = placement.measure(config, chosen[:1], (32, 32), rounds=1, train=False, clock='cpu')
    assert [row.memory for row in inferred] == [0, 0] and inferred[1].params == rows[0].params


def test_modules_by_name():
    pytest.importorskip('mmseg')
    config = Config.fromfile(FCN)
    found, refused = placement.candidates(config, GATE, ['backbone.layer[12]', 'backbone.conv1'])
    assert [c.plug['at'] for c in found] == ['backbone.conv1', 'backbone.layer1', 'backbone.layer2']
    assert not refused
    model = complexity.build(placement.applied(config, [found[1]]))
    assert gates(model) == ['backbone.layer1.1.se']
    with pytest.raises(ValueError, match='layerr1'):
        placement.candidates(config, GATE, ['backbone.layerr1'])


def test_a_backbone_that_is_no_host_becomes_one(tmp_path):
    """Upstream's has a host of its name; its weights load into it."""
    pytest.importorskip('mmseg')
    config = plain(tmp_path, type='ResNet')
    config.model.backbone.pop('plugins', None)
    assert placement.host_of(config) == 'PluginResNet'
    found, _ = placement.candidates(config, GATE)
    assert placement.changes(config, found[:1])['model']['backbone']['type'] == 'PluginResNet'


def test_a_gate_that_fits_nowhere():
    pytest.importorskip('mmseg')
    config = Config.fromfile(FCN)
    with pytest.raises(ValueError, match="no place for .*: .*unknown argument 'ratio'") as info:
        placement.candidates(config, dict(type='SE', ratio=4))
    assert str(info.value).count('ratio') == 2  # of the gate, and one reason for all places


def test_a_config_of_the_chosen(tool, tmp_path):
    pytest.importorskip('mmseg')
    args = (FCN, '--gate', 'SE', 'reduction=4', '--start', 'identity')
    code, said = tool(*args, '--choose', 6, 12, '--write', 'new/child.py')
    assert code == 0, said.err
    assert said.out == 'new/child.py\n'
    child = Config.fromfile('new/child.py')
    entry = dict(cfg=GATE, position='after_conv2', start='identity')
    stage = dict(cfg=GATE, position='after_stage', stages=(True, False, False, False))
    assert [dict(p) for p in child.model.backbone.plugins] == [entry, dict(stage, start='identity')]
    assert 'plug' not in child
    model = complexity.build(child)
    assert len(gates(model)) == 8 + 1
    assert child.train_cfg == Config.fromfile(FCN).train_cfg
    # By inheritance: it says the gates alone.
    assert 'optim_wrapper' not in Path('new/child.py').read_text()
    code, said = tool(*args, '--choose', 1, '--write', 'new/child.py')
    assert code == 2 and said.err.count('\n') == 1 and 'exists' in said.err
    # What the base has stays, before what is new.
    code, said = tool(
        'new/child.py', '--gate', 'ECA', '--at', 'backbone.layer4', '--choose', 1, '--write', 'b.py'
    )
    assert code == 0, said.err
    both = Config.fromfile('b.py')
    assert len(both.model.backbone.plugins) == 2
    assert [dict(entry) for entry in both.plug] == [
        dict(cfg=dict(type='ECA'), at='backbone.layer4')
    ]
    assert len(gates(complexity.build(both))) == 10


def test_the_table_is_sorted(tool):
    pytest.importorskip('mmseg')
    args = (FCN, '--gate', 'SE', '--at', 'backbone.layer*', '--size', 32, 32, '--rounds', 1)
    code, said = tool(*args, '--sort', 'params')
    assert code == 0, said.err
    lines = said.out.splitlines()
    assert len(lines) == 2 + 1 + 4 and 'the config as it is' in lines[2]
    numbers = [line.split('|')[1].strip() for line in lines[3:]]
    assert numbers == ['1', '2', '3', '4']  # as wide as the stage is deep
    code, said = tool(*args, '--format', 'json', '--sort', 'ms', '--infer')
    rows = json.loads(said.out)['rows']
    assert [row['ms'] for row in rows[1:]] == sorted(row['ms'] for row in rows[1:])


@pytest.mark.parametrize(
    'args, message',
    (
        (('none.py', '--gate', 'SE'), 'no such file'),
        ((FCN, '--gate', 'SE', '--choose', 1), '--choose and --write go together'),
        ((FCN, '--gate', 'SE', '--batch', 0), 'must be at least 1'),
        ((FCN, '--gate', 'SE', 'reduction'), "--gate: 'reduction' must be NAME=VALUE"),
        ((FCN, '--gate', 'SEE'), 'no such type is registered'),
        ((FCN, '--gate', 'SE', '--start', 'one'), "'one'"),
        ((FCN, '--gate', 'SE', '--choose', 99, '--write', 'x.py'), 'the numbers 1 to 16, got 99'),
        ((ROOT / 'configs/_base_/mmseg_runtime.py', '--gate', 'SE'), 'is no config of a model of'),
    ),
)
def test_mistakes(tool, args, message):
    pytest.importorskip('mmseg')
    code, said = tool(*args)
    assert code == 2 and message in said.err and not said.out
    assert 'Traceback' not in said.err
