"""Charts of what networks do: rates, effects with intervals, learning, responses to a bias."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from simba_lab.book.figures.canvas import GROUP_COLOURS, Tables, legend
from simba_lab.core.checks import choice, columns
from simba_lab.core.pictures import COLOURS, new

if TYPE_CHECKING:
    from simba_lab.experiments.dose_response import Surface


# Rise of the share called diseased below which a network counts as fair.
FAIR = 0.05


def rates(
    table: Annotated[pd.DataFrame, columns("accuracy", "tpr", "fpr", "n", "ceiling")], *, title: str
) -> Figure:
    """Return accuracy, TPR and FPR per group from `evaluate`, and the ceiling of the accuracy."""
    figure = new(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    names = ["accuracy", "tpr", "fpr"]
    offsets = np.linspace(-0.22, 0.22, len(table))
    for offset, (group, row) in zip(offsets, table.iterrows(), strict=True):
        heights = row[names].to_numpy(float)
        errors = [
            heights - row[[f"{n}_low" for n in names]],
            row[[f"{n}_high" for n in names]] - heights,
        ]
        label = {"B": "bias group (B)", "NB": "not in it (NB)"}.get(group, str(group))
        axes.errorbar(
            np.arange(3) + offset,
            heights,
            np.array(errors, float),
            fmt="o",
            capsize=4,
            label=f"{label}, n = {int(row.n)}",
            color=GROUP_COLOURS.get(group),
        )
    ceiling = table["ceiling"].iloc[0]
    axes.hlines(
        ceiling, -0.4, 0.4, color=COLOURS["green"], linestyle="--", label=f"ceiling {ceiling:.1%}"
    )
    axes.set(
        xticks=range(3),
        xticklabels=["accuracy", "true positive rate", "false positive rate"],
        ylim=(0, 1),
    )
    axes.set(ylabel="share of subjects", title=title)
    legend(axes)
    return figure


def intervals(
    table: pd.DataFrame, value: str, *, title: str, label: str, reference: float | None = 0.0
) -> Figure:
    """Return one estimate with its interval per row of a table.

    Parameters
    ----------
    table : pandas.DataFrame
        With the columns ``x``, ``x_low`` and ``x_high``, where ``x`` is `value`. A column ``kind``
        sets colours.
    value : str
    title, label : str
        Title of the figure, and what the horizontal axis measures.
    reference : float, optional
        Drawn as a line, such as the value of no effect.
    """
    for name in (value, f"{value}_low", f"{value}_high"):
        choice("value", name, table.columns)
    figure = new(figsize=(7, 0.38 * len(table) + 1.4), layout="constrained")
    axes = figure.subplots()
    groups = table["kind"] if "kind" in table else pd.Series("", index=table.index)
    palette = dict(
        zip(
            dict.fromkeys(groups),
            (COLOURS[name] for name in ("vermilion", "blue", "green", "purple")),
            strict=False,
        )
    )
    for place, (name, row) in enumerate(table.iterrows()):
        error = [[row[value] - row[f"{value}_low"]], [row[f"{value}_high"] - row[value]]]
        axes.errorbar(
            row[value], place, xerr=error, fmt="o", capsize=4, color=palette[groups[name]]
        )
    if reference is not None:
        axes.axvline(reference, color="0.6", linewidth=1)
    axes.set(
        yticks=range(len(table)),
        yticklabels=[str(name) for name in table.index],
        xlabel=label,
        title=title,
    )
    axes.invert_yaxis()
    if palette.keys() != {""}:
        handles = [
            Line2D([], [], marker="o", color=colour, label=group)
            for group, colour in palette.items()
        ]
        legend(axes, handles=handles)
    return figure


def learning(
    history: Annotated[pd.DataFrame, columns("train_loss", "validation_loss", "kept")],
    *,
    title: str,
) -> Figure:
    """Return training and validation loss over the epochs of a run, and the epoch that was kept."""
    figure = new(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    axes.plot(
        history.index + 1, history["train_loss"], "o-", color=COLOURS["sky"], label="training"
    )
    axes.plot(
        history.index + 1,
        history["validation_loss"],
        "s-",
        color=COLOURS["vermilion"],
        label="validation",
    )
    axes.axvline(history.index[history["kept"]][0] + 1, color="0.5", linestyle=":", label="kept")
    axes.set(xlabel="epoch", ylabel="cross-entropy (nats)", title=title)
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=8)
    return figure


def responses(
    table: pd.DataFrame,
    surface: Surface,
    *,
    at: tuple[str, float],
    along: str,
    labels: Mapping[str, str],
    title: str,
) -> Figure:
    """Return the rise of the share called diseased over prevalence or salience.

    A place of the bias has a fitted curve and a dot per network.

    Parameters
    ----------
    table : pandas.DataFrame
        From `simba_lab.experiments.excess`.
    surface : Surface
    at : tuple of str and float
        Column that is held fixed, and its value; runs with another value are not drawn.
    along : str
        Column on the horizontal axis: ``prevalence.bias`` or ``d_prime.bias``.
    labels : mapping of place to legend text
    title : str
    """
    fixed, value = at
    figure = new(figsize=(7.2, 3.8), layout="constrained")
    axes = figure.subplots()
    place = next(name for name in table.columns if set(labels) <= set(table[name]))
    selected = np.isclose(table[fixed], value)
    grid = (
        np.linspace(0.505, 0.97, 60) if along.startswith("prevalence") else np.geomspace(0.4, 5, 60)
    )
    names = [name for name in COLOURS if name not in ("black", "yellow")]
    for number, (name, text) in enumerate(labels.items()):
        colour, style = COLOURS[names[number % len(names)]], ("-", "--", "-.", ":")[number % 4]
        pairs = [(value, x) if along.startswith("prevalence") else (x, value) for x in grid]
        axes.plot(
            grid, [surface.rate(name, *pair) for pair in pairs], style, color=colour, label=text
        )
        runs = table[selected & (table[place] == name)]
        axes.plot(
            runs[along],
            runs["excess_rate"],
            "osD^"[number % 4],
            color=colour,
            markersize=4,
            alpha=0.8,
        )
    axes.axhline(
        FAIR, color="0.4", linewidth=1, linestyle=(0, (1, 2)), label=f"{FAIR:.0%} baseline"
    )
    if along.startswith("d_prime"):
        axes.set_xscale("log")
        axes.set_xticks([0.5, 1, 2, 4], ["0.5", "1", "2", "4"])
        axes.set_xticks([], minor=True)
    words = {
        "p": "prevalence among patients (one less that among controls)",
        "d": "salience d' of the bias (log scale)",
    }
    axes.set(
        xlabel=words[along[0]],
        ylabel="rise of the share called diseased",
        title=title,
        ylim=(-0.08, 1),
    )
    legend(axes)
    return figure


def enrichments(tables: Tables, *, title: str) -> Figure:
    """Return how much each method of attribution favours some voxels, per kind of network.

    Parameters
    ----------
    tables : mapping of legend text to DataFrame
        Indexed by method, with columns ``mean``, ``low`` and ``high``.
    title : str
    """
    names = list(next(iter(tables.values())).index)
    figure = new(figsize=(7.2, 0.9 + 0.42 * len(names)), layout="constrained")
    axes = figure.subplots()
    axes.axvline(1, color="0.5", linewidth=1, linestyle=":", label="chance")
    for number, ((text, table), colour, marker) in enumerate(
        zip(tables.items(), ("vermilion", "blue", "green"), "os^", strict=False)
    ):
        place = np.arange(len(names)) + 0.22 * (number - (len(tables) - 1) / 2)
        errors = [table["mean"] - table["low"], table["high"] - table["mean"]]
        axes.errorbar(
            table["mean"],
            place,
            xerr=errors,
            fmt=marker,
            capsize=3,
            color=COLOURS[colour],
            label=text,
        )
    axes.set(
        yticks=range(len(names)),
        yticklabels=names,
        xlabel="enrichment (share of attribution / share of brain)",
        title=title,
    )
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlim(left=min(0, axes.get_xlim()[0]))
    legend(axes)
    return figure
