"""What all figures share: colours, the figure that notebooks show, its pixels, its legend."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from simba_lab.core.kinds import Rule
from simba_lab.core.pictures import COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Tables = Annotated[Mapping[str, pd.DataFrame], Rule("at least one table, by its name", bool)]

GROUP_COLOURS = {"all": COLOURS["black"], "NB": COLOURS["sky"], "B": COLOURS["vermilion"]}


def picture(figure: Figure, *, dpi: int = 100) -> np.ndarray:
    """Return a figure as pixels for a `LabSlider`: RGB in [0, 1], shape (rows, columns, 3)."""
    canvas = FigureCanvasAgg(figure)
    figure.set_dpi(dpi)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3] / 255


def legend(axes: Axes, **options: Any) -> None:
    """Put the legend beside the axes."""
    axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5), **options)
