"""The formats of torch.save, read as data: its archive, and the single pickle before torch 1.6."""

import errno
import io
import mmap
import os
import re
import struct
import sys
import zipfile
from collections.abc import Callable
from typing import Any, BinaryIO

import torch

from mmattn import pickles
from mmattn.pickles import PickleError, StorageKind, UnknownNames

from .errors import HELP, Damaged, Unsafe

Device = str | torch.device | dict | Callable | None

# What a reader of pickles and Python's of archives say of one that is not whole.
DAMAGE: tuple[type[Exception], ...] = (
    PickleError,
    zipfile.BadZipFile,
    EOFError,
    struct.error,
    UnicodeError,
    NotImplementedError,
    OverflowError,
)


def read(file: BinaryIO, name: str, map_location: Device) -> Any:
    """What a file of torch.save holds.

    Args:
        file (BinaryIO): At its begin: an open file, or a BytesIO.
        name (str): What messages call it.
        map_location: As for `load`; 'meta' gives tensors without contents, which are not read.

    Raises:
        Unsafe: if it wants more than data.
        Damaged: if it is not whole, or of another format.
        OSError: if the file cannot be read.
    """
    try:
        head = file.read(4)
        file.seek(0)
        if not head:
            raise EOFError('it is empty')
        if head[:2] == b'PK':
            return _read_zip(file, map_location)
        if isinstance(file, io.BytesIO):
            return _read_single(file, map_location)
        # Unlike a file, a map gives no more room to what is read than there is in the file.
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            return _read_single(mapped, map_location)
    except UnknownNames as error:
        names = sorted(error.names)
        more = f' and {len(names) - 5} more' if len(names) > 5 else ''
        wanted = ', '.join(name[:100] for name in names[:5])
        raise Unsafe(f'{name} wants to use {wanted}{more}, which is not data; {HELP}') from error
    except DAMAGE as error:
        raise Damaged(f'{name} is no whole checkpoint: {error}') from error
    except OSError as error:
        # A place before the file's begin, which a damaged table of contents may name.
        if error.errno != errno.EINVAL:
            raise
        raise Damaged(f'{name} is no whole checkpoint: {error}') from error


# ---------------------------------------------------------------------------------- storages


class _Storages:
    """What gives a pickle its storages, by their persistent numbers.

    Args:
        read (Callable): From (key, bytes) to what lies in a storage.
        room (int): Bytes of the file: more cannot be in its storages.
        map_location: As for `load`; 'meta' reads nothing.
    """

    def __init__(
        self, read: Callable[[str, int], bytes] | None, room: int, map_location: Device
    ) -> None:
        self.read, self.room, self.map_location = read, room, map_location
        self.known, self.taken = {}, 0

    def __call__(self, number: Any) -> pickles.Storage:
        kind, key, location, count = self._checked(number)
        size = count * kind.dtype.itemsize
        if key not in self.known:
            # All together, as members of an archive may lie over each other.
            self.taken += size
            if self.taken > self.room:
                raise PickleError(f'storages of more bytes than the {self.room} of the file')
            if self.map_location == 'meta':
                memory = torch.UntypedStorage(size, device='meta')
            else:
                assert self.read is not None  # but for 'meta'
                memory = _place(_memory(self.read(key, size)), location, self.map_location)
            self.known[key] = pickles.Storage(memory, kind.dtype), size
        storage, before = self.known[key]
        if size != before:
            raise PickleError('a storage of two sizes')
        return storage._replace(dtype=kind.dtype)

    @staticmethod
    def _checked(number: Any) -> tuple[StorageKind, str, str, int]:
        if type(number) is not tuple or len(number) not in (5, 6) or number[0] != 'storage':
            raise PickleError('a persistent number that is no storage')
        _, kind, key, location, count = number[:5]
        if not isinstance(kind, StorageKind) or number[5:] not in ((), (None,)):
            raise PickleError('a storage of unknown form')
        if not (type(key) is type(location) is str) or type(count) is not int or count < 0:
            raise PickleError('a storage of unknown form')
        return kind, key, location, count


def _memory(data: bytes) -> torch.UntypedStorage:
    """A storage on the CPU that holds some bytes."""
    if not data:
        return torch.UntypedStorage(0)
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).untyped_storage()


