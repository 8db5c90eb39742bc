"""Data sets out of the archives in which they are published: checked, unpacked, converted, counted.

python tools/dataset_converters/prepare.py voc sbd --from ~/Downloads --to data
"""

import errno
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import cifar, coco, imagenet, voc
from .archives import DataError
from .counts import Count
from .parts import Part, Plan, build, plan, tidy


@dataclass(frozen=True)
class DataSet:
    """A data set: its parts, the lists that are made when they are there, and the counts.

    Attributes:
        parts (tuple): In the order of preparation.
        count (Callable): (root) -> counts of its splits.
        finish (Callable): (root, sources) -> what could not be finished.
    """

    parts: tuple[Part, ...]
    count: Callable[[Path], list[Count]]
    finish: Callable[[Path, list[Path]], list[str]] = lambda root, sources: []


DATA_SETS = {
    'imagenet': DataSet(imagenet.PARTS, imagenet.count_images, imagenet.finish),
    'coco': DataSet(coco.PARTS, coco.count_images),
    'voc': DataSet((voc.VOC2007, voc.VOC2012), voc.count_detection),
    'sbd': DataSet((voc.VOC2012, voc.MASKS), voc.count_segmentation, voc.finish_masks),
    'cifar100': DataSet(cifar.PARTS, cifar.count_images),
}


@dataclass(frozen=True)
class Result:
    """What a data set came to: its counts, and what else is not as it should be."""

    name: str
    counts: list[Count]
    differences: list[str]

    @property
    def right(self) -> bool:
        return not self.differences and all(count.right for count in self.counts)


def prepare(
    names: Iterable[str],
    sources: Iterable[str | Path],
    root: str | Path,
    checksums: bool = True,
    say: Callable[[str], None] = print,
) -> list[Result]:
    """Prepares data sets below a data root; what is there already is kept as it is.

    Everything is verified, all names in archives and the free space of the disk included, before
    anything is unpacked. After an interruption the same call goes on where it was.

    Args:
        names (Iterable): Of :data:`DATA_SETS`.
        sources (Iterable): Folders with archives or unpacked data sets, in themselves or one level
            below; an archive stands for its folder.
        root (str or Path): Gets `imagenet/`, `coco/`, `VOCdevkit/`, `cifar100/`.
        checksums (bool): Whether archives must be the published ones, by size and MD5.
        say (Callable): Takes each line about what is being done.

    Returns:
        list: A result for each name.

    Raises:
        DataError: With one line, where something is wrong with names, archives or the disk.
    """
    names = list(dict.fromkeys(names))
    unknown = [name for name in names if name not in DATA_SETS]
    if unknown:
        raise DataError(f'no data set {unknown[0]!r}; there are {", ".join(DATA_SETS)}')
    root = Path(root).expanduser()
    try:
        return _prepare(names, _folders(sources), root, checksums, say)
    except OSError as error:
        raise DataError(_explain(error)) from error


def _folders(sources: Iterable[str | Path]) -> list[Path]:
    folders = []
    for source in sources:
        source = Path(source).expanduser()
        if not source.exists():
            raise DataError(f'--from: there is no {source}')
        folders.append(source if source.is_dir() else source.parent)
    return list(dict.fromkeys(folders))


def _prepare(
    names: Iterable[str],
    sources: list[Path],
    root: Path,
    checksums: bool,
    say: Callable[[str], Any],
) -> list[Result]:
    parts = list(dict.fromkeys(part for name in names for part in DATA_SETS[name].parts))
    plans, missing = [], {}
    for part in parts:
        tidy(part, root)
        if part.there(root):
            say(f'{root / part.target}: there already, left as it is')
        elif found := plan(part, sources, root):
            plans.append(found)
        else:
            missing[part] = _wanted(part, sources)
    if not plans and len(missing) == len(parts):
        raise DataError(f'nothing to prepare: {next(iter(missing.values()))}')
    for job in plans:
        say(f'{root / job.part.target}: {_from(job)}')
    build(plans, root, checksums)
    results = []
    for name in names:
        data_set = DATA_SETS[name]
        differences = [
            missing[part] for part in data_set.parts if part in missing and not part.there(root)
        ]
        differences += data_set.finish(root, sources)
        results.append(Result(name, data_set.count(root), differences))
    return results


def _from(job: Plan) -> str:
    if job.paths:
        return 'from ' + ' and '.join(map(str, job.paths))
    return f'{"linked to" if job.part.link else "from"} {job.tree}'


def _wanted(part: Part, sources: Iterable[Path]) -> str:
    names = ' and '.join(archive.name for archive in part.archives)
    where = ', '.join(map(str, sources)) or 'no folder, as there is no --from'
    pages = ', '.join(dict.fromkeys(archive.page for archive in part.archives))
    return f'{part.target} needs {names} (looked in {where}); they are at {pages}'


def _explain(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return 'the disk is full: free some, the same command goes on from here'
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f'no permission for {error.filename}'
    return f'{error.strerror or error}: {error.filename}'


__all__ = ['DATA_SETS', 'Count', 'DataError', 'DataSet', 'Result', 'prepare']
