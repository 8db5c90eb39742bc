"""ImageNet-1k (ILSVRC2012), with lists, so that a file that is lost later is missed."""

import io
import os
import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from .archives import Archive, DataError, Member, find, read, write_text
from .counts import Count, count, lines
from .parts import Group, Part, single

PAGE = 'https://image-net.org/challenges/LSVRC/2012/2012-downloads.php'
TRAIN = Archive('ILSVRC2012_img_train.tar', PAGE, '1d675b47d978889d74fa0da5fadfb00e', 147897477120)
VAL = Archive('ILSVRC2012_img_val.tar', PAGE, '29b22e2961454d5413ddabcf34fc5622', 6744924160)
DEVKIT = Archive('ILSVRC2012_devkit_t12.tar.gz', PAGE, 'fa75699e90414af021442c21a62c3abf')
CLASS = re.compile(r'n\d{8}')
CLASSES = 1000


def train_groups(paths: list[Path]) -> list[Group]:
    """One archive a class in the archive: a class is a group, and stays when it is whole."""
    (path,) = paths
    groups = []
    for member in read(path):
        name = member.name.removesuffix('.tar')
        if not CLASS.fullmatch(name) or name == member.name:
            raise DataError(f'{path} holds {member.name!r}, not one n00000000.tar a class')
        # Not by member.open, which ends with this loop.
        groups.append(Group(name, member.size, partial(_class_files, path, name)))
    return groups


def _class_files(path: Path, name: str) -> Iterator[Member]:
    for member in read(path):
        if member.name == f'{name}.tar':
            with member.open() as stream:
                yield from read(stream, f'{path}:{member.name}')
            return


def devkit(path: Path) -> tuple[list[str], list[str]]:
    """What the development kit says.

    Returns:
        tuple: the classes' names (n01440764, ...) in the order of their labels 0...999, and the
        name of the class of each validation image.

    Raises:
        DataError: if it lacks what it should hold.
    """
    try:
        from scipy.io import loadmat
    except ImportError:
        raise DataError("ImageNet's development kit is read by scipy: pip install scipy") from None
    wanted = ('data/meta.mat', 'data/ILSVRC2012_validation_ground_truth.txt')
    found = {}
    for member in read(path):
        for name in wanted:
            if member.name.endswith(name):
                with member.open() as stream:
                    found[name] = stream.read()
    try:
        synsets = loadmat(io.BytesIO(found[wanted[0]]), squeeze_me=True)['synsets']
        # (ILSVRC2012_ID, WNID, words, gloss, num_children, ...): classes have no children
        names = {int(row[0]): str(row[1]) for row in synsets if int(row[4]) == 0}
        of_images = [names[int(number)] for number in found[wanted[1]].split()]
    except Exception as error:
        raise DataError(f'{path} is no development kit of ImageNet ({error!r})') from error
    return sorted(names.values()), of_images


def val_files(paths: list[Path]) -> Iterator[Member]:
    """The validation images in their classes' folders."""
    path, kit = paths
    _, classes = devkit(kit)
    for member in read(path):
        yield Member(
            f'{_class_of(member.name, classes, path)}/{member.name}', member.size, member.open
        )


def _class_of(name: str, classes: Sequence[str], path: Path) -> str:
    number = re.fullmatch(r'ILSVRC2012_val_(\d{8})\.JPEG', name)
    if not number or not 1 <= int(number[1]) <= len(classes):
        raise DataError(
            f'{path} holds {name!r}, not ILSVRC2012_val_00000001.JPEG to {len(classes):08d}'
        )
    return classes[int(number[1]) - 1]


def _trees(split: str) -> tuple[str, ...]:
    places = ('imagenet', '.', 'ILSVRC2012', 'ImageNet', 'ILSVRC/Data/CLS-LOC')
    return tuple(os.path.normpath(f'{place}/{split}') for place in places)


PARTS = (
    Part('imagenet/val', (VAL, DEVKIT), single(val_files), _trees('val'), ('**/*.JPEG',)),
    Part('imagenet/train', (TRAIN,), train_groups, _trees('train'), ('n*/n*.JPEG',)),
)


def finish(root: Path, sources: list[Path]) -> list[str]:
    """Writes meta/train.txt and meta/val.txt, where they are not: `folder/file.JPEG label`.

    mmpretrain reads these instead of looking through 1.3 million files, and a file or folder that
    is lost later does not change the labels of the others.

    Returns:
        list: What kept it from doing so.
    """
    base = root / 'imagenet'
    kit = find(DEVKIT.name, sources)
    classes, of_images = devkit(kit) if kit else ([], [])
    differences = []
    for split in ('train', 'val'):
        path = base / 'meta' / f'{split}.txt'
        if path.exists() or not (base / split).is_dir():
            continue
        files = list(images(base / split))
        flat = [name for name in files if '/' not in name]
        folders = {name.split('/')[0] for name in files if '/' in name}
        if flat and not of_images:
            differences.append(
                f'{base / split} has no folders of classes: {path} can be made with {DEVKIT.name}'
            )
            continue
        known = classes or sorted(folders)
        if (not classes and len(known) != CLASSES) or not folders <= set(known):
            differences.append(
                f'{base / split} has {len(folders)} folders of classes, not the {CLASSES}: '
                f'no {path} was written'
            )
            continue
        labels = {name: label for label, name in enumerate(known)}
        entries = []
        for name in files:
            of_file = name.split('/')[0] if '/' in name else _class_of(name, of_images, path)
            entries.append(f'{name} {labels[of_file]}\n')
        path.parent.mkdir(exist_ok=True)
        write_text(path, ''.join(entries))
    return differences


def images(folder: Path) -> Iterator[str]:
    """The images in a folder and in its folders, relative to it, in order."""
    for name in sorted(os.listdir(folder)):
        if name.endswith('.JPEG'):
            yield name
        elif os.path.isdir(folder / name):
            files = sorted(os.listdir(folder / name))
            yield from (f'{name}/{file}' for file in files if file.endswith('.JPEG'))


def count_images(root: Path) -> list[Count]:
    """The images of the lists."""
    counts = []
    for split in ('train', 'val'):
        listed = [line.rsplit(' ', 1)[0] for line in lines(root / f'imagenet/meta/{split}.txt')]
        folder = root / 'imagenet' / split
        there = set(images(folder)) if folder.is_dir() else set()
        missing = {
            'image': [name for name in listed if name not in there],
            'entry in the list': there.difference(listed),
        }
        counts.append(count(f'ImageNet {split}', listed, missing))
    return counts
