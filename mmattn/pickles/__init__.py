"""Pickles, read as data: what one names is not imported, and nothing is called but what is here.

`torch.load(weights_only=True)` is not enough for checkpoints: it was got round in torch up to 2.5
(CVE-2025-32434) and up to 2.9 (CVE-2026-24747, sizes that are not the file's), which are in use
here, and the types that mmengine's own checkpoints need are no data as they stand: OneDL's list
holds `getattr`. Nor is an unpickler enough that allows NumPy's arrays alone: their dtypes can be
told that pointers lie where there are the file's bytes. So each name that a pickle may hold stands
for a small function of `makers.py`, which takes what it needs and no more; sizes are held against
what is there. The rest is refused by its name, in any version of torch and NumPy.
"""

from .errors import PickleError, UnknownNames
from .machine import load, load_file, names_in
from .makers import MAKERS, Storage, StorageKind

__all__ = [
    'MAKERS',
    'PickleError',
    'Storage',
    'StorageKind',
    'UnknownNames',
    'load',
    'load_file',
    'names_in',
]
