"""One sample after the other through the loading transforms of its config, in many processes.

What the decoders of images mutter on stderr while they fill the missing half of a picture with grey
is listened to.
"""

import contextlib
import functools
import hashlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

import numpy as np

from .report import Problem, error, warning

MUTTERED = 300  # characters of a decoder's complaint that are kept


@dataclass(frozen=True)
class Loader:
    """A data set of a config, ready to be read.

    Attributes:
        data_set: Of one of the codebases, with its samples.
        transforms (list): Those of its pipeline that load.
        classes (int): Labels are below.
    """

    data_set: Any
    transforms: list[Any]
    classes: int


# By the number of the data set, in the worker processes by inheritance.
loaders: dict[int, Loader] = {}


def start(shared: dict[int, Loader]) -> None:
    """Begins a worker process."""
    global loaders
    import cv2
    import torch

    loaders = shared
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


def check_some(
    task: tuple[int, list[int]],
) -> tuple[int, int, int, list[Problem], list[tuple[bytes, int]]]:
    """Checks some samples of a data set.

    Args:
        task (tuple): The number of the data set, those of its samples.

    Returns:
        tuple: the number of the data set, how many were checked, how many of them were there and
        whole, problems, and (digest of the image's content, number of the sample) where there was
        one.
    """
    number, indices = task
    decoded, problems, digests = 0, [], []
    for index in indices:
        info = loaders[number].data_set.get_data_info(index)
        found, digest = check_sample(loaders[number], info, index)
        decoded += not any(problem.loses_file for problem in found)
        problems += found
        if digest is not None:
            digests.append((digest, index))
    return number, len(indices), decoded, problems, digests


def file_of(info: dict[str, Any], index: int) -> str:
    """The name of a sample's image."""
    return info.get('img_path') or f'image {index}'


def check_sample(
    loader: Loader, info: dict[str, Any], index: int
) -> tuple[list[Problem], bytes | None]:
    """Reads a sample as the config would.

    Args:
        loader (Loader): Its data set.
        info (dict): What the data set says of it.
        index (int): Its number.

    Returns:
        tuple: problems, and a digest of the image's content if it could be read.
    """
    file = file_of(info, index)
    if 'img_path' in info:
        try:
            if os.path.exists(file) and not os.path.isfile(file):
                # A pipe or a device would be read without end.
                return [error('missing', file, 'is no file')], None
            with open(file, 'rb') as opened:
                content = opened.read()
        except OSError as problem:
            return [error('missing', file, problem.strerror or str(problem))], None
        problems = list(_format(file, content))
    else:
        content, problems = np.ascontiguousarray(info['img']).tobytes(), []
    digest = hashlib.blake2b(content, digest_size=16).digest()
    mask = info.get('seg_map_path')
    if mask is not None:
        try:
            if os.path.exists(mask) and not os.path.isfile(mask):
                return [*problems, error('missing', mask, 'is no file')], digest
            with open(mask, 'rb') as opened:
                problems += _mask_format(mask, opened.read(64))
        except OSError as problem:
            return [*problems, error('missing', mask, problem.strerror or str(problem))], digest
    result, said = dict(info), []
    try:
        with _listening(said):
            for transform in loader.transforms:
                result = transform(result)
    except Exception as problem:
        what = ' '.join(f'{type(problem).__name__}: {problem}'.split())
        what = '; decoder: '.join([what[:MUTTERED], *said])
        return [*problems, error('broken', file, what)], digest
    for line in said:
        # libjpeg goes on with grey; of other remarks published images have their share.
        cut_off = 'Premature end' in line
        problems.append((error if cut_off else warning)('broken', file, f'decoder: {line}'))
    problems += _contents(loader, info, result, file)
    return problems, digest


@functools.cache
def _ear() -> IO[bytes]:
    return tempfile.TemporaryFile()


@contextlib.contextmanager
def _listening(said: list[str]) -> Iterator[None]:
    """Adds the lines that C libraries write to stderr in the block."""
    ear, stderr = _ear(), os.dup(2)
    os.dup2(ear.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        if ear.seek(0, os.SEEK_END):
            ear.seek(0)
            text = ear.read().decode(errors='replace')
            ear.truncate(0)
            ear.seek(0)  # whose place the next writer begins at
            said += [line.strip()[:MUTTERED] for line in text.splitlines() if line.strip()]


def jpeg_header(content: bytes) -> tuple[int, int] | None:
    """Bits a value and channels of a JPEG; None for another file or one without a frame."""
    if content[:2] != b'\xff\xd8':
        return None
    place = 2
    while place + 9 < len(content) and content[place] == 0xFF:
        marker = content[place + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return content[place + 4], content[place + 9]
        if marker == 0xFF:  # a fill byte
            place += 1
        else:
            place += 2 + int.from_bytes(content[place + 2 : place + 4], 'big')
    return None


def png_header(content: bytes) -> tuple[int, int] | None:
    """Bits a value and colour type of a PNG; None for another file."""
    if content[:8] != b'\x89PNG\r\n\x1a\n' or len(content) < 26:
        return None
    return content[24], content[25]


def _format(file: str, content: bytes) -> Iterator[Problem]:
    bits, channels = jpeg_header(content) or (8, 3)
    if bits != 8:
        yield error('format', file, f'is a JPEG of {bits} bits; decoders want 8')
    if channels == 4:
        yield warning('format', file, 'is a CMYK JPEG; decoders differ in its colours')
    bits, _ = png_header(content) or (8, 0)
    if bits == 16:
        yield warning('format', file, 'is a PNG of 16 bits, which is cut to 8')


def _mask_format(file: str, content: bytes) -> Iterator[Problem]:
    bits, colours = png_header(content) or (8, 0)
    if bits == 16:
        yield error('format', file, 'is a mask of 16 bits: its labels are cut to 8')
    elif colours not in (0, 3):
        yield error('format', file, 'is a mask in colours, not of class numbers')


def _contents(
    loader: Loader, info: dict[str, Any], result: dict[str, Any], file: str
) -> Iterator[Problem]:
    height, width = result['img'].shape[:2]
    if 'height' in info and (height, width) != (info['height'], info['width']):
        said = f'{info["width"]}x{info["height"]}'
        yield error('size', file, f'is {width}x{height}, its annotation says {said}')
    labels = result.get('gt_label', [])
    labels = [*np.atleast_1d(labels), *result.get('gt_bboxes_labels', [])]
    for label in labels:
        if not 0 <= label < loader.classes:
            yield error('label', file, f'label {label}, allowed are 0...{loader.classes - 1}')
    mask = result.get('gt_seg_map')
    if mask is None:
        return
    name = info.get('seg_map_path', file)
    if mask.shape != (height, width):
        yield error('size', name, f'shape {mask.shape}, the image is {height, width}')
    allowed = {*range(loader.classes), getattr(loader.data_set, 'ignore_index', 255)}
    if wrong := sorted({int(value) for value in np.unique(mask)} - allowed):
        few = ', '.join(map(str, wrong[:5]))
        yield error('label', name, f'labels {few}, allowed are 0...{loader.classes - 1} and 255')
