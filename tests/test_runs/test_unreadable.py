"""Images that cannot be read are left out of a training and listed; many of them stop it."""

from pathlib import Path

import numpy as np
import pytest
import torch
import toy
from mmcv.transforms import LoadImageFromFile
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS, TRANSFORMS
from PIL import Image

from mmattn.runs import unreadable
from mmattn.runs.errors import UserError


class Mean:
    """Makes a sample of the toy of an image."""

    def __call__(self, results):
        if results['img_path'].endswith('fault.png'):
            raise ValueError('a fault')
        value = np.float32(results['img'].mean())
        return dict(
            inputs=torch.full((4,), float(value)), data_samples=toy.Sample(results['sample_idx'])
        )


class Images(BaseDataset):
    def load_data_list(self):
        folder = Path(self.data_root)
        return [dict(img_path=str(path)) for path in sorted(folder.glob('*.png'))]


DATASETS.register_module(name='ToyImages', module=Images, force=True)
TRANSFORMS.register_module(name='ToyLoad', module=LoadImageFromFile, force=True)
TRANSFORMS.register_module(name='ToyMean', module=Mean, force=True)


@pytest.fixture
def train(tmp_path):
    """Trains on 20 images of which some are spoilt, two epochs."""

    def run(*bad, workers=0, names='{:02}.png', **more):
        folder = tmp_path / 'images'
        folder.mkdir()
        for number in range(20):
            path = folder / names.format(number)
            Image.new('RGB', (8, 8), (number * 10, 0, 0)).save(path)
            if number in bad:
                path.write_bytes(b'\x89PNG\r\n\x1a\n' + bytes(50))
        cfg = toy.config(tmp_path / 'work', epochs=2, **more)
        cfg['train_dataloader'].update(
            num_workers=workers,
            dataset=dict(
                type='ToyImages',
                data_root=str(folder),
                pipeline=[dict(type='ToyLoad'), dict(type='ToyMean')],
            ),
        )
        trained, said = toy.runner(cfg), []
        trained.logger.warning = said.append
        trained.train()
        return trained, said, unreadable.read(tmp_path / 'work' / unreadable.NAME)

    return run


@pytest.mark.parametrize('workers', [0, 2])
def test_left_out_and_listed_once(train, tmp_path, workers):
    run, said, noted = train(3, 4, 19, workers=workers)
    assert run.iter == 20
    paths = {str(tmp_path / 'images' / f'{number:02}.png') for number in (3, 4, 19)}
    assert noted.keys() == paths
    assert {text.split(': ')[1].split(' ')[0] for text in said if 'left out, as' in text} == paths
    assert said[-1].startswith('3 images could not be read and were left out, see ')


def test_too_many_stop_the_training(train, tmp_path):
    with pytest.raises(UserError) as stopped:
        train(2, 5, 8, max_unreadable=2)
    message = str(stopped.value)
    assert message.startswith('3 images cannot be read, more than the 2 allowed (--max-unreadable)')
    assert str(tmp_path / 'images') in message and unreadable.NAME in message


def test_too_many_in_a_row_stop_it_too(train):
    with pytest.raises(
        UserError, match='10 images in a row cannot be read, the last of them .*png'
    ):
        train(*range(20), max_unreadable=100)


def test_faults_of_other_transforms_are_faults(train):
    with pytest.raises(ValueError, match='a fault'):
        train(names='{:02}fault.png')


def test_another_takes_the_same_place(tmp_path):
    """What comes instead does not depend on what was read before."""
    report = tmp_path / 'report'

    class Load:
        def __call__(self, index):
            if index in (4, 9, 0):
                raise OSError('broken')
            return index

    class Data:
        def __len__(self):
            return 10

        def get_data_info(self, index):
            return {}

    assert unreadable.first_readable(Data(), Load(), 4, report) == 5
    assert unreadable.first_readable(Data(), Load(), 9, report) == 1
    assert unreadable.read(report) == {f'sample {index}': 'OSError: broken' for index in (4, 9, 0)}
    with open(report, 'a') as file:
        file.write('{"path": "cut o')
    assert len(unreadable.read(report)) == 3
