"""Salience: how well an ideal linear observer detects an effect, and effects of equal salience."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from joblib import Parallel, delayed
from scipy.linalg import cho_factor, cho_solve
from threadpoolctl import threadpool_limits

from simba_lab.core.errors import FoldingError, SimbaError, UnknownNameError
from simba_lab.core.rng import stream
from simba_lab.synthesis.anatomy.template import load_template
from simba_lab.synthesis.effects import CLASSES, EXAMPLE, Effect
from simba_lab.synthesis.rendering.scanner import BACKGROUND
from simba_lab.synthesis.scenario import Scenario
from simba_lab.synthesis.synthetic_cohort import SyntheticCohort, synthesise

# Subjects whose statistics the observer knows, and of these so many with and without the effect.
SUBJECTS, TWINS = 1000, 200
# An effect is matched when its d' is this near, relatively.
TOLERANCE = 0.01
BOOTSTRAPS = 1000
# Without any noise an observer could be arbitrarily good.
LEAST_NOISE = 0.003
MOST_BYTES = 4 * 2**30


class Salience(NamedTuple):
    """d' of an effect, and its 95 % interval over subjects (for this observer: its training is not repeated)."""

    d_prime: float
    low: float
    high: float


# Sums in a different order round differently, and networks magnify it: a matched size must not
# depend on how many cores there are, or on how many processes share them.
@threadpool_limits.wrap(limits=1, user_api="blas")
def salience(
    effect: Effect | str, scenario: Scenario, *, subjects: int = SUBJECTS, seed: int = 0
) -> Salience:
    """Return how detectable an effect is in a scenario: the d' of a Hotelling observer.

    The observer sees whole images and knows their statistics: it weighs voxels by the inverse
    covariance of images times the mean difference that the effect makes. Healthy anatomy, the
    disease and the receive field are all part of the covariance, estimated from noiseless images,
    to which the variance of the noise is added. The effect's own spread need not be: it lies along
    the mean difference and does not turn the weights. A fifth of the subjects, unknown to the
    observer, judges it, so d' is not inflated by what many voxels and few subjects make up; it
    grows slowly with `subjects`.

    Parameters
    ----------
    effect : effect, or str
        A bias, with and without which the same subjects are compared; or ``"disease"``, for the two
        classes of the scenario; or the name of a bias of the scenario.
    scenario : Scenario
        Where it has to be detected: its anatomy, disease, scanner and voxel size. Its biases are
        left out.
    subjects : int
        How many the observer learns from (four fifths) and is judged on (one fifth, at most 200).
    seed : int

    References
    ----------
    Barrett, Yao, Rolland, Myers (1993), "Model observers for assessment of image quality", PNAS
    90:9758-9765, eq. 10-12. Burgess (1995), "Comparison of receiver operating characteristic and
    forced choice observer performance measurement methods", Medical Physics 22:643-655 (d' from the
    mean difference over the root mean variance).
    """
    if not isinstance(subjects, int) or subjects < 100:
        raise SimbaError(
            "subjects", subjects, "an integer of at least 100", f"{SUBJECTS} is usual."
        )
    if isinstance(effect, str):
        if effect not in scenario.effects:
            raise UnknownNameError.among("effect", effect, scenario.effects)
        effect = scenario.biases.get(effect)
    elif not isinstance(effect, Effect):
        raise SimbaError("effect", effect, EXAMPLE)
    population = _population(scenario.replace(subjects=subjects, bias=None), seed)
    without, carrying = _pair(effect, population.cohort)
    difference = population.images(carrying, known=True).mean(axis=0) - population.images(
        without, known=True
    ).mean(axis=0)
    weights = population.observer(difference)
    scores = [population.images(cohort, known=False) @ weights for cohort in (without, carrying)]
    generator, count = stream(seed, "salience", "bootstrap"), len(scores[0])
    picks = generator.integers(count, size=(BOOTSTRAPS, count))
    draws = [_d_prime(scores[0][pick], scores[1][pick]) for pick in picks]
    return Salience(_d_prime(*scores), *(float(v) for v in np.quantile(draws, (0.025, 0.975))))


