"""What a result comes from, as hashes: the code, the versions, the data, the weights."""

import hashlib
import json
import platform
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import checkpoint
from .form import Checkpoint

SOURCES = ('mmattn', 'configs', 'tools')  # of the checkout: what a training can depend on
PACKAGES = ('torch', 'torchvision', 'mmengine', 'mmcv', 'mmpretrain', 'mmdet', 'mmseg', 'numpy')


def code(root: str | Path | None = None) -> tuple[str | None, str | None]:
    """The commit of the checkout that this package lies in, and the SHA-256 of what differs.

    Returns:
        tuple[str | None, str | None]: None and None outside a checkout; the second is None if
        `SOURCES` are as committed, without further files.
    """
    root = Path(__file__).resolve().parents[2] if root is None else Path(root)

    def git(*args: str) -> bytes:
        return subprocess.run(['git', '-C', root, *args], capture_output=True, check=True).stdout

    try:
        if Path(git('rev-parse', '--show-toplevel').decode().strip()).resolve() != root.resolve():
            return None, None  # installed below somebody else's checkout
        commit = git('rev-parse', 'HEAD').decode().strip()
        diff = git('diff', 'HEAD', '--binary', '--', *SOURCES)
        new = git('ls-files', '-z', '--others', '--exclude-standard', '--', *SOURCES)
        for name in sorted(filter(None, new.split(b'\0'))):
            diff += name + b'\0' + (root / name.decode()).read_bytes()
    except (OSError, subprocess.CalledProcessError):
        return None, None
    return commit, hashlib.sha256(diff).hexdigest() if diff else None


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that are in use."""
    import mmattn

    found = {'python': platform.python_version(), 'mmattn': mmattn.__version__}
    for name in PACKAGES:
        if hasattr(sys.modules.get(name), '__version__'):
            found[name] = str(sys.modules[name].__version__)
    if torch.version.cuda:
        found['cuda'] = torch.version.cuda
    return found


def data(datasets: Iterable[Any], root: str | Path) -> str | None:
    """A fingerprint of data sets: their number of samples, the names of images, the labels.

    Pixels of files are not read. It is the same wherever the data lie.

    Args:
        root (str or Path): The folder of data, which names are relative to.

    Returns:
        str, optional: SHA-256 in hexadecimal; None if a data set does not tell its samples.
    """
    found = hashlib.sha256()
    for dataset in datasets:
        for part in _parts(dataset):
            if not hasattr(part, 'get_data_info'):
                return None
            found.update(f'{type(part).__name__} {len(part)}\n'.encode())
            for index in range(len(part)):
                found.update(_sample(part.get_data_info(index), str(root)))
    return found.hexdigest()


def weights(path: str | Path) -> str:
    """SHA-256 of the weights in a checkpoint: of equal weights it is equal, unlike the file's."""
    found = hashlib.sha256()
    state = checkpoint.load(path)['state_dict']
    for name in sorted(state):
        value = state[name]
        found.update(f'{name} {value.dtype} {tuple(value.shape)}\n'.encode())
        found.update(_bytes(value))
    return found.hexdigest()


def _bytes(value: Tensor) -> bytes:
    return value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _parts(dataset: Any) -> Iterator[Any]:
    """The data sets within wrappers: repeated, concatenated, seeded ones."""
    if hasattr(dataset, 'datasets'):
        for part in dataset.datasets:
            yield from _parts(part)
    elif hasattr(dataset, 'dataset'):
        yield from _parts(dataset.dataset)
    else:
        yield dataset


def _sample(info: dict[str, Any], root: str) -> bytes:
    """What identifies a sample. Masks, which are long, are left to their boxes."""
    kept: dict[str, Any] = {}
    for key in ('img_path', 'seg_map_path'):
        if key in info:
            kept[key] = str(info[key]).removeprefix(root)
    if 'gt_label' in info:
        kept['label'] = np.asarray(info['gt_label']).tolist()
    for item in info.get('instances', ()):
        kept.setdefault('boxes', []).append([item.get('bbox'), item.get('bbox_label')])
    text = json.dumps(kept, default=str).encode()
    image = info.get('img')
    return text + (image.tobytes() if isinstance(image, np.ndarray) else b'')


def of_checkpoint(path: str | Path) -> Checkpoint:
    """A record's `checkpoint`."""
    sha = checkpoint.sha256_of(path)
    return dict(name=Path(path).name, sha256=sha, weights_sha256=weights(path))
