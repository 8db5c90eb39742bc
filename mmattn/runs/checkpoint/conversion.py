"""Checkpoints to safetensors, which cannot hold code, and back."""

import json
import os
from pathlib import Path
from typing import Any

import torch

from .errors import CheckpointError
from .hashes import sha256_of
from .loading import load, safetensors_or_error


def convert(
    source: str | os.PathLike,
    target: str | os.PathLike,
    trust: bool = False,
    sha256: str = '',
    publish: bool = False,
) -> Path:
    """Writes the weights and the plain part of the meta of a checkpoint in the other format.

    Args:
        source, target (str or PathLike): One of them ends in .safetensors, the other does not.
        trust (bool), sha256 (str): As for `load`.
        publish (bool): Whether to put the first eight digits of the hash into the target's name.

    Returns:
        Path: What was written, whole or not at all.

    Raises:
        FileExistsError: if there is such a file already.
        CheckpointError: as `load` does, and for weights that are no tensors.
    """
    source, target = Path(source), Path(target)
    if (source.suffix == '.safetensors') == (target.suffix == '.safetensors'):
        raise CheckpointError('one of the two files must end in .safetensors, and only one')
    if target.exists():  # said before the work; with a hash in its name, it is known after it
        raise FileExistsError(f'{target} exists; it is left as it is')
    found = load(source, trust, sha256=sha256)
    weights = found.get('state_dict', found)
    if not isinstance(weights, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in weights.items()
    ):
        raise CheckpointError(f'{source} holds no weights, or more than tensors among them')
    meta = found.get('meta', {}) if 'state_dict' in found else {}
    return write(target, weights, meta, publish)


def write(
    target: str | os.PathLike,
    weights: dict[str, torch.Tensor],
    meta: dict[str, Any],
    publish: bool = False,
) -> Path:
    """Writes weights and the plain part of their meta, as safetensors if the name ends so.

    Args:
        target (str or PathLike): The file.
        weights (dict[str, Tensor]): A state dict.
        meta (dict): What is to be said of them.
        publish (bool): As for `convert`.

    Returns:
        Path: What was written, whole or not at all.

    Raises:
        FileExistsError: if there is such a file already.
    """
    target, meta = Path(target), _plain(meta)
    if target.exists():
        raise FileExistsError(f'{target} exists; it is left as it is')
    half = target.with_name(f'.{target.name}.{os.getpid()}')
    try:
        if target.suffix == '.safetensors':
            # Each with memory of its own, which the format asks for.
            weights = {name: value.detach().contiguous().clone() for name, value in weights.items()}
            described = {'format': 'pt', 'mmattn': json.dumps(meta)}
            safetensors_or_error().torch.save_file(weights, half, described)
        else:
            torch.save(dict(meta=meta, state_dict=weights), half)
        if publish:
            target = target.with_name(f'{target.stem}-{sha256_of(half)[:8]}{target.suffix}')
        _put(half, target)
    finally:
        half.unlink(missing_ok=True)
    return target


def _put(half: Path, target: Path) -> None:
    """Gives a file its name, if nobody has it, be it since a moment ago."""
    try:
        os.link(half, target)
    except FileExistsError:
        raise FileExistsError(f'{target} exists; it is left as it is') from None
    except OSError:  # a file system without links
        if target.exists():
            raise FileExistsError(f'{target} exists; it is left as it is') from None
        os.replace(half, target)


def _plain(value: Any) -> Any:
    """What JSON can hold of a value: tuples become lists, arrays too, and the rest is left out."""
    if isinstance(value, dict):
        kept = {key: _plain(item) for key, item in value.items() if isinstance(key, str)}
        return {key: item for key, item in kept.items() if item is not None}
    if isinstance(value, (list, tuple, set)):
        return [_plain(item) for item in value]
    if hasattr(value, 'tolist'):
        return value.tolist()
    return value if isinstance(value, (str, int, float, bool)) else None
