"""Salience: how well an ideal linear observer detects an effect, and effects of equal salience."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from joblib import Parallel, delayed
from scipy.linalg import cho_factor, cho_solve
from threadpoolctl import threadpool_limits

from simba_lab.core.checks import choice, is_number, whole_number
from simba_lab.core.errors import FoldingError, SimbaError
from simba_lab.core.intervals import bootstrap_rows, central
from simba_lab.core.rng import stream
from simba_lab.synthesis.anatomy.template import load_template
from simba_lab.synthesis.effects import CLASSES, EXAMPLE, Effect, magnitude_in
from simba_lab.synthesis.rendering.scanner import BACKGROUND
from simba_lab.synthesis.scenario import Scenario
from simba_lab.synthesis.synthetic_cohort import SyntheticCohort, synthesise

# Subjects in the observer's population, and how many of them are rendered with and without the
# effect.
SUBJECTS, TWINS = 1000, 200
# An effect is matched when its d' is this near, relatively.
TOLERANCE = 0.01
BOOTSTRAPS = 1000
# Without any noise an observer could be arbitrarily good.
LEAST_NOISE = 0.003
MOST_BYTES = 4 * 2**30


class Salience(NamedTuple):
    """d' of an effect, and its 95 % interval over subjects, for one trained observer.

    Examples
    --------
    >>> import simba_lab as sb
    >>> sb.synthesis.Salience(1.5, 1.3, 1.7).d_prime
    1.5
    """

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
    observer, are scored, so d' is not inflated by overfitting; it grows slowly with `subjects`.

    Parameters
    ----------
    effect : effect, or str
        A bias, with and without which the same subjects are compared; or ``"disease"``, for the two
        classes of the scenario; or the name of a bias of the scenario.
    scenario : Scenario
        Anatomy, disease, scanner and voxel size of the images. Its biases are left out.
    subjects : int
        Number of subjects: four fifths to learn from, one fifth (at most 200) to score.
    seed : int

    Raises
    ------
    SimbaError
        If the effect is unknown, or there are too few or too many subjects.

    References
    ----------
    Barrett, Yao, Rolland, Myers (1993), "Model observers for assessment of image quality", PNAS
    90:9758-9765, eq. 10-12. Burgess (1995), "Comparison of receiver operating characteristic and
    forced choice observer performance measurement methods", Medical Physics 22:643-655 (d' from the
    mean difference over the root mean variance).

    Examples
    --------
    >>> import simba_lab as sb
    >>> scenario = sb.Scenario(64, sb.Morphology("Insula_L", 2.5), spacing_mm=8)
    >>> result = sb.salience(sb.Intensity("contrast", 0.2), scenario, subjects=100)
    >>> result.low < result.d_prime < result.high
    True
    """
    whole_number("subjects", subjects, least=100, remedy=f"{SUBJECTS} is usual.")
    if isinstance(effect, str):
        bias = scenario.biases.get(choice("effect", effect, scenario.effects))
    elif isinstance(effect, Effect):
        bias = effect
    else:
        raise SimbaError("effect", effect, EXAMPLE)
    population = _population(scenario.replace(subjects=subjects, bias=None), seed)
    without, carrying = _pair(bias, population.cohort)
    difference = population.images(carrying, known=True).mean(axis=0)
    difference -= population.images(without, known=True).mean(axis=0)
    weights = population.weights(difference)
    scores = [population.images(cohort, known=False) @ weights for cohort in (without, carrying)]
    generator, count = stream(seed, "salience", "bootstrap"), len(scores[0])
    draws = [
        _d_prime(scores[0][rows], scores[1][rows])
        for rows in bootstrap_rows(generator, count, BOOTSTRAPS)
    ]
    low, high = central(np.array(draws))
    return Salience(_d_prime(*scores), float(low), float(high))


