"""Pictures of brains, left and right marked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from scipy.ndimage import binary_erosion

from simba_lab.core.checks import positive
from simba_lab.core.errors import SimbaError
from simba_lab.core.pictures import COLOURS, montage, montage_marks, new


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
