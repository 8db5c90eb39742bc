"""Where figures and reports are written, looked at before what takes time; and what models are
called in them."""

from collections.abc import Sequence
from pathlib import Path

from mmattn.runs.errors import UserError

from .colla import label_of

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


def titles_of(models: Sequence[Sequence[str]], given: Sequence[str] | None = None) -> list[str]:
    """What to call models (config, checkpoint): as `given`, or by their configs, and if these are
    of one name by the runs of their checkpoints as well.

    Raises:
        UserError: if another number is given.
    """
    if given is not None:
        if len(given) != len(models):
            raise UserError(f'{len(given)} --titles for {len(models)} models')
        return list(given)
    names = [Path(config).stem for config, _ in models]
    if len(set(names)) == len(names):
        return names
    return [f'{name}: {label_of(path)}' for name, (_, path) in zip(names, models, strict=True)]
