"""The same subjects scanned at another site, and what a network makes of that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch

from simba_lab.core.cohort import Cohort
from simba_lab.core.errors import SimbaError, UnknownNameError
from simba_lab.core.intervals import BOOTSTRAPS
from simba_lab.core.rng import stream
from simba_lab.federation.sites import Federation
from simba_lab.training.predictions import logits


def scanned_at(federation: Federation, site: str, cohort: Cohort | None = None) -> Cohort:
    """Return subjects as the scanner of a site would have shown them: same anatomy, disease and biases, another scanner.

    Parameters
    ----------
    federation : Federation
    site : str
    cohort : Cohort, optional
        Subjects of the federation, from whatever site; the test subjects by default.

    Raises
    ------
    SimbaError
        If there is no such site, or if no site has a scanner.
    """
    cohort = federation.test if cohort is None else cohort
    known = {one.name: one for one in federation.sites}
    if site not in known:
        raise UnknownNameError.among("site", site, known)
    effects = {name for one in federation.sites for name in one.scanner}
    if not effects:
        raise SimbaError(
            "federation.sites",
            "no scanners",
            "with a scanner at one of them",
            "See `with_scanners`.",
        )
    magnitudes = {
        f"{name}_magnitude": float(known[site].scanner.get(name, 0.0)) for name in effects
    }
    return replace(cohort, table=cohort.table.assign(**magnitudes))


def site_effects(
    model: torch.nn.Module | np.ndarray,
    federation: Federation,
    cohort: Cohort | None = None,
    *,
    sites: Sequence[str] | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Return by how much the answer about the same subjects moves with the site where they are scanned.

    Everybody is rendered in the scanner of every site. Nothing else differs, so what moves is the
    average causal effect of the scanner on the prediction.

    Parameters
    ----------
    model : torch.nn.Module or ndarray, shape (sites, n)
        A network, or its logits for the subjects as each site would show them: so volumes are
        rendered once for many networks.
    federation : Federation
    cohort : Cohort, optional
        Subjects of the federation; the test subjects by default.
    sites : sequence of str, optional
        All by default.
    seed : int
        Of the bootstrap over subjects.

    Returns
    -------
    pandas.DataFrame
        Indexed by ``site``: ``logit``, the mean over subjects of the logit there less the same
        subject's mean over the sites, with 95 % interval ``logit_low``, ``logit_high``; ``ideal``,
        the shift of a reader who recognises the site and knows how common the disease is among its
        training subjects, less its mean over the sites. At sites of one class half a subject of the
        other is added (and everywhere, to be even), or it would be infinite.

    Raises
    ------
    SimbaError
        If there are fewer than two sites or an unknown one, if no site has a scanner, or if logits
        have another shape.

    See Also
    --------
    site_uptake : one number from this table.

    References
    ----------
    Haldane (1956), Ann. Hum. Genet. 20:309-311 (half a subject more of each class).
    """
    names = federation.names if sites is None else list(sites)
    if len(names) < 2:
        raise SimbaError("sites", names, "at least two", "With one there is nothing to compare.")
    cohort = federation.test if cohort is None else cohort
    there = [scanned_at(federation, name, cohort) for name in names]
    answers = (
        model if isinstance(model, np.ndarray) else np.stack([logits(model, one) for one in there])
    )
    if answers.shape != (len(names), len(cohort)):
        raise SimbaError(
            "logits", answers.shape, f"of shape ({len(names)}, {len(cohort)}), sites by subjects"
        )
    moved = answers - answers.mean(axis=0)
    draws = stream(seed, "evaluation", "site effects").integers(
        0, moved.shape[1], (BOOTSTRAPS, moved.shape[1])
    )
    low, high = np.quantile([moved[:, draw].mean(axis=1) for draw in draws], [0.025, 0.975], axis=0)
    sick = np.array([federation.at(name)["label"].sum() for name in names])
    total = np.array([federation.total(name) for name in names])
    ideal = np.log((sick + 0.5) / (total - sick + 0.5))
    columns = {
        "logit": moved.mean(axis=1),
        "logit_low": low,
        "logit_high": high,
        "ideal": ideal - ideal.mean(),
    }
    return pd.DataFrame(columns, index=pd.Index(names, name="site"))


def site_uptake(effects: pd.DataFrame) -> float:
    """Return the share of the ideal shifts that a network takes: the slope of ``logit`` over ``ideal`` (least squares).

    0 for a network that does not care where somebody was scanned, 1 for one that uses the site as
    far as it pays. A network may also react to scanners in a way that has nothing to do with the
    classes there: that does not count here, and shows in the spread of ``logit``.

    Raises
    ------
    SimbaError
        If the classes are alike at all sites: then there is no shortcut to take.
    """
    ideal = effects["ideal"].to_numpy()
    if not (ideal**2).sum() > 1e-12:
        raise SimbaError(
            "effects['ideal']",
            0,
            "different at different sites",
            "Classes are alike at all of them.",
        )
    return float(ideal @ effects["logit"].to_numpy() / (ideal @ ideal))


__all__ = ["scanned_at", "site_effects", "site_uptake"]
