"""What a training that has ended leaves: its log's last lines, its record, its checkpoint."""

import os
from pathlib import Path

from . import record
from .checkpoint import sha256_of
from .form import Record

LOG = 'train.log'
TAIL = 5  # lines of a failed run's log that are shown


def tail(path: Path, count: int = TAIL) -> list[str]:
    """The last lines of a log that are not empty."""
    try:
        with open(path, 'rb') as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 8192))
            lines = file.read().decode(errors='replace').splitlines()
    except OSError:
        return []
    return [line.rstrip() for line in lines if line.strip()][-count:]


def reason(log: Path, code: int | None) -> str:
    """Why a training has ended, in one line: its exit code, and the last line of its log."""
    last = ''.join(tail(log, 1))[:300]
    how = 'without an exit code' if code is None else f'with exit code {code}'
    return f'ended {how}{f": {last}" if last else ""}'


def checkpoint(folder: Path) -> str:
    """The last checkpoint of a run that is done, unchanged.

    Raises:
        FileNotFoundError: if it is gone.
        RecordError: if it is another than the record names.
    """
    known = record.read(folder)['checkpoint']
    if known is None:
        raise record.RecordError(f'{folder / record.NAME} names no checkpoint')
    path = folder / Path(known['name']).name
    if sha256_of(path) != known['sha256']:
        raise record.RecordError(f'{path} is not the checkpoint that {record.NAME} beside it names')
    return str(path)


def complete(known: Record, why: str, failed: bool, begun: bool) -> None:
    """Completes the record of a training that was killed before it could, or has not begun.

    Args:
        known (dict): The record; changed in place.
        why (str): What its last start ended with.
        failed (bool): Whether it will not be tried again.
        begun (bool): Whether the training got as far as to note its start.
    """
    if not begun:
        known['starts'].append(record.start(os.uname().nodename, os.getpid()))
        record.end(known, 'failed', why)
    elif known['starts'][-1]['outcome'] is None:
        record.end(known, 'lost', why)
    known['state'] = 'failed' if failed else 'stopped'
