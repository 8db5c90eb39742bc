"""The annotations of a whole data set, read as they are written.

The codebases pass over what they do not like (an object of an unknown class, a box beside the
picture) and stop without a file's name at what they cannot read; here both are named.
"""

import json
import math
import os
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any

from mmattn.datasets.prepare import cifar

from .report import Problem, error, warning

# COCO's boxes are rounded, VOC's count from 1: so many pixels beside the picture are no fault.
TOLERANCE = 1.0


def checker(data_set: Any) -> Callable[[Any], Iterator[Problem]] | None:
    """The check for a data set's format; None for a format that is not known here."""
    names = [cls.__name__ for cls in type(data_set).__mro__]
    for name, check in CHECKS.items():
        if name in names:
            return check
    return None


def check_xml(data_set: Any) -> Iterator[Problem]:
    """VOC: a list, an XML an image."""
    known = {*data_set.METAINFO['classes'], *data_set.metainfo['classes']}
    for name in (yield from _entries(data_set.ann_file)):
        path = os.path.join(data_set.sub_data_root, data_set.ann_subdir, f'{name}.xml')
        try:
            root = ET.parse(path).getroot()
            size = [int(_text(root, f'size/{side}')) for side in ('width', 'height')]
            objects = [_object(item) for item in root.findall('object')]
        except OSError as problem:
            yield error('missing', path, problem.strerror or str(problem))
        except (ET.ParseError, AttributeError, TypeError, ValueError, OverflowError) as problem:
            yield error('broken', path, f'no annotation of VOC ({problem})')
        else:
            for label, (left, top, right, bottom) in objects:
                if label not in known:
                    yield error('class', path, f'unknown class {label!r}: the object is lost')
                yield from _box(path, (left - 1, top - 1, right, bottom), size)


def _object(item: ET.Element) -> tuple[str, list[float]]:
    corners = ('xmin', 'ymin', 'xmax', 'ymax')
    return _text(item, 'name'), [float(_text(item, f'bndbox/{key}')) for key in corners]


def _text(item: ET.Element, path: str) -> str:
    """What stands in an element; raises ValueError where there is none."""
    found = item.findtext(path)
    if found is None:
        raise ValueError(f'no {path}')
    return found


def _box(file: str, box: Sequence[float], size: Sequence[float]) -> Iterator[Problem]:
    """(left, top, right, bottom) in a picture of (width, height)."""
    left, top, right, bottom = box
    width, height = size
    if 0 <= left < right <= width and 0 <= top < bottom <= height:
        return  # of a million boxes, nearly all
    said = ', '.join(f'{value:g}' for value in box)
    if not all(map(math.isfinite, box)):
        yield error('broken', file, f'box ({said}) is not of numbers')
    elif right <= left or bottom <= top:
        yield warning('box', file, f'box ({said}) is empty: the object is lost')
    elif (
        left < -TOLERANCE
        or top < -TOLERANCE
        or right > width + TOLERANCE
        or bottom > height + TOLERANCE
    ):
        yield error('box', file, f'box ({said}) is outside of the picture, {width}x{height}')


def check_coco(data_set: Any) -> Iterator[Problem]:
    """COCO: one JSON with images, annotations and categories."""
    path = data_set.ann_file
    try:
        content = vars(data_set).pop('content_read', None)
        if content is None:
            with open(path, 'rb') as file:
                content = json.loads(file.read())
        images = {image['id']: image for image in content['images']}
        categories = {category['id']: category['name'] for category in content['categories']}
        annotations = content['annotations']
        names = [*categories.values(), *(image['file_name'] for image in images.values())]
        if not all(isinstance(name, str) for name in names):
            raise TypeError('a name that is no text')
        if not isinstance(annotations, list):
            raise TypeError('annotations that are no list')
    except OSError as problem:
        yield error('missing', path, problem.strerror or str(problem))
        return
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as problem:
        yield error('broken', path, f'no annotations of COCO ({problem!r})')
        return
    for name in sorted(set(data_set.metainfo['classes']) - set(categories.values())):
        yield error('class', path, f'has no category {name!r}')
    if len(images) < len(content['images']):
        yield error('list', path, 'two images have one id')
    yield from _twice(path, (image['file_name'] for image in images.values()))
    ids = set()
    for annotation in annotations:
        # Of a million, nearly all are right: the least for these.
        try:
            number, image = annotation['id'], images[annotation['image_id']]
            left, top, width, height = annotation['bbox']
            if (
                0 <= left < left + width <= image['width']
                and 0 <= top < top + height <= image['height']
                and annotation['category_id'] in categories
                and number not in ids
            ):
                ids.add(number)
                continue
        except (KeyError, TypeError, ValueError, OverflowError):
            pass
        yield from _annotation(path, annotation, images, categories, ids)


