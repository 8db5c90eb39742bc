"""CIFAR-100, in its Python form."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mmattn import pickles

from .archives import Archive
from .counts import Count, count, nothing
from .parts import Part, under

FOLDER = 'cifar-100-python'
ARCHIVE = Archive(
    f'{FOLDER}.tar.gz',
    'https://www.cs.toronto.edu/~kriz/cifar.html',
    'eb9058c3a382ffc7106e4002c42a8d85',
    169001437,
)
PARTS = (
    Part(
        f'cifar100/{FOLDER}',
        (ARCHIVE,),
        under(f'{FOLDER}/'),
        (f'cifar100/{FOLDER}', FOLDER),
        ('train', 'test', 'meta'),
    ),
)


def load(path: str | Path) -> Mapping[str, Any]:
    """Reads a file of CIFAR's, which is a pickle, without running what a forged one would run.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is no such file, or asks for anything but arrays.
    """
    try:
        found = pickles.load_file(path)
    except pickles.UnknownNames as error:
        raise ValueError(f'{path} is no file of CIFAR (it asks for {error})') from error
    except pickles.PickleError as error:
        raise ValueError(f'{path} is no file of CIFAR ({error})') from error
    if not isinstance(found, dict):
        raise ValueError(f'{path} is no file of CIFAR')
    return found


def count_images(root: Path) -> list[Count]:
    """The labels of train and test."""
    counts = []
    for split in ('train', 'test'):
        label = f'CIFAR-100 {split}'
        path = root / 'cifar100' / FOLDER / split
        if not path.is_file():
            counts.append(nothing(label, f'no {path}'))
            continue
        try:
            content = load(path)
            labels, data = content['fine_labels'], content['data']
            if not isinstance(labels, list) or not isinstance(data, np.ndarray):
                raise ValueError('its labels are no list, or its images no array')
        except (ValueError, KeyError) as error:
            counts.append(nothing(label, f'{path} cannot be read ({error})'))
            continue
        names = [str(number) for number in range(len(labels))]
        counts.append(count(label, names, {'image': names[len(data) :]}))
    return counts
