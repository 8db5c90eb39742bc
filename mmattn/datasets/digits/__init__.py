"""Small data sets in the real formats, made of scikit-learn's handwritten digits.

The 1797 digits are 8x8 scans of real handwriting. Each is scaled up, coloured and pasted on a
random texture: one an image for classification, several for detection and segmentation. The ten
digits take the place of the first ten classes of ImageNet, CIFAR-100, COCO and VOC, under those
classes' names, so that a config for the real set runs on this one with nothing changed but its
data root. A digit belongs to one split only, the same for every set and seed, so that nothing a
model is tested on was trained on.
"""

import json
from pathlib import Path

from .classes import (
    CIFAR100_COARSE,
    CIFAR100_COARSE_OF_DIGIT,
    CIFAR100_FINE,
    COCO_CLASSES,
    COCO_UNUSED_IDS,
    IMAGENET_CLASSES,
    VOC_CLASSES,
)
from .drawing import SPLITS, Placed, draw_digit, draw_scene, generator, load_strokes
from .formats import make_cifar, make_coco, make_imagenet
from .voc import make_voc, make_vocseg, voc_palette

__all__ = [
    'CIFAR100_COARSE',
    'CIFAR100_COARSE_OF_DIGIT',
    'CIFAR100_FINE',
    'COCO_CLASSES',
    'COCO_UNUSED_IDS',
    'IMAGENET_CLASSES',
    'SPLITS',
    'TASKS',
    'VOC_CLASSES',
    'Placed',
    'draw_digit',
    'draw_scene',
    'generator',
    'load_strokes',
    'make',
    'make_cifar',
    'make_coco',
    'make_imagenet',
    'make_voc',
    'make_vocseg',
    'voc_palette',
]

TASKS = ('imagenet', 'cifar', 'coco', 'voc', 'vocseg')
MAKERS = dict(
    imagenet=make_imagenet, cifar=make_cifar, coco=make_coco, voc=make_voc, vocseg=make_vocseg
)
FOLDERS = dict(
    imagenet='imagenet', cifar='cifar100', coco='coco', voc='VOCdevkit', vocseg='VOCdevkit'
)


def make(
    root: str | Path,
    task: str,
    num: int = 1000,
    num_val: int | None = None,
    size: int | None = None,
    seed: int = 0,
    hard: bool = False,
) -> bool:
    """Makes one data set, unless it is there already with the same settings.

    Args:
        root (str or Path): Gets ``imagenet/``, ``cifar100/``, ``coco/`` or ``VOCdevkit/``.
        task (str): One of ``TASKS``.
        num (int): Training images.
        num_val (int, optional): Validation images; a quarter of ``num`` by default.
        size (int, optional): The longer side in pixels; by default 64 for 'imagenet', 128 for
            scenes. CIFAR images are 32x32.
        seed (int): Same seed, same bytes.
        hard (bool): Small digits among halves of others, for models that must not be perfect.

    Returns:
        bool: Whether it was made, False if it was there.

    Raises:
        ValueError: For settings outside their range, or a folder that is there but not by this
            function: real data are never overwritten.
    """
    root = Path(root)
    num_val = num // 4 if num_val is None else num_val
    if task == 'cifar':
        size = 32
    elif size is None:
        size = 64 if task == 'imagenet' else 128
    if task not in MAKERS:
        raise ValueError(f'task must be one of {TASKS}, got {task!r}')
    if num_val < 1 or num <= num_val:
        raise ValueError(f'1 <= num_val < num must hold, got num_val={num_val}, num={num}')
    if size < 32:
        raise ValueError(f'size must be at least 32, got {size}')
    record = root / 'digits.json'
    made = json.loads(record.read_text()) if record.exists() else {}
    settings = dict(num=num, num_val=num_val, size=size, seed=seed)
    settings |= {'hard': True} if hard else {}  # sets made before have no such key
    if made.get(task) == settings:
        return False
    folder = root / FOLDERS[task]
    if folder.exists() and FOLDERS[task] not in {FOLDERS[name] for name in made}:
        raise ValueError(f'{folder} is there and holds other data; choose another root')
    # Both VOC tasks draw VOC2012's images: with other settings, one undoes the other.
    made = {
        name: old for name, old in made.items() if FOLDERS[name] != FOLDERS[task] or old == settings
    }
    # An entry without settings marks a set that is begun and not finished.
    root.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps(made | {task: None}, indent=1))
    MAKERS[task](root, num, num_val, size, seed, hard)
    record.write_text(json.dumps(made | {task: settings}, indent=1))
    return True
