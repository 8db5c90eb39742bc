"""The page's plots as SVG text: hand-made, as they are dots and lines, and need no network.

Paper and ours differ in shape and colour: a hollow diamond, filled dots. Texts inherit the page's
colours through classes.
"""

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from .board import Board, Row
from .render import name_of, number

WIDTH, LABEL, RIGHT, TOP, BOTTOM = 860, 250, 24, 12, 30
LINE, GROUP = 24, 28
# Okabe and Ito's, which all kinds of colour blindness tell apart
PALETTE = ('#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9', '#8c6d1f', '#777777')


Point = tuple[float, float]
Label = tuple[float, str, str]  # its height in the picture, the words, their colour


class Line(NamedTuple):
    """One of a chart's lines: `dots` and `paper` in its unit, an interval and its middle."""

    label: str
    paper: float | None = None
    dots: Sequence[float] = ()
    middle: float | None = None
    low: float | None = None
    high: float | None = None
    title: str = ''
    group: str = ''


def values_chart(board: Board, column: str) -> str:
    """The paper's number and our runs of each row, with where one more run would lie."""
    lines = []
    for row in board.rows:
        cell = row.cells[column]
        if cell.paper is None and not cell.ours:
            continue
        v = cell.verdict
        width = v.half_width
        low = high = None
        if width is not None and v.mean is not None:
            low, high = v.mean - width, v.mean + width
        title = f'{name_of(row)}: '
        title += f'paper {number(cell.paper) or "none"}, ours ' if board.has_paper else ''
        title += ', '.join(map(number, cell.ours.values())) or 'not run'
        middle = v.mean if v.n > 1 else None  # one run is its own dot
        lines.append(
            Line(
                name_of(row),
                cell.paper,
                [*cell.ours.values()],
                middle,
                low,
                high,
                f'{title}; {v}' if board.has_paper else title,
                row.group,
            )
        )
    whose = 'the paper and of our runs' if board.has_paper else 'our runs'
    return _chart(lines, f'{column} of {whose}')


def gains_chart(board: Board, column: str) -> str:
    """Gains over the baseline, ours with 95 % intervals; empty if there are none."""
    lines = []
    for row in board.rows:
        gain = row.cells[column].gain
        if gain is not None:
            title = f'{name_of(row)}: gain {number(gain.mean, sign=True)}'
            title += f', paper {number(gain.paper, sign=True) or "none"}' if board.has_paper else ''
            title += f'; {row.cells[column].gain_word}'
            lines.append(
                Line(name_of(row), gain.paper, (), gain.mean, gain.low, gain.high, title, row.group)
            )
    return _chart(lines, f'gain in {column} over the baseline', zero=True) if lines else ''