def _place(
    storage: torch.UntypedStorage, location: str, map_location: Device
) -> torch.UntypedStorage:
    """A storage on the device that `map_location` says, as torch.load understands it."""
    if isinstance(map_location, dict):
        map_location = map_location.get(location)
    if callable(map_location):
        return map_location(storage, location) or storage
    if map_location is None or torch.device(map_location).type == 'cpu':
        return storage
    holder = torch.empty(0, dtype=torch.uint8).set_(storage, 0, (storage.nbytes(),), (1,))
    return holder.to(map_location).untyped_storage()


def _size(file: BinaryIO | mmap.mmap) -> int:
    file.seek(0, os.SEEK_END)
    return file.tell()


# ------------------------------------------------------------------------------- the archive


def _read_zip(file: BinaryIO, map_location: Device) -> Any:
    """PyTorch's archive: data.pkl, and a stored member for each storage."""
    room = _size(file)
    with zipfile.ZipFile(file) as archive:
        names = set(archive.namelist())
        if len(names) < len(archive.namelist()):
            raise PickleError('an archive with two members of one name')
        found = [name for name in names if re.fullmatch(r'[^/]*/data\.pkl', name)]
        if len(found) != 1:
            raise PickleError('an archive without one data.pkl')
        root = found[0].removesuffix('data.pkl')
        if f'{root}constants.pkl' in names:
            raise UnknownNames({'a TorchScript program'})

        def member(name: str) -> bytes:
            if name not in names:
                raise PickleError(f'{name} is missing')
            if archive.getinfo(name).compress_type != zipfile.ZIP_STORED:
                raise PickleError('compressed, which torch.save never does')
            return archive.read(name)

        def contents(key: str, size: int) -> bytes:
            data = member(f'{root}data/{key}')
            if len(data) != size:
                raise PickleError(f'a storage of {size} bytes holds {len(data)}')
            return data

        try:
            if f'{root}byteorder' in names and member(f'{root}byteorder') != NATIVE:
                raise PickleError('written on a machine of another byte order')
            storages = _Storages(contents, room, map_location)
            return pickles.load(io.BytesIO(member(found[0])), storages)
        except (NotImplementedError, RuntimeError) as error:  # what zipfile says of odd members
            raise PickleError(str(error)) from error


NATIVE = sys.byteorder.encode()

# --------------------------------------------------------------------------- the single pickle

# torch.save before 1.6: three pickles about the file, one with the contents, one with the keys of
# the storages, then these one after the other, each behind its number of elements.
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


def _read_single(file: BinaryIO | mmap.mmap, map_location: Device) -> Any:
    room = _size(file)
    file.seek(min(257, room))
    if file.read(5) == b'ustar':
        raise UnknownNames({"torch's .tar format of 2016"})
    file.seek(0)
    if pickles.load(file) != MAGIC:
        raise PickleError('no file of torch.save')
    if pickles.load(file) != PROTOCOL:
        raise PickleError('of an unknown version')
    about = pickles.load(file)
    little = about.get('little_endian') if isinstance(about, dict) else None
    if little is not (sys.byteorder == 'little'):
        raise PickleError('written on a machine of another byte order')
    start = file.tell()
    # Once without the storages, to find where they are.
    storages = _Storages(None, room, 'meta')
    contents = pickles.load(file, storages)
    keys = pickles.load(file)
    if map_location == 'meta':
        return contents
    places = _places(file, keys, storages.known, room)

    def read(key: str, size: int) -> bytes:
        if key not in places:
            raise PickleError('a storage is missing')
        here = file.tell()
        file.seek(places[key])
        data = file.read(size)
        file.seek(here)
        return data

    file.seek(start)
    return pickles.load(file, _Storages(read, room, map_location))


def _places(
    file: BinaryIO | mmap.mmap, keys: Any, known: dict[str, tuple[pickles.Storage, int]], room: int
) -> dict[str, int]:
    """Where in the file each storage begins."""
    if not isinstance(keys, list) or not all(type(key) is str for key in keys):
        raise PickleError('no list of storages')
    places = {}
    for key in keys:
        if key not in known:
            raise PickleError('a storage that nobody uses')
        storage, size = known[key]
        (count,) = struct.unpack('<q', file.read(8))
        if count * storage.dtype.itemsize != size or file.tell() + size > room:
            raise PickleError('cut off in a storage')
        places[key] = file.tell()
        file.seek(size, os.SEEK_CUR)
    return places
