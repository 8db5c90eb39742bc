"""A board as text: Markdown, CSV, JSON and the terminal. Nothing that is printed is markup."""

import csv
import io
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mmattn.lines import one_line

from . import judge
from .board import GAIN, LOSS, REPRODUCED, RULES, Board, Cell, Row
from .collect import Run

FORMATS = ('terminal', 'markdown', 'csv', 'json', 'html')
# Told apart by the colour-blind, too, and never without the word.
COLOURS = {
    judge.AGREES: 'bold blue',
    REPRODUCED: 'bold blue',
    judge.HIGHER: 'yellow',
    judge.LOWER: 'magenta',
    GAIN: 'blue',
    LOSS: 'magenta',
}
RIGHT = ('Paper', 'Ours', 'n', 'Difference', 'Gain, paper', 'Gain, ours')
HEADER: tuple[str, ...] = (
    'Network',
    'Method',
    'Metric',
    'Paper',
    'Ours',
    'n',
    'Difference',
    'Verdict',
)
HEADER += ('Gain, paper', 'Gain, ours', 'Verdict of the gain', 'State')
OF_PAPERS = ('Paper', 'Difference', 'Verdict', 'Gain, paper')
# What the others are called where no paper prints anything.
ALONE = {'Gain, ours': 'Gain', 'Verdict of the gain': 'Verdict'}


def render(boards: Sequence[Board], style: str) -> str:
    """Boards as 'markdown', 'csv', 'json' or 'html' text.

    Raises:
        ValueError: for another style.
    """
    if style == 'html':
        from .page import page

        return _encodable(page(boards))
    if style not in ('markdown', 'csv', 'json'):
        raise ValueError(f'style must be one of {FORMATS[1:]}, got {style!r}')
    if style == 'json':
        contents = {'rules': rules(boards), 'tables': [as_data(board) for board in boards]}
        return _encodable(json.dumps(contents, indent=1, ensure_ascii=False) + '\n')
    if style == 'csv':
        return _csv(boards)
    return '\n'.join(map(_markdown, boards)) + '\n' + ''.join(f'- {r}\n' for r in rules(boards))


def show(boards: Sequence[Board], console: Console | None = None) -> None:
    """Prints boards to a terminal (standard output by default)."""
    console = console or Console()
    for board in boards:
        title = f'{heading(board)} ({board.checkpoint} checkpoint)'
        table = Table(title=Text(title), box=box.SIMPLE_HEAD, pad_edge=False)
        names = header(board)[1:]
        for name in names:
            table.add_column(label(board, name), justify='right' if name in RIGHT else 'left')
        group = None
        for row in board.rows:
            if row.group != group:
                table.add_section()
                table.add_row(Text(plain(row.group), style='bold'))
                group = row.group
            for at, cell in enumerate(row.cells.values()):
                words = _words(row, cell, first=at == 0)
                styles: dict[str, Any] = {
                    'Verdict': cell.verdict.word,
                    'Verdict of the gain': cell.gain_word,
                }
                table.add_row(
                    *(Text(plain(words[n]), COLOURS.get(styles.get(n) or '', '')) for n in names)
                )
        console.print(table)
        for line in remarks(board):
            console.print(Text(f'- {plain(line)}'))
    for rule in rules(boards):
        console.print(Text(rule, style='dim'))


def header(board: Board) -> list[str]:
    """The columns: a paper's only where one prints something."""
    return [name for name in HEADER if board.has_paper or name not in OF_PAPERS]


def label(board: Board, name: str) -> str:
    """What a column is called."""
    return name if board.has_paper else ALONE.get(name, name)


def rules(boards: Sequence[Board]) -> list[str]:
    """What of the rules is applied in any of these."""
    return [rule for rule in RULES if any(rule in board.rules for board in boards)]


def heading(board: Board) -> str:
    return f'{board.title}: {board.caption}'


