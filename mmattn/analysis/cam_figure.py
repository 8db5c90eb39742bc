"""Class activation maps as a figure: a row a picture, a column a model."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from .attention_figure import COLOURS, SHARE

CELL = 1.6  # inches


class CamRow(NamedTuple):
    """A picture (H, W, 3), and of each model its map, as large as the padded input, and words."""

    rgb: np.ndarray
    maps: Sequence[tuple[np.ndarray, str]]


def cam_figure(titles: Sequence[str], rows: Sequence[CamRow]) -> Figure:
    """The figure of some pictures and of the models with these titles."""
    aspects = [min(max(row.rgb.shape[0] / row.rgb.shape[1], 0.4), 2.5) for row in rows]
    columns = 1 + len(titles)
    figure = Figure(
        figsize=(CELL * columns, CELL * sum(aspects) + 0.25 * len(rows) + 0.4),
        dpi=130,
        layout='constrained',
    )
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), columns, squeeze=False, height_ratios=aspects)
    for line, row in zip(axes, rows, strict=True):
        for axis, (values, words) in zip(line, [(None, ''), *row.maps], strict=True):
            axis.imshow(row.rgb)
            if values is not None:
                height, width = row.rgb.shape[:2]
                axis.imshow(values[:height, :width], cmap=COLOURS, alpha=SHARE, vmin=0, vmax=1)
            axis.set_xticks([])
            axis.set_yticks([])
            axis.set_xlabel(words, fontsize=7, labelpad=2)
    for axis, title in zip(axes[0], ['picture', *titles], strict=True):
        axis.set_title(title, fontsize=7.5, wrap=True)
    return figure
