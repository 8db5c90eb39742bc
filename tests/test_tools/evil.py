"""Checkpoints that run code when they are loaded by what mmengine and PyTorch bring."""

import io
import os
import pickle
import tarfile
from pathlib import Path

import torch

# What each form is refused by.
NAMES = {'zip': 'mkdir', 'single': 'mkdir', 'tar': '.tar format'}
FORMS = tuple(NAMES)


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def checkpoint(trace: Path) -> dict:
    """A whole checkpoint of mmengine's form, that makes the folder `trace` when it is unpickled."""
    meta = dict(epoch=1, iter=3, seed=0, payload=Touch(trace))
    hub = dict(log_scalars={}, runtime_info={}, resumed_keys={})
    return dict(meta=meta, state_dict={}, message_hub=hub)


def save(path: Path, trace: Path, form: str) -> Path:
    """Writes one in one of `FORMS`: 'zip', 'single' (before torch 1.6), or 'tar' (of 2016)."""
    if form == 'tar':
        nothing = pickle.dumps(0, protocol=2)
        members = dict(
            sys_info=nothing,
            pickle=pickle.dumps(checkpoint(trace), protocol=2),
            storages=nothing + pickle.dumps([], protocol=2),
            tensors=nothing,
        )
        with tarfile.open(path, 'w', format=tarfile.PAX_FORMAT) as archive:
            for name, data in members.items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    else:
        torch.save(checkpoint(trace), path, _use_new_zipfile_serialization=form == 'zip')
    return path
