"""Digits as files of ImageNet, CIFAR-100 and COCO."""

import json
import pickle
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .classes import (
    CIFAR100_COARSE,
    CIFAR100_COARSE_OF_DIGIT,
    CIFAR100_FINE,
    COCO_CLASSES,
    COCO_UNUSED_IDS,
    IMAGENET_CLASSES,
)
from .drawing import draw_digit, draw_scene, generator


def write_lists(folder: Path, lists: Mapping[str, Iterable[str]]) -> None:
    """Writes <name>.txt into a folder for each name in lists, one entry a line."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in lists.items():
        (folder / f'{name}.txt').write_text(''.join(f'{line}\n' for line in lines))


def save_jpeg(image: NDArray[np.uint8], path: Path) -> None:
    """Writes an RGB image, uint8 (H, W, 3)."""
    Image.fromarray(image).save(path, quality=95)


def make_imagenet(
    root: Path, num: int, num_val: int, size: int, seed: int, hard: bool = False
) -> None:
    """ImageNet: root/imagenet/{train,val}/<synset>/*.JPEG and meta/{train,val}.txt.

    The lists are needed because mmpretrain refuses bare folders of fewer than 1000 classes.
    """
    # Readers of folders take every file they find.
    shutil.rmtree(root / 'imagenet', ignore_errors=True)
    for split, count in (('train', num), ('val', num_val)):
        lines = []
        for name in IMAGENET_CLASSES:
            (root / 'imagenet' / split / name).mkdir(parents=True)
        for index in range(count):
            image, digit = draw_digit(generator(seed, 'imagenet', split, index), split, size, hard)
            file = f'{IMAGENET_CLASSES[digit]}/{IMAGENET_CLASSES[digit]}_{index}.JPEG'
            save_jpeg(image, root / 'imagenet' / split / file)
            lines.append(f'{file} {digit}')
        write_lists(root / 'imagenet' / 'meta', {split: lines})


def make_cifar(
    root: Path, num: int, num_val: int, size: int, seed: int, hard: bool = False
) -> None:
    """CIFAR-100 pickles: root/cifar100/cifar-100-python/{train,test,meta}; 32x32, whatever size."""
    folder = root / 'cifar100' / 'cifar-100-python'
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in (('train', num), ('test', num_val)):
        drawn = [
            draw_digit(generator(seed, 'cifar', split, index), split, 32, hard)
            for index in range(count)
        ]
        digits = [digit for _, digit in drawn]
        (folder / split).write_bytes(
            pickle.dumps(
                {
                    'filenames': [
                        f'{digit}_s_{index:06d}.png' for index, digit in enumerate(digits)
                    ],
                    'batch_label': f'{split}ing batch 1 of 1',
                    'fine_labels': digits,
                    'coarse_labels': [CIFAR100_COARSE_OF_DIGIT[digit] for digit in digits],
                    # (N, 3072): all red, then all green, then all blue values, row by row
                    'data': np.stack([image.transpose(2, 0, 1).ravel() for image, _ in drawn]),
                },
                protocol=2,
            )
        )
    (folder / 'meta').write_bytes(
        pickle.dumps(
            {'fine_label_names': CIFAR100_FINE, 'coarse_label_names': CIFAR100_COARSE}, protocol=2
        )
    )


def _polygons(mask: NDArray[np.bool_], left: int, top: int) -> list[list[float]]:
    """Outlines of a mask in COCO's form, [x1, y1, x2, y2, ...] in pixels, holes filled."""
    # Four cells a pixel: an outline runs through the centres of cells, so that it misses the edge
    # of the pixels by an eighth of one instead of half of one.
    fine = mask.repeat(4, 0).repeat(4, 1).astype(np.uint8)
    contours, _ = cv2.findContours(fine, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    outlines = [(contour[:, 0] + 0.5) / 4 + (left, top) for contour in contours]
    return [outline.ravel().tolist() for outline in outlines]


def _area(polygon: list[float]) -> float:
    return float(cv2.contourArea(np.array(polygon, np.float32).reshape(-1, 2)))


def make_coco(root: Path, num: int, num_val: int, size: int, seed: int, hard: bool = False) -> None:
    """COCO: root/coco/{train2017,val2017} and annotations/instances_{train,val}2017.json."""
    coco = root / 'coco'
    (coco / 'annotations').mkdir(parents=True, exist_ok=True)
    ids = [number for number in range(1, 91) if number not in COCO_UNUSED_IDS]
    categories = [dict(id=i, name=name) for i, name in zip(ids, COCO_CLASSES, strict=True)]
    for split, count in (('train', num), ('val', num_val)):
        folder = coco / f'{split}2017'
        folder.mkdir(exist_ok=True)
        images, annotations = [], []
        for index in range(count):
            image, objects = draw_scene(generator(seed, 'coco', split, index), split, size, hard)
            name = f'{index + 1:012d}.jpg'
            save_jpeg(image, folder / name)
            images.append(
                dict(id=index + 1, file_name=name, height=image.shape[0], width=image.shape[1])
            )
            for digit, (left, top), mask in objects:
                polygons = _polygons(mask, left, top)
                annotations.append(
                    dict(
                        id=len(annotations) + 1,
                        image_id=index + 1,
                        category_id=ids[digit],
                        iscrowd=0,
                        bbox=[left, top, mask.shape[1], mask.shape[0]],
                        area=sum(map(_area, polygons)),
                        segmentation=polygons,
                    )
                )
        (coco / 'annotations' / f'instances_{split}2017.json').write_text(
            json.dumps(dict(images=images, annotations=annotations, categories=categories))
        )
