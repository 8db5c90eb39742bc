import re
import reprlib
from collections.abc import Iterable, Set
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from mmattn.lines import one_line

PAPERS = ('cat', 'drtam')
MOST_ITEMS = 10**5  # of a file of tables
TASKS = (
    'image-classification',
    'object-detection',
    'instance-segmentation',
    'semantic-segmentation',
)
TABLE_KEYS = {
    'id',
    'caption',
    'task',
    'dataset',
    'metrics',
    'checkpoint',
    'checkpoint_evidence',
    'proven',
    'platform',
    'rows',
}
CHECKPOINTS = ('best', 'last')
OPTIONAL_TABLE_KEYS = {'alternatives', 'granularity'}
EVIDENCE_KEYS = {
    'checkpoint_evidence',
    'proven',
    'platform',
}  # which a table of one's own needs not
ALTERNATIVE_KEYS = {'name', 'changes', 'evidence'}
OPTIONAL_ALTERNATIVE_KEYS = {'rows', 'gates'}
ROW_KEYS = {'group', 'method', 'config', 'paper'}
OPTIONAL_ROW_KEYS: dict[str, Any] = {
    'settings': dict,
    'contradicts': dict,
    'misprints': dict,
    'quoted': str,
    'pretrained': (str, dict),
}


@dataclass(frozen=True)
class Entry:
    """One printed model: a row of a table, or one of the two placements of a row of DRTAM 7.

    `values` maps a metric to the number the paper prints, `contradicts` maps the metrics in which
    the paper contradicts itself to the reason, `misprints` those whose number is impossible.
    `quoted` says from where the row is, if not from the paper's own training. `config` is relative
    to `config_root()`, and so is `pretrained`, the config of an ImageNet network with the same
    backbone, gates included, that a detector or segmentor can start from. `near` is the folder that
    both may lie below, too, of a row that a user has written (own.py).
    """

    paper: str
    table: int
    group: str
    method: str
    config: str
    values: dict[str, float]
    settings: dict[str, Any] = field(default_factory=dict)
    contradicts: dict[str, str] = field(default_factory=dict)
    placement: str | None = None
    misprints: dict[str, str] = field(default_factory=dict)
    quoted: str | None = None
    pretrained: str | None = None
    near: Path | None = None

    @property
    def name(self) -> str:
        """The method, with its placement if it has one."""
        return f'{self.method} ({self.placement})' if self.placement else self.method

    @property
    def configs(self) -> tuple[str, ...]:
        """Its config, and that of the network it can start from."""
        return (self.config,) if self.pretrained is None else (self.config, self.pretrained)

    def root_of(self, config: str) -> Path:
        """The folder that a config of this row lies below.

        Raises:
            FileNotFoundError: if it is not there.
        """
        roots = [*([] if self.near is None else [self.near]), config_root()]
        for root in roots:
            if (root / config).is_file():
                return root
        raise FileNotFoundError(f'config not found: {config}, below {" or ".join(map(str, roots))}')


def config_root() -> Path:
    """The folder `configs/`: the checkout's, or the copy that a wheel carries in `mmattn/.mim`.

    Raises:
        FileNotFoundError: if neither is there.
    """
    package = Path(__file__).resolve().parents[1]
    for root in (package.parent / 'configs', package / '.mim' / 'configs'):
        if (root / 'cat' / 'paper_tables.yml').exists():
            return root
    raise FileNotFoundError(f'no configs beside or in {package}')


def config_name(path: str | Path) -> str:
    """A config's path relative to `config_root()`, or its folder and name if it lies elsewhere."""
    path, root = Path(path).resolve(), config_root().resolve()
    if path.is_relative_to(root):
        return path.relative_to(root).as_posix()
    return f'{path.parent.name}/{path.name}'


@lru_cache
def load(paper: str) -> dict[int, dict[str, Any]]:
    """The tables of `configs/<paper>/paper_tables.yml`, by their number.

    Raises:
        ValueError: for an unknown paper, or as `parse` does.
    """
    if paper not in PAPERS:
        raise ValueError(f'paper must be one of {PAPERS}, got {paper!r}')
    path = config_root() / paper / 'paper_tables.yml'
    return parse(path.read_text(encoding='utf-8'), path)


def parse(text: str, path: str | Path) -> dict[int, dict[str, Any]]:
    """The tables of a text in the form of `paper_tables.yml`, by their number.

    Args:
        text (str): YAML.
        path (str or Path): What messages call it.

    Raises:
        ValueError: in one line, if it does not have the documented keys, or values of their kinds.
    """
    tables: dict[int, dict[str, Any]] = {}
    for table in read_list(text, path):
        add_table(tables, table, path)
    return tables


