"""COCO 2017."""

import json
from pathlib import Path

from .archives import Archive
from .counts import Count, count, nothing, stems
from .parts import Part, under

PAGE = 'http://images.cocodataset.org'
TRAIN = Archive(
    'train2017.zip', f'{PAGE}/zips/train2017.zip', 'cced6f7f71b7629ddf16f17bbcfab6b2', 19336861798
)
VAL = Archive(
    'val2017.zip', f'{PAGE}/zips/val2017.zip', '442b8da7639aecaf257c1dceb8ba8c80', 815585330
)
ANNOTATIONS = Archive(
    'annotations_trainval2017.zip',
    f'{PAGE}/annotations/annotations_trainval2017.zip',
    'f4bbac642086de4f52a3fdda2de5fa2c',
    252907541,
)


def _part(name: str, archive: Archive, proof: tuple[str, ...]) -> Part:
    trees = (f'coco/{name}', name, f'images/{name}', f'COCO/{name}', f'coco/images/{name}')
    return Part(f'coco/{name}', (archive,), under(f'{name}/'), trees, proof)


PARTS = (
    _part('annotations', ANNOTATIONS, ('instances_*2017.json',)),
    _part('val2017', VAL, ('*.jpg',)),
    _part('train2017', TRAIN, ('*.jpg',)),
)


def count_images(root: Path) -> list[Count]:
    """The images that the annotations name."""
    counts = []
    for split in ('train2017', 'val2017'):
        label = f'COCO {split}'
        path = root / f'coco/annotations/instances_{split}.json'
        if not path.is_file():
            counts.append(nothing(label, f'no {path}'))
            continue
        try:
            names = [image['file_name'] for image in json.loads(path.read_bytes())['images']]
            if not all(isinstance(name, str) for name in names):
                raise TypeError('a name that is no text')
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            counts.append(nothing(label, f'{path} cannot be read ({error!r})'))
            continue
        there = stems(root / f'coco/{split}', '')
        missing = {'image': [name for name in names if name not in there]}
        counts.append(count(label, names, missing))
    return counts
