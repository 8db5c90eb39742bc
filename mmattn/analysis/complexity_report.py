"""Complexities as text: a table beside the paper's numbers, a single config, the READMEs' lists."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from mmattn.papers import entries, load

from .complexity import Complexity, Row, convention_of, table_rows
from .counters import CONVENTIONS, COUNTERS, ROWS, Convention, calls

STYLES = ('markdown', 'csv', 'json')
COLUMNS = {'params': 'Params (M)', 'gflops': 'FLOPs (G)', 'gmac': 'GMac'}


def _check(style: str) -> None:
    if style not in STYLES:
        raise ValueError(f'style must be one of {STYLES}, got {style!r}')


def markdown(header: list[str], rows: list[list[str]], left: int) -> str:
    """A table whose first `left` columns are words, the others numbers; no word is markup."""
    rule = ['---'] * left + ['---:'] * (len(header) - left)
    rows = [[' '.join(cell.split()).replace('|', r'\|') for cell in cells] for cells in rows]
    return ''.join(f'| {" | ".join(cells)} |\n' for cells in (header, rule, *rows))


def _two(number: float | None) -> str:
    return '' if number is None else f'{number:.2f}'


def render(rows: list[Row], style: str = 'markdown') -> str:
    """`rows` of `table_rows` as 'markdown', 'csv' or 'json' text.

    Raises:
        ValueError: for another style.
    """
    _check(style)
    if style == 'markdown':
        header = ['Network', 'Method', 'Params (M)', 'as counted', 'paper', '']
        header += ['FLOPs (G)', 'as counted', 'paper', '']
        cells = [
            [
                row.group,
                row.method,
                *map(_two, (row.params, row.counted_params, row.paper_params)),
                '' if row.params_agree else '≠',
                *map(_two, (row.flops, row.counted_flops, row.paper_flops)),
                '' if row.flops_agree else '≠',
            ]
            for row in rows
        ]
        return markdown(header, cells, left=2)
    agree = [dict(params_agree=row.params_agree, flops_agree=row.flops_agree) for row in rows]
    records = [asdict(row) | more for row, more in zip(rows, agree, strict=True)]
    if style == 'json':
        return json.dumps(records, indent=2) + '\n'
    out = io.StringIO()
    columns = [name for name in records[0] if name != 'contradicts']
    writer = csv.DictWriter(out, columns, extrasaction='ignore', lineterminator='\n')
    writer.writeheader()
    writer.writerows(records)
    return out.getvalue()


def render_table(paper: str, table: int) -> str:
    """A paper's table as Markdown, with its caption, its convention and how many cells agree.

    Raises:
        ValueError: for an unknown paper or table.
    """
    rows = table_rows(paper, table)
    text = f'### {paper.upper()}, Table {table}: {load(paper)[table]["caption"]}\n\n'
    text += f'{describe(paper, table)}\n\n{render(rows)}'
    if any(row.paper_params is not None for row in rows):
        (_, params), (_, flops), cells = *agreeing(rows).items(), len(rows)
        text += f'\nAs counted, {params} of {cells} parameters and {flops} of {cells} FLOPs are '
        text += 'the printed ones, to the last digit.\n'
    return text


def describe(paper: str, table: int) -> str:
    """How a table was counted, in words; ValueError for an unknown paper or table."""
    others = [calls(ROWS[e.config]) for e in entries(paper, table) if e.config in ROWS]
    words = [f'{" and ".join(others[0])} in {len(others)} rows'] if others else []
    return ', '.join([str(convention_of(paper, table)), *words])


def agreeing(rows: list[Row]) -> dict[str, int]:
    """How many rows' 'params' and 'flops' are the printed ones when counted as the authors did."""
    return dict(
        params=sum(row.params_agree for row in rows), flops=sum(row.flops_agree for row in rows)
    )


def render_config(
    config: str, counted: Complexity, convention: Convention, style: str = 'markdown'
) -> str:
    """A config's `Complexity`, whole and by part, as 'markdown', 'csv' or 'json' text.

    Raises:
        ValueError: for another style.
    """
    _check(style)
    if style == 'json':
        record = {'config': str(config), 'size': convention.size, **asdict(counted)}
        del record['as_authors']
        return json.dumps(record, indent=2) + '\n'
    flops = {**counted.parts, 'total': counted.flops}
    if style == 'csv':
        params = {'total': counted.params}
        return 'part,params,flops\n' + ''.join(
            f'{part},{params.get(part, "")},{n}\n' for part, n in flops.items()
        )
    cells = [[part, f'{n / 1e9:.3f}'] for part, n in flops.items()]
    text = f'{config}: {counted.params / 1e6:.3f} M parameters ({convention})\n\n'
    return text + markdown(['Part', 'FLOPs (G)'], cells, left=1)


def contradictions() -> str:
    """The printed numbers that no count gives, with what was found, as Markdown."""
    cells = []
    for paper, table in CONVENTIONS:
        if not any(entry.contradicts for entry in entries(paper, table)):
            continue
        for row in table_rows(paper, table):
            for metric, reason in row.contradicts.items():
                params = metric == 'params'
                printed = row.paper_params if params else row.paper_flops
                counted = row.counted_params if params else row.counted_flops
                place = f'{paper.upper()} {table}', f'{row.group} {row.method}', COLUMNS[metric]
                cells.append([*place, _two(printed), _two(counted), reason])
    header = ['Table', 'Row', 'Column', 'paper', 'as counted', 'What was found']
    text = markdown(header, cells, left=3)
    return text.replace('---: | ---: | ---: |', '---: | ---: | --- |')


def conventions() -> str:
    """How each table was counted, and how many of its cells come out, as Markdown."""
    cells, total = [], [0, 0, 0]
    for (paper, table), convention in CONVENTIONS.items():
        rows = table_rows(paper, table)
        numbers = [*agreeing(rows).values(), len(rows)]
        total = [a + b for a, b in zip(total, numbers, strict=True)]
        place = f'{paper.upper()} {table}', describe(paper, table), convention.evidence
        cells.append([*place, *_of(numbers)])
    cells.append(['all', '', '', *_of(total)])
    return markdown(['Table', 'Counted', 'By', 'Params', 'FLOPs'], cells, left=3)


def _of(numbers: Sequence[int]) -> tuple[str, str]:
    params, flops, cells = numbers
    return f'{params} of {cells}', f'{flops} of {cells}'


def costs() -> str:
    """What each counter charges, as Markdown."""
    kinds = {kind: None for counter in COUNTERS for group in counter.costs for kind in group}
    rows = {}
    for kind in kinds:
        charged = tuple(
            next((_terms(t) for group, t in counter.costs.items() if kind in group), '0')
            for counter in COUNTERS
        )
        rows.setdefault(charged, []).append(f'`{kind}`')
    cells = [[', '.join(names), *charged] for charged, names in rows.items()]
    return markdown(['Module', *(c.name for c in COUNTERS)], cells, left=1 + len(COUNTERS))


def _terms(terms: Mapping[str, int]) -> str:
    return ' + '.join(name if times == 1 else f'{times} x {name}' for name, times in terms.items())
