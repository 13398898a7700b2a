"""Pictures that rooms share: colours, a figure that notebooks show, slices of a volume."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from matplotlib.figure import Figure

from simba_lab.core.checks import of_shape
from simba_lab.core.errors import SimbaError
from simba_lab.core.kinds import Rule

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


class NotebookFigure(Figure):
    """A Figure that notebooks show as a picture, whether or not pyplot is in use.

    What is set as `alt_text` goes with the picture, for readers who do not see it.
    """

    alt_text = ""

    def _repr_png_(self) -> bytes | tuple[bytes, dict[str, str]]:
        stream = io.BytesIO()
        self.savefig(stream, format="png", dpi=110)
        content = stream.getvalue()
        return (content, {"alt": self.alt_text}) if self.alt_text else content


def new(**options: Any) -> NotebookFigure:
    """Return an empty figure; options are those of matplotlib's Figure."""
    return NotebookFigure(**options)


def montage(volume: np.ndarray, affine: np.ndarray, at_mm: Sequence[float]) -> np.ndarray:
    """Return axial, coronal and sagittal slices side by side, shape (rows, columns).

    The patient's left is on the left; the sagittal slice looks to the right.

    Parameters
    ----------
    volume : ndarray, shape (X, Y, Z) or (X, Y, Z, 3)
        Axes to the right, front and top.
    affine : ndarray, shape (4, 4)
    at_mm : sequence of float
        Position (x, y, z) through which to cut.
    """
    if volume.ndim not in (3, 4) or 0 in volume.shape or volume.dtype.kind not in "biuf":
        raise SimbaError("volume", volume, "a volume of numbers, shape (X, Y, Z) or (X, Y, Z, 3)")
    of_shape("affine", affine, (4, 4))
    if affine.dtype.kind not in "iuf" or not np.linalg.det(affine):
        raise SimbaError("affine", affine, "invertible")
    of_shape("at_mm", np.asarray(at_mm), (3,))
    index = np.linalg.inv(affine) @ [*at_mm, 1]
    x, y, z = (
        int(np.clip(round(value), 0, size - 1))
        for value, size in zip(index[:3], volume.shape, strict=False)
    )
    panels = [
        np.swapaxes(panel, 0, 1)[::-1] for panel in (volume[:, :, z], volume[:, y], volume[x])
    ]
    rows = max(panel.shape[0] for panel in panels)
    padded = []
    for panel in panels:
        top = (rows - panel.shape[0]) // 2
        padding = [(top, rows - panel.shape[0] - top), (2, 2)] + [(0, 0)] * (panel.ndim - 2)
        padded.append(np.pad(panel, padding))
    return np.concatenate(padded, axis=1)


def montage_marks(
    shape: Annotated[Sequence[int], Rule("a shape of three axes", lambda shape: len(shape) > 2)],
) -> list[tuple[str, float, float]]:
    """Return the letters of a `montage` of volumes of this shape, at shares of width and height."""
    x, y, _z = shape[:3]
    width = 2 * x + y + 12
    edges = [0, x + 4, 2 * x + 8, width]
    letters = [("L", "R"), ("L", "R"), ("P", "A")]
    inset = 0.03 * x
    return [
        (letter, place / width, 0.5)
        for (first, second), low, high in zip(letters, edges[:-1], edges[1:], strict=True)
        for letter, place in ((first, low + 2 + inset), (second, high - 2 - inset))
    ]