def matched(
    effect: Effect, *, d_prime: float, scenario: Scenario, subjects: int = SUBJECTS, seed: int = 0
) -> Effect:
    """Return an effect at the amplitude (or strength) that has a given salience in a scenario.

    Parameters
    ----------
    effect : Morphology or Intensity
    d_prime : float
        Wanted salience, from 0.05 to 20; it is met within 1 %.
    scenario, subjects, seed
        As for `salience`.

    Raises
    ------
    SimbaError
        If no amplitude reaches it: because tissue would fold, or because the strength would leave
        its range.

    Examples
    --------
    >>> import simba_lab as sb
    >>> scenario = sb.Scenario(64, sb.Morphology("Insula_L", 2.5), spacing_mm=8)
    >>> effect = sb.matched(
    ...     sb.Intensity("contrast", 0.02), d_prime=1.0, scenario=scenario, subjects=100
    ... )
    >>> effect.kind, 0 < effect.strength < 1
    ('contrast', True)
    """
    if not is_number(d_prime) or not 0.05 <= d_prime <= 20:
        remedy = "1 is easily overlooked, 3 hardly."
        raise SimbaError("d_prime", d_prime, "a number from 0.05 to 20", remedy)
    best = (0.0, 0.0)  # the largest factor that works, and its d'
    low, high, factor = 0.0, np.inf, 1.0
    for _ in range(40):
        try:
            scaled = effect.scaled(factor)
            reached = salience(scaled, scenario, subjects=subjects, seed=seed).d_prime
        except SimbaError as error:
            if not isinstance(error, FoldingError) and error.field != "strength":
                raise
            reached, high = np.inf, min(high, factor)
        else:
            best = max(best, (factor, reached))
            if abs(reached - d_prime) <= TOLERANCE * d_prime:
                return scaled
        if reached < d_prime:
            low = factor
        else:
            high = min(high, factor)
        if high - low < 5e-3 * low:
            break
        # d' is nearly proportional to the amplitude: take the proportional step, or halve the
        # bracket where that step leaves it.
        step = factor * d_prime / reached if 0 < reached < np.inf else 0.0
        middle = (low + high) / 2 if np.isfinite(high) else 2 * factor
        factor = step if low < step < min(high, 4 * factor) else middle
    allowed = f"at most {best[1]:.2f} for {effect}"
    remedy = "Choose a smaller d', another region, or a smoother effect."
    raise SimbaError("d_prime", d_prime, allowed, remedy)


def _pair(
    effect: Effect | None, cohort: SyntheticCohort
) -> tuple[SyntheticCohort, SyntheticCohort]:
    """Return subjects without and with an effect; for the disease, None, controls and patients."""
    scenario = cohort.scenario
    if effect is not None:
        effect = replace(effect, prevalence=dict.fromkeys(CLASSES, 1.0))
        carrying = synthesise(scenario.replace(bias=effect), seed=cohort.seed)
        return carrying.twin(without="bias"), carrying
    label = cohort["label"]
    distributions = [magnitude_in(scenario.disease, name) for name in CLASSES]
    means = np.array([distribution.mean for distribution in distributions])
    sds = np.array([distribution.sd for distribution in distributions])
    relative = cohort["disease_magnitude"] - means[label]
    relative = relative / np.where(sds[label] > 0, sds[label], 1.0)
    controls, patients = (
        replace(cohort, table=cohort.table.assign(disease_magnitude=mean + sd * relative))
        for mean, sd in zip(means, sds, strict=True)
    )
    return controls, patients


@dataclass(frozen=True, eq=False)
class _Population:
    """Subjects without any bias, and what an observer knows of their images.

    Parameters
    ----------
    cohort : SyntheticCohort
    voxels : ndarray of bool, shape (X, Y, Z)
        Brain voxels, in which the observer looks.
    centred : ndarray of float32, shape (n, voxels)
        Noiseless images of the subjects that the observer knows, less their mean.
    factor : tuple
        Cholesky factor of ``n s^2 I + X X'``, from `scipy.linalg.cho_factor`.
    noise : float
        Standard deviation s of the noise.
    """

    cohort: SyntheticCohort
    voxels: np.ndarray
    centred: np.ndarray
    factor: tuple[np.ndarray, bool]
    noise: float

    def images(self, cohort: SyntheticCohort, *, known: bool) -> np.ndarray:
        """Return images of subjects that the observer knows, or does not know: (n, voxels)."""
        # Folds are matched by themselves, so subjects of other folds say nothing about the first.
        rows = np.flatnonzero((cohort["fold"] == 0) != known)[:TWINS]
        return np.stack([volume[self.voxels] for volume in cohort.where(rows).volumes(keep=False)])

    def weights(self, difference: np.ndarray) -> np.ndarray:
        """Return the weights of the Hotelling observer for a mean difference m, shape (voxels,).

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
        limit = scenario.subjects * MOST_BYTES // needed
        allowed = f"at most {limit} at {scenario.spacing_mm:g} mm, as all images are held in memory"
        remedy = "Coarser voxels need less: scenario.replace(spacing_mm=4)."
        raise SimbaError("subjects", scenario.subjects, allowed, remedy)
    cohort = synthesise(scenario, seed=seed)
    training = cohort.where(cohort["fold"] != 0)
    jobs = Parallel(n_jobs=-1, prefer="threads", return_as="generator")
    images = np.empty((len(training), *lattice.shape), np.float32)
    clean = (delayed(training.clean)(index, keep=False) for index in range(len(training)))
    for row, volume in enumerate(jobs(clean)):
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