def name_of(row: Row) -> str:
    """A row's method with its settings and alternatives."""
    text = row.method
    if row.settings:
        text += f' ({", ".join(f"{key} = {value}" for key, value in row.settings.items())})'
    return f'{text} [{", ".join(row.alternatives)}]' if row.alternatives else text


def remarks(board: Board) -> list[str]:
    """What is to be said of rows, then of files that do not count."""
    found = []
    for row in board.rows:
        name = f'{row.group} {name_of(row)}'
        if row.quoted:
            found.append(f'{name}: the paper quotes it from {row.quoted}')
        found += [f'{name}: {note}' for note in row.notes]
    return found + [f'not counted: {fault.place}: {fault.reason}' for fault in board.faults]


def number(value: float | None, digits: int = 2, sign: bool = False) -> str:
    """With a true minus; empty for None. With a sign, as many digits as show which it is."""
    if value is None:
        return ''
    while sign and value and not round(value, digits) and digits < 9:
        digits += 1
    value = round(value, digits) + 0.0  # no -0
    return f'{value:{"+" if sign else ""}.{digits}f}'.replace('-', '−')


def ours(cell: Cell) -> str:
    """Mean and standard deviation, or the one value."""
    if not cell.ours:
        return ''
    mean = number(cell.verdict.mean)
    return mean if cell.verdict.std is None else f'{mean} ± {number(cell.verdict.std)}'


def verdict(cell: Cell) -> str:
    """In words, and whether ours is better where more is not."""
    text = str(cell.verdict)
    if cell.verdict.word in (judge.HIGHER, judge.LOWER) and cell.metric.error:
        text += ' (fewer errors)' if cell.better else ' (more errors)'
    return text


def gain(cell: Cell) -> str:
    """Ours with its interval; empty where there is none."""
    if cell.gain is None:
        return ''
    low, high = number(cell.gain.low, sign=True), number(cell.gain.high, sign=True)
    return f'{number(cell.gain.mean, sign=True)} ({low} to {high})'


def gain_verdict(cell: Cell) -> str:
    """The word, with the corrected p-value and the power; or why there is none."""
    if cell.gain is None:
        return cell.why
    text = f'{cell.gain_word}, p {cell.gain.p:.2g}'
    return text if cell.gain.power is None else f'{text}, power {100 * cell.gain.power:.0f} %'


def plain(text: Any) -> str:
    """One line without control characters, which a terminal would obey."""
    return one_line(text, most=None)


def _encodable(text: str) -> str:
    """Names of files that are no text have their bytes as `\\udcff`."""
    return text.encode('utf-8', 'backslashreplace').decode()


def as_data(board: Board) -> dict[str, Any]:
    """A board as JSON holds it."""
    rows = []
    for row in board.rows:
        cells = {}
        for name, cell in row.cells.items():
            judged = asdict(cell.verdict)
            cells[name] = {
                'paper': cell.paper,
                'ours': {
                    'values': cell.ours,
                    'at_the_other_checkpoint': cell.other,
                    **{key: judged[key] for key in ('n', 'mean', 'std', 'half_width')},
                },
                'difference': cell.verdict.difference,
                'verdict': cell.verdict.word,
                'more_seeds': cell.verdict.more,
                'gain': None
                if cell.gain is None
                else {**asdict(cell.gain), 'verdict': cell.gain_word},
            }
        rows.append(
            {
                'group': row.group,
                'method': row.method,
                'settings': row.settings,
                'config': row.config,
                'alternatives': row.alternatives,
                'own': row.own,
                'quoted': row.quoted,
                'state': row.state,
                'waiting': row.waiting,
                'paper': row.paper,
                'counted': row.counted,
                'metrics': cells,
                'notes': row.notes,
                'runs': [run_data(run) for run in row.runs],
            }
        )
    return {
        'paper': board.paper,
        'table': board.table,
        'caption': board.caption,
        'dataset': board.dataset,
        'checkpoint': board.checkpoint,
        'seeds': board.seeds,
        'rows': rows,
        'not_counted': [asdict(fault) for fault in board.faults],
    }


