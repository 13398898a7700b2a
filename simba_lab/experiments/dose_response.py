"""How much of a shortcut networks take, against how much there is to take: ideal reader, surface and threshold."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.optimize import least_squares
from scipy.special import expit

from simba_lab.core.errors import SimbaError, UnknownNameError
from simba_lab.core.rng import stream

BOOTSTRAPS = 200
# Gauss-Hermite quadrature: means over a standard normal variable.
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(101)
WEIGHTS = WEIGHTS / WEIGHTS.sum()
# Weight of the pull of the surface's parameters towards their first values.
PULL = 0.03


def ideal_shift(d_prime: float, prevalence: float) -> float:
    """Return by how much a bias should move the logit of a reader who makes the best of it.

    The reader sees a score z of the bias, N(d', 1) in those who carry it and N(0, 1) in those who
    do not, and knows that a share p of patients and 1 - p of controls carry it. Its evidence is
    ``log((p f(z - d') + (1 - p) f(z)) / ((1 - p) f(z - d') + p f(z)))`` with the normal density f;
    the shift is the mean of that over carriers minus its mean over the others. It is 0 at p = 0.5
    and tends to ``2 log(p / (1 - p))`` where the bias cannot be overlooked: the ceiling of any
    shortcut.

    Parameters
    ----------
    d_prime : float
        Salience of the bias.
    prevalence : float
        P(bias group | disease), with one less that among controls.
    """
    if not d_prime >= 0:
        raise SimbaError("d_prime", d_prime, "at least 0")
    if not 0 < prevalence < 1:
        raise SimbaError("prevalence", prevalence, "above 0 and below 1")
    log_odds = np.log(prevalence / (1 - prevalence))

    def evidence(z: np.ndarray) -> np.ndarray:
        # Log-likelihood ratio of carrying the bias, then of the classes.
        ratio = d_prime * z - d_prime**2 / 2
        return np.logaddexp(log_odds + ratio, 0.0) - np.logaddexp(ratio, log_odds)

    return float(WEIGHTS @ evidence(NODES + d_prime) - WEIGHTS @ evidence(NODES))


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
            raise SimbaError(
                "prevalence",
                prevalence,
                "above 0.5 and below 1",
                "Below 0.5 the bias speaks for health.",
            )
        return float(_uptake(self._estimates, self._number(place), d_prime, prevalence))

    def shift(self, place: str, d_prime: float, prevalence: float) -> float:
        """Return the logit by which switching the bias on moves networks, beyond what it does to unbiased ones."""
        return self.uptake(place, d_prime, prevalence) * ideal_shift(d_prime, prevalence)

    def rate(self, place: str, d_prime: float, prevalence: float) -> float:
        """Return by how much the share of subjects called diseased rises, beyond what it does in unbiased networks."""
        return float(_rate(self._estimates, np.array(self.shift(place, d_prime, prevalence))))

    def threshold(
        self, place: str, d_prime: float, *, rate: float = 0.05
    ) -> tuple[float, float, float]:
        """Return the prevalence at which the rise of the rate reaches a bound, and its 95 % interval.

        It is infinite where no prevalence below 0.99 reaches the bound.
        """
        if not 0 < rate < 1:
            raise SimbaError(
                "rate", rate, "above 0 and below 1", "0.05 is the disparity that counts as none."
            )
        if not d_prime > 0:
            raise SimbaError("d_prime", d_prime, "above 0")
        number = self._number(place)
        prevalences = np.linspace(0.5005, 0.99, 300)
        ideal = np.array([ideal_shift(d_prime, value) for value in prevalences])
        found = []
        for row in (self._estimates, *self.draws):
            rates = _rate(row, _uptake(row, number, d_prime, prevalences) * ideal)
            found.append(float(np.interp(rate, rates, prevalences)) if rates[-1] > rate else np.inf)
        if np.isnan(self.draws).any():
            return found[0], np.nan, np.nan
        low, high = np.quantile(found[1:], [0.025, 0.975], method="nearest")
        return found[0], float(low), float(high)

    @property
    def _estimates(self) -> np.ndarray:
        return self.parameters["estimate"].to_numpy()

    def _number(self, place: str) -> int:
        if place not in self.places:
            raise UnknownNameError.among("place", place, self.places)
        return self.places.index(place)


def _uptake(
    parameters: np.ndarray, place: np.ndarray | int, d_prime: np.ndarray, prevalence: np.ndarray
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

    The change of the logit beyond that of the unbiased control (prevalence 0.5) with the same
    place, d' and seed is the shift of an ideal reader (`ideal_shift`) times an uptake between 0 and
    1: ``logistic(level + salience x log(d' / 2) + evidence x log(2 log(p / (1 - p))))``, with a
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
    """
    table = excess(table, place=place, d_prime=d_prime, prevalence=prevalence)
    places = tuple(dict.fromkeys(table[place]))
    number = table[place].map({name: position for position, name in enumerate(places)}).to_numpy()
    doses, shares = table[d_prime].to_numpy(float), table[prevalence].to_numpy(float)
    shifts, rates, ideal = (
        table[name].to_numpy() for name in ("excess_logit", "excess_rate", "ideal")
    )
    # A small pull towards moderate values keeps places without any shortcut from running off to
    # minus infinity.
    start = np.concatenate([[2.0, np.log(4.0), 0.0], np.tile([-3.0, 2.0], len(places))])

    def fitted(rows: np.ndarray, start_here: np.ndarray) -> np.ndarray:
        def residuals(model: np.ndarray) -> np.ndarray:
            shift = _uptake(model, number[rows], doses[rows], shares[rows]) * ideal[rows]
            # Rates are on a scale of their own: both kinds of residuals count in units of their
            # spread.
            gaps = (
                (shifts[rows] - shift) / shifts.std(),
                (rates[rows] - _rate(model, shift)) / rates.std(),
            )
            return np.concatenate([*gaps, PULL * (model - start)])

        return least_squares(residuals, start_here, method="lm").x

    everyone = np.arange(len(table))
    estimates = fitted(everyone, start)
    drawn = list(table.groupby("seed").indices.values())
    generator = stream(seed, "dose response", "bootstrap")
    picks = np.sort(generator.integers(0, len(drawn), (BOOTSTRAPS, len(drawn))), axis=1)
    fits = {
        pick: fitted(np.concatenate([drawn[one] for one in pick]), estimates)
        for pick in {*map(tuple, picks.tolist())}
    }
    draws = np.array([fits[tuple(pick)] for pick in picks.tolist()])
    widening = np.sqrt(len(drawn) / (len(drawn) - 1)) if len(drawn) > 1 else np.nan
    draws = estimates + widening * (draws - estimates)
    low, high = np.quantile(draws, [0.025, 0.975], axis=0)
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
    """Return the biased networks of a sweep with what the bias does beyond what it does to their unbiased controls.

    Returns
    -------
    pandas.DataFrame
        The rows with a prevalence other than 0.5, with ``excess_logit``, ``excess_rate`` and
        ``ideal`` (`ideal_shift`).
    """
    keys = [place, d_prime, "seed"]
    missing = [name for name in [*keys, prevalence, "twin_logit", "twin_rate"] if name not in table]
    if missing:
        raise UnknownNameError.among("column", missing[0], table.columns)
    control = table[table[prevalence] == 0.5].set_index(keys)
    if control.index.has_duplicates:
        twice = control.index[control.index.duplicated()][0]
        raise SimbaError(
            "table",
            f"several rows of prevalence 0.5 for {twice}",
            "with one control for every place, d' and seed",
            "Select one level of the other axes first.",
        )
    biased = table[table[prevalence] != 0.5]
    wanted = pd.MultiIndex.from_frame(biased[keys])
    lacking = wanted.difference(control.index)
    if len(lacking):
        raise SimbaError(
            "table", str(lacking[0]), "with a row of prevalence 0.5 for every place, d' and seed"
        )
    columns = {
        f"excess_{name}": biased[f"twin_{name}"] - control.loc[wanted, f"twin_{name}"].to_numpy()
        for name in ("logit", "rate")
    }
    ideal = [ideal_shift(*one) for one in biased[[d_prime, prevalence]].to_numpy(float)]
    return biased.assign(**columns, ideal=ideal).reset_index(drop=True)
