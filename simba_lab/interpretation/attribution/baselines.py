"""Baselines: what an attribution compares a volume with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from simba_lab.core.checks import choice
from simba_lab.core.cohort import Cohort, TwinCohort, effect_of
from simba_lab.core.errors import SimbaError, Words

REMEDY = "Another start is baseline='mean', or twins: baseline=cohort.twin(without=...)."
BLANK = "A network that scales its input cannot take a blank one: try baseline='mean', or twins."


@dataclass(frozen=True, eq=False)
class Baselines:
    """One volume for all subjects (an array), or one for each (a cohort)."""

    source: Cohort | np.ndarray

    def volumes(self, subjects: np.ndarray, keep: bool) -> Iterator[np.ndarray]:
        """Iterate over the baselines of some subjects: float32, shape (X, Y, Z)."""
        if isinstance(self.source, np.ndarray):
            for _ in subjects:
                yield self.source
        elif keep:
            for volume in self.source.where(subjects).volumes():
                yield np.asarray(volume, np.float32)
        else:
            for index in subjects:
                yield self.source.array(int(index), keep=False)


def baselines_of(
    baseline: Cohort | np.ndarray | float | str, cohort: Cohort, *, effect: str | None = None
) -> Baselines:
    """Return the baselines of a cohort.

    Raises
    ------
    SimbaError
        If they are of another number or shape, NaN, or are the twins of other subjects or differ in
        more than one effect.
    """
    shape = cohort.lattice.shape
    if effect is not None:
        effect_of(cohort, effect)
    if isinstance(baseline, Cohort):
        if len(baseline) != len(cohort) or baseline.lattice.shape != shape:
            given = f"{len(baseline)} volumes of shape {baseline.lattice.shape}"
            raise SimbaError("baseline", Words(given), f"{len(cohort)} volumes of shape {shape}")
        check_twins(cohort, baseline, effect)
        return Baselines(baseline)
    if effect is not None:
        remedy = f"Try baseline=cohort.twin(without={effect!r})."
        raise SimbaError("effect", effect, "left out unless the baseline is made of twins", remedy)
    if isinstance(baseline, str):
        mean = np.zeros(shape, np.float64)
        if choice("baseline", baseline, ("zero", "mean")) == "mean":
            for index in range(len(cohort)):
                mean += cohort.array(index, keep=False)
        return Baselines((mean / len(cohort)).astype(np.float32))
    values = np.asarray(baseline, np.float32)
    if values.shape not in ((), shape):
        raise SimbaError("baseline", values.shape, f"a number, a cohort, or of shape {shape}")
    if not np.isfinite(values).all():
        raise SimbaError("baseline", Words("NaN or infinity"), "finite", REMEDY)
    _check_range(values, cohort)
    return Baselines(np.ascontiguousarray(np.broadcast_to(values, shape)))


def _check_range(values: np.ndarray, cohort: Cohort) -> None:
    """Refuse a baseline far outside of the intensities of the first volume."""
    volume = cohort.array(0)
    low, high = float(volume.min()), float(volume.max())
    span = high - low
    if values.min() < low - span or values.max() > high + span:
        value = Words(f"from {float(values.min()):.3g} to {float(values.max()):.3g}")
        allowed = f"near the intensities of the scans, {low:.3g} to {high:.3g}"
        raise SimbaError("baseline", value, allowed, REMEDY)


def score_of_baseline(explained: nn.Module, baseline: torch.Tensor) -> torch.Tensor:
    """Return the score of a baseline, shape (1,), given the volume (1, X, Y, Z)."""
    try:
        return explained(baseline[None])
    except SimbaError as error:
        raise refused_baseline(f"one for which it fails: {error}") from error


def refused_baseline(value: str) -> SimbaError:
    """Return the error that says that a network cannot judge a baseline."""
    return SimbaError("baseline", Words(value), "one that the network can judge", BLANK)


def check_twins(cohort: Cohort, twins: Cohort, effect: str | None) -> None:
    """Refuse twins of other subjects, and twins that differ in more than one (or the named) effect.

    Images without twins pass.
    """
    if not (isinstance(cohort, TwinCohort) and isinstance(twins, TwinCohort)):
        if effect is not None:
            allowed = "a cohort with twins, if an effect is named"
            raise SimbaError("baseline", type(twins).__name__, allowed)
        return
    subjects = twins.table.index, cohort.table.index
    if twins.identity != cohort.identity or not np.array_equal(*subjects):
        raise SimbaError(
            "baseline",
            Words("other subjects"),
            "the twins of the cohort, in its order",
            "Take cohort.twin(without=...), or one volume for all subjects, such as 'mean'.",
        )
    differing = [
        name
        for name in cohort.effects
        if any(
            cohort.magnitudes(index)[name] != twins.magnitudes(index)[name]
            for index in range(len(cohort))
        )
    ]
    if set(differing) - set([effect] if effect else differing[:1]):
        raise SimbaError(
            "baseline",
            Words(f"twins that differ in {' and '.join(differing)}"),
            f"twins that differ in {effect or 'one effect'} alone",
            "Switch one effect at a time: a sum over two says nothing about either.",
        )
