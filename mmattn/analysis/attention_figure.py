"""Recorded gates as figures, a row a gate, a column a map (CAT, Fig. 4), and as single files."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import matplotlib.colors
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from .gates import Place, Seen
from .panels import FACTORS, OVER, Panel, panels, shown

# Of even lightness, so that grey prints and colour-blind eyes see the same order.
COLOURS = 'viridis'
BAR = '#0072b2'
CELL, LABEL, TOP = 1.25, 1.0, 0.4  # inches
EDGE = 320  # pixels of a single file, about
SHARE = 0.6  # of the map in an overlay
LEAST = 0.1  # what the colours of a factor span at least: a flat map looks flat


class Shot(NamedTuple):
    """A picture through a model: `rgb` (H, W, 3), the `padded` (H, W) that the network saw, and
    its gates with what they told."""

    title: str
    rgb: np.ndarray
    padded: tuple[int, int]
    rows: Sequence[tuple[Place, Seen]]


class Cell(NamedTuple):
    title: str
    panel: Panel | None  # None is the picture
    over: bool = False


def attention_figure(
    shots: Sequence[Shot], keys: Iterable[str] | None = None, stretch: bool = False
) -> Figure:
    """One figure of a picture, the models side by side.

    Args:
        shots (Sequence[Shot]): Of the same picture, one a model.
        keys (iterable of str, optional): The panels to draw, of those in `panels`.
        stretch (bool): Whether factors that hardly vary get all colours all the same.
    """
    keys = list(keys) if keys else None
    grids = [[_row(seen, keys) for _, seen in shot.rows] for shot in shots]
    widths = [max(map(len, grid)) for grid in grids]
    high = max(len(grid) for grid in grids)
    tall = CELL * _aspect(shots[0]) + 0.25
    figure = Figure(
        figsize=(sum(LABEL + CELL * n for n in widths), TOP + tall * high + 0.05), dpi=130
    )
    FigureCanvasAgg(figure)
    parts = figure.subfigures(
        1, len(shots), squeeze=False, width_ratios=[LABEL + CELL * n for n in widths]
    )[0]
    for part, shot, grid, columns in zip(parts, shots, grids, widths, strict=True):
        _draw(part, shot, grid, columns, high, stretch)
    return figure


def _aspect(shot: Shot) -> float:
    """Height over width of a cell: the picture's, or near it where that is a strip."""
    height, width = shot.rgb.shape[:2]
    return min(max(height / width, 0.4), 2.5)


def _row(seen: Seen, keys: Sequence[str] | None) -> list[Cell]:
    found = panels(seen)
    cells = [Cell('picture', None)]
    cells += [Cell(panel.title, panel) for panel in shown(found, seen, keys)]
    last = cells[-1].panel
    if last is not None and last.key in OVER:
        cells.append(Cell('overlay', last, over=True))
    return cells


def _draw(part, shot, grid, columns, high, stretch):
    part.suptitle(shot.title, fontsize=9, y=0.995, va='top')
    left = LABEL / (LABEL + CELL * columns)
    inches = part.get_figure().get_figheight()
    axes = part.subplots(high, columns, squeeze=False)
    part.subplots_adjust(
        left=left, right=0.995, top=1 - TOP / inches, bottom=0.22 / inches,
        wspace=0.08, hspace=0.25 / (CELL * _aspect(shot)),
    )  # fmt: skip
    same = len({tuple(cell.title for cell in row) for row in grid}) == 1
    for number, line in enumerate(axes):
        row = grid[number] if number < len(grid) else []
        for column, axis in enumerate(line):
            if column >= len(row):
                axis.axis('off')
                continue
            cell = row[column]
            _draw_cell(axis, cell, shot, stretch)
            if number == 0 or not same:
                axis.set_title(cell.title, fontsize=7.5, pad=3)
        if row:  # fewer where the models have not equally many gates
            place, seen = shot.rows[number]
            line[0].set_ylabel(
                _label(place, seen), fontsize=7, rotation=0, ha='right', va='center', labelpad=4
            )


def _label(place: Place, seen: Seen) -> str:
    stage = 'stem' if place.stage == 0 else f'stage {place.stage}'
    short = place.name.removeprefix('backbone.')
    size = ' x '.join(map(str, seen.shape[1:]))
    return '\n'.join(([] if place.stage is None else [stage]) + [short, size])


def span_of(panel: Panel, stretch: bool = False) -> tuple[float, float]:
    """The values of the first and the last colour: a map's least and most, for factors no nearer
    than `LEAST`."""
    low, high = float(panel.values.min()), float(panel.values.max())
    if panel.key in FACTORS and not stretch:
        more = max(LEAST - (high - low), 0.0) / 2
        return low - more, high + more
    return low, high


