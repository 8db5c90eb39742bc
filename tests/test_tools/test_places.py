import importlib.util
from pathlib import Path

import pytest

pytest.importorskip('mmpretrain')
ROOT = Path(__file__).parents[2]

CONFIG = """
default_scope = 'mmpretrain'
model = dict(
    type='ImageClassifier',
    backbone=dict(type='ConvNeXt', arch=dict(depths=[1, 1, 1, 1], channels=[8, 8, 16, 16])),
    neck=None,
    head=dict(type='LinearClsHead', num_classes=4, in_channels=16))
"""


@pytest.fixture(scope='module')
def tool():
    path = ROOT / 'tools' / 'analysis_tools' / 'places.py'
    spec = importlib.util.spec_from_file_location('places_tool', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def config(tmp_path):
    path = tmp_path / 'convnext.py'
    path.write_text(CONFIG)
    return str(path)


def test_lists_places(tool, config, capsys):
    tool.main([config, '--list', 'backbone.stages.*'])
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        f'backbone.stages.{i} (Sequential): {c} NCHW' for i, c in enumerate((8, 8, 16, 16))
    ]
    tool.main([config, '--list', 'backbone', 'head', '--all'])
    out = capsys.readouterr().out
    assert 'head (LinearClsHead): gives (2, 4) for a batch of 2, no map or grid' in out


def test_errors_are_a_line(tool, config, capsys):
    for argv, message in (
        ([config, '--list', 'backbone.stage.*'], 'near it: backbone.stages'),
        ([config, '--list', 'head'], '--all says why'),
        (['none.py'], 'no such file'),
    ):
        with pytest.raises(SystemExit) as ended:
            tool.main(argv)
        assert ended.value.code == 2
        said = capsys.readouterr().err
        assert message in said
        assert 'no such file' in said or (said.startswith('error: ') and said.count('\n') == 1)
