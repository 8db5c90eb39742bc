from collections.abc import Iterable, Set
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

PAPERS = ('cat', 'drtam')
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
ALTERNATIVE_KEYS = {'name', 'changes', 'evidence'}
OPTIONAL_ALTERNATIVE_KEYS = {'rows'}
ROW_KEYS = {'group', 'method', 'config', 'paper'}
OPTIONAL_ROW_KEYS = {'settings', 'contradicts', 'misprints', 'quoted', 'pretrained'}


@dataclass(frozen=True)
class Entry:
    """One printed model: a row of a table, or one of the two placements of a row of DRTAM 7.

    `values` maps a metric to the number the paper prints, `contradicts` maps the metrics in which
    the paper contradicts itself to the reason, `misprints` those whose number is impossible.
    `quoted` says from where the row is, if not from the paper's own training. `config` is relative
    to `config_root()`, and so is `pretrained`, the config of an ImageNet network with the same
    backbone, gates included, that a detector or segmentor can start from.
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

    @property
    def name(self) -> str:
        return f'{self.method} ({self.placement})' if self.placement else self.method


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


@lru_cache
def load(paper: str) -> dict[int, dict[str, Any]]:
    """The tables of `configs/<paper>/paper_tables.yml`, by their number.

    Raises:
        ValueError: for an unknown paper, or a file that does not have the documented keys.
    """
    if paper not in PAPERS:
        raise ValueError(f'paper must be one of {PAPERS}, got {paper!r}')
    path = config_root() / paper / 'paper_tables.yml'
    tables = {}
    for table in yaml.safe_load(path.read_text(encoding='utf-8'))['tables']:
        _check_keys(path, table, TABLE_KEYS, OPTIONAL_TABLE_KEYS)
        if table['task'] not in TASKS:
            raise ValueError(f'{path}: task must be one of {TASKS}, got {table["task"]!r}')
        if table['checkpoint'] not in CHECKPOINTS:
            raise ValueError(
                f'{path}: checkpoint must be one of {CHECKPOINTS}, got {table["checkpoint"]!r}'
            )
        for item in table.get('alternatives', []):
            _check_keys(path, item, ALTERNATIVE_KEYS, OPTIONAL_ALTERNATIVE_KEYS)
        for row in table['rows']:
            _check_keys(path, row, ROW_KEYS, OPTIONAL_ROW_KEYS)
            for _, values in _placements(row, row['paper']):
                if set(values) != set(table['metrics']):
                    raise ValueError(
                        f'{path}: table {table["id"]} has the metrics '
                        f'{table["metrics"]}, a row has {list(values)}'
                    )
                _check_granularity(path, table, row, values)
        tables[table['id']] = table
    return tables


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
    found = []
    for number in tables if table is None else [table]:
        for row in tables[number]['rows']:
            values = dict(_placements(row, row['paper']))
            pretrained = dict(_placements(row, row['pretrained'])) if 'pretrained' in row else {}
            for placement, config in _placements(row, row['config']):
                found.append(
                    Entry(
                        paper,
                        number,
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
                    )
                )
    return found


def _placements(row: dict[str, Any], item: Any) -> Iterable[tuple[str | None, Any]]:
    """`item` of a row as (placement, item) pairs; a row with one model has the placement None."""
    return item.items() if isinstance(row['config'], dict) else [(None, item)]


def _check_granularity(
    path: Path, table: dict[str, Any], row: dict[str, Any], values: dict[str, float]
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


def _check_keys(
    path: Path, item: dict[str, Any], required: Set[str], optional: Set[str] = frozenset()
) -> None:
    if not required <= set(item) <= required | optional:
        raise ValueError(
            f'{path}: expected the keys {sorted(required)} (and perhaps '
            f'{sorted(optional)}), got {sorted(item)}'
        )