def _draw_cell(axis: Any, cell: Cell, shot: Shot, stretch: bool) -> None:
    axis.set_xticks([])
    axis.set_yticks([])
    axis.tick_params(length=0)
    panel = cell.panel
    if panel is None or cell.over:
        axis.imshow(shot.rgb)
    if panel is None:
        return
    if panel.kind == 'bars':
        draw_bars(axis, panel)
        axis.set_box_aspect(_aspect(shot))
        return
    span = span_of(panel, stretch)
    colours = dict(cmap=COLOURS, vmin=span[0], vmax=span[1])
    if not cell.over:
        _draw_scale(axis, panel, colours, _aspect(shot))
    if panel.kind == 'strip':
        axis.imshow(panel.values, aspect='auto', interpolation='nearest', **colours)
        axis.set_box_aspect(_aspect(shot))
    else:
        height, width = shot.padded
        axis.imshow(
            panel.values,
            extent=(-0.5, width - 0.5, height - 0.5, -0.5),
            interpolation='bilinear' if cell.over else 'nearest',
            alpha=SHARE if cell.over else None,
            **colours,
        )
        # The padding, which is no part of the picture, stays outside.
        axis.set_xlim(-0.5, shot.rgb.shape[1] - 0.5)
        axis.set_ylim(shot.rgb.shape[0] - 0.5, -0.5)


def _draw_scale(axis, panel, colours, aspect):
    """Below a map its colours from the least to the most, with these two numbers."""
    lower, upper = -0.11 / aspect, -0.05 / aspect
    ends = float(panel.values.min()), float(panel.values.max())
    top = axis.transAxes
    axis.imshow(
        np.linspace(*ends, 64)[None], extent=(0.3, 0.7, lower, upper), transform=top,
        aspect='auto', clip_on=False, **colours,
    )  # fmt: skip
    for x, text, side in zip((0.28, 0.72), _numbers(*ends), ('right', 'left'), strict=True):
        y = (lower + upper) / 2
        axis.text(x, y, text, transform=top, fontsize=6, ha=side, va='center_baseline')


def _numbers(low, high):
    """Two numbers with as many digits as tell them apart, three at least, six at most."""
    for digits in range(3, 7):
        texts = [f'{x:.1g}' if abs(x) < 1e-3 else f'{x:.{digits}g}' for x in (low, high)]
        if texts[0] != texts[1]:
            break
    return texts


def draw_bars(axis: Any, panel: Panel) -> None:
    """One bar for each value, from 0 (and for factors up to 1 at least), without gaps."""
    values = panel.values
    axis.bar(np.arange(len(values)), values, width=1.0, color=BAR, linewidth=0)
    axis.axhline(0, color='black', linewidth=0.6)
    axis.set_xlim(-0.5, len(values) - 0.5)
    low, high = _ends_of_bars(panel)
    axis.set_ylim(low, (high - low) * 1.05 + low if high > low else 1.0)
    of = f' (of {low:g} … {high:g})' if panel.key in FACTORS else ''
    words = ' … '.join(_numbers(float(values.min()), float(values.max())))
    axis.set_xlabel(words + of, fontsize=6, labelpad=2)
    for side in ('top', 'right'):
        axis.spines[side].set_visible(False)


def _ends_of_bars(panel):
    low, high = min(0.0, float(panel.values.min())), max(0.0, float(panel.values.max()))
    return low, max(high, 1.0) if panel.key in FACTORS else high


def save_parts(folder: Path, shot: Shot, stretch: bool = False) -> int:
    """Each map of each gate as a picture of its own, and all numbers as `maps.npz`, in a folder a
    gate; returns how many files."""
    count = 0
    for place, seen in shot.rows:
        found = panels(seen)
        own = folder / place.name
        own.mkdir(parents=True, exist_ok=True)
        for panel in found.values():
            _save_panel(own / f'{panel.key}.png', panel, shot, stretch)
        over = [key for key in OVER if key in found]
        for key in over:
            _save_panel(own / f'{key}_overlay.png', found[key], shot, stretch, over=True)
        np.savez_compressed(own / 'maps.npz', **{k: p.values for k, p in found.items()})
        count += len(found) + len(over) + 1
    return count


def _save_panel(path, panel, shot, stretch, over=False):
    """Without matplotlib's axes, which take a tenth of a second each."""
    if panel.kind == 'bars':
        pixels = _bar_pixels(panel)
    else:
        pixels = _coloured(panel.values, *span_of(panel, stretch))
        size = (EDGE, EDGE)
        if panel.kind == 'map':
            height, width = shot.padded
            zoom = max(1, round(EDGE / max(shot.rgb.shape[:2])))
            size = (width * zoom, height * zoom)
        how = Image.Resampling.BILINEAR if over else Image.Resampling.NEAREST
        pixels = np.asarray(Image.fromarray(pixels).resize(size, how))
        if panel.kind == 'map':
            height, width = (n * zoom for n in shot.rgb.shape[:2])
            pixels = pixels[:height, :width]
        if over:
            below = np.asarray(Image.fromarray(shot.rgb).resize((width, height)))
            pixels = np.round(SHARE * pixels + (1 - SHARE) * below).astype(np.uint8)
    Image.fromarray(pixels).save(path)


def _coloured(values, low, high):
    unit = (values - low) / (high - low) if high > low else np.zeros_like(values)
    return matplotlib.colormaps[COLOURS](unit, bytes=True)[..., :3]


def _bar_pixels(panel):
    """Bars from 0 on white, (EDGE, EDGE, 3)."""
    low, high = _ends_of_bars(panel)
    levels = np.linspace(high, low, EDGE)[:, None]
    bars = panel.values[np.arange(EDGE) * len(panel.values) // EDGE]
    inside = (levels <= np.maximum(bars, 0)) & (levels >= np.minimum(bars, 0))
    colour = np.array(matplotlib.colors.to_rgb(BAR)) * 255
    return np.where(inside[..., None], colour, 255).astype(np.uint8)
