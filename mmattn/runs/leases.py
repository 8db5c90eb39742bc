"""Who may start a run, and on which GPUs: leases, which end with those who hold them.

A lease is a lock (`flock`) on a file. The holder hands it down to the processes that it starts:
when it is killed, and they go on, nobody else gets the lease. Nothing has to be cleaned up.

The file says who holds it and, by its time, that the holder is alive (`beat`): where locks do not
reach other machines, a lease whose file another machine has touched a moment ago is taken too.

This file imports nothing of the package: jobs of Slurm (task.py) load it by its path.
"""

import errno
import fcntl
import json
import os
import socket
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TextIO

NAME = '.lease'
UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)  # file systems' locks
BEAT, STALE = 10, 60  # seconds between two touches; after which a silent machine counts as gone


class Lease:
    """One that this process holds. Made by `take`."""

    def __init__(self, file: TextIO) -> None:
        self._file, self._touched = file, time.monotonic()

    def fileno(self) -> int:
        """To hand down: `pass_fds` of a subprocess."""
        return self._file.fileno()

    def beat(self) -> None:
        """Says that we are alive, if that was some time ago."""
        if time.monotonic() - self._touched >= BEAT:
            os.utime(self._file.fileno())
            self._touched = time.monotonic()

    def release(self) -> None:
        """Ends it, unless a process that it was handed down to still runs."""
        if not self._file.closed:
            os.ftruncate(self._file.fileno(), 0)
            self._file.close()


def take(path: str | Path, what: str) -> Lease | None:
    """The lease of a file, or None if somebody else has it.

    Args:
        path (str or Path): Its folder is made if it does not exist.
        what (str): What the holder is, for others to read.

    Raises:
        OSError: if the file cannot be opened or written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    file = open(path, 'a+', encoding='utf-8')  # noqa: SIM115
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES, *UNSUPPORTED):
                raise
            if error.errno not in UNSUPPORTED or _is_fresh(file, everywhere=True):
                file.close()
                return None
        if _is_fresh(file):
            file.close()
            return None
        os.ftruncate(file.fileno(), 0)
        file.write(
            json.dumps(dict(host=socket.gethostname(), pid=os.getpid(), what=what, at=time.time()))
        )
        file.flush()
    except BaseException:
        file.close()
        raise
    return Lease(file)


def is_held(path: str | Path) -> bool:
    """Whether somebody, be it this process, has the lease of a file."""
    try:
        file = open(path, encoding='utf-8')  # noqa: SIM115
    except FileNotFoundError:
        return False
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            return error.errno not in UNSUPPORTED or _is_fresh(file, everywhere=True)
        return _is_fresh(file)


def holder(path: str | Path) -> str:
    """Who has the lease of a file, as far as the file says."""
    try:
        found = json.loads(Path(path).read_text(encoding='utf-8'))
        return f'{found["what"]} (process {found["pid"]} on {found["host"]})'
    except (OSError, ValueError, KeyError, TypeError):
        return 'another process'


def _is_fresh(file: TextIO, everywhere: bool = False) -> bool:
    """Whether another machine has touched the file a moment ago; with `everywhere` ours counts."""
    file.seek(0)
    try:
        host = json.loads(file.read())['host']
    except (ValueError, KeyError, TypeError):
        return False
    age = time.time() - os.fstat(file.fileno()).st_mtime
    return (everywhere or host != socket.gethostname()) and age < STALE


class Slots:
    """The GPUs of this machine, or its CPUs where there are none, shared by all drivers of a user.

    Args:
        kind (str): 'gpu' or 'cpu'.
        names (Iterable[str]): Which: the numbers of the GPUs.
    """

    def __init__(self, kind: str, names: Iterable[str]) -> None:
        self.kind, self.names = kind, list(names)
        self._folder = Path(tempfile.gettempdir()) / f'mmattn-slots-{os.getuid()}'

    def take(self, count: int, what: str) -> dict[str, Lease] | None:
        """That many free ones with their leases, or None if there are fewer."""
        found = {}
        for name in self.names:
            if len(found) == count:
                break
            lease = take(self._folder / f'{self.kind}{name}', what)
            if lease is not None:
                found[name] = lease
        if len(found) == count:
            return found
        for lease in found.values():
            lease.release()
        return None
