"""Class activation maps as a figure: a row a picture, a column a model."""

from collections.abc import Sequence
from typing import NamedTuple

import matplotlib.cm
import matplotlib.colors
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from .attention_figure import COLOURS, SHARE

CELL, LABEL, TOP, BAR = 1.6, 0.2, 0.3, 0.5  # inches


class CamRow(NamedTuple):
    """A picture (H, W, 3), and of each model its map, as large as the padded input, and words; what
    to write below the picture."""

    rgb: np.ndarray
    maps: Sequence[tuple[np.ndarray, str]]
    words: str = ''


def cam_figure(titles: Sequence[str], rows: Sequence[CamRow]) -> Figure:
    """The figure of some pictures and of the models with these titles."""
    aspects = [min(max(row.rgb.shape[0] / row.rgb.shape[1], 0.4), 2.5) for row in rows]
    columns = 1 + len(titles)
    figure = Figure(
        figsize=(CELL * columns + BAR, CELL * sum(aspects) + LABEL * len(rows) + TOP),
        dpi=130,
        layout='compressed',
    )
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.02, hspace=0)
    axes = figure.subplots(len(rows), columns, squeeze=False, height_ratios=aspects)
    for line, row in zip(axes, rows, strict=True):
        for axis, (values, words) in zip(line, [(None, row.words), *row.maps], strict=True):
            axis.imshow(row.rgb)
            if values is not None:
                height, width = row.rgb.shape[:2]
                axis.imshow(values[:height, :width], cmap=COLOURS, alpha=SHARE, vmin=0, vmax=1)
            axis.set_xticks([])
            axis.set_yticks([])
            axis.set_xlabel(words, fontsize=7, labelpad=2)
    for axis, title in zip(axes[0], ['picture', *titles], strict=True):
        axis.set_title(title, fontsize=7.5, wrap=True)
    scale = matplotlib.cm.ScalarMappable(matplotlib.colors.Normalize(0, 1), COLOURS)
    bar = figure.colorbar(scale, ax=axes, fraction=0.03, pad=0.01, aspect=30, ticks=[0, 1])
    bar.ax.set_yticklabels(['least', 'most'], fontsize=6.5)
    return figure
