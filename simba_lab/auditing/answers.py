"""Question A from answers alone: whether the answer moves when only the mark changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from simba_lab.core.checks import Positive, share
from simba_lab.core.cohort import Cohort
from simba_lab.core.errors import SimbaError, Words
from simba_lab.core.intervals import wilson

# With fewer scans no interval is narrow enough for a verdict that can be believed.
LEAST_SCANS = 16
MOST_SCANS = 2000
POWER = 0.8
# Answers before and after, of one network: shapes (n,) and (n,) or (n, marks).
Answers = tuple[np.ndarray, np.ndarray]


def answer_table(
    off: np.ndarray,
    on: np.ndarray,
    spread: Positive,
    *,
    marks: Sequence[str] = ("mark",),
    controls: Sequence[Answers] = (),
    bound: Positive = 0.5,
    level: float = 0.95,
    decisions: bool = True,
) -> pd.DataFrame:
    """Return `Audit.marks` from the answers to untouched scans and to their twins with each mark.

    Parameters
    ----------
    off : ndarray, shape (n,)
        Logits, or numbers, for the untouched scans.
    on : ndarray, shape (n, marks), or (n,) for one mark
        Those for the same scans with a mark.
    spread : float
        Standard deviation of the network's answers to the untouched scans: the unit of effects.
    marks : sequence of str
        Their names.
    controls : sequence of (ndarray, ndarray)
        The same of networks trained without the marks, each judged in its own spread.
    bound : float
        Effects within plus or minus this many spreads do not matter.
    level : float
        Of all intervals of effects together.
    decisions : bool
        Whether answers above 0 are decisions.

    Returns
    -------
    pandas.DataFrame
        One row per mark: ``effect`` in spreads, ``logit`` (``number``, in the unit of the answers,
        where these are no decisions), ``flips`` (share of decisions changed, Wilson interval),
        ``control`` (mean over the controls) and ``excess`` if there are any, with ``_low`` and
        ``_high``; ``bound``, ``smallest`` (effect that so many scans would show with
        power 0.8), ``n``, ``verdict`` and ``needs``.

    Raises
    ------
    SimbaError
        If there are fewer than 16 scans, shapes differ, answers are not finite, or do not vary, or
        if two networks are the same.

    Notes
    -----
    *Unit.* Logits of two networks are not comparable; standard deviations of their own answers are.
    The spread is that of these scans and is taken as known.

    *Intervals* are Student's over scans of the paired differences, at ``1 - (1 - level) / marks``
    (Bonferroni), because somebody reads all rows and believes the striking one. Where differences
    are skewed they are widened to those of Hall's transformation: in simulations of eight marks and
    16 scans Student's held together in 0.79 of exponential samples, these in 0.93 (48 scans: 0.88
    and 0.96; normal: 0.95 and 0.96).

    *Controls.* The verdict is then on the excess over their mean, paired by scan. Networks differ
    by chance, and the one that is judged does so too: the interval is widened to where one more
    control would lie (spread between controls times the root of 1 + 1 / controls; Welch and
    Satterthwaite's degrees of freedom; the network is the unit). Of one control the chance is not
    known, and the interval is for that control alone. A network that does not move has no use of a
    mark, however much its controls do: "used" needs its own interval beyond the bound on the same
    side too, and within the bound it is "not used".

    *Verdict*: "used" if the whole interval lies beyond the bound, "not used" if it lies within (two
    one-sided tests), else "cannot tell". It is about the mean answer. An interval without zero
    never suffices, because networks that were trained without a mark react to it too. Half a spread
    is the default because it turns at most two decisions in ten if answers are normal: P(0 < Z <
    0.5) = 0.19.

    References
    ----------
    Hall (1992), "On the removal of skewness by transformation", J. R. Stat. Soc. B 54:221-228;
    Schuirmann (1987), J. Pharmacokinet. Biopharm. 15:657-680 (two one-sided tests).

    Examples
    --------
    >>> import numpy as np
    >>> from simba_lab.auditing import answer_table
    >>> off = np.random.default_rng(0).standard_normal(16)
    >>> on = np.stack([off + 2, off], axis=1)
    >>> answer_table(off, on, 1.0, marks=["scanner", "putamen"])["verdict"].tolist()
    ['used', 'not used']
    """
    marks, level = list(marks), share("level", level)
    if not 0.5 <= level < 1:
        raise SimbaError("level", level, "at least 0.5 and below 1")
    if not marks or len(set(marks)) < len(marks):
        raise SimbaError("marks", marks, "at least one name, each once")
    off, on = checked_answers(off, on, len(marks), "answers")
    references = [checked_answers(*pair, len(marks), "controls") for pair in controls]
    if any(len(untouched) != len(off) for untouched, _ in references):
        raise SimbaError("controls", Words("answers to other scans"), f"{len(off)} answers each")
    _check_distinct([(off, on), *references])
    alpha = (1 - level) / len(marks)
    own = (on - off[:, None]) / spread
    moved = [(yes - no[:, None]) / spread_of(no, "controls") for no, yes in references]
    rows = []
    for number in range(len(marks)):
        difference = alone = Difference(own[:, number], alpha)
        row: dict[str, Any] = difference.columns("effect")
        unit = "logit" if decisions else "number"
        row |= Difference(on[:, number] - off, alpha).columns(unit)
        if decisions:
            flipped = int(((on[:, number] > 0) != (off > 0)).sum())
            flips = wilson(flipped, len(off))
            row |= dict(zip(("flips", "flips_low", "flips_high"), flips, strict=True))
        if moved:
            others = np.stack([values[:, number] for values in moved])
            row |= Difference(others.mean(axis=0), alpha).columns("control")
            means = tuple(others.mean(axis=1))
            difference = Difference(own[:, number] - others.mean(axis=0), alpha, means)
            row |= difference.columns("excess")
        row |= {"bound": bound, "smallest": difference.smallest(bound), "n": len(off)}
        verdict = _verdict(alone, difference, bound)
        row |= {"verdict": verdict, "needs": ""}
        if verdict == "cannot tell":
            row["needs"] = _needs(difference, bound, len(moved))
        rows.append(row)
    return pd.DataFrame(rows, index=pd.Index(marks, name="mark"))


def _check_distinct(answers: Sequence[Answers]) -> None:
    """Raise if two networks gave the same answers: a network is no control of itself."""
    for place, (off, on) in enumerate(answers):
        for before, after in answers[place + 1 :]:
            if np.array_equal(off, before) and np.array_equal(on, after):
                value = Words("two networks with the same answers")
                raise SimbaError("controls", value, "different networks", "Are weights loaded?")


def _verdict(alone: Difference, excess: Difference, bound: float) -> str:
    """Return the verdict on a network: by itself, and by its excess over controls if it has any."""
    own, beyond = alone.verdict(bound), excess.verdict(bound)
    if own == "not used":
        return own
    same_side = alone.mean * excess.mean > 0
    return "cannot tell" if beyond == "used" and not (own == "used" and same_side) else beyond


def check_enough(scans: Cohort, groups: Sequence[str] = ()) -> None:
    """Raise if there are too few scans for a verdict, or of a class where groups are compared."""
    if len(scans) < LEAST_SCANS:
        raise SimbaError("scans", Words(f"{len(scans)} scans"), f"at least {LEAST_SCANS} scans")
    if groups and "label" in scans.table:
        counts = scans.table["label"].value_counts()
        if set(counts.index) <= {0, 1} and counts.min() < LEAST_SCANS:
            value = Words(f"{counts.min()} of one class")
            allowed = f"at least {LEAST_SCANS} scans of each class, to compare groups"
            raise SimbaError("scans", value, allowed)


def checked_answers(
    off: np.ndarray, on: np.ndarray, marks: int, field: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return answers as floats of shapes (n,) and (n, marks), or raise the error."""
    try:
        before, after = np.asarray(off, float), np.asarray(on, float)
    except (TypeError, ValueError):
        raise SimbaError(field, off, "numbers") from None
    if after.ndim == 1 and marks == 1:
        after = after[:, None]
    if before.ndim != 1 or after.shape != (len(before), marks):
        value = Words(f"arrays of shapes {before.shape} and {after.shape}")
        raise SimbaError(field, value, f"of shapes (n,) and (n, {marks})")
    if len(before) < LEAST_SCANS:
        raise SimbaError(field, Words(f"{len(before)} scans"), f"at least {LEAST_SCANS} scans")
    bad = int((~np.isfinite(before)).sum() + (~np.isfinite(after)).sum())
    if bad:
        raise SimbaError(field, Words(f"{bad} that are not finite"), "finite numbers")
    return before, after


def spread_of(answers: np.ndarray, field: str = "answers") -> float:
    """Return the standard deviation of answers, or raise the error that they do not vary."""
    spread = float(np.std(answers, ddof=1))
    if not spread > 1e-9 * max(1.0, float(np.abs(answers).max())):
        value = Words(f"{answers[0]:g} for all {len(answers)} untouched scans")
        raise SimbaError(field, value, "different for different people")
    return spread


@dataclass(frozen=True, eq=False)
class Difference:
    """The mean of paired differences with an interval, over units and over control networks.

    Parameters
    ----------
    values : ndarray, shape (n,)
    alpha : float
        Chance that the interval misses.
    controls : tuple of float
        The mean of each control network.
    """

    values: np.ndarray
    alpha: float
    controls: tuple[float, ...] = ()

    @property
    def mean(self) -> float:
        """The mean."""
        return float(self.values.mean())

    @property
    def error(self) -> float:
        """Standard error, networks included."""
        return float(np.hypot(self._within, self._between))

    @property
    def _within(self) -> float:
        return float(np.std(self.values, ddof=1) / np.sqrt(len(self.values)))

    @property
    def _between(self) -> float:
        if len(self.controls) < 2:
            return 0.0
        # The network that is judged is one of those too, as the next control would be.
        return float(np.std(self.controls, ddof=1) * np.sqrt(1 + 1 / len(self.controls)))

    @property
    def chance_of_networks(self) -> bool:
        """Whether networks differ more than scans leave open: more scans would not help."""
        return self._between > self._within

    @property
    def freedom(self) -> float:
        """Degrees of freedom after Welch and Satterthwaite."""
        scans = len(self.values) - 1
        if not self._between:
            return scans
        pieces = self._within**4 / scans + self._between**4 / (len(self.controls) - 1)
        return self.error**4 / pieces

    @property
    def ends(self) -> tuple[float, float]:
        """Student's interval, widened by Hall's where the differences are skewed."""
        quantile = float(stats.t.ppf(1 - self.alpha / 2, self.freedom))
        low, high = self.mean - quantile * self.error, self.mean + quantile * self.error
        count, spread = len(self.values), float(np.std(self.values, ddof=1))
        if count < 3 or spread <= 1e-12 * max(1.0, abs(self.mean)):
            return low, high
        slope = float(stats.skew(self.values, bias=False)) / (6 * np.sqrt(count))
        if abs(slope) < 1e-9:
            return low, high
        student = float(stats.t.ppf(1 - self.alpha / 2, count - 1))
        turned = [
            (np.cbrt(1 + 6 * slope * (end - slope)) - 1) / (2 * slope)
            for end in (-student, student)
        ]
        return (
            min(low, self.mean - self._within * float(turned[1])),
            max(high, self.mean - self._within * float(turned[0])),
        )

    def columns(self, name: str) -> dict[str, float]:
        """Return the mean and its interval as three columns."""
        low, high = self.ends
        return {name: self.mean, f"{name}_low": low, f"{name}_high": high}

    def verdict(self, bound: float) -> str:
        """Return whether the whole interval is beyond the bound, or within."""
        low, high = self.ends
        if low > bound or high < -bound:
            return "used"
        return "not used" if -bound < low and high < bound else "cannot tell"

    def smallest(self, bound: float) -> float:
        """Return the effect that would be shown to be beyond the bound with power 0.8."""
        reach = max(self.mean - self.ends[0], self.ends[1] - self.mean)
        return bound + reach + float(stats.t.ppf(POWER, self.freedom)) * self.error

    def units(self, bound: float) -> float:
        """Return how many units (scans) would settle it with power 0.8, were the mean as it is."""
        distance = abs(abs(self.mean) - bound)
        if not distance:
            return np.inf
        # Within the bound both one-sided tests have to succeed: near 0 each may fail half as often.
        power = POWER if abs(self.mean) > bound / 2 else (1 + POWER) / 2
        errors = stats.norm.ppf(1 - self.alpha / 2) + stats.norm.ppf(power)
        left = distance**2 - (errors * self._between) ** 2
        if left <= 0:
            return np.inf
        # An interval of few units is wider than a normal one.
        count = len(self.values)
        return max(count + 1, float((errors * self._within) ** 2 * count / left))


def _needs(difference: Difference, bound: float, controls: int) -> str:
    if difference.chance_of_networks:
        return f"more control networks: these {controls} differ too much among themselves."
    scans, text = difference.units(bound), "far more scans"
    if scans < MOST_SCANS:
        text = f"about {10 * int(np.ceil(scans / 10))} scans"
    return (
        f"{text}."
        if controls == 1
        else f"{text}, or {'more' if controls else 'a'} control "
        + ("networks." if controls else "network.")
    )
