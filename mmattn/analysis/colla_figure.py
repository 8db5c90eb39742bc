"""CAT's colla-factors as figures: against depth (as its Fig. 5), and over training."""

import re
from collections.abc import Sequence

import matplotlib
import matplotlib.cm
import matplotlib.colors
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .colla import FACTORS, Course, Factors

# Okabe and Ito's, which all kinds of colour blindness tell apart; markers say it without colours.
STYLES = dict(
    C_w=('#0072b2', 'o', r'$C_w$'),
    S_w=('#d55e00', 's', r'$S_w$'),
    alpha=('#0072b2', 'o', r'$\alpha$ (average)'),
    beta=('#d55e00', 's', r'$\beta$ (maximum)'),
    gamma=('#009e73', '^', r'$\gamma$ (entropy)'),
)
TITLES = dict(exterior='exterior', C='interior, channel', S='interior, spatial')
DEPTH = 'viridis'


def _short(names: Sequence[str]) -> list[str]:
    """Names of gates without what they have in common: 'layer1.0'."""
    parts = [name.split('.') for name in names]
    while len(parts) > 1 and all(len(p) > 1 and p[0] == parts[0][0] for p in parts):
        parts = [p[1:] for p in parts]
    while len(parts) > 1 and all(len(p) > 1 and p[-1] == parts[0][-1] for p in parts):
        parts = [p[:-1] for p in parts]
    return ['.'.join(p) for p in parts]


def _figure(rows: int, width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, 0.35 + height * rows), dpi=130, layout='constrained')
    FigureCanvasAgg(figure)
    return figure


def against_depth(models: Sequence[Factors]) -> Figure:
    """A row a model: the exterior factors, and the interior ones of channel and space."""
    longest = max(len(model.gates) for model in models)
    figure = _figure(len(models), max(8.0, 3 * (0.9 + 0.17 * longest)), 2.1)
    axes = figure.subplots(len(models), 3, squeeze=False, sharey='col')
    for number, (row, model) in enumerate(zip(axes, models, strict=True)):
        gates = list(model.gates.values())
        for axis, (kind, title) in zip(row, TITLES.items(), strict=True):
            for factor in FACTORS:
                if ('exterior' if factor.endswith('_w') else factor[0]) != kind:
                    continue
                places = [i for i, values in enumerate(gates) if factor in values]
                colour, marker, label = STYLES[factor if kind == 'exterior' else factor[2:]]
                axis.plot(
                    places,
                    [gates[i][factor] for i in places],
                    color=colour,
                    marker=marker,
                    markersize=3.5,
                    linewidth=1.2,
                    label=label if places else None,
                )
            _start_line(axis, kind == 'exterior')
            axis.set_xticks(range(len(gates)), _short(list(model.gates)), rotation=90, fontsize=6)
            _tidy(axis)
            if number == 0:
                axis.legend(  # above the axes, where no line is
                    title=title,
                    title_fontsize=8,
                    fontsize=6.5,
                    frameon=False,
                    ncols=3,
                    columnspacing=1,
                    loc='lower center',
                    bbox_to_anchor=(0.5, 1),
                )
        row[0].set_ylabel(_wrapped(model.label), fontsize=7)
    return figure


def over_training(courses: Sequence[Course]) -> Figure:
    """A row a run, a column a factor, a line a gate in the colour of its depth."""
    factors = [f for f in FACTORS if any(f in g for c in courses for g in c.gates.values())]
    figure = _figure(len(courses), 1.5 + 1.45 * len(factors), 1.75)
    axes = figure.subplots(len(courses), len(factors), squeeze=False, sharey='col')
    for number, (row, course) in enumerate(zip(axes, courses, strict=True)):
        count = max(1, len(course.gates) - 1)
        for axis, factor in zip(row, factors, strict=True):
            for depth, gate in enumerate(course.gates.values()):
                points = gate.get(factor, [])
                colour = matplotlib.colormaps[DEPTH](depth / count * 0.9)
                axis.plot([step for step, _ in points], [v for _, v in points], color=colour)
            _start_line(axis, factor.endswith('_w'))
            axis.xaxis.set_major_locator(MaxNLocator(2, integer=True))
            _tidy(axis)
            if number == 0:
                axis.set_title(_symbol(factor), fontsize=8)
            if number == len(courses) - 1:
                axis.set_xlabel('iteration', fontsize=6.5)
        row[0].set_ylabel(_wrapped(course.label), fontsize=7)
    names = _short(list(courses[0].gates))
    colours = matplotlib.colors.ListedColormap(
        [matplotlib.colormaps[DEPTH](x / 100 * 0.9) for x in range(101)]
    )
    scale = matplotlib.cm.ScalarMappable(matplotlib.colors.Normalize(0, 1), colours)
    bar = figure.colorbar(scale, ax=axes, fraction=0.02, pad=0.01, ticks=[0, 1])
    bar.ax.set_yticklabels([names[0], names[-1]], fontsize=6)
    return figure


def _start_line(axis, exterior):
    """Where the factors of an axis start from."""
    axis.axhline(0.5 if exterior else 0, color='black', linewidth=0.6, linestyle=':', zorder=1)


def _symbol(factor: str) -> str:
    axis, _, name = factor.partition('_')
    return rf'${axis}_w$' if name == 'w' else rf'${axis}_\{name}$'


def _wrapped(label: str, most: int = 26) -> str:
    """A label on lines of about so many characters, broken where words or parts of names end."""
    lines = ['']
    for part in re.findall(r'[^\s_+,-]+[\s_+,-]*', label):
        if lines[-1] and len(lines[-1]) + len(part.rstrip()) > most:
            lines.append('')
        lines[-1] += part
    return '\n'.join(line.rstrip() for line in lines)


def _tidy(axis):
    axis.tick_params(labelsize=6)
    axis.grid(alpha=0.3, linewidth=0.5)
    for side in ('top', 'right'):
        axis.spines[side].set_visible(False)