def curves_chart(row: Row, column: str) -> str:
    """A row's metric at each evaluation, a line a seed; empty if nothing was evaluated twice."""
    metric = row.cells[column].metric
    curves, unit = [], 'iteration'
    for run in row.runs:
        points: list[Point] = []
        for item in run.record['evaluations']:
            value, at = metric.read(item['metrics']), item.get('epoch')
            unit, at = ('iteration', item['iter']) if not at else ('epoch', at)
            if value is not None:
                points.append((at, value))
        if len(points) > 1:
            curves.append((run.seed, run.counts, points))
    if not curves:
        return ''
    width, height, left, right, top, bottom = 520, 200, 52, 64, 14, 34
    xs = [x for *_, points in curves for x, _ in points]
    ys = [y for *_, points in curves for _, y in points]
    (x0, x1), ticks = (min(xs), max(xs)), _ticks(min(ys), max(ys), 4)
    y0, y1 = min(ticks[0], *ys), max(ticks[-1], *ys)

    def x_of(x: float) -> float:
        return left + (x - x0) / ((x1 - x0) or 1) * (width - left - right)

    def y_of(y: float) -> float:
        return height - bottom - (y - y0) / ((y1 - y0) or 1) * (height - top - bottom)

    out = [_open(width, height, f'{column} of {name_of(row)} at each evaluation', 'curves')]
    for tick in ticks:
        y = y_of(tick)
        out.append(f'<path class="grid" d="M{left} {y:.1f}H{width - right}"/>')
        out.append(_text(left - 6, y + 4, f'{tick:g}', 'end'))
    for x in (x0, x1):
        out.append(_text(x_of(x), height - bottom + 16, f'{x:g}', 'middle'))
    out.append(_text((left + width - right) / 2, height - 4, unit, 'middle'))
    out.append(_text(left, 10, column, 'start'))
    labels = []
    for at, (seed, counts, points) in enumerate(curves):
        colour = PALETTE[at % len(PALETTE)]
        path = 'M' + 'L'.join(f'{x_of(x):.1f} {y_of(y):.1f}' for x, y in _thinned(points))
        dash = '' if counts else ' stroke-dasharray="4 3"'
        out.append(
            f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.6"{dash}>'
            f'<title>seed {seed}{"" if counts else ", not counted"}</title></path>'
        )
        labels.append((y_of(points[-1][1]), f'seed {seed}', colour))
    for y, label, colour in _spaced(labels, 12)[: (height - top) // 12]:
        out.append(_text(width - right + 6, y + 4, label, 'start', colour))
    return ''.join(out) + '</svg>'


def _chart(lines: Sequence[Line], title: str, zero: bool = False) -> str:
    """A line for each row, under its group's name."""
    numbers = [0.0] if zero else []
    for line in lines:
        numbers += [n for n in (line.paper, line.middle, *line.dots) if n is not None]
        numbers += [n for n in (line.low, line.high) if n is not None]
    if not numbers:
        return ''
    # An interval of two runs may be wider than all the rest: it runs out of the picture.
    inner = [0.0] if zero else []
    inner += [n for line in lines for n in (line.paper, line.middle, *line.dots) if n is not None]
    low, high = min(inner), max(inner)
    room = max(high - low, 0.2)
    low, high = max(min(numbers), low - room / 2), min(max(numbers), high + room / 2)
    ticks = _ticks(low, high, 7)
    low, high = min(low, ticks[0]), max(high, ticks[-1])
    groups = list(dict.fromkeys(line.group for line in lines))
    height = TOP + LINE * len(lines) + GROUP * len(groups) + BOTTOM
    reach = WIDTH - LABEL - RIGHT

    def x_of(value: float) -> float:
        return LABEL + (value - low) / ((high - low) or 1) * reach

    out = [_open(WIDTH, height, title, 'dots')]
    for tick in ticks:
        name = 'zero' if zero and tick == 0 else 'grid'
        out.append(f'<path class="{name}" d="M{x_of(tick):.1f} {TOP - 6}V{height - BOTTOM}"/>')
        words = number(tick, _digits(ticks), sign=zero and tick != 0)
        out.append(_text(x_of(tick), height - BOTTOM + 18, words, 'middle'))
    y, group = TOP, None
    for line in lines:
        if line.group != group:
            group = line.group
            out.append(_text(4, y + GROUP - 10, group, 'start', weight='600'))
            y += GROUP
        middle = y + LINE / 2
        out.append(f'<g><title>{escape(line.title)}</title>')
        out.append(_text(14, middle + 4, _cut(line.label), 'start'))
        if line.low is not None and line.high is not None:
            a, b = x_of(max(line.low, low)), x_of(min(line.high, high))
            # an end only where the interval ends inside the picture
            ends = [x for x, inside in ((a, line.low >= low), (b, line.high <= high)) if inside]
            path = f'M{a:.1f} {middle}H{b:.1f}'
            path += ''.join(f'M{x:.1f} {middle - 5}V{middle + 5}' for x in ends)
            out.append(f'<path class="interval" d="{path}"/>')
        for value in line.dots:
            out.append(f'<circle class="ours" cx="{x_of(value):.1f}" cy="{middle}" r="3.4"/>')
        if line.middle is not None:
            x = x_of(line.middle)
            out.append(f'<path class="mean" d="M{x:.1f} {middle - 8}V{middle + 8}"/>')
        if line.paper is not None:
            x = x_of(line.paper)
            out.append(
                f'<path class="paper" d="M{x:.1f} {middle - 6.5}L{x + 6.5:.1f} {middle}'
                f'L{x:.1f} {middle + 6.5}L{x - 6.5:.1f} {middle}Z"/>'
            )
        out.append('</g>')
        y += LINE
    return ''.join(out) + '</svg>'


def _open(width: int, height: int, title: str, kind: str) -> str:
    return (
        f'<svg class="chart {kind}" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(title)}" xmlns="http://www.w3.org/2000/svg">'
    )


def _text(
    x: float, y: float, words: str, anchor: str, fill: str | None = None, weight: str | None = None
) -> str:
    style = (f' style="fill:{fill}"' if fill else '') + (
        f' font-weight="{weight}"' if weight else ''
    )
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{style}>{escape(words)}</text>'


def _cut(label: str, most: int = 36) -> str:
    return label if len(label) <= most else f'{label[: most - 1]}…'


def _ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers, at most about so many, inside or next to a range."""
    step = 10 ** math.floor(math.log10(max(high - low, 1e-6) / most))
    step = next(step * k for k in (1, 2, 5, 10, 20) if (high - low) / (step * k) <= most)
    first = math.floor(low / step + 1e-9)
    return [round(k * step, 10) for k in range(first, math.ceil(high / step - 1e-9) + 1)]


def _digits(ticks: Sequence[float]) -> int:
    step = ticks[1] - ticks[0] if len(ticks) > 1 else 1
    return max(0, -math.floor(math.log10(step) + 1e-9))


def _thinned(points: list[Point], most: int = 200) -> list[Point]:
    step = math.ceil(len(points) / most)
    return points if step < 2 else [*points[:-1:step], points[-1]]


def _spaced(labels: Sequence[Label], gap: float) -> list[Label]:
    """Labels from the top down, none nearer than `gap` to the one above."""
    found: list[Label] = []
    for y, words, colour in sorted(labels):
        y = max(y, found[-1][0] + gap) if found else y
        found.append((y, words, colour))
    return found