def matched(
    effect: Effect, *, d_prime: float, scenario: Scenario, subjects: int = SUBJECTS, seed: int = 0
) -> Effect:
    """Return an effect at the amplitude (or strength) at which its salience in a scenario is `d_prime`.

    Raises
    ------
    SimbaError
        If no amplitude reaches it: because tissue would fold, or because the strength would leave
        its range.
    """
    if not isinstance(d_prime, int | float) or not 0.05 <= d_prime <= 20:
        raise SimbaError(
            "d_prime", d_prime, "a number from 0.05 to 20", "1 is easily overlooked, 3 hardly."
        )
    best = (0.0, 0.0)  # the largest factor that works, and its d'
    low, high, factor = 0.0, np.inf, 1.0
    for _ in range(40):
        try:
            reached = salience(
                effect.scaled(factor), scenario, subjects=subjects, seed=seed
            ).d_prime
        except SimbaError as error:
            if not isinstance(error, FoldingError) and error.field != "strength":
                raise
            reached, high = np.inf, min(high, factor)
        else:
            best = max(best, (factor, reached))
            if abs(reached - d_prime) <= TOLERANCE * d_prime:
                return effect.scaled(factor)
        if reached < d_prime:
            low = factor
        else:
            high = min(high, factor)
        if high - low < 5e-3 * low:
            break
        # d' is nearly proportional to the amplitude: aim by that, and halve where the aim leaves
        # what is known.
        aim = factor * d_prime / reached if 0 < reached < np.inf else 0.0
        middle = (low + high) / 2 if np.isfinite(high) else 2 * factor
        factor = aim if low < aim < min(high, 4 * factor) else middle
    limit = f"at most {best[1]:.2f} for {effect}"
    raise SimbaError(
        "d_prime", d_prime, limit, "Choose a smaller d', another region, or a smoother effect."
    )


def _pair(effect: Effect | None, cohort: SyntheticCohort) -> tuple[SyntheticCohort, SyntheticCohort]:
    """Return the same subjects without and with an effect; for the disease (None), as controls and as patients."""
    scenario = cohort.scenario
    if effect is not None:
        everybody = replace(effect, prevalence=dict.fromkeys(CLASSES, 1.0))
        carrying = synthesise(scenario.replace(bias=everybody), seed=cohort.seed)
        return carrying.twin(without="bias"), carrying
    label, own = cohort["label"], cohort["disease_magnitude"]
    distributions = [scenario.disease.magnitude[name] for name in CLASSES]
    means, sds = (
        np.array([one.mean for one in distributions]),
        np.array([one.sd for one in distributions]),
    )
    relative = (own - means[label]) / np.where(sds[label] > 0, sds[label], 1.0)
    return tuple(
        replace(
            cohort, table=cohort.table.assign(disease_magnitude=means[side] + sds[side] * relative)
        )
        for side in (0, 1)
    )


@dataclass(frozen=True, eq=False)
class _Population:
    """Subjects without any bias, and what an observer knows of their images."""

    cohort: SyntheticCohort
    voxels: np.ndarray
    centred: np.ndarray
    factor: tuple[np.ndarray, bool]
    noise: float

    def images(self, cohort: SyntheticCohort, *, known: bool) -> np.ndarray:
        """Images of twins of some subjects that the observer knows, or of those that judge it: (n, voxels)."""
        # Folds are matched by themselves, so subjects of other folds tell nothing about those of
        # the first.
        rows = np.flatnonzero((cohort["fold"] == 0) != known)[:TWINS]
        return np.stack([volume[self.voxels] for volume in cohort.where(rows).volumes(keep=False)])

    def observer(self, difference: np.ndarray) -> np.ndarray:
        """Weights of the Hotelling observer for a mean difference m.

        The covariance is that of n clean images X (centred) plus the noise: K = X'X / n + s^2 I.
        Its inverse needs but the n x n matrix XX' (Woodbury): K^-1 m = (m - X' (n s^2 I + XX')^-1 X
        m) / s^2.
        """
        inner = cho_solve(self.factor, (self.centred @ difference).astype(float))
        return (difference - self.centred.T @ inner.astype(np.float32)) / np.float32(self.noise**2)


@lru_cache(maxsize=2)
def _population(scenario: Scenario, seed: int) -> _Population:
    lattice = load_template(scenario.template).output_lattice(scenario.spacing_mm)
    needed = 8 * scenario.subjects * int(np.prod(lattice.shape))
    if needed > MOST_BYTES:
        most = scenario.subjects * MOST_BYTES // needed
        raise SimbaError(
            "subjects",
            scenario.subjects,
            f"at most {most} at {scenario.spacing_mm:g} mm",
            "All images are held in memory; coarser voxels need less: scenario.replace(spacing_mm=4).",
        )
    cohort = synthesise(scenario, seed=seed)
    known = cohort.where(cohort["fold"] != 0)
    jobs = Parallel(n_jobs=-1, prefer="threads", return_as="generator")
    images = np.empty((len(known), *lattice.shape), np.float32)
    for row, volume in enumerate(
        jobs(delayed(known.clean)(index, keep=False) for index in range(len(known)))
    ):
        images[row] = volume
    voxels = images.mean(axis=0) > BACKGROUND
    images = images[:, voxels]
    centred = images - images.mean(axis=0)
    noise = max(scenario.noise, LEAST_NOISE)
    gram = (centred @ centred.T).astype(float)
    gram[np.diag_indices_from(gram)] += len(centred) * noise**2
    return _Population(cohort, voxels, centred, cho_factor(gram), noise)


def _d_prime(without: np.ndarray, carrying: np.ndarray) -> float:
    spread = np.sqrt((without.var(ddof=1) + carrying.var(ddof=1)) / 2)
    return float((carrying.mean() - without.mean()) / spread) if spread else 0.0
