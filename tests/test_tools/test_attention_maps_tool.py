"""tools/visualization/attention_maps.py on the quickstart's digits."""

from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config

from mmattn.analysis import pictures

ROOT = Path(__file__).parents[2]
TOOL = 'visualization/attention_maps'
CONFIGS = ROOT / 'configs' / 'quickstart'
CAT = CONFIGS / 'resnet18-cat_digits-cifar.py'
FCN = CONFIGS / 'fcn_r18-d8-drtam-pool_digits-voc.py'
DETECTOR = CONFIGS / 'retinanet_r18-cat_fpn_digits-coco.py'


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    """A checkpoint of a config's fresh model: `saved(CONFIG)`."""
    folder, found = tmp_path_factory.mktemp('checkpoints'), {}

    def make(config):
        if config not in found:
            from mmengine.registry import MODELS

            cfg = Config.fromfile(config)
            pictures.enter_scope(cfg)
            model = MODELS.build(cfg.model)
            found[config] = folder / f'{config.stem}.pth'
            torch.save(
                dict(state_dict=model.state_dict(), meta=dict(cfg=cfg.pretty_text)), found[config]
            )
        return found[config]

    return make


def test_a_classifier_s_pictures(run_tool, saved, tmp_path, capsys):
    run_tool(TOOL, CAT, saved(CAT), 'test:1', 'flower', '--size', 40, 48, '--out', tmp_path)
    assert capsys.readouterr().out.split() == [
        str(tmp_path / 'test-1.png'), str(tmp_path / 'flower.png'),
    ]  # fmt: skip
    gates = {path.name for path in (tmp_path / 'test-1').iterdir()}
    assert gates == {f'backbone.layer{n}.0.cat' for n in (1, 2, 3, 4)}
    maps = np.load(tmp_path / 'flower' / 'backbone.layer1.0.cat' / 'maps.npz')
    assert maps['s_ent'].shape == (40, 48) and maps['c'].shape == (16,)
    files = {path.name for path in (tmp_path / 'flower' / 'backbone.layer1.0.cat').iterdir()}
    assert {'s_neg.png', 'c_ent.png', 'gate.png', 'gate_overlay.png'} <= files


def test_two_codebases_side_by_side(run_tool, saved, tmp_path):
    wide = (FCN, saved(FCN), 'china', '--compare', DETECTOR, saved(DETECTOR))
    run_tool(TOOL, *wide, '--stages', 1, 4, '--titles', 'FCN', 'RetinaNet', '--out', tmp_path)
    folders = {path.name for path in (tmp_path / 'china').iterdir()}
    assert folders == {'1-FCN', '2-RetinaNet'}
    run_tool(TOOL, *wide, '--gates', '*4*', '--maps', 'gate', '--no-parts', '--out', tmp_path / 'b')
    assert [path.name for path in (tmp_path / 'b').iterdir()] == ['china.png']


def test_a_picture_is_what_the_file_holds(workspace, tmp_path):
    """In RGB, whether the model takes BGR from a file or RGB from an array."""
    from PIL import Image

    red = np.zeros((32, 32, 3), np.uint8)
    red[..., 0] = 200
    Image.fromarray(red).save(tmp_path / 'red.png')
    for config in (CAT, FCN):
        cfg = Config.fromfile(config)
        pictures.enter_scope(cfg)
        found = pictures.picture(cfg, str(tmp_path / 'red.png'))
        assert (
            found.name == 'red' and found.rgb[..., 0].min() == 200 and not found.rgb[..., 1].any()
        )
    cfg = Config.fromfile(CAT)
    pictures.enter_scope(cfg)
    inputs = pictures.picture(cfg, str(tmp_path / 'red.png')).data['inputs'][0]
    assert inputs[0].min() == 200  # as CIFAR's arrays


@pytest.mark.parametrize(
    'args, words',
    [
        (['nothing.jpg'], 'no such picture: nothing.jpg; allowed: a file, china, flower, test:N'),
        ([str(ROOT / 'setup.py')], 'setup.py is no picture that can be read'),
        (['china', '--size', '0', '5'], 'the size of a picture must be 1 or more, got 0 5'),
        (['test:99'], 'test:99: the test set has 4 pictures'),
        (['china', '--stages', '9'], 'no gate is in stage 9; gates are in the stages 1, 2, 3, 4'),
        (['china', '--maps', 'heat'], 'no map is called heat'),
        (['china', '--gates', 'neck.*'], 'no gate is called neck.*'),
        (['china', '--titles', 'a', 'b'], '2 --titles for 1 models'),
        (['china', '--compare', 'nothing.py', 'x.pth'], 'not found'),
    ],
)
def test_mistakes(error_of, saved, tmp_path, args, words):
    assert words in error_of(TOOL, CAT, saved(CAT), *args, '--out', tmp_path)


def test_what_cannot_be_written_to_is_said_first(error_of, tmp_path):
    (tmp_path / 'file').touch()
    for out in (tmp_path / 'file', tmp_path / 'file' / 'below'):
        line = error_of(TOOL, CAT, __file__, 'china', '--out', out)
        assert line.startswith(f'error: cannot write to the folder {out}: ')


def test_two_pictures_of_one_name(run_tool, saved, tmp_path, capsys):
    from PIL import Image

    files = [tmp_path / name / 'a.png' for name in ('one', 'two')]
    for file in files:
        file.parent.mkdir()
        Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(file)
    out = tmp_path / 'out'
    run_tool(TOOL, CAT, saved(CAT), *files, '--stages', 1, '--maps', 'gate', '--out', out)
    assert {path.name for path in out.iterdir()} == {'a.png', 'a', 'a-2.png', 'a-2'}


def test_a_checkpoint_of_another_model(error_of, saved, tmp_path):
    line = error_of(TOOL, CAT, saved(FCN), 'china', '--out', tmp_path)
    assert 'does not fit the config' in line and 'missing or of another shape' in line
    assert 'checkpoint not found' in error_of(TOOL, CAT, 'nothing.pth', 'china')
