"""Archives as their makers published them: found, verified, and read without leaving them.

Nothing is ever unpacked by the archive's own word: members are read as streams, and the caller
says where each goes. What an archive holds beside plain files and folders (links that lead out of
it, devices) and names that lead out of it end the reading.
"""

import errno
import hashlib
import json
import lzma
import os
import posixpath
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any

from mmattn import tars
from mmattn.datasets.progress import track
from mmattn.lines import one_line

CHUNK = 1 << 20
BROKEN: tuple[type[Exception], ...] = (
    tarfile.TarError,
    zipfile.BadZipFile,
    EOFError,
    zlib.error,
    lzma.LZMAError,
    OSError,
    # Of names and heads that zipfile trusts.
    UnicodeError,
    struct.error,
    RuntimeError,
)


class DataError(Exception):
    """Something about the user's data or disk that stops the work, told in one line."""


@dataclass(frozen=True)
class Archive:
    """An archive as it is published.

    Attributes:
        name (str): Of the file.
        page (str): Where people get it.
        md5 (str): Checksum of the file.
        size (int, optional): In bytes, where known.
    """

    name: str
    page: str
    md5: str
    size: int | None = None


@dataclass(frozen=True)
class Member:
    """A file in an archive: its checked name, its size in bytes, and how to open it."""

    name: str
    size: int
    open: Callable[[], IO[bytes]]


def find(name: str, sources: Iterable[Path]) -> Path | None:
    """A file or folder of this name in one of the folders, or one level below."""
    for source in sources:
        for folder in (source, *_folders(source)):
            if (folder / name).exists():
                return folder / name
    return None


def _folders(source: Path) -> list[Path]:
    with os.scandir(source) as entries:
        found = [entry.name for entry in entries if entry.is_dir() and entry.name[0] != '.']
    return [source / name for name in sorted(found)]


def verify(archive: Archive, path: Path, record: Path) -> None:
    """Compares a file with what was published.

    Args:
        archive (Archive): What it should be.
        path (Path): The file.
        record (Path): A JSON file that remembers what was verified, so that a second start need
            not read it again.

    Raises:
        DataError: If size or checksum differ.
    """
    state = path.stat()
    if archive.size is not None and state.st_size != archive.size:
        hint = ': the download stopped early' if state.st_size < archive.size else ''
        raise DataError(
            f'{path} has {state.st_size} bytes, the published file has {archive.size}{hint}; '
            f'get it again from {archive.page}, or take it as it is with --no-checksum'
        )
    known = _verified(record)
    key = [str(path.absolute()), state.st_size, state.st_mtime_ns, archive.md5]
    if known.get(archive.name) == key:
        return
    found = _md5(path)
    if found != archive.md5:
        raise DataError(
            f'{path} is not the published file: its MD5 is {found}, published is {archive.md5}; '
            f'get it again from {archive.page}, or take it as it is with --no-checksum'
        )
    write_text(record, json.dumps(known | {archive.name: key}))


def _verified(record: Path) -> dict[str, Any]:
    """What is remembered; nothing, if the file is not there or not as it was written."""
    try:
        known = json.loads(record.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, 'rb') as file, track(f'verifying {path.name}', path.stat().st_size) as advance:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            advance(len(chunk))
    return digest.hexdigest()


def write_text(path: Path, text: str) -> None:
    """Writes a small file so that it is whole or not there."""
    half = path.with_name(f'.{path.name}.partial')
    with open(half, 'w', encoding='utf-8') as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(half, path)


def read(source: Path | IO[bytes], name: str | None = None) -> Iterator[Member]:
    """The files of an archive (tar, compressed or not, or zip) or of a folder, in its order.

    A member is to be read before the next is asked for.

    Args:
        source (Path or file): The archive or folder; an open file is a tar.
        name (str, optional): What errors call it; by default its path.

    Raises:
        DataError: If the archive is broken or cut off, or a name or link leads out of it.
    """
    name = name or str(source)
    with broken_archives(name):
        if isinstance(source, Path) and source.is_dir():
            yield from _read_folder(source)
        elif isinstance(source, Path) and source.suffix == '.zip':
            yield from _read_zip(source, name)
        else:
            yield from _read_tar(source, name)


