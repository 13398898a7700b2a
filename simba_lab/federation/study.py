"""Study: a federation and its training in one YAML file, for the command line."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from simba_lab.errors import SimbaError, UnknownNameError
from simba_lab.federation.plan import Plan
from simba_lab.federation.sites import Federation, Site, hospitals, study_sites, with_scanners
from simba_lab.synthesis import Scenario

FIELDS = ("scenario", "sites", "validation", "test", "seed", "strategy", "options", "network", "visit")


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
        return hospitals(self.scenario, self.sites, validation=self.validation, test=self.test, seed=self.plan.seed)

    @classmethod
    def from_yaml(cls, path: str | Path) -> Study:
        """Read a study: ``scenario``, ``sites`` (a list of sites, or the arguments of `study_sites`), and a plan's fields.

        Raises
        ------
        SimbaError
            If a field is unknown or out of range; the message names it.
        """
        path = Path(path)
        if not path.is_file():
            raise SimbaError("study", str(path), "an existing YAML file", "Examples are in data/federations/.")
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            raise SimbaError("study", str(path), "valid YAML", str(error)) from error
        if not isinstance(values, Mapping) or not {"scenario", "sites", "strategy"} <= set(values):
            raise SimbaError("study", str(path), "a mapping with scenario, sites and strategy")
        for name in values:
            if name not in FIELDS:
                raise UnknownNameError.among(f"study.{name}", name, FIELDS)
        sites = _sites(values["sites"])
        scenario = Scenario.from_dict({"subjects": 16, **values["scenario"]})
        if any(site.scanner for site in sites):
            scenario = with_scanners(scenario)
        fields = {name: values[name] for name in ("strategy", "options", "network", "visit", "seed") if name in values}
        plan = Plan.from_dict({**fields, "sites": [site.name for site in sites]})
        held_out = {name: values[name] for name in ("validation", "test") if name in values}
        return cls(scenario, sites, plan, **held_out)


def _sites(values: Any) -> tuple[Site, ...]:
    if isinstance(values, Mapping):
        known = ("count", "median", "largest", "single_class", "scanner", "seed")
        for name in values:
            if name not in known:
                raise UnknownNameError.among(f"study.sites.{name}", name, known)
        return study_sites(**values)
    if not isinstance(values, list) or not values:
        raise SimbaError("study.sites", values, "a list of sites, or a mapping with count", "Each has a name and subjects.")
    known = tuple(entry.name for entry in dataclasses.fields(Site))
    for place, one in enumerate(values):
        if not isinstance(one, Mapping) or not {"name", "subjects"} <= set(one):
            raise SimbaError(f"study.sites[{place}]", one, "a mapping with name and subjects")
        for name in one:
            if name not in known:
                raise UnknownNameError.among(f"study.sites[{place}].{name}", name, known)
    return tuple(Site(**one) for one in values)
