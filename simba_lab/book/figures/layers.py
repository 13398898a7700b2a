"""Charts of what layers hold: probes, alignments, and groups in their space."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from simba_lab.book.figures.canvas import GROUP_COLOURS, Tables, legend
from simba_lab.core.checks import columns
from simba_lab.core.pictures import COLOURS, new

# Of several kinds of network in one chart.
STYLES = (("vermilion", "o-"), ("blue", "s--"), ("green", "^:"), ("purple", "D-."))
# Combinations of class and bias group, as `projections` names them: name, class, group, marker.
CORNERS = (
    ("patients, B", 1, 1, "o"),
    ("patients, NB", 1, 0, "o"),
    ("controls, B", 0, 1, "s"),
    ("controls, NB", 0, 0, "s"),
)


def probes(table: pd.DataFrame, *, title: str, floors: Mapping[str, str]) -> Figure:
    """Return the AUROC of a probe per layer, with interval, permutation null and floors.

    Parameters
    ----------
    floors : mapping of column to legend text
        Where there is a column with ``_min`` and one with ``_max``, a band shows the range over
        networks.
    """
    figure = new(figsize=(7.2, 3.8), layout="constrained")
    axes = figure.subplots()
    place = np.arange(len(table))
    errors = [table["auroc"] - table["auroc_low"], table["auroc_high"] - table["auroc"]]
    axes.errorbar(
        place,
        table["auroc"],
        errors,
        fmt="o-",
        capsize=4,
        color=COLOURS["vermilion"],
        label="this network",
        zorder=3,
    )
    styles = zip(("blue", "green", "purple", "black"), ("s--", "^--", "D--", "x--"), strict=True)
    for (column, text), (colour, style) in zip(floors.items(), styles, strict=False):
        axes.plot(place, table[column], style, color=COLOURS[colour], label=text)
        if f"{column}_min" in table:
            axes.fill_between(
                place,
                table[f"{column}_min"],
                table[f"{column}_max"],
                color=COLOURS[colour],
                alpha=0.2,
            )
    axes.fill_between(
        place, 0, table["null_high"], color="0.85", label="chance (95 % of shuffles)", zorder=0
    )
    axes.set(
        xticks=place,
        xticklabels=table.index,
        ylim=(0.35, 1.0),
        ylabel="held-out AUROC of the probe",
        title=title,
    )
    legend(axes)
    return figure


def per_layer(
    table: pd.DataFrame,
    *,
    title: str,
    label: str,
    names: Mapping[str, str],
    reference: float | None = None,
    limits: tuple[float, float] | None = None,
) -> Figure:
    """Return a measure over the layers for several kinds of network.

    Thin lines are seeds, thick lines their means.

    Parameters
    ----------
    table : pandas.DataFrame
        A column per layer, indexed by kind of network and seed.
    title, label : str
        Of the figure, and of the measure with its unit.
    names : mapping of kind to legend text
    reference : float, optional
        Value of no effect.
    limits : tuple of float, optional
        Ends of the vertical axis.
    """
    figure = new(figsize=(7.2, 3.6), layout="constrained")
    axes = figure.subplots()
    place = np.arange(table.shape[1])
    for (network, text), (colour, style) in zip(names.items(), STYLES, strict=False):
        runs = table.loc[network]
        axes.plot(
            place, runs.to_numpy().T, style[1:], color=COLOURS[colour], linewidth=0.8, alpha=0.45
        )
        axes.plot(
            place,
            runs.mean(),
            style,
            color=COLOURS[colour],
            linewidth=2.2,
            label=f"{text} (mean of {len(runs)})",
        )
    if reference is not None:
        axes.axhline(reference, color="0.6", linewidth=1)
    axes.set(xticks=place, xticklabels=table.columns, ylabel=label, title=title, ylim=limits)
    legend(axes)
    return figure


def arrival(tables: Tables, *, title: str) -> Figure:
    """Return what probes read from each layer of several networks at one time, such as an epoch.

    Parameters
    ----------
    tables : mapping of network to DataFrame
        Indexed by layer, a column of AUROCs for each thing that is read.
    title : str
    """
    figure = new(figsize=(7.2, 3.6), layout="constrained")
    axes = figure.subplots()
    for (network, table), (colour, _) in zip(tables.items(), STYLES, strict=False):
        place = np.arange(len(table))
        for column, style in zip(table.columns, ("o-", "s:", "^--"), strict=False):
            axes.plot(
                place, table[column], style, color=COLOURS[colour], label=f"{column}, {network}"
            )
        axes.set(xticks=place, xticklabels=table.index)
    axes.axhline(0.5, color="0.6", linewidth=1)
    axes.set(ylim=(0.4, 1.0), ylabel="held-out AUROC of the probe", title=title)
    legend(axes)
    return figure


def learning_curves(curves: Mapping[str, pd.DataFrame], layer: str, *, title: str) -> Figure:
    """Return how well a probe of one layer does after few and after many training subjects.

    Parameters
    ----------
    curves : mapping of legend text to DataFrame
        From `learning_curve`.
    layer : str
    title : str
    """
    figure = new(figsize=(7.2, 3.6), layout="constrained")
    axes = figure.subplots()
    ticks: list[int] = []
    for (text, table), (colour, style) in zip(curves.items(), STYLES, strict=False):
        curve = table.loc[layer]
        ticks = curve.index.tolist()
        axes.plot(curve.index, curve["auroc"], style, color=COLOURS[colour], label=text)
        axes.fill_between(
            curve.index,
            curve["auroc_low"],
            curve["auroc_high"],
            color=COLOURS[colour],
            alpha=0.15,
            linewidth=0,
        )
    axes.axhline(0.5, color="0.6", linewidth=1)
    axes.set(xscale="log", ylim=(0.4, 1.0), title=title)
    axes.set(
        xlabel="training subjects of the probe (log scale)", ylabel="held-out AUROC of the probe"
    )
    axes.set_xticks(ticks, [str(number) for number in ticks])
    axes.set_xticks([], minor=True)
    legend(axes)
    return figure


def alignment(tables: Tables, *, title: str) -> Figure:
    """Return one heat map per named matrix of alignments: layers by layers, from `cka_matrix`."""
    figure = new(figsize=(3.3 * len(tables) + 0.9, 3.5), layout="constrained")
    panels = figure.subplots(1, len(tables), squeeze=False)[0]
    for axes, (name, matrix) in zip(panels, tables.items(), strict=True):
        image = axes.imshow(matrix.to_numpy(), vmin=0, vmax=1, cmap="cividis")
        for (row, column), value in np.ndenumerate(matrix.to_numpy()):
            colour = "white" if value < 0.55 else "black"
            axes.text(
                column, row, f"{value:.2f}", ha="center", va="center", fontsize=8, color=colour
            )
        axes.set(xticks=range(matrix.shape[1]), yticks=range(matrix.shape[0]), title=name)
        axes.set_xticklabels(matrix.columns, rotation=45, ha="right", fontsize=8)
        axes.set_yticklabels(matrix.index, fontsize=8)
    figure.colorbar(image, ax=list(panels), label="CKA", shrink=0.8)
    figure.suptitle(title)
    return figure


def plane(
    coordinates: np.ndarray,
    label: np.ndarray,
    bias: np.ndarray,
    *,
    title: str,
    axes_labels: Sequence[str],
) -> Figure:
    """Return subjects in the plane of two components: shapes for the disease, colours for the bias.

    Parameters
    ----------
    coordinates : ndarray, shape (n, 2)
    label, bias : ndarray of 0 and 1, shape (n,)
    title : str
    axes_labels : sequence of two str
    """
    figure = new(figsize=(6.6, 4.2), layout="constrained")
    axes = figure.subplots()
    for name, sick, group, marker in CORNERS:
        members = (label == sick) & (bias == group)
        colour = GROUP_COLOURS["B" if group else "NB"]
        face = colour if sick else "none"
        axes.scatter(
            coordinates[members, 0],
            coordinates[members, 1],
            14,
            marker=marker,
            edgecolors=colour,
            facecolors=face,
            linewidths=0.8,
            alpha=0.7,
            label=name,
        )
        axes.plot(
            *coordinates[members].mean(axis=0),
            marker,
            markersize=13,
            color=colour,
            markeredgecolor="black",
        )
    reach = 1.05 * np.abs(coordinates).max(axis=0)
    axes.set(xlim=(-reach[0], reach[0]), ylim=(-reach[1], reach[1]), title=title)
    axes.set(xlabel=axes_labels[0], ylabel=axes_labels[1])
    legend(axes, title="large: group means")
    return figure


def groups_on_axis(
    table: Annotated[pd.DataFrame, columns("layer", "group", "position", "low", "high")],
    *,
    title: str,
) -> Figure:
    """Return where the four groups lie on the disease axis of each layer, from `projections`."""
    layers = table.index.get_level_values("layer").unique()
    figure = new(figsize=(7.2, 0.55 * len(layers) + 1.5), layout="constrained")
    axes = figure.subplots()
    for offset, (name, sick, group, marker) in zip(
        (-0.18, -0.06, 0.06, 0.18), CORNERS, strict=True
    ):
        rows = table.xs(name, level="group").loc[layers]
        colour = GROUP_COLOURS["B" if group else "NB"]
        axes.errorbar(
            rows["position"],
            np.arange(len(layers)) + offset,
            xerr=[rows["position"] - rows["low"], rows["high"] - rows["position"]],
            fmt=marker,
            color=colour,
            markerfacecolor=colour if sick else "white",
            capsize=3,
            label=name,
        )
    axes.axvline(0, color="0.6", linewidth=1)
    axes.set(yticks=range(len(layers)), yticklabels=layers, xlim=(-1.6, 1.6), title=title)
    axes.set_xlabel("position on the disease axis (standard deviations within groups)")
    axes.invert_yaxis()
    legend(axes)
    return figure


def encoding_and_use(
    tables: Tables,
    *,
    title: str,
    limits: tuple[tuple[float, float], tuple[float, float]] | None = None,
) -> Figure:
    """Return what is encoded against what is used: a point per condition, intervals over seeds.

    Parameters
    ----------
    tables : mapping of legend text to DataFrame
        Up to four kinds, such as useful marks and useless ones. Indexed by condition, which stands
        beside the point; ``above_floor`` and ``removed``, both with ``_low`` and ``_high``.
    title : str
    limits : pair of (low, high), optional
        Ends of the horizontal and the vertical axis.
    """
    figure = new(figsize=(7.2, 4.8), layout="constrained")
    axes = figure.subplots()
    axes.axhline(0, color="0.6", linewidth=1)
    axes.axvline(0, color="0.6", linewidth=1)
    for (text, table), (colour, style) in zip(tables.items(), STYLES, strict=False):
        errors: dict[str, Any] = {
            axis: [table[column] - table[f"{column}_low"], table[f"{column}_high"] - table[column]]
            for axis, column in (("xerr", "above_floor"), ("yerr", "removed"))
        }
        axes.errorbar(
            table["above_floor"],
            table["removed"],
            **errors,
            fmt=style[0],
            color=COLOURS[colour],
            elinewidth=0.9,
            label=text,
        )
        for name, row in table.iterrows():
            axes.annotate(
                str(name),
                (row["above_floor"], row["removed"]),
                (5, 4),
                textcoords="offset points",
                fontsize=8,
                color=COLOURS[colour],
            )
    axes.set(
        xlabel="encoded: AUROC of the probe, above untrained networks",
        ylabel="used: effect on the answer that goes\nwith what is erased here (logit)",
        title=title,
    )
    if limits is not None:
        axes.set(xlim=limits[0], ylim=limits[1])
    for x, y, words in (
        (0.02, 0.98, "used"),
        (0.98, 0.98, "encoded and used"),
        (0.98, 0.02, "encoded and ignored"),
    ):
        axes.text(
            x,
            y,
            words,
            transform=axes.transAxes,
            ha="left" if x < 0.5 else "right",
            va="top" if y > 0.5 else "bottom",
            fontsize=8,
            color="0.35",
            style="italic",
        )
    figure.legend(fontsize=8, frameon=False, loc="outside lower center", ncols=2)
    return figure