@contextmanager
def broken_archives(name: str) -> Iterator[None]:
    """Says in one line what the readers of archives say in a dozen ways."""
    try:
        yield
    except NotImplementedError as error:
        raise DataError(f'{name}: {error}; unpack it yourself and pass the folder') from error
    except BROKEN as error:
        # The disk's have a number; gzip's have none, places before a damaged zip's begin this one.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        what = one_line(str(error).partition('\n')[0].rstrip(':'))
        raise DataError(f'{name} is broken or cut off ({what}); get it again') from error


def _read_folder(folder: Path) -> Iterator[Member]:
    for path in sorted(folder.rglob('*')):
        if path.is_file():
            yield Member(
                path.relative_to(folder).as_posix(), path.stat().st_size, partial(_open_file, path)
            )


def _open_file(path: Path) -> IO[bytes]:
    return open(path, 'rb')


def _read_zip(source: Path, name: str) -> Iterator[Member]:
    with zipfile.ZipFile(source) as archive:
        for info in archive.infolist():
            if not info.filename:  # which older Pythons stumble over
                raise DataError(f'{name} holds a file without a name: refused')
            path = _inside(info.filename, name)
            mode = info.external_attr >> 16
            if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise DataError(f'{name} holds a link or device, {info.filename!r}: refused')
            if info.flag_bits & 1:
                raise DataError(f'{name} is encrypted; unpack it yourself and pass the folder')
            if not info.is_dir():
                yield Member(path, info.file_size, partial(archive.open, info))


def _read_tar(source: Path | IO[bytes], name: str) -> Iterator[Member]:
    where = {'fileobj': source, 'mode': 'r:'} if not isinstance(source, Path) else {'name': source}
    with tarfile.open(**where, tarinfo=tars.Header) as archive:
        for info in archive:
            path = _inside(info.name, name)
            if info.issym() or info.islnk():
                base = posixpath.dirname(info.name) if info.issym() else ''
                _inside(posixpath.normpath(posixpath.join(base, info.linkname)), name, info.name)
            elif not (info.isreg() or info.isdir()):
                raise DataError(f'{name} holds a device or the like, {info.name!r}: refused')
            if not info.isdir():
                yield Member(path, info.size, partial(_open_tar, archive, info, name))
        if not _has_end(archive):
            raise DataError(f'{name} is broken or cut off (it has no end); get it again')


def _has_end(archive: tarfile.TarFile) -> bool:
    """Whether a block of zeros comes last; tarfile is content with the end of the file."""
    file = archive.fileobj
    if file.tell() == archive.offset + tarfile.BLOCKSIZE:
        return True  # just read; going back would unpack a .tgz once more
    file.seek(archive.offset)
    return len(file.read(tarfile.BLOCKSIZE)) == tarfile.BLOCKSIZE


def _open_tar(archive: tarfile.TarFile, info: tarfile.TarInfo, name: str) -> IO[bytes]:
    """The stream of a member; of a link, that of the member of this archive which it names."""
    try:
        stream = archive.extractfile(info)
    except (KeyError, RecursionError):
        stream = None
    if stream is None:
        raise DataError(f'{name} holds a link to nothing in it, {info.name!r}: refused')
    return stream


def _inside(path: str, name: str, link: str | None = None) -> str:
    """The path without `./`, if it stays below the folder that it is unpacked in."""
    clean = PurePosixPath(path.replace('\\', '/'))
    if clean.is_absolute() or '..' in clean.parts or not clean.parts:
        if not clean.parts and link is None:
            return '.'
        what = f'{link!r}, a link to {path!r}' if link else repr(path)
        raise DataError(f'{name} holds {what}, which leads out of the folder: refused')
    return clean.as_posix()
