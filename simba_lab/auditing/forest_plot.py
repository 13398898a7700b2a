"""Forest plots as SVG: effects with their intervals, and the bound that they are held against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
import numpy as np
from matplotlib.ticker import MaxNLocator

WIDTH, LEFT, RIGHT, TOP, ROW = 820, 210, 620, 28, 36
LONGEST = 28


@dataclass(frozen=True)
class ForestRow:
    """An effect with its interval.

    Parameters
    ----------
    label : str
    value, low, high : float
    look : {"used", "free", "open"}
        Shape and colour: triangle, circle, or diamond.
    verdict : str
    """

    label: str
    value: float
    low: float
    high: float
    look: str
    verdict: str


def forest_plot(
    template: jinja2.Template, rows: Sequence[ForestRow], *, bound: float | None, unit: str
) -> str:
    """Return a figure with an SVG: a line for each effect, the bound as a band around 0.

    Parameters
    ----------
    template : jinja2.Template
    rows : sequence of ForestRow
    bound : float, optional
        Half the width of the band.
    unit : str
        Of the horizontal axis.
    """
    values = [0.0, *(v for row in rows for v in (row.value, row.low, row.high) if np.isfinite(v))]
    values += [-bound, bound] if bound else []
    low, high = min(values), max(values)
    margin = 0.06 * (high - low) or 1.0
    low, high = low - margin, high + margin

    def x(value: float) -> float:
        share = (min(max(value, low), high) - low) / (high - low)
        return round(LEFT + (RIGHT - LEFT) * float(share), 1)

    ticks = [tick for tick in MaxNLocator(7).tick_values(low, high) if low <= tick <= high]
    bottom = TOP + ROW * len(rows) + 10
    band: dict[str, Any] | None = None
    if bound:
        edges = [x(-bound), x(bound)]
        band = {"x": edges[0], "width": round(edges[1] - edges[0], 1), "edges": edges}
        label = f"within the bound (±{bound:g})"
        # Words that are wider than the band stay on the page.
        band |= {"middle": min(max(x(0), LEFT + 70), RIGHT - 70), "label": label}
    return template.render(
        title="Change of the answer when only the mark changes",
        text=" ".join(f"{row.label}: {_in_words(row)}, {row.verdict}." for row in rows)
        + (f" The bound is {bound:g}." if bound else ""),
        caption="Change of the answer with 95 % intervals: ▲ used, ● not used, ◇ cannot tell.",
        unit=unit,
        width=WIDTH,
        height=bottom + 54,
        top=TOP,
        bottom=bottom,
        left=LEFT,
        right=RIGHT,
        middle=(LEFT + RIGHT) / 2,
        zero=x(0),
        band=band,
        ticks=[{"x": x(tick), "label": f"{tick:g}".replace("-", "−")} for tick in ticks],
        rows=[_drawn(row, TOP + ROW * (number + 0.6), x) for number, row in enumerate(rows)],
    )


def _drawn(row: ForestRow, y: float, x: Any) -> dict[str, Any]:
    label = row.label if len(row.label) <= LONGEST else f"{row.label[: LONGEST - 1]}…"
    places = {name: x(getattr(row, name)) for name in ("low", "high")}
    return {"label": label, "value": _in_words(row), "look": row.look, "y": y} | {
        "x": x(row.value),
        **places,
    }


def _in_words(row: ForestRow) -> str:
    # Rounded first, and 0 added, so that no zero has a sign.
    value, low, high = (round(number, 2) + 0.0 for number in (row.value, row.low, row.high))
    return f"{value:.2f} ({low:.2f} to {high:.2f})".replace("-", "−")
