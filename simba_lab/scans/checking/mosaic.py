"""Mosaics: the middle slices of many scans on one figure, with what is wrong with each."""

from __future__ import annotations

import textwrap

import numpy as np
import pandas as pd

from simba_lab.core.cohort import Cohort
from simba_lab.core.errors import SimbaError
from simba_lab.core.pictures import COLOURS, NotebookFigure, montage, montage_marks, new

# Letters on a line under a picture.
LINE = 44
# A figure of more would be as high as a house, and take minutes.
MOST_PICTURES = 400


def mosaic_of(
    cohort: Cohort, table: pd.DataFrame, rows: np.ndarray, *, columns: int, title: str
) -> NotebookFigure:
    """Draw scans with their problems.

    Parameters
    ----------
    cohort : Cohort
    table : pandas.DataFrame
        Of `ScanChecks`: a row for each picture.
    rows : ndarray of int
        Their positions in the cohort.
    columns : int
        Pictures in a row.
    title : str
    """
    if len(rows) > MOST_PICTURES:
        remedy = f"Draw the worst of them: mosaic({MOST_PICTURES})."
        raise SimbaError("scans", len(rows), f"at most {MOST_PICTURES} on one figure", remedy)
    columns = min(columns, len(rows))
    lines = -(-len(rows) // columns)
    nx, ny, nz = cohort.lattice.shape
    aspect = (2 * nx + ny + 12) / max(ny, nz)
    height = (4 / aspect + 0.8) * lines + 0.6
    figure = new(figsize=(4 * columns, height), layout="constrained")
    names = table.get("participant", table.index)
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    texts = []
    for axes, row, name, problems in zip(panels, rows, names, table["problems"], strict=False):
        picture = _picture(cohort, int(row))
        axes.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        for letter, x, y in montage_marks((nx, ny, nz)):
            places = x * picture.shape[1], y * picture.shape[0]
            axes.text(*places, letter, color="w", fontsize=8, ha="center", va="center")
        axes.set_title(_plain(str(name), LINE), fontsize=9, parse_math=False)
        axes.set(xticks=[], yticks=[])
        colour = COLOURS["vermilion"] if problems else COLOURS["black"]
        for spine in axes.spines.values():
            spine.set(color=colour, linewidth=3 if problems else 0.5)
        words = "\n".join(textwrap.wrap(_plain(problems, 3 * LINE), LINE)) or "no problem found"
        axes.set_xlabel(words, fontsize=8, color=colour, parse_math=False)
        texts.append(f"{name}: {problems or 'no problem found'}.")
    for axes in panels[len(rows) :]:
        axes.axis("off")
    figure.suptitle(title, parse_math=False)
    views = "axial, coronal and sagittal middle slices, the patient's left on the left"
    figure.alt_text = f"{title}: {len(rows)} scans, {views}. {' '.join(texts)}"
    return figure


def _picture(cohort: Cohort, row: int) -> np.ndarray:
    """Return the slices of a scan, its brightest per cent white; black if it cannot be read."""
    affine, shape = cohort.lattice.affine, cohort.lattice.shape
    try:
        volume = np.nan_to_num(cohort.array(row, keep=False), posinf=0, neginf=0)
    except SimbaError:
        volume = np.zeros(shape, np.float32)
    middle = affine[:3, :3] @ (np.array(shape) // 2) + affine[:3, 3]
    bright = volume[volume > 0]
    white = float(np.percentile(bright, 99)) if bright.size else 1.0
    return np.clip(montage(volume / white, affine, middle), 0, 1)


def _plain(text: str, most: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[: most - 1]}…"
