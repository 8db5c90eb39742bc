"""Files of converted weights, and what the tools print of them."""

import os
import pprint
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmattn.runs import checkpoint

from .resnet import Converted, plain

# How images go in, of ImageNet's usual networks.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def read(path: str | os.PathLike) -> dict[str, Tensor]:
    """The weights in a file from anybody, read as data.

    Raises:
        OSError, CheckpointError: if it cannot be read, is damaged or asks for more than data.
        ValueError: if it holds no weights.
    """
    found = checkpoint.load(path, trust=False)
    for key in ('state_dict', 'model'):
        if isinstance(found.get(key), dict):
            found = found[key]
            break
    weights = {
        name: value.detach()
        for name, value in found.items()
        if isinstance(name, str) and torch.is_tensor(value)
    }
    if not weights:
        raise ValueError(f'{path} holds no weights: expected a state dict, or one as state_dict')
    return plain(weights)


def write(target: str | os.PathLike, converted: Converted, source: str, **said: Any) -> Path:
    """A checkpoint of weights alone; its meta says where they are from and what they are for.

    Args:
        target (str or PathLike): Ends in .pth or .safetensors; must not exist.
        converted (Converted): The weights.
        source (str): Where they are from.
        said (Any): More of what the meta is to hold, such as the mean and the size of images.

    Raises:
        FileExistsError: if there is such a file already.
    """
    meta = dict(source=source, backbone=converted.backbone, **said)
    return checkpoint.write(target, converted.state_dict, meta)


def report(
    target: Path, converted: Converted, codebase: str, cfg: dict[str, Any] | None = None
) -> str:
    """What to write into a config, and how to start from the file."""
    cfg = cfg or {}
    mean, std = (
        [round(255 * value, 3) for value in cfg.get(key) or default]
        for key, default in (('mean', MEAN), ('std', STD))
    )
    backbone = pprint.pformat(converted.backbone, sort_dicts=False, width=96)
    images = f'RGB, mean {mean}, std {std}'
    if cfg.get('input_size'):
        images += (
            f'; tested by their publisher at {cfg.get("test_input_size") or cfg["input_size"]}'
        )
    return '\n'.join(
        (
            f'{target}',
            f'images: {images}',
            f'backbone, for {codebase}:',
            backbone,
            f'to start from it: tools/train.py CONFIG --pretrained {target}',
        )
    )
