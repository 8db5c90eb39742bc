"""Packs: records, configs and logs of runs in one file, without weights, for others to check.

A pack is a `.tar.gz` with each run's `record.json` (which holds its config and versions) and its
logs at their places below the root. It is read where it lies: nothing of it is written to disk.
"""

import gzip
import io
import json
import math
import os
import re
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from mmattn import tars
from mmattn.lines import one_line
from mmattn.papers.metrics import is_number
from mmattn.runs.atomic import replacing
from mmattn.runs.record import NAME

from .collect import MOST_BYTES, TAIL_LINES, Fault, Folder, Run

LOGS = re.compile(r'[^/]+\.log|(.*/)?[^/]+\.json')
# Of one member and of all together: logs of hundreds of runs.
MOST_PACKED, MOST_MEMBERS = 2 * 10**9, 10**5


class PackError(ValueError):
    """A file that is no pack, in one line."""


class Pack:
    """A pack as a source of records."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @property
    def name(self) -> str:
        return str(self.path)

    def records(self) -> Iterator[tuple[str, bytes]]:
        """See `Source.records`.

        Raises:
            FileNotFoundError: if it is not there.
            PackError: if it is no pack, or a truncated one.
        """
        yield from self._members[0].items()

    def last_lines(self, place: str) -> str:
        folder = place.rsplit('/', 1)[0]
        logs = sorted(name for name in self._members[1] if name.startswith(f'{folder}/'))
        return '\n'.join(self._members[1][logs[-1]].splitlines()[-TAIL_LINES:]) if logs else ''

    @cached_property
    def _members(self) -> tuple[dict[str, bytes], dict[str, str]]:
        """Records and the ends of logs, by their places."""
        records, ends = {}, {}
        try:
            with (
                gzip.open(self.path) as whole,
                tars.limited(whole, MOST_PACKED) as zipped,
                tarfile.open(fileobj=zipped, mode='r|', tarinfo=tars.Header) as pack,
            ):
                for count, member in enumerate(pack):
                    if count >= MOST_MEMBERS:
                        raise PackError(f'{self.path}: larger than a pack may be')
                    if not member.isfile():
                        continue
                    file = pack.extractfile(member)
                    assert file is not None  # of a plain file
                    name = member.name.rsplit('/', 1)[-1]
                    if name.startswith(NAME):
                        if member.name in records:
                            raise PackError(f'{self.path}: {member.name} is in it twice')
                        records[member.name] = file.read(MOST_BYTES + 1)
                    elif name.endswith('.log') and member.size < MOST_BYTES:
                        text = file.read().decode(errors='replace')
                        ends[member.name] = text[-8000:]
                # To the end, where the checksum is.
                while zipped.read(2**20):
                    pass
        except (FileNotFoundError, PackError):
            raise
        except (tarfile.TarError, zlib.error, EOFError, OSError, ValueError) as error:
            raise PackError(f'{self.path} is no pack: {one_line(error)}') from error
        return records, ends


def export(root: str | Path, path: str | Path) -> int:
    """Pack the records and logs below `root` into a file; the same runs give the same bytes.

    Returns:
        int: How many records it holds.

    Raises:
        NotADirectoryError: if there is no such root.
        OSError: if it cannot be written; what was there stays.
    """
    folder, count = Folder(Path(root)), 0
    with (
        replacing(path) as temporary,
        open(temporary, 'wb') as file,
        gzip.GzipFile('', 'wb', fileobj=file, mtime=0) as zipped,
        tarfile.open(fileobj=zipped, mode='w', format=tarfile.PAX_FORMAT) as pack,
    ):
        for place, contents in folder.records():
            if place.rsplit('/', 1)[-1] != NAME:
                continue
            _add(pack, place, contents)
            count += 1
            run = (folder.root / place).parent
            for log in _logs(run):
                _add(pack, log.relative_to(folder.root).as_posix(), log.read_bytes())
    return count


def verify(root: str | Path, runs: Iterable[Run]) -> list[Fault]:
    """What of some runs below `root` is not what their logs and files say.

    Every evaluation of a record must be in the scalars that the training logged, with the same
    numbers; a checkpoint that is still there must have the hash of the record.

    Raises:
        NotADirectoryError: if there is no such root.
    """
    from mmattn.runs.checkpoint import sha256_of  # which takes torch

    root, faults = Path(root), []
    if not root.is_dir():
        raise NotADirectoryError(f'there is no folder {root}')
    for run in runs:
        folder, record = Path(run.place).parent, run.record
        logged = [item for log in _logs(folder) if log.suffix == '.json' for item in _lines(log)]
        if record['evaluations'] and not logged:
            faults.append(Fault(run.place, 'no log says what was evaluated'))
            continue
        for item in record['evaluations']:
            if not any(_says(line, item) for line in logged):
                when = f'epoch {item["epoch"]}, iteration {item["iter"]}'
                faults.append(Fault(run.place, f'no log has the evaluation of {when}'))
        for checkpoint in filter(None, (record['checkpoint'], record.get('best_checkpoint'))):
            file = folder / Path(checkpoint['name']).name
            if file.is_file() and sha256_of(file) != checkpoint['sha256']:
                faults.append(Fault(run.place, f'{file.name} has another hash'))
    return faults


def _logs(run: Path) -> list[Path]:
    """A run's logs: the text and scalars of each start. Links are not followed."""
    found = []
    for folder, inner, files in os.walk(run):
        inner.sort()
        for name in sorted(files):
            file = Path(folder) / name
            if file.parent == run or not LOGS.fullmatch(name) or file.is_symlink():
                continue
            if file.is_file():  # and no pipe, which would be waited for
                found.append(file)
    return found


def _add(pack: tarfile.TarFile, name: str, contents: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode, member.mtime = len(contents), 0o644, 0
    pack.addfile(member, io.BytesIO(contents))


def _lines(log: Path) -> list[dict[str, Any]]:
    """The scalars of a log, a JSON object a line; a line that a kill cut short is no error."""
    found = []
    with open(log, encoding='utf-8', errors='replace') as file:
        for line in file:
            try:
                item = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(item, dict) and 'loss' not in item:
                found.append(item)
    return found


def _says(line: Mapping[str, Any], evaluation: Mapping[str, Any]) -> bool:
    """Whether a line of scalars is that evaluation: the same step, the same numbers."""
    if line.get('step') not in (evaluation['epoch'], evaluation['iter'], evaluation['iter'] - 1):
        return False
    return all(
        value is None
        or (
            is_number(line.get(name))
            and math.isclose(line[name], value, rel_tol=1e-6, abs_tol=1e-9)
        )
        for name, value in evaluation['metrics'].items()
    )