def run_data(run: Run) -> dict[str, Any]:
    """What a run was, without its config and evaluations."""
    record = run.record
    keys: tuple[str, ...] = (
        'commit',
        'diff_sha256',
        'data_sha256',
        'gpus',
        'processes',
        'batch',
        'lr',
    )
    keys += ('machines', 'versions', 'pretrained', 'checkpoint', 'best_checkpoint')
    keys += ('config_sha256',)
    return {
        'record': run.place,
        'seed': run.seed,
        'state': run.state,
        'progress': run.progress,
        'modified': run.modified,
        'deviations': run.deviations,
        **{key: record.get(key) for key in keys},
    }


def _words(row: Row, cell: Cell, first: bool) -> dict[str, str]:
    paper_gain = cell.gain.paper if cell.gain else None
    return {
        'Network': row.group if first else '',
        'Method': name_of(row) if first else '',
        'Metric': cell.metric.column,
        'Paper': number(cell.paper),
        'Ours': ours(cell),
        'n': str(len(cell.ours)),
        'Difference': number(cell.verdict.difference, sign=True),
        'Verdict': verdict(cell),
        'Gain, paper': number(paper_gain, sign=True),
        'Gain, ours': gain(cell),
        'Verdict of the gain': gain_verdict(cell),
        'State': row.state if first else '',
    }


def _markdown(board: Board) -> str:
    def line(cells: Iterable[str]) -> str:
        return f'| {" | ".join(map(_escaped, cells))} |\n'

    text = f'### {_escaped(heading(board))}\n\n'
    text += f'{_escaped(board.dataset)}; {board.checkpoint} checkpoint.\n\n'
    names = header(board)
    text += line(label(board, name) for name in names) + f'|{" --- |" * len(names)}\n'
    for row in board.rows:
        for cell in row.cells.values():
            words = _words(row, cell, first=True)
            text += line(words[name] for name in names)
    return text + '\n' + ''.join(f'- {_escaped(remark)}\n' for remark in remarks(board))


def _escaped(word: str) -> str:
    return re.sub(r'([\\`*_\[\]<>|&#!~$])', r'\\\1', plain(word))


def _csv(boards: Iterable[Board]) -> str:
    """A line for each metric of each row. A text that a spreadsheet would take for a formula has an
    apostrophe before it."""
    out = io.StringIO()
    names = ['paper_name', 'table', 'group', 'method', 'config', 'alternatives', 'metric', 'paper']
    names += ['ours_mean', 'ours_std', 'n', 'half_width', 'difference', 'verdict', 'more_seeds']
    names += ['gain_paper', 'gain_ours', 'gain_low', 'gain_high', 'gain_p', 'gain_power']
    names += ['gain_verdict', 'state', 'ours_values']
    writer = csv.writer(out, lineterminator='\n')
    writer.writerow(names)
    for board in boards:
        for row in board.rows:
            for cell in row.cells.values():
                v, g = cell.verdict, cell.gain
                gains = [g.paper, g.mean, g.low, g.high, g.p, g.power] if g else [None] * 6
                values = ' '.join(f'{seed}:{value!r}' for seed, value in cell.ours.items())
                cells = [board.paper, board.table, row.group, name_of(row), row.config]
                cells += ['+'.join(row.alternatives), cell.metric.column, cell.paper]
                cells += [v.mean, v.std, v.n, v.half_width, v.difference, v.word, v.more]
                cells += [*gains, cell.gain_word, row.state, values]
                writer.writerow(map(_harmless, cells))
    return out.getvalue()


def _harmless(value: Any) -> Any:
    if isinstance(value, str):
        value = plain(value)
        return f"'{value}" if value[:1] in ('=', '+', '-', '@') else value
    return '' if value is None else value
