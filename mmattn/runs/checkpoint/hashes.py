"""The SHA-256 that published weights carry, and that loading compares."""

import hashlib
import os
import re
from pathlib import Path

from .errors import WrongHash


def expected_hashes(path: str | os.PathLike) -> list[str]:
    """What the SHA-256 of a file must begin with, in hexadecimal digits.

    Published weights carry it in their name (`resnet50-0676ba61.pth`) or in a file beside them
    (`resnet50.pth.sha256`, as sha256sum writes it). Eight digits that are a date are no hash.

    Raises:
        WrongHash: if the file beside holds no hash.
    """
    path = Path(path)
    found = re.search(r'-([0-9a-f]{8,64})\.\w+$', path.name)
    hashes = [found[1]] if found and not re.fullmatch(r'20\d\d[01]\d[0-3]\d', found[1]) else []
    beside = path.with_name(path.name + '.sha256')
    if beside.is_file():
        words = beside.read_text(errors='replace')[:4096].split()
        if not words or not re.fullmatch(r'[0-9a-fA-F]{64}', words[0]):
            raise WrongHash(f'{beside} holds no SHA-256')
        hashes.append(words[0].lower())
    return hashes


def sha256_of(path: str | os.PathLike) -> str:
    """The SHA-256 of a file, in 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def check_hash(path: str | os.PathLike, sha256: str = '') -> None:
    """Raises WrongHash if a file is not the one that its name, its .sha256 or `sha256` says."""
    wanted = [*expected_hashes(path), *([sha256.lower()] if sha256 else [])]
    found = sha256_of(path) if wanted else ''
    for hash in wanted:
        if not found.startswith(hash):
            raise WrongHash(
                f'{path} is not what was published: its SHA-256 is {found[: len(hash)]}..., not '
                f'{hash}; load it again from its source (a file of yours: rename it)'
            )
