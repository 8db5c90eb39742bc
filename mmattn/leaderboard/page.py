"""Boards as one HTML page that needs no network: tables to sort and filter, plots, all rows."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

from . import judge, render
from .board import (
    ALONE,
    BASELINE,
    EQUIVALENT,
    GAIN,
    LOSS,
    NO_PAPER,
    ONE_SEED,
    REPRODUCED,
    Board,
    Cell,
    Row,
    commands,
)
from .charts import curves_chart, gains_chart, values_chart
from .collect import Run

SIGNS = {
    judge.AGREES: '=',
    judge.HIGHER: '▲',
    judge.LOWER: '▼',
    judge.UNDECIDED: '?',
    judge.NOT_RUN: '–',
    NO_PAPER: '·',
    REPRODUCED: '=',
    EQUIVALENT: '≈',
    GAIN: '▲',
    LOSS: '▼',
    ONE_SEED: '?',
    BASELINE: '·',
    ALONE: '·',
}
ORDER: tuple[str, ...] = (
    judge.AGREES,
    REPRODUCED,
    judge.HIGHER,
    GAIN,
    judge.LOWER,
    LOSS,
    EQUIVALENT,
)
ORDER += (judge.UNDECIDED, ONE_SEED, judge.NOT_RUN, NO_PAPER, BASELINE, ALONE)


def page(boards: Sequence[Board]) -> str:
    """The page. All that comes from records, tables and files is escaped."""
    environment = jinja2.Environment(
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.globals.update(
        render=render,
        signs=SIGNS,
        order=ORDER,
        rules=render.rules(boards),
        word_of=word_of,
        checkpoint_of=checkpoint_of,
        summary=summary,
        anchor=anchor,
        commands=commands,
        configs=_configs,
        css_class=lambda word: word.replace(':', '').replace(' ', '-'),
        values_chart=_svg(values_chart),
        gains_chart=_svg(gains_chart),
        curves_chart=_svg(curves_chart),
        pretty=partial(json.dumps, indent=1, sort_keys=True, ensure_ascii=False),
    )
    text = resources.files(__package__).joinpath('page.html').read_text(encoding='utf-8')
    return environment.from_string(text).render(boards=boards)


def summary(board: Board) -> dict[str, Any]:
    """How many cells have which verdict, and how many runs are done."""
    words = Counter(word_of(board, cell) for row in board.rows for cell in row.cells.values())
    for word in (BASELINE, ALONE):  # no verdicts
        words.pop(word, None)
    runs = [run for row in board.rows for run in row.runs]
    return dict(
        verdicts={word: words[word] for word in ORDER if words[word]},
        runs=len(runs),
        counted=sum(run.counts for run in runs),
        started=sum(bool(row.runs) for row in board.rows),
        rows=len(board.rows),
    )


def word_of(board: Board, cell: Cell) -> str:
    """The verdict that a line is found by: on the paper's number or, without one, on the gain."""
    return cell.verdict.word if board.has_paper else cell.gain_word


def checkpoint_of(board: Board, run: Run) -> tuple[str, str]:
    """Which checkpoint's hash is shown, and the hash: the counted one's, if it was kept."""
    best = run.record.get('best_checkpoint') if board.checkpoint == 'best' else None
    found = best or run.record['checkpoint'] or {}
    return 'best' if best else 'last', found.get('sha256', '')


def anchor(board: Board, row: Row) -> str:
    """A row's place in the page."""
    name = '+'.join([row.config, row.group, row.method, *row.alternatives])
    return f'row-{board.table}-{hashlib.sha256(name.encode()).hexdigest()[:10]}'


def _svg(chart: Callable[..., str]) -> Callable[..., Markup]:
    """Charts escape what they show; they are markup."""
    return lambda *args: Markup(chart(*args))


def _configs(row: Row) -> list[tuple[list[int], str]]:
    """The distinct configs of a row's runs: (seeds, text)."""
    found = {}
    for run in row.runs:
        if run.record['config_text'] is not None:
            found.setdefault(run.record['config_text'], []).append(run.seed)
    return [(seeds, text) for text, seeds in found.items()]
