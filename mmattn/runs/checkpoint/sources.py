"""Where mmengine reads checkpoints: local files, downloads, other stores, weights that have names.

`install` puts our reader in the place of mmengine's own, which fall back to running a file's code.
"""

import io
import os
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import mmengine.runner.checkpoint as theirs
import torch
from mmengine.dist import barrier, get_dist_info
from mmengine.fileio import get_file_backend
from mmengine.runner import CheckpointLoader

from . import loading
from .errors import CheckpointError
from .formats import Device
from .hashes import expected_hashes
from .loading import load, load_open

# mmengine's schemes and functions, while ours are in their place.
_before: tuple[dict[str, Any], dict[str, Any]] | None = None


def install(trust: bool | None = None) -> None:
    """Lets mmengine read every checkpoint of this process by `load`, whatever it is loaded for.

    Args:
        trust (bool, optional): Whether checkpoints may run code; None leaves it as it was (at
            first False).
    """
    global _before
    if trust is not None:
        loading.trusted = trust
    if _before is not None:
        return
    names = ('load_from_http', '_safe_torch_load')
    _before = {**CheckpointLoader._schemes}, {n: getattr(theirs, n, None) for n in names}
    CheckpointLoader.register_scheme('', load_from_local, force=True)
    CheckpointLoader.register_scheme(('http://', 'https://'), load_from_http, force=True)
    CheckpointLoader.register_scheme(
        [r'(\S+\:)?s3://', r'(\S+\:)?petrel://', 'pavi://'], load_from_store, force=True
    )
    # torchvision:// and the like find an address, and have it loaded by what stands here. OneDL's
    # mmengine reads all its own files by one function, which OpenMMLab's does not have.
    theirs.load_from_http = load_from_http
    theirs._safe_torch_load = _load_anything
    if 'open-mmlab://' in CheckpointLoader._schemes:
        CheckpointLoader.register_scheme(
            ('open-mmlab://', 'openmmlab://'), load_from_openmmlab, force=True
        )


def uninstall() -> None:
    """Puts mmengine's own readers back, if `install` has replaced them."""
    global _before
    if _before is not None:
        schemes, functions = _before
        CheckpointLoader._schemes.clear()
        CheckpointLoader._schemes.update(schemes)
        for name, function in functions.items():
            setattr(theirs, name, function)
        _before = None


def load_from_local(filename: str, map_location: Device = None) -> dict[str, Any]:
    """mmengine's reader of local files, by `load`."""
    path = os.path.expanduser(filename)
    if not os.path.isfile(path):
        raise FileNotFoundError(f'{path} can not be found.')
    return load(path, map_location=map_location)


def load_from_http(
    filename: str, map_location: Device = None, model_dir: str | None = None, progress: bool = False
) -> dict[str, Any]:
    """Downloads a checkpoint once, to where torch.hub keeps them, and reads it by `load`.

    The first process downloads, the others wait. A file whose name carries its hash is kept only if
    it has that hash.
    """
    folder = Path(model_dir or Path(torch.hub.get_dir()) / 'checkpoints')
    name = os.path.basename(urlparse(filename).path)
    if not name or name.startswith('.'):
        raise CheckpointError(f'{filename} names no file')
    path = folder / name
    rank, processes = get_dist_info()
    # Where each machine has a disk of its own, the others find nothing after the wait.
    for turn in range(2 if processes > 1 else 1):
        if (rank == 0) == (turn == 0) and not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            hashes = expected_hashes(path)
            torch.hub.download_url_to_file(
                filename, str(path), hashes[0] if hashes else None, progress=progress
            )
        if processes > 1 and turn == 0:
            barrier()
    return load(path, map_location=map_location)


def load_from_openmmlab(filename: str, map_location: Device = None) -> dict[str, Any]:
    """The weights that mmengine knows by name, by their address or in its own folder."""
    name = filename.split('://', 1)[1]
    name = theirs.get_deprecated_model_names().get(name, name)
    known = theirs.get_external_models()
    if name not in known:
        raise CheckpointError(f'{filename}: mmengine knows no such weights')
    if known[name].startswith(('http://', 'https://')):
        return load_from_http(known[name], map_location)
    return load_from_local(os.path.join(theirs._get_mmengine_home(), known[name]), map_location)


def load_from_store(filename: str, map_location: Device = None) -> dict[str, Any]:
    """What mmengine's other file backends give (s3, petrel), read as a local file would be."""
    return load_open(io.BytesIO(get_file_backend(filename).get(filename)), map_location)


def _load_anything(
    file: Any, map_location: Device = None, weights_only: bool | None = None
) -> dict[str, Any]:
    if isinstance(file, (str, os.PathLike)):
        return load(file, map_location=map_location)
    return load_open(file, map_location)
