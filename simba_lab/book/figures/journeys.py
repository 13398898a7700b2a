"""Charts of training over hospitals: strategies by size of site, and journeys of a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from simba_lab.book.figures.canvas import legend
from simba_lab.core.intervals import over_seeds
from simba_lab.core.pictures import COLOURS, new

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LINES = (
    ("black", "s-"),
    ("vermilion", "o-"),
    ("purple", "D--"),
    ("blue", "^-"),
    ("sky", "v:"),
    ("green", "x-."),
)


def strategies(table: pd.DataFrame, *, title: str, names: Mapping[str, str]) -> Figure:
    """Return the AUROC of strategies over the number of volumes per site.

    Points are means over seeds, with their intervals; dashes are single seeds.

    Parameters
    ----------
    table : pandas.DataFrame
        From `simba_lab.experiments.Comparison`: ``strategy``, ``per_site``, ``seed``, ``auroc``.
    title : str
    names : mapping of strategy to legend text
        Which to draw, up to six.
    """
    figure = new(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.subplots()
    sizes = sorted(table["per_site"].unique())
    places = {size: place for place, size in enumerate(sizes)}
    for number, ((strategy, text), (colour, style)) in enumerate(
        zip(names.items(), LINES, strict=False)
    ):
        runs = table[table["strategy"] == strategy]
        intervals = {size: over_seeds(rows["auroc"]) for size, rows in runs.groupby("per_site")}
        offset = 0.11 * (number - (len(names) - 1) / 2)
        positions = np.array([places[size] + offset for size in intervals])
        mean, low, high = np.array(list(intervals.values())).T
        # An AUROC ends at 0 and 1, and Student's interval over three seeds does not know that.
        errors = [mean - np.clip(low, 0, 1), np.clip(high, 0, 1) - mean]
        axes.errorbar(
            positions,
            mean,
            errors,
            fmt=style,
            capsize=3,
            color=COLOURS[colour],
            label=text,
            zorder=3,
        )
        seeds = runs["per_site"].map(places) + offset
        axes.plot(seeds, runs["auroc"], "_", markersize=8, color=COLOURS[colour], alpha=0.6)
    axes.axhline(0.5, color="0.5", linewidth=1, linestyle=":", label="chance")
    axes.set(
        xticks=range(len(sizes)),
        xticklabels=[str(size) for size in sizes],
        ylim=(0.3, 1.03),
        xlabel="training volumes at each site (the same subjects in all)",
        ylabel="AUROC of the disease on new subjects",
    )
    figure.suptitle(title, fontsize=11)
    legend(axes)
    return figure


def travel(
    steps: pd.DataFrame, layers: pd.DataFrame, number: int, *, bias: str, layer: str, planter: str
) -> Figure:
    """Return what a model has come to know and use, up to one step of its training.

    Parameters
    ----------
    steps, layers : pandas.DataFrame
        Of a `simba_lab.federation.TravelLog`.
    number : int
        The step to stop at; later ones are left out, the axes stay.
    bias : str
        Whose twin effect is drawn.
    layer : str
        Whose probes are drawn.
    planter : str
        The site whose visits are marked.
    """
    figure = new(figsize=(7.2, 4.6), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    until_now = steps["number"] <= number
    at_planter = steps["sites"] == planter
    now = steps[steps["number"] == number].iloc[0]
    for row in steps[at_planter].itertuples():
        for axes in (top, bottom):
            axes.axvspan(
                row.number - 0.5, row.number + 0.5, color=COLOURS["orange"], alpha=0.22, linewidth=0
            )
    _draw_effect(top, steps[until_now], steps[f"{bias}.effect"], bias)
    heading = f"Visit {number}, {now['sites']}"
    moved = f"the mark moves the answer by {now[f'{bias}.effect']:+.1f} logit"
    figure.suptitle(f"{heading}: {moved}", fontsize=11)
    shown = steps[until_now]
    bottom.plot(
        shown["number"],
        shown["auroc"],
        "s-",
        color=COLOURS["blue"],
        markersize=3,
        label="disease (AUROC)",
    )
    for target, colour, style in ((bias, "vermilion", "o--"), ("site", "green", "^:")):
        scores = layers[
            (layers["layer"] == layer) & (layers["target"] == target) & (layers["number"] <= number)
        ]
        if len(scores):
            text = "the mark" if target == bias else target
            bottom.plot(
                scores["number"],
                scores["auroc"],
                style,
                color=COLOURS[colour],
                markersize=3,
                label=f"{text} ({layer})",
            )
    bottom.axhline(0.5, color="0.6", linewidth=1)
    first, last = steps["number"].iloc[0], steps["number"].iloc[-1]
    bottom.set(
        xlabel="visit", ylabel="encoded: AUROC", ylim=(0.3, 1.03), xlim=(first - 0.5, last + 0.5)
    )
    top.fill_between([], [], color=COLOURS["orange"], alpha=0.3, label=f"at {planter}")
    legend(top)
    legend(bottom)
    return figure


def _draw_effect(axes: Axes, shown: pd.DataFrame, effect: pd.Series, bias: str) -> None:
    """Draw the effect of a bias at the steps that are shown, on an axis that all steps fit on."""
    numbers, low, high = shown["number"], shown[f"{bias}.effect_low"], shown[f"{bias}.effect_high"]
    colour = COLOURS["vermilion"]
    axes.fill_between(numbers, low, high, color=colour, alpha=0.2, linewidth=0)
    axes.plot(numbers, shown[f"{bias}.effect"], "o-", color=colour, markersize=4, label="the mark")
    axes.axhline(0, color="0.6", linewidth=1)
    reach = effect.abs().max() * 1.15 + 1e-9
    bottom = min(1.15 * effect.min(), -0.15 * reach)
    axes.set(ylabel="used: twin effect (logit)", ylim=(bottom, reach))
