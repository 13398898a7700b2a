"""Federated cohort: subjects in hospitals, each with its classes, its biases and its scanner."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from simba_lab.core.border import checks_arguments
from simba_lab.core.checks import whole_number
from simba_lab.core.errors import SimbaError, UnknownNameError, Words
from simba_lab.core.rng import stream
from simba_lab.federation.sites import Site
from simba_lab.synthesis.effects import CLASSES, Effect, Intensity
from simba_lab.synthesis.scenario import Scenario
from simba_lab.synthesis.synthetic_cohort import SyntheticCohort, synthesise


@checks_arguments
@dataclass(frozen=True, eq=False)
class Federation:
    """A cohort whose subjects are at sites.

    Parameters
    ----------
    cohort : SyntheticCohort
        With a column ``site``. Validation and test subjects are spread evenly over all sites.
    sites : tuple of Site

    Examples
    --------
    >>> import simba_lab as sb
    >>> scenario = sb.Scenario(64, sb.Morphology("Insula_L", 2.5), spacing_mm=8)
    >>> sites = [sb.federation.Site("north", 6), sb.federation.Site("south", 4)]
    >>> sb.federation.hospitals(scenario, sites, validation=4, test=4).names
    ['north', 'south']
    """

    cohort: SyntheticCohort
    sites: tuple[Site, ...]

    @property
    def names(self) -> list[str]:
        """Names of the sites, in their order."""
        return [site.name for site in self.sites]

    @property
    def pooled(self) -> SyntheticCohort:
        """The training subjects of all sites together: what central training has."""
        return self.cohort.train

    @property
    def validation(self) -> SyntheticCohort:
        """The subjects to choose settings on, at all sites."""
        return self.cohort.validation

    @property
    def test(self) -> SyntheticCohort:
        """The subjects to report on, at all sites."""
        return self.cohort.test

    def at(self, name: str) -> SyntheticCohort:
        """Return the training subjects of a site."""
        if name not in self.names:
            raise UnknownNameError.among("site", name, self.names)
        return self.pooled.where(self.pooled["site"] == name)

    def total(self, name: str) -> int:
        """Return the number of training subjects of a site."""
        return len(self.at(name))


def hospitals(
    scenario: Scenario,
    sites: Sequence[Site],
    *,
    validation: int = 100,
    test: int = 400,
    seed: int = 0,
) -> Federation:
    """Synthesise a cohort and assign its subjects to hospitals.

    Each site gets its number of training subjects of each class, its own prevalence of biases and
    its own scanner. Validation and test subjects are spread evenly over all sites, within each
    class and bias group: there the site says nothing about the disease, so what a network has
    learnt from the site shows as an error.

    Parameters
    ----------
    scenario : Scenario
        Disease, biases and anatomy, and the scanner's effects if sites have them
        (`with_scanners`). Its ``subjects`` and ``split`` are replaced.
    sites : sequence of Site
    validation, test : int
        Held-out subjects, even numbers.
    seed : int

    Returns
    -------
    Federation

    Raises
    ------
    SimbaError
        If two sites have one name, if a site has a bias or a scanner effect that the scenario
        lacks, or if all sites together lack a class.

    Examples
    --------
    >>> import simba_lab as sb
    >>> scenario = sb.Scenario(64, sb.Morphology("Insula_L", 2.5), spacing_mm=8)
    >>> sites = [sb.federation.Site("north", 6), sb.federation.Site("south", 4)]
    >>> federation = sb.federation.hospitals(scenario, sites, validation=4, test=4)
    >>> len(federation.at("north")), len(federation.test)
    (6, 4)
    """
    sites = tuple(sites)
    _check_sites(scenario, sites, validation=validation, test=test)
    class_sizes = np.array([_class_sizes(site) for site in sites])
    largest = int(class_sizes.sum(axis=0).max())
    # The design makes equal classes; surplus subjects of the smaller class are dropped.
    train = max(2 * largest, 16)
    total = train + validation + test
    split = (train / total, validation / total, 1 - train / total - validation / total)
    cohort = synthesise(scenario.replace(subjects=total, split=split), seed=seed)
    table = cohort.table.copy()
    table["site"] = ""
    _assign_training(table, sites, class_sizes, seed)
    groups = [name for name, effect in scenario.biases.items() if not _is_universal(effect)]
    for split_name in ("validation", "test"):
        _deal_held_out(table, split_name, [site.name for site in sites], groups, seed)
    table = table[table["site"] != ""]
    universal = [name for name in scenario.biases if name not in groups]
    for effect in dict.fromkeys([*universal, *(name for site in sites for name in site.scanner)]):
        magnitudes = {site.name: site.scanner.get(effect, 0.0) for site in sites}
        table[f"{effect}_magnitude"] = table["site"].map(magnitudes).astype(float)
    return Federation(replace(cohort, table=table), sites)


def _check_sites(scenario: Scenario, sites: Sequence[Site], **counts: int) -> None:
    names = [site.name for site in sites]
    if not sites or len(set(names)) < len(names):
        duplicate = next((name for name in names if names.count(name) > 1), None)
        raise SimbaError("sites", duplicate, "at least one, each with its own name")
    for name, count in counts.items():
        if whole_number(name, count, least=4) % 2:
            raise SimbaError(name, count, "an even number")
    for site in sites:
        for effect in (*site.prevalence, *site.scanner):
            if effect not in scenario.biases:
                raise UnknownNameError.among(f"{site.name}: effect", effect, scenario.biases)
    sizes = np.sum([_class_sizes(site) for site in sites], axis=0)
    if sizes.min() == 0:
        value = f"{sizes[0]} controls and {sizes[1]} patients"
        raise SimbaError("sites", Words(value), "sites that have both classes among them")


def _class_sizes(site: Site) -> tuple[int, int]:
    patients = round(site.subjects * site.disease)
    return site.subjects - patients, patients


def _assign_training(
    table: pd.DataFrame, sites: Sequence[Site], class_sizes: np.ndarray, seed: int
) -> None:
    """Fill the column ``site`` and the biases of training subjects, in place."""
    for label in (0, 1):
        pool = table.index[(table["split"] == "train") & (table["label"] == label)].to_numpy()
        pool = stream(seed, "sites", f"pool/{label}").permutation(pool)
        stops = np.cumsum(class_sizes[:, label])
        for site, stop, count in zip(sites, stops, class_sizes[:, label], strict=True):
            members = pool[stop - count : stop]
            table.loc[members, "site"] = site.name
            for bias, rates in site.prevalence.items():
                draws = stream(seed, site.name, f"{bias}/{label}")
                table.loc[members, bias] = _carriers(draws, count, rates[CLASSES[label]])


def _carriers(draws: np.random.Generator, count: int, rate: float) -> np.ndarray:
    """Return 1 for carriers; their number is rounded at random, so that its mean is exact."""
    carriers = math.floor(rate * count + draws.uniform())
    return (draws.permutation(count) < carriers).astype(int)


def _deal_held_out(
    table: pd.DataFrame, split: str, names: Sequence[str], groups: Sequence[str], seed: int
) -> None:
    """Deal the held-out subjects of each class and group to all sites in turn, in place."""
    order = stream(seed, "sites", f"deal/{split}").permutation(len(names))
    shuffle = stream(seed, "sites", f"shuffle/{split}")
    held_out = table[table["split"] == split].sample(frac=1, random_state=shuffle)
    held_out = held_out.sort_values(["label", *groups], kind="stable")
    table.loc[held_out.index, "site"] = [
        names[order[place % len(names)]] for place in range(len(held_out))
    ]


def _is_universal(effect: Effect) -> bool:
    rates = effect.prevalence if isinstance(effect, Intensity) else None
    return isinstance(rates, Mapping) and min(rates.values()) == 1
