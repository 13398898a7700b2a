"""Every plot of the book. Functions return a Figure and never show it; pictures of brains mark left and right."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy.ndimage import binary_erosion

from simba_lab.errors import SimbaError

if TYPE_CHECKING:
    from simba_lab.training.dose_response import Surface

# Okabe and Ito (2008): eight colours that colour-blind readers tell apart.
COLOURS = {
    "black": "#000000", "orange": "#e69f00", "sky": "#56b4e9", "green": "#009e73",
    "yellow": "#f0e442", "blue": "#0072b2", "vermilion": "#d55e00", "purple": "#cc79a7",
}  # fmt: skip
GROUP_COLOURS = {"all": COLOURS["black"], "NB": COLOURS["sky"], "B": COLOURS["vermilion"]}


def new(**options: object) -> Figure:
    """Return a Figure that notebooks show as a picture, whether or not pyplot is in use."""
    figure = Figure(**options)

    def png() -> bytes:
        stream = io.BytesIO()
        figure.savefig(stream, format="png", dpi=110)
        return stream.getvalue()

    figure._repr_png_ = png
    return figure


def picture(figure: Figure, *, dpi: int = 100) -> np.ndarray:
    """Return a figure as pixels, RGB in [0, 1], shape (rows, columns, 3): what a `LabSlider` draws."""
    canvas = FigureCanvasAgg(figure)
    figure.set_dpi(dpi)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3] / 255


def montage(volume: np.ndarray, affine: np.ndarray, at_mm: Sequence[float]) -> np.ndarray:
    """Return axial, coronal and sagittal slices side by side, shape (rows, columns), in nilearn's orientation.

    The patient's left is on the left; the sagittal slice looks to the right.

    Parameters
    ----------
    volume : ndarray, shape (X, Y, Z) or (X, Y, Z, 3)
        Axes to the right, front and top.
    affine : ndarray, shape (4, 4)
    at_mm : sequence of float
        Position (x, y, z) through which to cut.
    """
    index = np.linalg.inv(affine) @ [*at_mm, 1]
    x, y, z = (int(np.clip(round(value), 0, size - 1)) for value, size in zip(index[:3], volume.shape, strict=False))
    panels = [np.swapaxes(panel, 0, 1)[::-1] for panel in (volume[:, :, z], volume[:, y], volume[x])]
    rows = max(panel.shape[0] for panel in panels)
    padded = []
    for panel in panels:
        top = (rows - panel.shape[0]) // 2
        padding = [(top, rows - panel.shape[0] - top), (2, 2)] + [(0, 0)] * (panel.ndim - 2)
        padded.append(np.pad(panel, padding))
    return np.concatenate(padded, axis=1)


def montage_marks(shape: Sequence[int]) -> list[tuple[str, float, float]]:
    """Return the orientation letters of a `montage` of volumes of this shape, as shares of its width and height."""
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


def outlined(picture: np.ndarray, mask: np.ndarray, *, colour: str = "orange") -> np.ndarray:
    """Return a grey picture with the outline of a mask, as RGB in [0, 1].

    Parameters
    ----------
    picture, mask : ndarray, shape (rows, columns)
    colour : str
        Name from `COLOURS`.
    """
    rgb = np.repeat(np.clip(picture, 0, 1)[..., None], 3, axis=-1)
    rgb[mask & ~binary_erosion(mask)] = matplotlib.colors.to_rgb(COLOURS[colour])
    return rgb


def tinted(grey: np.ndarray, signed: np.ndarray, *, limit: float) -> np.ndarray:
    """Return grey pictures with a signed map over them (blue negative, orange positive), as RGB in [0, 1].

    Parameters
    ----------
    grey, signed : ndarray of equal shape
    limit : float
        Size of the map at which its colour is full.
    """
    share = np.clip(np.abs(signed) / limit, 0, 1)[..., None]
    positive, negative = (np.array(matplotlib.colors.to_rgb(COLOURS[name])) for name in ("orange", "blue"))
    colour = np.where(signed[..., None] > 0, positive, negative)
    return np.clip(grey, 0, 1)[..., None] * (1 - share) + colour * share


def brains(
    pictures: Mapping[str, np.ndarray], affine: np.ndarray, at_mm: Sequence[float], *, title: str, columns: int = 2
) -> Figure:
    """Return one montage per named volume (grey or RGB)."""
    if not pictures:
        raise SimbaError("pictures", {}, "at least one volume")
    rows = -(-len(pictures) // columns)
    shape = next(iter(pictures.values())).shape
    aspect = (2 * shape[0] + shape[1] + 12) / max(shape[1], shape[2])
    figure = new(figsize=(4.6 * columns, (4.6 / aspect + 0.3) * rows + 0.4), layout="constrained")
    for axes, (name, volume) in zip(figure.subplots(rows, columns, squeeze=False).ravel(), pictures.items(), strict=False):
        picture = montage(volume, affine, at_mm)
        axes.imshow(np.clip(picture, 0, 1), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axes.set_title(name, fontsize=10)
        for letter, x, y in montage_marks(volume.shape):
            axes.text(x * picture.shape[1], y * picture.shape[0], letter, color="w", fontsize=8, ha="center", va="center")
    for axes in figure.axes:
        axes.axis("off")
    figure.suptitle(title)
    return figure


def rates(table: pd.DataFrame, *, title: str) -> Figure:
    """Return accuracy, TPR and FPR per group with intervals, from `evaluate`, and the ceiling of the accuracy."""
    figure = new(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    names = ["accuracy", "tpr", "fpr"]
    offsets = np.linspace(-0.22, 0.22, len(table))
    for offset, (group, row) in zip(offsets, table.iterrows(), strict=True):
        heights = row[names].to_numpy(float)
        errors = [heights - row[[f"{n}_low" for n in names]], row[[f"{n}_high" for n in names]] - heights]
        label = {"B": "bias group (B)", "NB": "not in it (NB)"}.get(group, str(group))
        axes.errorbar(
            np.arange(3) + offset, heights, np.array(errors, float), fmt="o", capsize=4, label=f"{label}, n = {int(row.n)}",
            color=GROUP_COLOURS.get(group),
        )  # fmt: skip
    ceiling = table["ceiling"].iloc[0]
    axes.hlines(ceiling, -0.4, 0.4, color=COLOURS["green"], linestyle="--", label=f"ceiling {ceiling:.1%}")
    axes.set(xticks=range(3), xticklabels=["accuracy", "true positive rate", "false positive rate"], ylim=(0, 1))
    axes.set(ylabel="share of subjects", title=title)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    return figure


def intervals(table: pd.DataFrame, value: str, *, title: str, label: str, reference: float | None = 0.0) -> Figure:
    """Return one estimate with its interval per row; columns `value`, `value`_low, `value`_high.

    A column ``kind``, if there is one, names the colour groups.
    """
    figure = new(figsize=(7, 0.38 * len(table) + 1.4), layout="constrained")
    axes = figure.subplots()
    kinds = table["kind"] if "kind" in table else pd.Series("", index=table.index)
    palette = dict(
        zip(dict.fromkeys(kinds), (COLOURS[name] for name in ("vermilion", "blue", "green", "purple")), strict=False)
    )
    for place, (name, row) in enumerate(table.iterrows()):
        error = [[row[value] - row[f"{value}_low"]], [row[f"{value}_high"] - row[value]]]
        axes.errorbar(row[value], place, xerr=error, fmt="o", capsize=4, color=palette[kinds[name]])
    if reference is not None:
        axes.axvline(reference, color="0.6", linewidth=1)
    axes.set(yticks=range(len(table)), yticklabels=[str(name) for name in table.index], xlabel=label, title=title)
    axes.invert_yaxis()
    if palette.keys() != {""}:
        handles = [Line2D([], [], marker="o", color=colour, label=kind) for kind, colour in palette.items()]
        axes.legend(handles=handles, fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def learning(history: pd.DataFrame, *, title: str) -> Figure:
    """Return training and validation loss over the epochs of a run, and the epoch that was kept."""
    figure = new(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    axes.plot(history.index + 1, history["train_loss"], "o-", color=COLOURS["sky"], label="training")
    axes.plot(history.index + 1, history["validation_loss"], "s-", color=COLOURS["vermilion"], label="validation")
    axes.axvline(history.index[history["kept"]][0] + 1, color="0.5", linestyle=":", label="kept")
    axes.set(xlabel="epoch", ylabel="cross-entropy (nats)", title=title)
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=8)
    return figure


def probes(table: pd.DataFrame, *, title: str, floors: Mapping[str, str]) -> Figure:
    """Return the AUC of a probe per layer with its interval, the permutation null and named floors, from `probe`.

    Parameters
    ----------
    floors : mapping of column to legend text
    """
    figure = new(figsize=(7.2, 3.8), layout="constrained")
    axes = figure.subplots()
    place = np.arange(len(table))
    errors = [table["auc"] - table["auc_low"], table["auc_high"] - table["auc"]]
    axes.errorbar(
        place, table["auc"], errors, fmt="o-", capsize=4, color=COLOURS["vermilion"], label="this network", zorder=3
    )
    styles = zip(("blue", "green", "purple", "black"), ("s--", "^--", "D--", "x--"), strict=True)
    for (column, text), (colour, style) in zip(floors.items(), styles, strict=False):
        axes.plot(place, table[column], style, color=COLOURS[colour], label=text)
    axes.fill_between(place, 0, table["null_high"], color="0.85", label="chance (95 % of shuffles)", zorder=0)
    axes.set(xticks=place, xticklabels=table.index, ylim=(0.35, 1.0), ylabel="held-out AUC of the probe", title=title)
    axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def responses(
    table: pd.DataFrame, surface: Surface, *, at: tuple[str, float], along: str, labels: Mapping[str, str], title: str,
    bound: float = 0.05, limit: float = 1.0,
) -> Figure:  # fmt: skip
    """Return the rise of the share called diseased over prevalence or salience: one fitted curve and all runs per place.

    Parameters
    ----------
    table : pandas.DataFrame
        From `simba_lab.training.dose_response.excess`.
    surface : Surface
    at : tuple of str and float
        Column that is held fixed, and its value; runs with another value are not drawn.
    along : str
        Column on the horizontal axis: ``prevalence.bias`` or ``d_prime.bias``.
    labels : mapping of place to legend text
    title : str
    bound : float
        Drawn as the line below which a network counts as fair.
    limit : float
        Top of the vertical axis.
    """
    fixed, value = at
    drawn = new(figsize=(7.2, 3.8), layout="constrained")
    axes = drawn.subplots()
    place = next(name for name in table.columns if set(labels) <= set(table[name]))
    inside = np.isclose(table[fixed], value)
    grid = np.linspace(0.505, 0.97, 60) if along.startswith("prevalence") else np.geomspace(0.4, 5, 60)
    names = [name for name in COLOURS if name not in ("black", "yellow")]
    for number, (name, text) in enumerate(labels.items()):
        colour, style = COLOURS[names[number % len(names)]], ("-", "--", "-.", ":")[number % 4]
        pairs = [(value, x) if along.startswith("prevalence") else (x, value) for x in grid]
        axes.plot(grid, [surface.rate(name, *pair) for pair in pairs], style, color=colour, label=text)
        runs = table[inside & (table[place] == name)]
        axes.plot(runs[along], runs["excess_rate"], "osD^"[number % 4], color=colour, markersize=4, alpha=0.8)
    axes.axhline(bound, color="0.4", linewidth=1, linestyle=(0, (1, 2)), label=f"{bound:.0%} baseline")
    if along.startswith("d_prime"):
        axes.set_xscale("log")
        axes.set_xticks([0.5, 1, 2, 4], ["0.5", "1", "2", "4"])
        axes.set_xticks([], minor=True)
    words = {"p": "prevalence among patients (one less that among controls)", "d": "salience d' of the bias (log scale)"}
    axes.set(xlabel=words[along[0]], ylabel="rise of the share called diseased", title=title, ylim=(-0.08, limit))
    axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return drawn