def read_list(text: str, path: str | Path) -> list[Any]:
    """What a text's `tables` lists, unchecked; raises ValueError as `parse` does."""
    contents = read_yaml(text, path)
    _check_kind(path, 'the file', contents, dict)
    return _check_kind(path, 'tables', contents.get('tables'), list)


def add_table(
    tables: dict[int, dict[str, Any]], table: Any, path: str | Path, own: bool = False
) -> None:
    """Add a table, checked, to those before it.

    Args:
        own (bool): Whether it is a user's: without evidence, alternatives or printed numbers.

    Raises:
        ValueError: as `parse` does.
    """
    if own:
        _check_keys(path, table, TABLE_KEYS - EVIDENCE_KEYS, {'granularity', *EVIDENCE_KEYS})
    else:
        _check_keys(path, table, TABLE_KEYS, OPTIONAL_TABLE_KEYS)
    _check_kind(path, 'id', table['id'], int)
    if table['id'] in tables:
        raise ValueError(f'{path}: two tables have the id {table["id"]}')
    for key, allowed in (('task', TASKS), ('checkpoint', CHECKPOINTS)):
        if not isinstance(table[key], str) or table[key] not in allowed:
            raise ValueError(
                f'{path}: {key} must be one of {allowed}, got {reprlib.repr(table[key])}'
            )
    metrics = _check_kind(path, 'metrics', table['metrics'], list)
    for metric in metrics:
        _check_kind(path, 'a metric', metric, str)
    granularity = _check_kind(path, 'granularity', table.get('granularity', {}), dict)
    for metric, step in granularity.items():
        if metric not in metrics or not _check_kind(path, 'a step', step, (int, float)) > 0:
            raise ValueError(
                f'{path}: granularity gives a step above 0 for some of the metrics {metrics}, '
                f'got {reprlib.repr(granularity)}'
            )
    for item in _check_kind(path, 'alternatives', table.get('alternatives', []), list):
        _check_alternative(path, item)
    for row in _check_kind(path, 'rows', table['rows'], list):
        check_row(path, row, table, own)
    tables[table['id']] = table


def read_yaml(text: str, path: str | Path) -> Any:
    """What a text of YAML holds.

    Raises:
        ValueError: in one line, if it is none, or stands for more than `MOST_ITEMS`, as a few lines
            with aliases may.
    """
    try:
        found, count = yaml.safe_load(text), 0
        left = [found]
        while left:
            item, count = left.pop(), count + 1
            if count > MOST_ITEMS:
                raise ValueError(f'more than {MOST_ITEMS} items')
            if isinstance(item, (dict, list, tuple, set)):
                left += [*item.values()] if isinstance(item, dict) else [*item]
        return found
    except (yaml.YAMLError, ValueError, TypeError, LookupError, RecursionError) as error:
        raise ValueError(f'{path}: no YAML: {one_line(error)}') from error


def _check_alternative(path: str | Path, item: Any) -> None:
    _check_keys(path, item, ALTERNATIVE_KEYS, OPTIONAL_ALTERNATIVE_KEYS)
    for key in ALTERNATIVE_KEYS:
        _check_kind(path, key, item[key], str)
    globs = _check_kind(path, 'rows of an alternative', item.get('rows', '*'), (str, list))
    for glob in [globs] if isinstance(globs, str) else globs:
        _check_kind(path, 'rows of an alternative', glob, str)
    if not isinstance(item.get('gates', False), bool):
        raise ValueError(f'{path}: gates of an alternative must be true or false')
    if not re.fullmatch(r'[\w.-]+', item['name']):
        raise ValueError(f'{path}: {item["name"]!r} is no name of an alternative')


