"""Where the records of runs come from: folders, and whatever else is a `Source`."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from mmattn.runs.record import NAME as RECORD

# A record's own bounds: evaluations of hundreds of epochs and a config are some 100 kB.
MOST_BYTES = 20 * 10**6
TAIL_BYTES, TAIL_LINES = 8000, 20
# paper, perhaps a folder in it, row, seed
DEPTH = 4


class Source(Protocol):
    """Where records come from: a folder, or a pack (see `mmattn.leaderboard.packs`)."""

    @property
    def name(self) -> str:
        """Of its file or folder."""

    def records(self) -> Iterator[tuple[str, bytes]]:
        """Each record's (or would-be record's) place and contents."""

    def last_lines(self, place: str) -> str:
        """Of the log of the run whose record has that place; empty if there is none."""


@dataclass(frozen=True)
class Folder:
    """The root below which runs lie."""

    root: Path

    @property
    def name(self) -> str:
        """The path of the root."""
        return str(self.root)

    def records(self) -> Iterator[tuple[str, bytes]]:
        """In the alphabet's order. Looks for `record.json*` down to the folders of runs, not into
        what a run wrote; links are not followed.

        Raises:
            NotADirectoryError: if there is no such folder.
        """
        if not self.root.is_dir():
            raise NotADirectoryError(f'there is no folder {self.root}')
        yield from self._below(self.root, '', 0)

    def last_lines(self, place: str) -> str:
        """Of the newest log of the run whose record has that place; empty if there is none."""
        logs = sorted((self.root / place).parent.glob('*/*.log'), key=lambda log: log.name)
        if not logs or logs[-1].is_symlink() or not logs[-1].is_file():
            return ''
        with open(logs[-1], 'rb') as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES))
            text = file.read(TAIL_BYTES).decode(errors='replace')
        return '\n'.join(text.splitlines()[-TAIL_LINES:])

    def _below(self, folder: Path | str, place: str, depth: int) -> Iterator[tuple[str, bytes]]:
        folder_name = os.path.basename(folder)
        for item in sorted(os.scandir(folder), key=lambda item: item.name):
            inner = f'{place}{item.name}'
            if item.is_dir(follow_symlinks=False):
                if depth < DEPTH and not re.fullmatch(r'seed\d+', folder_name):
                    yield from self._below(item.path, f'{inner}/', depth + 1)
            elif item.name.startswith(RECORD):
                yield inner, _contents(item)


def _contents(item: os.DirEntry[str]) -> bytes:
    """Of a file, as far as a record may go, without waiting for what is no plain file."""
    if not item.is_file(follow_symlinks=False):
        return b''
    try:
        with open(item.path, 'rb') as file:
            return file.read(MOST_BYTES + 1)
    except OSError:
        return b''
