"""The one place where checkpoints are read: as data, in each format that they come in.

`install` puts it where mmengine reads its own (`load_from`, `resume`, `init_cfg`, downloads), which
falls back to running a file's code. Formats: PyTorch's archive and the single pickle before it,
safetensors. What a pickle may hold is said in `mmattn.pickles`.
"""

from .conversion import convert, write
from .errors import CheckpointError, Damaged, Unsafe, WrongHash
from .hashes import check_hash, expected_hashes, sha256_of
from .loading import load, load_meta
from .sources import install, uninstall

__all__ = [
    'CheckpointError',
    'Damaged',
    'Unsafe',
    'WrongHash',
    'check_hash',
    'convert',
    'expected_hashes',
    'install',
    'load',
    'load_meta',
    'sha256_of',
    'uninstall',
    'write',
]
