"""Who owns a folder: one training, test or quickstart at a time.

The owner holds a lock of the operating system (`fcntl`), which ends with its process however that
ends: nothing has to be cleaned up, and a file that is left behind is free. The file says who it is.
Network file systems have these locks too, between machines, if the server has them (NFSv4 does,
NFSv3 with `lockd`). Where there are none, what the file says decides.
"""

import errno
import fcntl
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from .errors import UserError
from .leases import UNSUPPORTED

NAME = '.owner'


def make_folder(folder: str | Path) -> None:
    """Makes a folder and those above it where they are not there yet.

    Raises:
        UserError: If something else has its name, or that of one above it.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        taken = next(
            path
            for path in (folder, *folder.parents)
            if os.path.lexists(path) and not path.is_dir()
        )
        raise UserError(
            f'{folder} cannot be a folder for results: {taken} is no folder; choose another'
        ) from error


@contextmanager
def owning(folder: str | Path, what: str, wait: bool = False) -> Iterator[None]:
    """Owns a folder inside.

    Args:
        folder (str or Path): Made if it does not exist.
        what (str): What the owner is, for others to read: 'a training'.
        wait (bool): Whether to wait for another owner's end instead of raising an error.

    Raises:
        UserError: If the folder has another owner, or cannot be one.
    """
    path = Path(folder) / NAME
    make_folder(folder)
    told = False
    with open(path, 'a+') as file:
        while not _lock(file):
            message = f'{folder} is in use by {_describe(file)}'
            if not wait:
                raise UserError(f'{message}; wait for its end, or choose another folder')
            if not told:
                print(f'{message}; waiting for its end', file=sys.stderr, flush=True)
                told = True
            time.sleep(0.5)
        _write(file, json.dumps(dict(_self(), what=what, since=time.strftime('%Y-%m-%d %H:%M:%S'))))
        try:
            yield
        finally:
            _write(file, '')


def _self() -> dict[str, Any]:
    return dict(pid=os.getpid(), machine=socket.gethostname())


def _lock(file: TextIO) -> bool:
    try:
        # Not flock: it would be inherited by the data workers, and outlive their training.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        if error.errno in UNSUPPORTED:
            return not _may_be_alive(_read(file))
        raise
    return True


def _may_be_alive(owner: dict[str, Any]) -> bool:
    """Without locks: a process of another machine may be, and its user has to say if it is not."""
    if not owner or owner == {**owner, **_self()}:
        return False
    if owner.get('machine') != socket.gethostname():
        return True
    try:
        os.kill(owner['pid'], 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


def _read(file: TextIO) -> dict[str, Any]:
    file.seek(0)
    try:
        owner = json.loads(file.read() or '{}')
    except ValueError:
        return {}
    keys = dict(pid=int, machine=str, what=str, since=str)
    is_ours = isinstance(owner, dict) and all(
        isinstance(owner.get(key), kind) for key, kind in keys.items()
    )
    return owner if is_ours else {}


def _write(file: TextIO, text: str) -> None:
    file.seek(0)
    file.truncate()
    file.write(text)
    file.flush()


def _describe(file: TextIO) -> str:
    owner = _read(file)
    if not owner:
        return 'another process'
    return (
        f'{owner["what"]} (process {owner["pid"]} on {owner["machine"]}, since {owner["since"]}; '
        f'{file.name})'
    )
