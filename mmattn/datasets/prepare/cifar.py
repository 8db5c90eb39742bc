"""CIFAR-100, in its Python form."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from mmattn.unpickling import ARRAYS, ArrayUnpickler

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


class _Unpickler(ArrayUnpickler):
    """Python 3 wrote the bytes in pickles of an old protocol by `_codecs.encode`."""

    allowed = ARRAYS | {('_codecs', 'encode')}


def load(file: BinaryIO) -> Mapping[str, Any]:
    """Reads a file of CIFAR's, which is a pickle, without running what a forged one would run.

    Raises:
        ValueError: If it is no such file, or asks for anything but arrays.
    """
    try:
        found = _Unpickler(file, encoding='latin1').load()
    except Exception as error:
        raise ValueError(
            f'{getattr(file, "name", "file")} is no file of CIFAR ({error})'
        ) from error
    if not isinstance(found, dict):
        raise ValueError(f'{getattr(file, "name", "file")} is no file of CIFAR')
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
        with open(path, 'rb') as file:
            try:
                content = load(file)
                labels, data = content['fine_labels'], content['data']
            except (ValueError, KeyError) as error:
                counts.append(nothing(label, f'{path} cannot be read ({error})'))
                continue
        lost = [str(number) for number in range(len(data), len(labels))]
        counts.append(count(label, range(len(labels)), {'image': lost}))
    return counts
