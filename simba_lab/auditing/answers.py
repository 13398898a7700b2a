"""Question A from answers alone: whether the answer moves when only the mark changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from simba_lab.core.intervals import bootstrap_rows, columns_of_mean, wilson
from simba_lab.core.rng import stream

# With a chance of 80 % an effect this many standard errors beyond the bound is shown to be there.
POWER_ERRORS = 1.96 + 0.84
MOST_SCANS = 2000


def answer_table(
    off: np.ndarray,
    on: np.ndarray,
    spread: float,
    *,
    mark: str = "mark",
    controls: Sequence[tuple[np.ndarray, np.ndarray]] = (),
    bound: float = 0.5,
    decisions: bool = True,
    seed: int = 0,
) -> pd.DataFrame:
    """Return the row of a mark in `Audit.marks` from the answers to scans and to their twins.

    The verdict is about the change in spreads, less that of the controls if there are any: "used"
    if its interval is beyond the bound, "not used" if it is within.

    Parameters
    ----------
    off, on : ndarray, shape (n,)
        Logits, or numbers, without the mark and with it.
    spread : float
        Standard deviation of the network's answers to the untouched scans.
    mark : str
    controls : sequence of (ndarray, ndarray)
        The same of control networks, each in its own spread.
    bound : float
    decisions : bool
        Whether answers above 0 are decisions.
    seed : int
        Of the bootstrap over scans.
    """
    count, change = len(off), (on - off) / spread
    rows = bootstrap_rows(stream(seed, "audit", f"answers/{mark}"), count)
    columns: dict[str, Any] = columns_of_mean("effect", change, rows)
    columns |= columns_of_mean("logit", on - off, rows)
    if decisions:
        flips = wilson(int(((on > 0) != (off > 0)).sum()), count)
        columns |= dict(zip(("flips", "flips_low", "flips_high"), flips, strict=True))
    excess = columns_of_mean("effect", change, rows)
    if controls:
        moved = np.mean([(yes - no) / np.std(no, ddof=1) for no, yes in controls], axis=0)
        columns |= columns_of_mean("control", moved, rows)
        excess = columns_of_mean("effect", change - moved, rows)
    error = float(np.std(change, ddof=1) / np.sqrt(count))
    verdict, needs = _verdict(excess, bound, count, bool(controls))
    smallest = bound + POWER_ERRORS * error
    columns |= {"bound": bound, "smallest": smallest, "n": count, "verdict": verdict}
    return pd.DataFrame([columns | {"needs": needs}], index=pd.Index([mark], name="mark"))


def _verdict(
    change: dict[str, float], bound: float, count: int, controlled: bool
) -> tuple[str, str]:
    effect, low, high = change["effect"], change["effect_low"], change["effect_high"]
    if low > bound or high < -bound:
        return "used", ""
    if -bound < low and high < bound:
        return "not used", ""
    distance = abs(abs(effect) - bound)
    reach = high - low if not distance else (high - low) / 2
    scans = count * (reach / distance) ** 2 if distance else np.inf
    number = "far more scans"
    if scans < MOST_SCANS:
        number = f"about {10 * int(np.ceil(scans / 10))} scans"
    return "cannot tell", f"{number}." if controlled else f"{number}, or a control network."