def _annotation(
    path: str,
    annotation: Any,
    images: Mapping[Any, Any],
    categories: Mapping[Any, Any],
    ids: set[Any],
) -> Iterator[Problem]:
    """What is wrong with an annotation of COCO."""
    try:
        number, label = annotation['id'], annotation['category_id']
        image = images.get(annotation['image_id'])
        left, top, width, height = annotation['bbox']
        where = f'{path}: annotation {number}'
        if image is None:
            yield error('list', where, f'there is no image {annotation["image_id"]}')
            return
        if label not in categories:
            yield error('class', where, f'unknown category {label!r}: the object is lost')
        if number in ids:
            yield error('list', where, 'two annotations have this id')
        ids.add(number)
        box = left, top, left + width, top + height
        yield from _box(where, box, (image['width'], image['height']))
    except (KeyError, TypeError, ValueError, OverflowError) as problem:
        yield error('broken', path, f'an annotation is not of COCO ({problem!r})')


def keep_content(data_set: Any) -> bool:
    """Lets a CocoDataset keep what it reads, half a gigabyte, for the check to take; no other."""

    def read(*args: Any, **kwargs: Any) -> Any:
        api = type(data_set).COCOAPI(*args, **kwargs)
        data_set.content_read = api.dataset
        return api

    if checker(data_set) is not check_coco:
        return False
    data_set.COCOAPI = read
    return True


def check_segmentation(data_set: Any) -> Iterator[Problem]:
    """Segmentation: a list; the masks are looked at with the images."""
    if data_set.ann_file:
        yield from _drain(_entries(data_set.ann_file))


def check_classification(data_set: Any) -> Iterator[Problem]:
    """mmpretrain's lists: `folder/file.JPEG 12` a line; without a list, folders are the classes."""
    if not data_set.ann_file or not data_set.with_label:
        return
    names = []
    for line in (yield from _entries(data_set.ann_file)):
        name, _, label = line.rpartition(' ')
        names.append(name)
        if not name or not label.isdigit():
            yield error('list', data_set.ann_file, f'{line!r} is not a file and a label')
    yield from _twice(data_set.ann_file, names)


def check_cifar(data_set: Any) -> Iterator[Problem]:
    """CIFAR: pickles with images and labels, which mmpretrain wants byte for byte."""
    folder = os.path.join(data_set.data_prefix['root'], data_set.base_folder)
    for name, md5 in data_set.train_list + data_set.test_list:
        path = os.path.join(folder, name)
        try:
            content = cifar.load(path)
            labels = content['fine_labels' if 'fine_labels' in content else 'labels']
            shape, number = content['data'].shape, len(labels)
        except OSError as problem:
            yield error('missing', path, problem.strerror or str(problem))
            continue
        except (ValueError, KeyError, AttributeError, TypeError) as problem:
            yield error('broken', path, str(problem))
            continue
        if shape != (number, 3072):
            yield error('broken', path, f'{number} labels, but images of shape {shape}')
        if md5 and _md5(path) != md5:
            yield error('broken', path, 'is not the published file (its MD5 differs)')


def _md5(path: str) -> str:
    from mmpretrain.datasets.utils import calculate_md5

    return calculate_md5(path)


def _entries(path: str) -> Generator[Problem, None, list[str]]:
    """Yields problems of a list file and returns its entries."""
    try:
        with open(path, encoding='utf-8') as file:
            entries = [line.rstrip('\n') for line in file]
    except OSError as problem:
        yield error('missing', path, problem.strerror or str(problem))
        return []
    except UnicodeDecodeError as problem:
        yield error('broken', path, f'is no list ({problem})')
        return []
    if not entries:
        yield error('list', path, 'is empty')
    for number, entry in enumerate(entries, 1):
        if not entry.strip():
            yield error('list', f'{path}:{number}', 'is an empty line')
    entries = [entry.strip() for entry in entries if entry.strip()]
    yield from _twice(path, entries)
    return entries


def _twice(path: str, names: Iterable[str]) -> Iterator[Problem]:
    for name, times in Counter(names).items():
        if times > 1:
            yield warning('list', path, f'lists {name!r} {times} times')


def _drain(problems: Iterator[Problem]) -> Iterator[Problem]:
    yield from problems


# By the name of a class of the codebases, which need not all be installed.
CHECKS = {
    'XMLDataset': check_xml,
    'CocoDataset': check_coco,
    'BaseSegDataset': check_segmentation,
    'CIFAR10': check_cifar,
    'CustomDataset': check_classification,
}
