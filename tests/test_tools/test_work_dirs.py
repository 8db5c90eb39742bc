"""Runs of one config with other alternatives, or another start, share no folder."""

import argparse
from pathlib import Path

import pytest

from mmattn.runs import cli

ROOT = Path(__file__).parents[2]
ROW = ROOT / 'configs' / 'cat' / 'retinanet_r50-cat_fpn_4xb2-90k_coco.py'
STEM = f'work_dirs/{ROW.stem}'


def load(*args):
    parser = argparse.ArgumentParser()
    parser.add_argument('config')
    parser.add_argument('--pretrained')
    cli.add_common_arguments(parser)
    return cli.load_config(parser.parse_args([str(ROW), *args]))


@pytest.mark.parametrize(
    'args, folder',
    [
        ([], STEM),
        (['--alternative', 'retinanet-lr-0.005'], f'{STEM}+retinanet-lr-0.005'),
        (['--pretrained', 'x.pth'], f'{STEM}+pretrained'),
        (
            ['--alternative', 'retinanet-lr-0.005', 'pretrained', '--pretrained', 'x.pth'],
            f'{STEM}+pretrained+retinanet-lr-0.005',
        ),
        (['--alternative', 'retinanet-lr-0.005', '--work-dir', 'mine'], 'mine'),
    ],
)
def test_the_default_folder_names_what_was_run(args, folder):
    cfg = load(*args)
    assert cfg.work_dir == folder
    assert (cfg.optim_wrapper.optimizer.lr == 0.005) == ('retinanet-lr-0.005' in args)
