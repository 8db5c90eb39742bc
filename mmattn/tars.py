"""What Python's tarfile lets through in archives of strangers, kept from it."""

import io
import tarfile
from typing import IO, Any

# Of a name or a header of keys, which are read into memory.
MOST_OF_HEADER = 2**20
PLAIN = (*tarfile.REGULAR_TYPES, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE)
PLAIN += (tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE)


class Header(tarfile.TarInfo):
    """A member: `tarfile.open(..., tarinfo=Header)`.

    A negative size lets older Pythons read the same member for ever (CVE-2025-8194), and headers
    of other headers may claim any size.
    """

    @classmethod
    def frombuf(cls, *args: Any, **kwargs: Any) -> 'Header':
        """See `TarInfo.frombuf`; raises ReadError for such sizes."""
        found = super().frombuf(*args, **kwargs)
        if found.size < 0 or (found.type not in PLAIN and found.size > MOST_OF_HEADER):
            raise tarfile.ReadError(f'a header says {found.size} bytes')
        return found


class _Limited(io.RawIOBase):
    def __init__(self, file: IO[bytes] | io.BufferedIOBase, most: int) -> None:
        self.file, self.left, self.most = file, most, most

    def read(self, size: int = -1) -> bytes:
        data = self.file.read(min(size, 2**20) if size >= 0 else 2**20)
        self.left -= len(data)
        if self.left < 0:
            raise tarfile.ReadError(f'more than {self.most} bytes when unpacked')
        return data


def limited(file: IO[bytes] | io.BufferedIOBase, most: int) -> io.RawIOBase:
    """A stream that raises ReadError after so many bytes: what is packed small may be endless."""
    return _Limited(file, most)
