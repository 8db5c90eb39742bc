"""Pascal VOC 2007 and 2012, and SBD's masks, which with them are "voc12aug"."""

import io
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from .archives import Archive, DataError, Member, read, write_text
from .counts import Count, count, lines, stems
from .parts import Part, link, single, under

PAGE = 'http://host.robots.ox.ac.uk/pascal/VOC'
TRAINVAL_2007 = Archive(
    'VOCtrainval_06-Nov-2007.tar',
    f'{PAGE}/voc2007/',
    'c52e279531787c972589f7e41ab4ae64',
    460032000,
)
TEST_2007 = Archive(
    'VOCtest_06-Nov-2007.tar', f'{PAGE}/voc2007/', 'b6e924de25625d8de591ea690078ad9f', 451020800
)
TRAINVAL_2012 = Archive(
    'VOCtrainval_11-May-2012.tar',
    f'{PAGE}/voc2012/',
    '6cd6e144f989b92b3379bac3b3de84fd',
    1999639040,
)
SBD = Archive(
    'benchmark.tgz',
    'http://home.bharathh.info/pubs/codes/SBD/download.html',
    '82b4d87ceb2ed10f6038a1cba92111cb',
    1419539633,
)
# What files are for, where they lie by the list's name, how their names end.
Kind = tuple[str, Callable[[str], str], str]

AUG = 'VOCdevkit/VOC2012/SegmentationClassAug'


def link_year(tree: Path, target: Path) -> None:
    """A year that the user has unpacked: links, in folders of ours where lists are added."""
    target.mkdir()
    for path in tree.iterdir():
        if path.name != 'ImageSets':
            link(path, target / path.name)
    for path in (tree / 'ImageSets').glob('*/*'):
        place = target / path.relative_to(tree)
        place.parent.mkdir(parents=True, exist_ok=True)
        link(path, place)


def _year(year: int, *archives: Archive) -> Part:
    name = f'VOC{year}'
    return Part(
        target=f'VOCdevkit/{name}',
        archives=archives,
        groups=under(f'VOCdevkit/{name}/'),
        trees=(f'VOCdevkit/{name}', name, f'voc/VOCdevkit/{name}', f'VOC/VOCdevkit/{name}'),
        proof=('JPEGImages', 'ImageSets/*/*.txt'),
        link=link_year,
    )


def mask_files(paths: list[Path]) -> Iterator[Member]:
    """SBD's masks as PNGs, of the archive or of a folder of .mat files."""
    for path in paths:
        for member in read(path):
            folder, _, name = member.name.rpartition('/')
            if name.endswith('.mat') and (path.is_dir() or folder.endswith('dataset/cls')):
                yield Member(f'{name[:-4]}.png', member.size, partial(_png, member))


def _png(member: Member) -> BinaryIO:
    """A .mat as the PNG of its class numbers, 0...20, which the toolbox' converter makes of it."""
    try:
        from scipy.io import loadmat
    except ImportError:
        raise DataError("SBD's .mat files are read by scipy: pip install scipy") from None
    with member.open() as stream:
        content = io.BytesIO(stream.read())
    try:
        mask = np.asarray(loadmat(content)['GTcls'][0]['Segmentation'][0])
    except Exception as error:
        raise DataError(f'{member.name} is no mask of SBD ({error})') from error
    if mask.ndim != 2 or mask.max(initial=0) > 20:
        raise DataError(f'{member.name}: class numbers 0...20 expected, got {mask.max()}')
    png = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8)).save(png, 'PNG')
    png.seek(0)
    return png


VOC2007 = _year(2007, TRAINVAL_2007, TEST_2007)
VOC2012 = _year(2012, TRAINVAL_2012)
MASKS = Part(
    target=AUG,
    archives=(SBD,),
    groups=single(mask_files),
    trees=('benchmark_RELEASE/dataset/cls', 'VOCdevkit/VOCaug/dataset/cls', 'VOCaug/dataset/cls'),
    proof=('*.mat',),
    link=None,
)


def finish_masks(root: Path, sources: list[Path]) -> list[str]:
    """Writes aug.txt and trainaug.txt: the masks that are of no image of VOC's own train or val."""
    folder = root / 'VOCdevkit/VOC2012/ImageSets/Segmentation'
    if not (root / AUG).is_dir() or not folder.is_dir():
        return []
    train, val = lines(folder / 'train.txt'), lines(folder / 'val.txt')
    aug = sorted(stems(root / AUG, '.png') - set(train) - set(val))
    differences = []
    for name, wanted in (('aug.txt', aug), ('trainaug.txt', train + aug)):
        path = folder / name
        if not path.exists():
            write_text(path, ''.join(f'{line}\n' for line in wanted))
        elif set(lines(path)) != set(wanted):
            differences.append(
                f'{path} was there and is left as it is: it has {len(lines(path))} entries, '
                f'{len(wanted)} fit the masks in {AUG}'
            )
    return differences


def _split(
    root: Path, label: str, lists: Sequence[tuple[int, str]], kinds: Sequence[Kind]
) -> Count:
    """Counts lists [(year, file, ...)] whose images and annotations are there."""
    names, missing = [], {kind: [] for kind, *_ in kinds}
    for year, file in lists:
        folder = root / f'VOCdevkit/VOC{year}'
        entries = lines(folder / f'ImageSets/{file}.txt')
        names += [f'VOC{year}/{name}' for name in entries]
        for kind, place, suffix in kinds:
            there = stems(folder / place(file), suffix)
            missing[kind] += [f'VOC{year}/{name}' for name in entries if name not in there]
    return count(label, names, missing)


def count_detection(root: Path) -> list[Count]:
    """VOC07+12 trainval and VOC07 test."""
    kinds = (
        ('image', lambda file: 'JPEGImages', '.jpg'),
        ('annotation', lambda file: 'Annotations', '.xml'),
    )
    train = [(2007, 'Main/trainval'), (2012, 'Main/trainval')]
    return [
        _split(root, 'VOC07+12 trainval', train, kinds),
        _split(root, 'VOC07 test', [(2007, 'Main/test')], kinds),
    ]


def count_segmentation(root: Path) -> list[Count]:
    """VOC12 train with SBD's masks, and VOC12 val."""

    def masks(file: str) -> str:
        return os.path.basename(AUG if file.endswith('aug') else 'SegmentationClass')

    kinds = (('image', lambda file: 'JPEGImages', '.jpg'), ('mask', masks, '.png'))
    train = [(2012, 'Segmentation/train'), (2012, 'Segmentation/aug')]
    return [
        _split(root, 'VOC12 train + aug', train, kinds),
        _split(root, 'VOC12 val', [(2012, 'Segmentation/val')], kinds),
    ]
