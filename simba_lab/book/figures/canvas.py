"""What all figures share: colours, the figure that notebooks show, its pixels, its legend."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from simba_lab.core.kinds import Rule

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Tables = Annotated[Mapping[str, pd.DataFrame], Rule("at least one table, by its name", bool)]

# Okabe and Ito (2008): eight colours that colour-blind readers tell apart.
COLOURS = {
    "black": "#000000",
    "orange": "#e69f00",
    "sky": "#56b4e9",
    "green": "#009e73",
    "yellow": "#f0e442",
    "blue": "#0072b2",
    "vermilion": "#d55e00",
    "purple": "#cc79a7",
}
GROUP_COLOURS = {"all": COLOURS["black"], "NB": COLOURS["sky"], "B": COLOURS["vermilion"]}


class NotebookFigure(Figure):
    """A Figure that notebooks show as a picture, whether or not pyplot is in use."""

    def _repr_png_(self) -> bytes:
        stream = io.BytesIO()
        self.savefig(stream, format="png", dpi=110)
        return stream.getvalue()


def new(**options: Any) -> Figure:
    """Return an empty figure; options are those of matplotlib's Figure."""
    return NotebookFigure(**options)


def picture(figure: Figure, *, dpi: int = 100) -> np.ndarray:
    """Return a figure as pixels for a `LabSlider`: RGB in [0, 1], shape (rows, columns, 3)."""
    canvas = FigureCanvasAgg(figure)
    figure.set_dpi(dpi)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3] / 255


def legend(axes: Axes, **options: Any) -> None:
    """Put the legend beside the axes."""
    axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5), **options)
