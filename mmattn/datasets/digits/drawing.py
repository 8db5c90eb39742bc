"""Images of digits: one that fills it, or a scene of several."""

import functools
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

# Three splits, because VOC07+12 trains on "trainval" and tests on "test".
SPLITS = {'train': (0.0, 0.6), 'val': (0.6, 0.8), 'test': (0.8, 1.0)}
# Keep the random streams of the sets apart; VOC's years and both its tasks share theirs.
STREAMS = {'imagenet': 0, 'cifar': 1, 'coco': 2, 'voc2007': 3, 'voc2012': 4}

# Of an image's edge that a digit takes, as it is and in `hard` images; halves of digits in those.
DIGIT_SHARE = {False: (0.75, 1.0), True: (0.5, 0.75)}
SCENE_SHARE = {False: (0.3, 0.5), True: (0.25, 0.4)}
FRAGMENTS = (2, 6)


@functools.cache
def load_strokes(split: str) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Ink and labels of the digits of one split.

    Args:
        split (str): 'train', 'val' or 'test'.

    Returns:
        tuple: float32 ink in [0, 1], (K, 8, 8), and int labels 0...9, (K, ).

    Raises:
        ValueError: For another split.
    """
    if split not in SPLITS:
        raise ValueError(f'split must be one of {tuple(SPLITS)}, got {split!r}')
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    begin, end = (int(round(bound * len(order))) for bound in SPLITS[split])
    chosen = order[begin:end]
    return (digits.images[chosen] / 16).astype(np.float32), digits.target[chosen]


def _stroke(ink: NDArray[np.float32], size: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Ink scaled to size x size, cut to its box: opacity (h, w) in [0, 1] and mask (h, w)."""
    alpha = cv2.resize(ink, (size, size), interpolation=cv2.INTER_CUBIC).clip(0, 1)
    mask = alpha > 0.4
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    # A hard edge with a soft rim of one pixel or so: the mask is where the digit is seen.
    return ((alpha[box] - 0.2) / 0.4).clip(0, 1), mask[box]


def _background(rng: np.random.Generator, height: int, width: int) -> NDArray[np.float32]:
    """A smooth dark colour field with grain, float32 (height, width, 3)."""
    small = rng.uniform(0, 120, (4, 4, 3)).astype(np.float32)
    field = cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR).astype(np.float32)
    return field + rng.normal(0, 8, (height, width, 1)).astype(np.float32)


def _paste(
    rng: np.random.Generator,
    image: NDArray[np.float32],
    alpha: NDArray[np.float32],
    top: int,
    left: int,
) -> None:
    colour = rng.uniform(150, 255, 3).astype(np.float32)
    part = image[top : top + alpha.shape[0], left : left + alpha.shape[1]]
    part += alpha[..., None] * (colour - part)


def _somewhere(
    rng: np.random.Generator, alpha: NDArray[np.float32], height: int, width: int
) -> tuple[int, int]:
    """Top and left of a place for a digit in an image of that size."""
    h, w = alpha.shape
    return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))


def _scatter(
    rng: np.random.Generator, image: NDArray[np.float32], ink: NDArray[np.float32]
) -> None:
    """Pastes halves of digits all over an image: what a model must not take for digits."""
    height, width = image.shape[:2]
    for _ in range(rng.integers(*FRAGMENTS)):
        half = ink[rng.integers(len(ink))].copy()
        half = np.rot90(half, int(rng.integers(4))).copy()
        half[:, 4:] = 0
        if half.max() < 0.5:  # an empty half
            continue
        alpha, _ = _stroke(half, int(rng.uniform(0.2, 0.4) * max(height, width)))
        top, left = _somewhere(rng, alpha, height, width)
        _paste(rng, image, alpha, top, left)


class Placed(NamedTuple):
    """A digit in a scene.

    Attributes:
        digit (int): 0...9.
        corner (tuple): Left and top of its box, in pixels.
        mask (ndarray): bool (h, w), where it is seen in its box.
    """

    digit: int
    corner: tuple[int, int]
    mask: NDArray[np.bool_]


def draw_digit(
    rng: np.random.Generator, split: str, size: int, hard: bool = False
) -> tuple[NDArray[np.uint8], int]:
    """One digit that fills most of a square image.

    Args:
        rng (np.random.Generator): Source of all choices.
        split (str): The digits to draw from, see :func:`load_strokes`.
        size (int): Edge of the image in pixels.
        hard (bool): A digit of about half that size, on top of halves of others.

    Returns:
        tuple: uint8 RGB image (size, size, 3) and the digit.
    """
    ink, labels = load_strokes(split)
    chosen = rng.integers(len(labels))
    image = _background(rng, size, size)
    if hard:
        _scatter(rng, image, ink)
    alpha, _ = _stroke(ink[chosen], int(rng.uniform(*DIGIT_SHARE[hard]) * size))
    top, left = _somewhere(rng, alpha, size, size)
    _paste(rng, image, alpha, top, left)
    return image.clip(0, 255).astype(np.uint8), int(labels[chosen])


def draw_scene(
    rng: np.random.Generator, split: str, size: int, hard: bool = False
) -> tuple[NDArray[np.uint8], list[Placed]]:
    """One to four digits that do not overlap, in a 4:3 or 3:4 image.

    Args:
        rng (np.random.Generator): Source of all choices.
        split (str): The digits to draw from, see :func:`load_strokes`.
        size (int): The longer side in pixels.
        hard (bool): Smaller digits, on top of halves of others.

    Returns:
        tuple: uint8 RGB image (H, W, 3) and what is in it.
    """
    ink, labels = load_strokes(split)
    height, width = (size, size * 3 // 4) if rng.random() < 0.5 else (size * 3 // 4, size)
    image = _background(rng, height, width)
    if hard:
        _scatter(rng, image, ink)
    taken = np.zeros((height, width), bool)
    objects = []
    wanted = rng.integers(1, 5)
    for _ in range(4 * wanted):  # a place that is taken costs a try, so that it always ends
        chosen = rng.integers(len(labels))
        alpha, mask = _stroke(ink[chosen], int(rng.uniform(*SCENE_SHARE[hard]) * size))
        h, w = mask.shape
        top, left = _somewhere(rng, alpha, height, width)
        place = np.s_[max(top - 1, 0) : top + h + 1, max(left - 1, 0) : left + w + 1]
        if taken[place].any():
            continue
        taken[place] = True
        _paste(rng, image, alpha, top, left)
        objects.append(Placed(int(labels[chosen]), (left, top), mask))
        if len(objects) == wanted:
            break
    return image.clip(0, 255).astype(np.uint8), objects


def generator(seed: int, stream: str, split: str, index: int) -> np.random.Generator:
    """The source of an image's choices, its own: the first images stay when more are asked for.

    Args:
        seed (int): Of the data set.
        stream (str): Of :data:`STREAMS`.
        split (str): Of :data:`SPLITS`.
        index (int): The number of the image in the split.
    """
    return np.random.default_rng([seed, STREAMS[stream], list(SPLITS).index(split), index])
