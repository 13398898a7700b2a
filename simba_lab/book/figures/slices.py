"""Pictures of brains, left and right marked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from scipy.ndimage import binary_erosion

from simba_lab.book.figures.canvas import COLOURS, new
from simba_lab.core.checks import of_shape, positive
from simba_lab.core.errors import SimbaError
from simba_lab.core.kinds import Rule


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


def outlined(picture: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return a grey picture with the outline of a mask in orange, as RGB in [0, 1].

    Parameters
    ----------
    picture, mask : ndarray, shape (rows, columns)
    """
    for name, values, kinds in (("picture", picture, "biuf"), ("mask", mask, "b")):
        if values.ndim != 2 or values.dtype.kind not in kinds or values.shape != picture.shape:
            raise SimbaError(
                name, values, "an array of rows and columns, the mask of True and False"
            )
    rgb = np.repeat(np.clip(picture, 0, 1)[..., None], 3, axis=-1)
    rgb[mask & ~binary_erosion(mask)] = matplotlib.colors.to_rgb(COLOURS["orange"])
    return rgb


def tinted(grey: np.ndarray, signed: np.ndarray, *, limit: float) -> np.ndarray:
    """Return grey pictures under a signed map (blue negative, orange positive), RGB in [0, 1].

    Parameters
    ----------
    grey, signed : ndarray of equal shape
    limit : float
        Size of the map at which its colour is full.
    """
    for name, values in (("grey", grey), ("signed", signed)):
        if values.dtype.kind not in "biuf" or values.shape != signed.shape:
            raise SimbaError(name, values, "numbers, both arrays of one shape")
    positive("limit", limit)
    share = np.clip(np.abs(signed) / limit, 0, 1)[..., None]
    warm, cold = (np.array(matplotlib.colors.to_rgb(COLOURS[name])) for name in ("orange", "blue"))
    colour = np.where(signed[..., None] > 0, warm, cold)
    return np.clip(grey, 0, 1)[..., None] * (1 - share) + colour * share


def brains(
    pictures: Mapping[str, np.ndarray],
    affine: np.ndarray,
    at_mm: Sequence[float],
    *,
    title: str,
    columns: int = 2,
) -> Figure:
    """Return one montage per named volume (grey or RGB)."""
    if not pictures:
        raise SimbaError("pictures", {}, "at least one volume")
    rows = -(-len(pictures) // columns)
    shape = next(iter(pictures.values())).shape
    aspect = (2 * shape[0] + shape[1] + 12) / max(shape[1], shape[2])
    figure = new(figsize=(4.6 * columns, (4.6 / aspect + 0.3) * rows + 0.4), layout="constrained")
    for axes, (name, volume) in zip(
        figure.subplots(rows, columns, squeeze=False).ravel(), pictures.items(), strict=False
    ):
        picture = montage(volume, affine, at_mm)
        axes.imshow(np.clip(picture, 0, 1), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axes.set_title(name, fontsize=10)
        for letter, x, y in montage_marks(volume.shape):
            axes.text(
                x * picture.shape[1],
                y * picture.shape[0],
                letter,
                color="w",
                fontsize=8,
                ha="center",
                va="center",
            )
    for axes in figure.axes:
        axes.axis("off")
    figure.suptitle(title)
    return figure
