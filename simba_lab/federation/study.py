"""Study: a federation and its training in one YAML file, for the command line."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from simba_lab.core.checks import known_fields
from simba_lab.core.errors import SimbaError
from simba_lab.core.files import read_yaml
from simba_lab.federation.federated_cohort import Federation, hospitals
from simba_lab.federation.plan import Plan
from simba_lab.federation.scanners import with_scanners
from simba_lab.federation.sites import Site, study_sites
from simba_lab.synthesis.scenario import Scenario

FIELDS_OF_PLAN = ("strategy", "options", "network", "visit", "seed")
FIELDS = ("scenario", "sites", "validation", "test", *FIELDS_OF_PLAN)


@dataclass(frozen=True)
class Study:
    """Hospitals and what is trained over them.

    Parameters
    ----------
    scenario : Scenario
        Scanner effects are added where a site has a scanner.
    sites : tuple of Site
    plan : Plan
    validation, test : int
        Held-out subjects.

    Examples
    --------
    >>> import simba_lab as sb
    >>> study = sb.federation.Study.from_yaml("data/federations/three_hospitals.yaml")
    >>> study.plan.sites
    ('north', 'south', 'west')
    """

    scenario: Scenario
    sites: tuple[Site, ...]
    plan: Plan
    validation: int = 100
    test: int = 400

    @cached_property
    def federation(self) -> Federation:
        """The hospitals, made at the first use."""
        return hospitals(
            self.scenario,
            self.sites,
            validation=self.validation,
            test=self.test,
            seed=self.plan.seed,
        )

    @classmethod
    def from_yaml(cls, path: str | Path) -> Study:
        """Read a study from a YAML file.

        Its fields are ``scenario``, ``sites`` (a list of sites, or the arguments of `study_sites`),
        ``validation``, ``test`` and those of `Plan`; examples are in ``data/federations/``.

        Raises
        ------
        SimbaError
            If a field is unknown or out of range; the message names it.
        """
        values = read_yaml(path, "study", examples="data/federations/")
        known_fields("study", values, FIELDS, needed=("scenario", "sites", "strategy"))
        sites = _sites(values["sites"])
        scenario = Scenario.from_dict({"subjects": 16, **values["scenario"]})
        if any(site.scanner for site in sites):
            scenario = with_scanners(scenario)
        settings = {name: values[name] for name in FIELDS_OF_PLAN if name in values}
        plan = Plan.from_dict({**settings, "sites": [site.name for site in sites]})
        held_out = {name: values[name] for name in ("validation", "test") if name in values}
        return cls(scenario, sites, plan, **held_out)


def _sites(values: Any) -> tuple[Site, ...]:
    if isinstance(values, Mapping):
        names = ("count", "median", "largest", "single_class", "scanner", "seed")
        return study_sites(**known_fields("study.sites", values, names))
    if not isinstance(values, list) or not values:
        allowed = "a list of sites, or a mapping with count"
        raise SimbaError("study.sites", values, allowed, "Each has a name and subjects.")
    names = [entry.name for entry in dataclasses.fields(Site)]
    return tuple(
        Site(**known_fields(f"study.sites[{number}]", site, names, needed=("name", "subjects")))
        for number, site in enumerate(values)
    )
