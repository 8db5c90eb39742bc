"""Reading a checkpoint file, whatever its format, as data."""

import contextlib
import json
import os
from pathlib import Path
from typing import Any, BinaryIO

import torch
from mmengine.logging import print_log

from .errors import CheckpointError, Damaged
from .formats import Device, read
from .hashes import check_hash

trusted = False  # what `install` says for the whole process


def load(
    path: str | os.PathLike,
    trust: bool | None = None,
    map_location: Device = 'cpu',
    sha256: str = '',
) -> dict[str, Any]:
    """The contents of a checkpoint file.

    Args:
        path (str or PathLike): A local file.
        trust (bool, optional): Let the file run whatever code it holds, as torch.load does. None is
            what the command line says (`install`), else no.
        map_location (str, device, dict or callable, optional): Where to put tensors, as for
            torch.load; None is the CPU.
        sha256 (str): What the contents' hash must begin with, beside what `expected_hashes` finds.

    Returns:
        dict: As it was saved; of a safetensors file `state_dict` and `meta`.

    Raises:
        FileNotFoundError, OSError: if the file cannot be read.
        Unsafe, Damaged, WrongHash: if it wants more than data, is not whole, or is another one.
    """
    path = Path(path)
    check_hash(path, sha256)
    if path.suffix == '.safetensors':
        return _load_safetensors(path, map_location)
    if trusted if trust is None else trust:
        print_log(f'{path} is trusted: it may run code', logger='current')
        return _run(path, str(path), map_location)
    with open(path, 'rb') as file:
        return _checked(path, read(file, str(path), map_location))


def load_open(file: BinaryIO, map_location: Device = None) -> dict[str, Any]:
    """As `load`, of a file without a name, which is closed."""
    with contextlib.closing(file):
        if trusted:
            return _run(file, 'the checkpoint', map_location)
        return _checked('the checkpoint', read(file, 'the checkpoint', map_location))


def load_meta(path: str | os.PathLike, trust: bool | None = None) -> dict[str, Any]:
    """The `meta` of a checkpoint, read without its tensors; raises as `load` does."""
    if (trusted if trust is None else trust) or Path(path).suffix == '.safetensors':
        return load(path, trust).get('meta', {})
    check_hash(path)
    with open(path, 'rb') as file:
        return _checked(path, read(file, str(path), 'meta')).get('meta', {})


def _run(file: Path | BinaryIO, name: str, map_location: Device) -> dict[str, Any]:
    """What torch.load makes of a file, whose code it runs."""
    try:
        found = torch.load(file, map_location=map_location or 'cpu', weights_only=False)
    except OSError:
        raise
    except Exception as error:  # a damaged file, or whatever its code raises
        raise Damaged(f'{name} is not loaded: {type(error).__name__}: {error}') from error
    if not isinstance(found, dict):
        raise Damaged(f'{name} holds no dict of weights but a {type(found).__name__}')
    return found


def _checked(path: str | os.PathLike, checkpoint: Any) -> dict[str, Any]:
    if not isinstance(checkpoint, dict):
        raise Damaged(f'{path} holds no dict of weights but a {type(checkpoint).__name__}')
    meta = checkpoint.get('meta')
    if 'meta' in checkpoint and not isinstance(meta, dict):
        raise Damaged(f'{path}: its meta is no dict')
    if meta and meta.pop('config', None) is not None:
        # Runner.resume would run this text as a config file. mmengine itself writes 'cfg'.
        print_log(f'{path}: the config inside is left out, as it is code', logger='current')
    return checkpoint


def _load_safetensors(path: Path, map_location: Device) -> dict[str, Any]:
    safetensors = safetensors_or_error()
    if not isinstance(map_location, (str, torch.device)):
        map_location = 'cpu'
    try:
        with safetensors.safe_open(path, 'pt', device=str(map_location)) as file:
            state_dict = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            described = (file.metadata() or {}).get('mmattn', '{}')
        meta = json.loads(described)
    except FileNotFoundError:
        raise
    except Exception as error:  # its own error class, in Rust, is of no fixed name
        raise Damaged(f'{path} is no whole safetensors file: {error}') from error
    return _checked(path, dict(state_dict=state_dict, meta=meta))


def safetensors_or_error() -> Any:
    """The package, or a CheckpointError that says how to get it."""
    try:
        import safetensors.torch
    except ImportError:
        raise CheckpointError(
            'safetensors files need the package of that name: pip install safetensors'
        ) from None
    return safetensors
