"""Where figures and reports are written, looked at before what takes time."""

from pathlib import Path

from mmattn.runs.errors import UserError

FIGURES = ('.png', '.jpg', '.pdf', '.svg')


def folder(path: Path) -> Path:
    """Make a folder, if it is not there.

    Raises:
        UserError: if it cannot be.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f'cannot write to the folder {path}: {error.strerror}') from None
    return path


def figure_file(path: Path) -> Path:
    """A figure's file, with its folder made.

    Raises:
        UserError: if its name ends in none of `FIGURES`, or there can be no such file.
    """
    if path.suffix.lower() not in FIGURES:
        raise UserError(f'--out must end in {", ".join(FIGURES)}, got {path}')
    if path.is_dir():
        raise UserError(f'--out {path} is a folder')
    folder(path.parent)
    return path
