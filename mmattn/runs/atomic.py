"""Files that are replaced as a whole: either the old one is there or the new, whatever happens."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

TEMPORARY = '.tmp'


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Gives the path of another file that takes the place of ``path`` if all goes well."""
    path = Path(path)
    temporary = path.with_name(path.name + TEMPORARY)
    try:
        yield temporary
        with open(temporary, 'rb+') as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        with suppress(OSError):  # some file systems sync no folders
            os.fsync(folder)
    finally:
        os.close(folder)


def write_text(path: str | os.PathLike, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding='utf-8')
