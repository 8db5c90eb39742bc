"""A user's tables, and rows that join a paper's: one form, which every tool takes.

A file lists `tables`, as `configs/cat/paper_tables.yml` does. An item is a table of one's own, or
says with `joins: cat 4` which table of a paper its `rows` stand beside.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .metrics import metrics_of
from .tables import (
    PAPERS,
    Entry,
    add_table,
    check_row,
    config_root,
    entries,
    entries_of_row,
    load,
    read_list,
)

JOIN_KEYS = {'joins', 'rows'}


@dataclass(frozen=True)
class Table:
    """A table with its rows, then those that users' files add to it.

    `described` is what the YAML says of it: caption, task, dataset, metrics, checkpoint.
    """

    paper: str
    number: int
    described: dict[str, Any]
    entries: list[Entry]
    joined: list[Entry] = field(default_factory=list)

    @property
    def all_entries(self) -> list[Entry]:
        """Its rows and those of users' files that join them."""
        return self.entries + self.joined


@dataclass(frozen=True)
class File:
    """What a user's file has: tables of its own, called as its folder, and rows that join others.

    `joins` maps (paper, table) to rows.
    """

    path: Path
    tables: dict[int, dict[str, Any]]
    joins: dict[tuple[str, int], list[dict[str, Any]]]

    @property
    def paper(self) -> str:
        """What its tables are called by: the folder's name."""
        return self.path.resolve().parent.name

    @property
    def near(self) -> Path:
        """The folder around that of the file, which its configs are relative to."""
        return self.path.resolve().parents[1]

    @property
    def entries(self) -> list[Entry]:
        """All its rows, its own tables' and those that join others."""
        listed = [((self.paper, number), table['rows']) for number, table in self.tables.items()]
        return [
            entry
            for (paper, number), rows in [*listed, *self.joins.items()]
            for row in rows
            for entry in entries_of_row(paper, number, row, self.near)
        ]

    def __str__(self) -> str:
        found = [f'{self.paper} {number}' for number in self.tables]
        found += [f'rows that join {paper} {number}' for paper, number in self.joins]
        return f'{self.path} has {", ".join(found) or "nothing"}'


def read(path: str | Path) -> File:
    """A user's file.

    Raises:
        ValueError: in one line, if it cannot be read or has another form, if a config is not there,
            or is called as another that the papers' rows have.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding='utf-8')
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f'{path}: {getattr(error, "strerror", None) or error}') from error
    found = File(path, {}, {})
    for item in read_list(text, path):
        if isinstance(item, dict) and 'joins' in item:
            _join(found, item)
        else:
            add_table(found.tables, item, path, own=True)
            metrics_of(item)
    if found.tables and found.paper in PAPERS:
        raise ValueError(f'{path}: tables of your own need a folder that is not called {PAPERS}')
    for entry in found.entries:
        _check_configs(entry, path)
    return found


def select(
    paper: str, numbers: Sequence[int] = (), files: Sequence[str | Path] = ()
) -> list[Table]:
    """Tables of a paper, or of a user's file, with the rows that files add to them.

    Args:
        paper (str): One of `PAPERS`, or the name of the folder of a file with tables of its own.
        numbers (Sequence[int]): Of the tables; none are all.
        files (Sequence[str or Path]): The users', see `read`.

    Raises:
        ValueError: for a paper or table that is not there, a file that adds nothing to the paper,
            or as `read` does.
    """
    read_files = [read(path) for path in files]
    for file in read_files:
        if file.paper != paper and paper not in {name for name, _ in file.joins}:
            raise ValueError(f'{file}, nothing for {paper}')
    found = {}
    if paper in PAPERS:
        for number, described in load(paper).items():
            found[number] = Table(paper, number, described, entries(paper, number))
    for file in read_files:
        for number, described in file.tables.items() if file.paper == paper else ():
            if number in found:
                raise ValueError(f'{file.path}: two tables are called {paper} {number}')
            own = [e for e in file.entries if (e.paper, e.table) == (paper, number)]
            found[number] = Table(paper, number, described, own)
    if not found:
        names = (*PAPERS, *(file.paper for file in read_files if file.tables))
        raise ValueError(f'paper must be one of {", ".join(names)}, got {paper!r}')
    for file in read_files:
        for entry in file.entries:
            if (entry.paper, entry.table) in file.joins and entry.paper == paper:
                _add(found[entry.table], entry, file)
    for number in numbers:
        if number not in found:
            raise ValueError(f'{paper} has the tables {", ".join(map(str, found))}, got {number!r}')
    return [found[number] for number in dict.fromkeys(numbers or found)]


def _join(file: File, item: dict[str, Any]) -> None:
    """Add rows that join a paper's table, checked, to what a file has."""
    path = file.path
    if item.keys() != JOIN_KEYS or not isinstance(item['rows'], list):
        raise ValueError(
            f'{path}: what joins a table has the keys joins and rows, got {sorted(map(str, item))}'
        )
    words = str(item['joins']).split()
    if len(words) != 2 or words[0] not in PAPERS or not words[1].isdigit():
        raise ValueError(
            f'{path}: joins must name a table of {" or ".join(PAPERS)}, as in "joins: cat 4", '
            f'got {item["joins"]!r}'
        )
    paper, number = words[0], int(words[1])
    if number not in load(paper):
        raise ValueError(
            f'{path}: {paper} has the tables {", ".join(map(str, load(paper)))}, got {number}'
        )
    for row in item['rows']:
        check_row(path, row, load(paper)[number], own=True)
    file.joins.setdefault((paper, number), []).extend(item['rows'])


def _add(table: Table, entry: Entry, file: File) -> None:
    if entry.config in {other.config for other in table.all_entries}:
        name = f'{table.paper} {table.number}'
        raise ValueError(f'{file.path}: {entry.config} is a row of {name} already')
    table.joined.append(entry)


def _check_configs(entry: Entry, path: Path) -> None:
    """Its configs are there, where records can name them, and nobody else's are called so."""
    for config in entry.configs:
        if config.count('/') != 1 or not config.endswith('.py'):
            raise ValueError(
                f'{path}: a config must be <folder>/<name>.py, as '
                f'{path.resolve().parent.name}/x.py for x.py beside the file, got {config}'
            )
        try:
            root = entry.root_of(config)
        except FileNotFoundError as error:
            raise ValueError(f'{path}: {error}') from error
        if root.resolve() != config_root().resolve() and (config_root() / config).exists():
            raise ValueError(
                f'{path}: {config} is there twice, in {root} and in {config_root()}: call yours '
                'otherwise'
            )
