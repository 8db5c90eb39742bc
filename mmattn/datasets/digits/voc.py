"""Digits as files of Pascal VOC: boxes, and maps of classes with SBD's beside VOC's own."""

import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .classes import VOC_CLASSES
from .drawing import Placed, draw_scene, generator
from .formats import save_jpeg, write_lists


def _scenes(
    devkit: Path, year: int, splits: Mapping[str, int], size: int, seed: int, hard: bool
) -> Iterator[tuple[str, str, NDArray[np.uint8], list[Placed]]]:
    """Draws the images of one year and yields (id, split, image, objects)."""
    folder = devkit / f'VOC{year}' / 'JPEGImages'
    folder.mkdir(parents=True, exist_ok=True)
    number = 0
    for split, count in splits.items():
        for index in range(count):
            number += 1
            name = f'{number:06d}' if year == 2007 else f'{year}_{number:06d}'
            image, objects = draw_scene(
                generator(seed, f'voc{year}', split, index), split, size, hard
            )
            save_jpeg(image, folder / f'{name}.jpg')
            yield name, split, image, objects


def _xml(year: int, name: str, image: NDArray[np.uint8], objects: Sequence[Placed]) -> str:
    root = ET.Element('annotation')
    ET.SubElement(root, 'folder').text = f'VOC{year}'
    ET.SubElement(root, 'filename').text = f'{name}.jpg'
    size = ET.SubElement(root, 'size')
    for key, value in zip(('height', 'width', 'depth'), image.shape, strict=True):
        ET.SubElement(size, key).text = str(value)
    ET.SubElement(root, 'segmented').text = str(int(year == 2012))
    for digit, (left, top), mask in objects:
        item = ET.SubElement(root, 'object')
        for key, text in dict(
            name=VOC_CLASSES[digit], pose='Unspecified', truncated='0', difficult='0'
        ).items():
            ET.SubElement(item, key).text = text
        box = ET.SubElement(item, 'bndbox')
        # VOC counts pixels from 1 and names the first and the last one.
        for key, value in dict(
            xmin=left + 1, ymin=top + 1, xmax=left + mask.shape[1], ymax=top + mask.shape[0]
        ).items():
            ET.SubElement(box, key).text = str(value)
    return ET.tostring(root, encoding='unicode')


def _splits(year: int, num: int, num_val: int) -> dict[str, int]:
    # VOC2007 has a public test set; of VOC2012 only train and val are public.
    train = num - num_val
    return dict(train=train, val=num_val, **({'test': num_val} if year == 2007 else {}))


def make_voc(root: Path, num: int, num_val: int, size: int, seed: int, hard: bool = False) -> None:
    """VOC detection: root/VOCdevkit/VOC{2007,2012}/{JPEGImages,Annotations,ImageSets/Main}.

    ``num`` counts a year's trainval, of which ``num_val`` are its val; VOC2007 has ``num_val`` test
    images as well.
    """
    devkit = root / 'VOCdevkit'
    for year in (2007, 2012):
        splits = _splits(year, num, num_val)
        lists: dict[str, list[str]] = {split: [] for split in splits}
        annotations = devkit / f'VOC{year}' / 'Annotations'
        annotations.mkdir(parents=True, exist_ok=True)
        for name, split, image, objects in _scenes(devkit, year, splits, size, seed, hard):
            (annotations / f'{name}.xml').write_text(_xml(year, name, image, objects))
            lists[split].append(name)
        lists['trainval'] = lists['train'] + lists['val']
        write_lists(devkit / f'VOC{year}' / 'ImageSets' / 'Main', lists)


def voc_palette(count: int = 256) -> NDArray[np.uint8]:
    """VOC's colours: the bits of a class number spread over red, green and blue, (count, 3)."""
    bits = np.arange(count)[:, None] >> np.arange(24) & 1
    weights = 128 >> np.arange(8)
    return (bits.reshape(count, 8, 3) * weights[None, :, None]).sum(1).astype(np.uint8)


def _class_map(
    image: NDArray[np.uint8], objects: Sequence[Placed], void: bool
) -> NDArray[np.uint8]:
    """Class numbers (H, W); with void, a rim of 255 around every digit, as VOC draws it."""
    labels = np.zeros(image.shape[:2], np.uint8)
    for digit, (left, top), mask in objects:
        labels[top : top + mask.shape[0], left : left + mask.shape[1]][mask] = digit + 1
    if void:
        rim = cv2.dilate(labels, np.ones((3, 3), np.uint8)) > labels
        labels[rim] = 255
    return labels


def make_vocseg(
    root: Path, num: int, num_val: int, size: int, seed: int, hard: bool = False
) -> None:
    """VOC segmentation: SegmentationClass, SegmentationClassAug and lists beside VOC2012's images.

    Half of the training images are VOC's own (``train.txt``, masks with colour table and void
    rims), half stand for SBD's (``aug.txt``, plain masks, as mmsegmentation's converter writes
    them).
    """
    year = root / 'VOCdevkit' / 'VOC2012'
    for folder in ('SegmentationClass', 'SegmentationClassAug'):
        (year / folder).mkdir(parents=True, exist_ok=True)
    palette = voc_palette().ravel().tolist()
    splits = _splits(2012, num, num_val)
    lists: dict[str, list[str]] = dict(train=[], val=[], aug=[])
    for name, split, image, objects in _scenes(year.parent, 2012, splits, size, seed, hard):
        if split == 'train' and len(lists['train']) > len(lists['aug']):
            split = 'aug'
        lists[split].append(name)
        if split != 'val':
            Image.fromarray(_class_map(image, objects, void=False)).save(
                year / 'SegmentationClassAug' / f'{name}.png'
            )
        if split != 'aug':
            coloured = Image.fromarray(_class_map(image, objects, void=True)).convert('P')
            coloured.putpalette(palette)
            coloured.save(year / 'SegmentationClass' / f'{name}.png')
    lists['trainaug'] = lists['train'] + lists['aug']
    lists['trainval'] = lists['train'] + lists['val']
    write_lists(year / 'ImageSets' / 'Segmentation', lists)
