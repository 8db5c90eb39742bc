"""What is there, against what the papers use."""

import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from .archives import DataError

SHOWN = 5  # names in a difference

# The images that the papers train and test on. CAT counts 22136 of VOC07+12 (all files of VOC2012)
# and DRTAM 11355 + 1446 of voc12aug (SBD's own split); their configs say more.
PAPERS = {
    'ImageNet train': 1281167,
    'ImageNet val': 50000,
    'COCO train2017': 118287,
    'COCO val2017': 5000,
    'VOC07+12 trainval': 16551,
    'VOC07 test': 4952,
    'VOC12 train + aug': 10582,
    'VOC12 val': 1449,
    'CIFAR-100 train': 50000,
    'CIFAR-100 test': 10000,
}


@dataclass(frozen=True)
class Count:
    """The images of a split that are whole, the papers' number, and what differs."""

    split: str
    found: int
    wanted: int
    differences: tuple[str, ...] = ()

    @property
    def right(self) -> bool:
        return self.found == self.wanted and not self.differences


def count(split: str, names: Collection[str], missing: Mapping[str, Collection[str]]) -> Count:
    """Counts the names of a list, without those for which a file is missing.

    Args:
        split (str): What is counted, of :data:`PAPERS`.
        names (Collection): Of a list.
        missing (Mapping): What a file is for -> names whose file of that kind is not there.
    """
    wanted = PAPERS[split]
    lost = {name for names_lost in missing.values() for name in names_lost}.intersection(names)
    differences = []
    if len(names) != wanted:
        more = 'more' if len(names) > wanted else 'fewer'
        differences.append(
            f"{len(names)} in the list, {abs(len(names) - wanted)} {more} than the papers' {wanted}"
        )
    for kind, names_lost in missing.items():
        if names_lost:
            differences.append(f'{len(names_lost)} without {kind}: {shortened(names_lost)}')
    return Count(split, len(names) - len(lost), wanted, tuple(differences))


def shortened(names: Iterable[str]) -> str:
    """The first names, and how many there are beside them."""
    names = sorted(names)
    rest = f' and {len(names) - SHOWN} more' if len(names) > SHOWN else ''
    return ', '.join(names[:SHOWN]) + rest


def nothing(split: str, why: str) -> Count:
    """The count of a split that cannot be read."""
    return Count(split, 0, PAPERS[split], (why,))


def lines(path: Path) -> list[str]:
    """The entries of a list file; none if there is no such file.

    Raises:
        DataError: If it is no text.
    """
    if not path.is_file():
        return []
    try:
        text = path.read_text(encoding='utf-8')
    except UnicodeDecodeError as error:
        raise DataError(f'{path} is no list: {error}; get or make it again') from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def stems(folder: Path, suffix: str) -> set[str]:
    """The names in a folder that end so, without the end; none if there is no such folder."""
    if not folder.is_dir():
        return set()
    return {name[: len(name) - len(suffix)] for name in os.listdir(folder) if name.endswith(suffix)}
