"""Dose and response: how much of a shortcut networks take, against an ideal reader's share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.optimize import least_squares
from scipy.special import expit

from simba_lab.core.border import checks_arguments
from simba_lab.core.checks import below_one
from simba_lab.core.errors import SimbaError, UnknownNameError
from simba_lab.core.intervals import ENDS, Interval, bootstrap_rows
from simba_lab.core.rng import stream

BOOTSTRAPS = 200
# Gauss-Hermite quadrature: means over a standard normal variable.
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(101)
WEIGHTS = WEIGHTS / WEIGHTS.sum()
# Weight of the pull of the surface's parameters towards their first values.
PULL = 0.03
MOST_SALIENT = 1000  # nothing is overlooked long before


def ideal_shift(d_prime: float, prevalence: float) -> float:
    """Return how far a bias moves the logit of an ideal reader.

    The reader sees a score z of the bias, N(d', 1) in carriers and N(0, 1) in everybody else, and
    knows that a share p of patients and 1 - p of controls are carriers. Its evidence is
    ``log((p f(z - d') + (1 - p) f(z)) / ((1 - p) f(z - d') + p f(z)))`` with the normal density f;
    the shift is its mean over carriers minus its mean over non-carriers. It is 0 at p = 0.5, and
    ``2 log(p / (1 - p))`` for a bias that cannot be overlooked: the ceiling of any shortcut.

    Parameters
    ----------
    d_prime : float
        Salience of the bias.
    prevalence : float
        P(bias group | disease); among controls it is one less that.

    Raises
    ------
    SimbaError
        If d' is below 0 or above 1000, or the prevalence is not between 0 and 1.

    Examples
    --------
    >>> import simba_lab as sb
    >>> round(sb.experiments.ideal_shift(2.0, 0.9), 2)
    2.2
    """
    if not 0 <= d_prime <= MOST_SALIENT:
        raise SimbaError("d_prime", d_prime, f"from 0 to {MOST_SALIENT}")
    below_one("prevalence", prevalence)
    log_odds = np.log(prevalence / (1 - prevalence))

    def evidence(z: np.ndarray) -> np.ndarray:
        # Log-likelihood ratio of carrying the bias, then of the classes.
        ratio = d_prime * z - d_prime**2 / 2
        return np.logaddexp(log_odds + ratio, 0.0) - np.logaddexp(ratio, log_odds)

    return float(WEIGHTS @ evidence(NODES + d_prime) - WEIGHTS @ evidence(NODES))


@checks_arguments
@dataclass(frozen=True)
class Surface:
    """A fitted dose-response surface of shortcut use; made by `fit_surface`.

    Parameters
    ----------
    parameters : pandas.DataFrame
        Indexed by name, with ``estimate``, ``low`` and ``high`` (95 %, bootstrap over seeds):
        ``evidence`` (slope of the uptake over the logarithm of the evidence), ``log scale`` and
        ``log steepness`` (from logits to rates), and for each place ``level <place>`` and
        ``salience <place>`` (slope over the logarithm of d').
    places : tuple of str
    r_squared : float
        Share of the variance of the logits over all networks that the surface explains.
    draws : ndarray, shape (bootstraps, parameters)

    Examples
    --------
    >>> import pandas as pd
    >>> import simba_lab as sb
    >>> rows = [
    ...     ("Putamen_L", dose, share, 0, 0.3 * sb.experiments.ideal_shift(dose, share), share / 9)
    ...     for dose in (1, 2, 4)
    ...     for share in (0.5, 0.7, 0.9)
    ... ]
    >>> names = "scenario.bias.region d_prime.bias prevalence.bias seed twin_logit twin_rate"
    >>> table = pd.DataFrame(rows, columns=names.split())
    >>> surface = sb.experiments.fit_surface(table)
    >>> bool(0 < surface.uptake("Putamen_L", 2, 0.8) < 1)
    True
    """

    parameters: pd.DataFrame
    places: tuple[str, ...]
    r_squared: float
    draws: np.ndarray

    def uptake(self, place: str, d_prime: float, prevalence: float) -> float:
        """Return the share of the ideal shift that networks take, from 0 to 1."""
        if not d_prime > 0:
            raise SimbaError("d_prime", d_prime, "above 0")
        if not 0.5 < prevalence < 1:
            remedy = "Below 0.5 the bias speaks for health."
            raise SimbaError("prevalence", prevalence, "above 0.5 and below 1", remedy)
        return float(_uptake(self._estimates, self._number(place), d_prime, prevalence))

    def shift(self, place: str, d_prime: float, prevalence: float) -> float:
        """Return how far the bias moves the logit, beyond its effect on unbiased networks."""
        return self.uptake(place, d_prime, prevalence) * ideal_shift(d_prime, prevalence)

    def rate(self, place: str, d_prime: float, prevalence: float) -> float:
        """Return how far the share called diseased rises, beyond that in unbiased networks."""
        return float(_rate(self._estimates, np.array(self.shift(place, d_prime, prevalence))))

    def threshold(self, place: str, d_prime: float, *, rate: float = 0.05) -> Interval:
        """Return the prevalence at which the rise of the rate reaches a bound, with its interval.

        It is infinite where no prevalence below 0.99 reaches the bound.
        """
        if not 0 < rate < 1:
            remedy = "A disparity of 0.05 counts as none."
            raise SimbaError("rate", rate, "above 0 and below 1", remedy)
        if not d_prime > 0:
            raise SimbaError("d_prime", d_prime, "above 0")
        number = self._number(place)
        prevalences = np.linspace(0.5005, 0.99, 300)
        ideal = np.array([ideal_shift(d_prime, value) for value in prevalences])

        def reached(parameters: np.ndarray) -> float:
            shifts = _uptake(parameters, number, d_prime, prevalences) * ideal
            rates = _rate(parameters, shifts)
            return float(np.interp(rate, rates, prevalences)) if rates[-1] > rate else np.inf

        estimate = reached(self._estimates)
        if np.isnan(self.draws).any():
            return Interval(estimate, np.nan, np.nan)
        low, high = np.quantile([reached(draw) for draw in self.draws], ENDS, method="nearest")
        return Interval(estimate, float(low), float(high))

    @property
    def _estimates(self) -> np.ndarray:
        return self.parameters["estimate"].to_numpy()

    def _number(self, place: str) -> int:
        if place not in self.places:
            raise UnknownNameError.among("place", place, self.places)
        return self.places.index(place)


def _uptake(
    parameters: np.ndarray,
    place: np.ndarray | int,
    d_prime: np.ndarray | float,
    prevalence: np.ndarray | float,
) -> np.ndarray:
    evidence = 2 * np.log(np.asarray(prevalence) / (1 - np.asarray(prevalence)))
    levels, slopes = parameters[3:].reshape(-1, 2).T
    return expit(
        levels[place]
        + slopes[place] * np.log(np.asarray(d_prime) / 2)
        + parameters[0] * np.log(evidence)
    )


def _rate(parameters: np.ndarray, shift: np.ndarray) -> np.ndarray:
    scale, steepness = np.exp(parameters[1:3])
    return np.sign(shift) * -np.expm1(-((np.abs(shift) / scale) ** steepness))


def fit_surface(
    table: pd.DataFrame,
    *,
    place: str = "scenario.bias.region",
    d_prime: str = "d_prime.bias",
    prevalence: str = "prevalence.bias",
    seed: int = 0,
) -> Surface:
    """Fit how far networks use a bias, over place, salience and prevalence.

    The change of the logit beyond that of the unbiased control (prevalence 0.5; same place, d' and
    seed) is the shift of an ideal reader (`ideal_shift`) times an uptake between 0 and 1:
    ``logistic(level + salience x log(d' / 2) + evidence x log(2 log(p / (1 - p))))``, with a
    level and a slope over the salience for each place. The rise of the share of subjects called
    diseased follows from the logit by ``1 - exp(-(shift / scale) ** steepness)``.

    Parameters
    ----------
    table : pandas.DataFrame
        Of a sweep, with ``twin_logit``, ``twin_rate``, ``seed`` and the columns named here.
    place, d_prime, prevalence : str
        Names of the columns.
    seed : int
        Of the bootstrap.

    Notes
    -----
    The bootstrap draws whole seeds, because networks of one seed share their cohort, their first
    weights and their control; its spread is widened by ``sqrt(k / (k - 1))`` for k seeds. With
    three of them intervals are rough; with one there are none.

    Examples
    --------
    >>> import pandas as pd
    >>> import simba_lab as sb
    >>> rows = [
    ...     ("Putamen_L", dose, share, 0, 0.3 * sb.experiments.ideal_shift(dose, share), share / 9)
    ...     for dose in (1, 2, 4)
    ...     for share in (0.5, 0.7, 0.9)
    ... ]
    >>> names = "scenario.bias.region d_prime.bias prevalence.bias seed twin_logit twin_rate"
    >>> table = pd.DataFrame(rows, columns=names.split())
    >>> sb.experiments.fit_surface(table).places
    ('Putamen_L',)
    """
    table = excess(table, place=place, d_prime=d_prime, prevalence=prevalence)
    places = tuple(dict.fromkeys(table[place]))
    number = table[place].map({name: position for position, name in enumerate(places)}).to_numpy()
    doses, shares = table[d_prime].to_numpy(float), table[prevalence].to_numpy(float)
    shifts, rates, ideal = (
        table[name].to_numpy() for name in ("excess_logit", "excess_rate", "ideal")
    )
    # A small pull towards moderate values: without it, the level of a place without any shortcut
    # goes to minus infinity.
    start = np.concatenate([[2.0, np.log(4.0), 0.0], np.tile([-3.0, 2.0], len(places))])

    def fitted(rows: np.ndarray, first: np.ndarray) -> np.ndarray:
        def residuals(parameters: np.ndarray) -> np.ndarray:
            shift = _uptake(parameters, number[rows], doses[rows], shares[rows]) * ideal[rows]
            # Logits and rates have different scales: residuals count in units of their spread.
            gaps = (
                (shifts[rows] - shift) / shifts.std(),
                (rates[rows] - _rate(parameters, shift)) / rates.std(),
            )
            return np.concatenate([*gaps, PULL * (parameters - start)])

        return least_squares(residuals, first, method="lm").x

    all_rows = np.arange(len(table))
    estimates = fitted(all_rows, start)
    rows_of_seeds = list(table.groupby("seed").indices.values())
    seeds = len(rows_of_seeds)
    generator = stream(seed, "dose response", "bootstrap")
    samples = np.sort(bootstrap_rows(generator, seeds, BOOTSTRAPS), axis=1).tolist()
    fits = {
        sample: fitted(np.concatenate([rows_of_seeds[number] for number in sample]), estimates)
        for sample in set(map(tuple, samples))
    }
    draws = np.array([fits[tuple(sample)] for sample in samples])
    widening = np.sqrt(seeds / (seeds - 1)) if seeds > 1 else np.nan
    draws = estimates + widening * (draws - estimates)
    low, high = np.quantile(draws, ENDS, axis=0)
    names = ["evidence", "log scale", "log steepness"]
    names += [f"{word} {name}" for name in places for word in ("level", "salience")]
    frame = pd.DataFrame(
        {"estimate": estimates, "low": low, "high": high}, index=pd.Index(names, name="parameter")
    )
    unexplained = np.square(shifts - _uptake(estimates, number, doses, shares) * ideal).sum()
    return Surface(
        frame, places, float(1 - unexplained / np.square(shifts - shifts.mean()).sum()), draws
    )


def excess(
    table: pd.DataFrame,
    *,
    place: str = "scenario.bias.region",
    d_prime: str = "d_prime.bias",
    prevalence: str = "prevalence.bias",
) -> pd.DataFrame:
    """Return the biased networks of a sweep, with effects beyond those in unbiased controls.

    Returns
    -------
    pandas.DataFrame
        The rows with a prevalence other than 0.5, with ``excess_logit``, ``excess_rate`` and
        ``ideal`` (`ideal_shift`).

    Raises
    ------
    SimbaError
        If a column is missing, or a network does not have exactly one control.

    Examples
    --------
    >>> import pandas as pd
    >>> import simba_lab as sb
    >>> rows = [
    ...     ("Putamen_L", dose, share, 0, 0.3 * sb.experiments.ideal_shift(dose, share), share / 9)
    ...     for dose in (1, 2, 4)
    ...     for share in (0.5, 0.7, 0.9)
    ... ]
    >>> names = "scenario.bias.region d_prime.bias prevalence.bias seed twin_logit twin_rate"
    >>> table = pd.DataFrame(rows, columns=names.split())
    >>> sb.experiments.excess(table)["prevalence.bias"].unique().tolist()
    [0.7, 0.9]
    """
    keys = [place, d_prime, "seed"]
    missing = [name for name in [*keys, prevalence, "twin_logit", "twin_rate"] if name not in table]
    if missing:
        raise UnknownNameError.among("column", missing[0], table.columns)
    control = table[table[prevalence] == 0.5].set_index(keys)
    if control.index.has_duplicates:
        duplicate = control.index[control.index.duplicated()][0]
        problem = f"There is more than one control (prevalence 0.5) for {duplicate}."
        raise SimbaError.problem(problem, "Select one level of the other axes first.")
    biased = table[table[prevalence] != 0.5]
    networks = pd.MultiIndex.from_frame(biased[keys])
    uncontrolled = networks.difference(control.index)
    if len(uncontrolled):
        problem = f"There is no control (prevalence 0.5) for {uncontrolled[0]}."
        raise SimbaError.problem(problem, "Every place, d' and seed needs one.")
    columns = {
        f"excess_{name}": biased[f"twin_{name}"] - control.loc[networks, f"twin_{name}"].to_numpy()
        for name in ("logit", "rate")
    }
    ideal = [ideal_shift(*dose) for dose in biased[[d_prime, prevalence]].to_numpy(float)]
    return biased.assign(**columns, ideal=ideal).reset_index(drop=True)
