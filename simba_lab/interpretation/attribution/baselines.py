"""Baselines: what an attribution compares a volume with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from simba_lab.core.cohort import TwinCohort
from simba_lab.core.errors import SimbaError, UnknownNameError

if TYPE_CHECKING:
    from simba_lab.core.cohort import Cohort

NAMED = ("zero", "mean")


@dataclass(frozen=True, eq=False)
class Starts:
    """One volume for everybody (`constant`), or one for each subject (`cohort`)."""

    shape: tuple[int, ...]
    constant: np.ndarray | None = None
    cohort: Cohort | None = None

    def volumes(self, who: np.ndarray, keep: bool) -> Iterator[np.ndarray]:
        """Iterate over the baselines of some subjects: float32, shape (X, Y, Z)."""
        if self.constant is not None:
            for _ in who:
                yield self.constant
        elif keep:
            yield from (
                np.asarray(volume, np.float32) for volume in self.cohort.where(who).volumes()
            )
        else:
            yield from (self.cohort.array(int(index), keep=False) for index in who)


def starts_of(
    baseline: Cohort | np.ndarray | float | str, cohort: Cohort, *, effect: str | None = None
) -> Starts:
    """Return the baselines of a cohort.

    Raises
    ------
    SimbaError
        If they are of another number or shape, NaN, or are the twins of other subjects or differ in
        more than one effect.
    """
    shape = cohort.lattice.shape
    if effect is not None and effect not in cohort.effects:
        raise UnknownNameError.among("effect", effect, cohort.effects)
    if hasattr(baseline, "volumes"):
        if len(baseline) != len(cohort) or baseline.lattice.shape != shape:
            raise SimbaError(
                "baseline",
                f"{len(baseline)} volumes of shape {baseline.lattice.shape}",
                f"{len(cohort)} volumes of shape {shape}",
            )
        check_twins(cohort, baseline, effect)
        return Starts(shape, cohort=baseline)
    if effect is not None:
        raise SimbaError(
            "effect",
            effect,
            "left out unless the baseline are twins",
            f"Try cohort.twin(without={effect!r}).",
        )
    if isinstance(baseline, str):
        if baseline not in NAMED:
            raise UnknownNameError.among("baseline", baseline, NAMED)
        mean = np.zeros(shape, np.float64)
        if baseline == "mean":
            for index in range(len(cohort)):
                mean += cohort.array(index, keep=False)
        return Starts(shape, (mean / len(cohort)).astype(np.float32))
    values = np.asarray(baseline, np.float32)
    if values.shape not in ((), shape):
        raise SimbaError("baseline", values.shape, f"a number, a cohort, or of shape {shape}")
    if not np.isfinite(values).all():
        raise SimbaError("baseline", "NaN or infinity", "finite")
    return Starts(shape, np.ascontiguousarray(np.broadcast_to(values, shape)))


def check_twins(cohort: Cohort, twins: Cohort, effect: str | None) -> None:
    """Refuse twins of other subjects, and twins that differ in more than one effect, or in another than the named one.

    Images from elsewhere, of which nobody knows what was done to them, pass.
    """
    if not (isinstance(cohort, TwinCohort) and isinstance(twins, TwinCohort)):
        if effect is not None:
            raise SimbaError(
                "baseline", "imported images", "twins made by the lab, if an effect is named"
            )
        return
    same = twins.identity == cohort.identity and np.array_equal(
        twins.table.index, cohort.table.index
    )
    if not same:
        raise SimbaError(
            "baseline",
            "other subjects",
            "the twins of the cohort, in its order",
            "Take cohort.twin(without=...). For a reference that is nobody's twin pass one volume, such as the mean.",
        )
    one, other = (
        [part.magnitudes(index) for index in range(len(part))] for part in (cohort, twins)
    )
    differing = [
        name
        for name in cohort.effects
        if any(a[name] != b[name] for a, b in zip(one, other, strict=True))
    ]
    allowed = [effect] if effect else differing[:1]
    if set(differing) - set(allowed):
        raise SimbaError(
            "baseline",
            f"twins that differ in {' and '.join(differing)}",
            f"twins that differ in {effect} alone" if effect else "twins that differ in one effect",
            "Switch one effect at a time: a sum over two says nothing about either.",
        )
