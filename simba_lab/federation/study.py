"""Study: a federation and its training in one YAML file, for the command line."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from simba_lab.core.errors import SimbaError
from simba_lab.federation.plan import Plan
from simba_lab.federation.reading import check_names, read_yaml
from simba_lab.federation.sites import Federation, Site, hospitals, study_sites, with_scanners
from simba_lab.synthesis.scenario import Scenario

FIELDS = (
    "scenario",
    "sites",
    "validation",
    "test",
    "seed",
    "strategy",
    "options",
    "network",
    "visit",
)


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
    """

    scenario: Scenario
    sites: tuple[Site, ...]
    plan: Plan
    validation: int = 100
    test: int = 400

    @cached_property
    def federation(self) -> Federation:
        """The hospitals; rendered when asked for."""
        return hospitals(
            self.scenario,
            self.sites,
            validation=self.validation,
            test=self.test,
            seed=self.plan.seed,
        )

    @classmethod
    def from_yaml(cls, path: str | Path) -> Study:
        """Read a study: ``scenario``, ``sites`` (a list of sites, or the arguments of `study_sites`), and a plan's fields.

        Raises
        ------
        SimbaError
            If a field is unknown or out of range; the message names it.
        """
        needed = ("scenario", "sites", "strategy")
        values = read_yaml(path, "study", needed=needed, known=FIELDS, examples="data/federations/")
        sites = _sites(values["sites"])
        scenario = Scenario.from_dict({"subjects": 16, **values["scenario"]})
        if any(site.scanner for site in sites):
            scenario = with_scanners(scenario)
        fields = {
            name: values[name]
            for name in ("strategy", "options", "network", "visit", "seed")
            if name in values
        }
        plan = Plan.from_dict({**fields, "sites": [site.name for site in sites]})
        held_out = {name: values[name] for name in ("validation", "test") if name in values}
        return cls(scenario, sites, plan, **held_out)


def _sites(values: Any) -> tuple[Site, ...]:
    if isinstance(values, Mapping):
        known = ("count", "median", "largest", "single_class", "scanner", "seed")
        check_names(values, "study.sites", known)
        return study_sites(**values)
    if not isinstance(values, list) or not values:
        raise SimbaError(
            "study.sites",
            values,
            "a list of sites, or a mapping with count",
            "Each has a name and subjects.",
        )
    known = tuple(entry.name for entry in dataclasses.fields(Site))
    for place, one in enumerate(values):
        if not isinstance(one, Mapping) or not {"name", "subjects"} <= set(one):
            raise SimbaError(f"study.sites[{place}]", one, "a mapping with name and subjects")
        check_names(one, f"study.sites[{place}]", known)
    return tuple(Site(**one) for one in values)