def check_row(path: str | Path, row: Any, table: dict[str, Any], own: bool = False) -> None:
    """Raises ValueError for a row that is not of the documented form, `own` as for `add_table`."""
    metrics = table['metrics']
    if own:
        _check_keys(path, row, ROW_KEYS - {'paper'}, {'paper', *OPTIONAL_ROW_KEYS})
    else:
        _check_keys(path, row, ROW_KEYS, set(OPTIONAL_ROW_KEYS))
    _check_kind(path, 'group', row['group'], str)
    _check_kind(path, 'method', row['method'], str)
    _check_kind(path, 'config', row['config'], str if own else (str, dict))
    for key, kind in OPTIONAL_ROW_KEYS.items():
        if key in row:
            _check_kind(path, key, row[key], str if own and key == 'pretrained' else kind)
    if own and 'paper' not in row:
        for key in {'config', 'pretrained'} & row.keys():
            _check_config(path, row[key])
        return
    _check_kind(path, 'paper', row['paper'], dict)
    placements = dict(_placements(row, row['paper']))
    if isinstance(row['config'], dict) and set(placements) != set(row['config']):
        raise ValueError(
            f'{path}: table {table["id"]} has a row whose config and paper differ in places'
        )
    for key in ('config', 'pretrained'):
        configs = row.get(key, {})
        for config in configs.values() if isinstance(configs, dict) else [configs]:
            _check_config(path, config)
    for values in placements.values():
        if set(_check_kind(path, 'paper', values, dict)) != set(metrics):
            raise ValueError(
                f'{path}: table {table["id"]} has the metrics {metrics}, a row has {list(values)}'
            )
        for value in values.values():
            _check_kind(path, 'a printed number', value, (int, float))
        _check_granularity(path, table, row, values)


def _check_config(path: str | Path, config: Any) -> None:
    """Raises ValueError for a config that is not a file below `config_root()`."""
    _check_kind(path, 'config', config, str)
    parts = config.split('/')
    if Path(config).is_absolute() or '..' in parts or '\\' in config or '\0' in config:
        raise ValueError(f'{path}: a config must lie in the folder of configs, got {config!r}')


def entries(paper: str | None = None, table: int | None = None) -> list[Entry]:
    """The printed models of a paper (all papers if None), of one of its tables if given.

    Returns:
        list[Entry]: in the paper's order.

    Raises:
        ValueError: for an unknown paper, or a table that the paper does not have.
    """
    if paper is None:
        return [entry for paper in PAPERS for entry in entries(paper, table)]
    tables = load(paper)
    if table is not None and table not in tables:
        raise ValueError(f'{paper} has the tables {sorted(tables)}, got {table!r}')
    return _entries(paper, {n: tables[n] for n in (tables if table is None else [table])})


def _entries(paper: str, tables: dict[int, dict[str, Any]]) -> list[Entry]:
    return [
        entry
        for number, table in tables.items()
        for row in table['rows']
        for entry in entries_of_row(paper, number, row)
    ]


def entries_of_row(
    paper: str, table: int, row: dict[str, Any], near: Path | None = None
) -> list[Entry]:
    """The models of a checked row: one, or one for each placement."""
    values = dict(_placements(row, row.get('paper', {})))
    pretrained = dict(_placements(row, row['pretrained'])) if 'pretrained' in row else {}
    return [
        Entry(
            paper,
            table,
            row['group'],
            row['method'],
            config,
            values[placement],
            row.get('settings', {}),
            row.get('contradicts', {}),
            placement,
            row.get('misprints', {}),
            row.get('quoted'),
            pretrained.get(placement),
            near,
        )
        for placement, config in _placements(row, row['config'])
    ]


def _placements(row: dict[str, Any], item: Any) -> Iterable[tuple[str | None, Any]]:
    """`item` of a row as (placement, item) pairs; a row with one model has the placement None."""
    return item.items() if isinstance(row['config'], dict) else [(None, item)]


def _check_granularity(
    path: str | Path, table: dict[str, Any], row: dict[str, Any], values: dict[str, float]
) -> None:
    """A metric that comes in steps (0.002 % is one of 50,000 images) is a whole number of them,
    unless the row names it under `misprints`."""
    for metric, step in table.get('granularity', {}).items():
        steps = values[metric] / step
        misprinted = metric in row.get('misprints', {})
        if (abs(steps - round(steps)) < 1e-6) == misprinted:
            raise ValueError(
                f'{path}: table {table["id"]}, {row["method"]}: {metric} {values[metric]} is '
                f'{"a" if misprinted else "no"} multiple of {step}, yet '
                f'{"" if misprinted else "not "}among the misprints of its row'
            )


def _check_kind(path: str | Path, name: str, value: Any, kind: type | tuple[type, ...]) -> Any:
    """The value; raises ValueError if it is of another kind. A bool is no number."""
    if not isinstance(value, kind) or isinstance(value, bool):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        raise ValueError(
            f'{path}: {name} must be of {" or ".join(k.__name__ for k in kinds)}, '
            f'got {reprlib.repr(value)}'
        )
    return value


def _check_keys(
    path: str | Path, item: Any, required: Set[str], optional: Set[str] = frozenset()
) -> None:
    _check_kind(path, 'a table or row', item, dict)
    if not required <= set(item) <= required | optional:
        raise ValueError(
            f'{path}: expected the keys {sorted(required)} (and perhaps '
            f'{sorted(optional)}), got {sorted(map(str, item))}'
        )
