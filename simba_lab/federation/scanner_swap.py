"""Scanner swap: the same subjects in the scanner of another site, and how a network reacts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

import numpy as np
import pandas as pd
import torch

from simba_lab.core.checks import columns, of_shape
from simba_lab.core.cohort import Cohort
from simba_lab.core.errors import SimbaError, UnknownNameError
from simba_lab.core.intervals import bootstrap_rows, central
from simba_lab.core.rng import stream
from simba_lab.federation.federated_cohort import Federation
from simba_lab.training.predictions import logits


def scanned_at(federation: Federation, site: str, cohort: Cohort | None = None) -> Cohort:
    """Return subjects in the scanner of another site: same anatomy, disease and biases.

    Parameters
    ----------
    federation : Federation
    site : str
    cohort : Cohort, optional
        Subjects of the federation, of any sites; the test subjects by default.

    Raises
    ------
    SimbaError
        If there is no such site, or if no site has a scanner.

    Examples
    --------
    >>> import simba_lab as sb
    >>> scenario = sb.Scenario(64, sb.Morphology("Insula_L", 2.5), spacing_mm=8)
    >>> north = sb.federation.Site("north", 6, disease=1.0, scanner={"scanner_noise": 1.0})
    >>> sites = [north, sb.federation.Site("south", 6, disease=0.0)]
    >>> scenario = sb.federation.with_scanners(scenario)
    >>> federation = sb.federation.hospitals(scenario, sites, validation=4, test=4)
    >>> sb.federation.scanned_at(federation, "north")["scanner_noise_magnitude"]
    array([1., 1., 1., 1.])
    """
    cohort = federation.test if cohort is None else cohort
    scanners = {entry.name: entry.scanner for entry in federation.sites}
    if site not in scanners:
        raise UnknownNameError.among("site", site, scanners)
    effects = {name for scanner in scanners.values() for name in scanner}
    if not effects:
        problem = "No site of this federation has a scanner."
        raise SimbaError.problem(problem, "Give sites scanners, and see `with_scanners`.")
    magnitudes = {f"{name}_magnitude": float(scanners[site].get(name, 0.0)) for name in effects}
    table = cohort.table.assign(**magnitudes)
    return replace(cohort, table=table)  # type: ignore[type-var]


def site_effects(
    model: torch.nn.Module | np.ndarray,
    federation: Federation,
    cohort: Cohort | None = None,
    *,
    sites: Sequence[str] | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Return how far the logits of the same subjects move from scanner to scanner.

    All subjects are rendered in the scanner of every site. Nothing else differs, so this is the
    average causal effect of the scanner on the prediction.

    Parameters
    ----------
    model : torch.nn.Module or ndarray, shape (sites, n)
        A network, or its logits for the subjects in the scanner of each site, so that volumes are
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
        Indexed by ``site``: ``logit``, the mean logit at the site less the same subjects' mean over
        all sites, with 95 % interval ``logit_low``, ``logit_high``; ``ideal``, the same for an
        ideal reader, which recognises the site and knows how common the disease is among its
        training subjects. Half a subject of each class is added everywhere: at sites of one class
        the ideal would otherwise be infinite.

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

    Examples
    --------
    >>> import simba_lab as sb
    >>> scenario = sb.Scenario(64, sb.Morphology("Insula_L", 2.5), spacing_mm=8)
    >>> north = sb.federation.Site("north", 6, disease=1.0, scanner={"scanner_noise": 1.0})
    >>> sites = [north, sb.federation.Site("south", 6, disease=0.0)]
    >>> scenario = sb.federation.with_scanners(scenario)
    >>> federation = sb.federation.hospitals(scenario, sites, validation=4, test=4)
    >>> effects = sb.federation.site_effects(sb.SimBANet((2, 2), seed=0), federation)
    >>> list(effects.index), list(effects)
    (['north', 'south'], ['logit', 'logit_low', 'logit_high', 'ideal'])
    """
    names = federation.names if sites is None else list(sites)
    if len(names) < 2:
        raise SimbaError("sites", names, "at least two", "With one there is nothing to compare.")
    cohort = federation.test if cohort is None else cohort
    if isinstance(model, np.ndarray):
        site_logits = of_shape("logits", model, (len(names), len(cohort)), "Rows are sites.")
    else:
        site_logits = np.stack(
            [logits(model, scanned_at(federation, name, cohort)) for name in names]
        )
    shifts = site_logits - site_logits.mean(axis=0)
    rows = bootstrap_rows(stream(seed, "evaluation", "site effects"), len(cohort))
    low, high = central(np.array([shifts[:, draw].mean(axis=1) for draw in rows]), axis=0)
    patients = np.array([federation.at(name)["label"].sum() for name in names])
    total = np.array([federation.total(name) for name in names])
    ideal = np.log((patients + 0.5) / (total - patients + 0.5))
    columns = {
        "logit": shifts.mean(axis=1),
        "logit_low": low,
        "logit_high": high,
        "ideal": ideal - ideal.mean(),
    }
    return pd.DataFrame(columns, index=pd.Index(names, name="site"))


def site_uptake(effects: Annotated[pd.DataFrame, columns("ideal", "logit")]) -> float:
    """Return the share of the ideal shifts that a network takes: slope of ``logit`` on ``ideal``.

    It is 0 for a network that ignores the site, and 1 for one that uses the site as an ideal reader
    does. Reactions to scanners that are unrelated to the classes of the sites do not count; they
    show in the spread of ``logit``.

    Parameters
    ----------
    effects : pandas.DataFrame
        From `site_effects`.

    Raises
    ------
    SimbaError
        If all sites have the same share of patients: then there is no shortcut to take.

    Examples
    --------
    >>> import pandas as pd
    >>> import simba_lab as sb
    >>> effects = pd.DataFrame({"logit": [-0.5, 0.5], "ideal": [-1.0, 1.0]})
    >>> sb.federation.site_uptake(effects)
    0.5
    """
    ideal = effects["ideal"].to_numpy()
    if not (ideal**2).sum() > 1e-12:
        problem = "The classes are alike at all sites, so there is no shortcut to take."
        raise SimbaError.problem(problem, "Compare sites with different shares of patients.")
    return float(ideal @ effects["logit"].to_numpy() / (ideal @ ideal))


__all__ = ["scanned_at", "site_effects", "site_uptake"]
