"""--data-root and MMATTN_DATA move all data sets of all configs at once."""

import argparse
import os

import pytest

from mmattn.papers import config_root
from mmattn.papers.trial import config_paths
from mmattn.runs import quickstart
from mmattn.runs.cli import UserError, add_common_arguments, load_config


def load(config, *args):
    parser = argparse.ArgumentParser()
    parser.add_argument('config')
    add_common_arguments(parser)
    return load_config(parser.parse_args([str(config), *map(str, args)]))


def paths(item):
    """All paths below a config's loaders and evaluators."""
    if isinstance(item, dict):
        return [path for value in item.values() for path in paths(value)]
    if isinstance(item, (list, tuple)):
        return [path for value in item for path in paths(value)]
    return [item] if isinstance(item, str) and '/' in item else []


def roots(cfg):
    names = ('train_dataloader', 'val_dataloader', 'test_dataloader', 'val_evaluator')
    return {path for name in names for path in paths(cfg[name]) if 'data' in path.split('/')[:-1]}


ONE_OF_EACH = {path.rsplit('_', 1)[-1]: path for path in config_paths()}


@pytest.mark.parametrize('path', ONE_OF_EACH.values(), ids=ONE_OF_EACH)
def test_every_data_set_moves(path, tmp_path, monkeypatch):
    config = config_root() / path
    monkeypatch.delenv('MMATTN_DATA', raising=False)
    before = roots(load(config))
    assert before and all(root.startswith('data/') for root in before)
    root = tmp_path / 'data'
    root.mkdir()
    wanted = {f'{tmp_path}/{place}' for place in before}
    assert roots(load(config, '--data-root', root)) == wanted
    monkeypatch.setenv('MMATTN_DATA', str(root))
    assert roots(load(config)) == wanted
    # the argument wins, and what is given by name wins over both
    assert roots(load(config, '--data-root', root)) == wanted
    option = 'val_dataloader.dataset.data_root=data/mine'
    assert load(config, '--cfg-options', option).val_dataloader.dataset.data_root == 'data/mine'


def test_home_and_other_paths(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    (tmp_path / 'sets').mkdir()
    config = tmp_path / 'config.py'
    config.write_text(
        "train_dataloader = dict(dataset=dict(data_root='data', ann_file='database/x.txt'))\n"
        "model = dict(init_cfg=dict(checkpoint='data/weights.pth'))\n"
    )
    cfg = load(config, '--data-root', '~/sets')
    assert cfg.train_dataloader.dataset.data_root == f'{tmp_path}/sets'
    assert cfg.train_dataloader.dataset.ann_file == 'database/x.txt'
    assert cfg.model.init_cfg.checkpoint == 'data/weights.pth'


def test_a_folder_that_is_not_there(tmp_path, monkeypatch):
    config = config_root() / config_paths()[0]
    with pytest.raises(UserError, match=f'^--data-root: there is no folder {tmp_path}/gone$'):
        load(config, '--data-root', tmp_path / 'gone')
    monkeypatch.setenv('MMATTN_DATA', f'{tmp_path}/gone')
    with pytest.raises(UserError, match=f'^MMATTN_DATA: there is no folder {tmp_path}/gone$'):
        load(config)


def test_the_quickstart_reads_its_own_digits(tmp_path, monkeypatch):
    monkeypatch.setenv('MMATTN_DATA', str(tmp_path))
    log = tmp_path / 'log'
    quickstart.run(['env'], log)
    assert 'MMATTN_DATA' not in log.read_text() and os.environ['MMATTN_DATA']
