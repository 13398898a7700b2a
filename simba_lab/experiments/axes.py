"""Axes of a sweep: the fields that they may set, and how each field changes the draft of a cell."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from simba_lab.core.checks import positive, share
from simba_lab.core.errors import SimbaError, UnknownNameError
from simba_lab.synthesis.effects import CLASSES
from simba_lab.synthesis.scenario import Scenario
from simba_lab.training.config import FitConfig
from simba_lab.training.mitigation.registry import mitigation_from

# The first word of a field that an axis may set, and what follows it.
FIELDS = {
    "scenario": "a field of the scenario, such as scenario.bias.amplitude_mm",
    "config": "a field of FitConfig, such as config.epochs",
    "network": "name or an option of the network, such as network.widths",
    "mitigation": "nothing; values are names or mappings, as for fit",
    "prevalence": "a bias; values are P(bias group | disease), and one less that among controls",
    "d_prime": "a bias; values are the salience that its amplitude or strength is matched to",
}


def split_field(name: str, axis: str) -> tuple[str, list[str]]:
    """Return the first word of a field and the words after it; `axis` names the axis in errors."""
    head, *path = str(name).split(".")
    if head not in FIELDS:
        raise UnknownNameError.among(axis, name, FIELDS)
    if (head == "mitigation") != (not path):
        raise SimbaError(axis, name, f"{head}, followed by {FIELDS[head]}")
    return head, path


class Draft:
    """The settings of one cell while its axes set them, as plain values.

    Parameters
    ----------
    scenario : Scenario
    network : mapping
    config : FitConfig
    """

    def __init__(self, scenario: Scenario, network: Mapping[str, Any], config: FitConfig) -> None:
        self.base = scenario
        self.scenario = scenario.to_dict()
        self.network = dict(network)
        self.config = dataclasses.asdict(config)
        self.mitigation: dict[str, Any] | None = None
        self.d_prime: dict[str, float] = {}

    def put_all(self, values: Mapping[str, Any]) -> None:
        """Set several fields: first the scenario's, whole effects before their parts."""
        paths = {name: split_field(name, "sweep.axes") for name in values}
        for name in sorted(
            values, key=lambda name: (paths[name][0] != "scenario", len(paths[name][1]))
        ):
            head, path = paths[name]
            getattr(self, f"_put_{head}")(name, path, values[name])

    def _put_scenario(self, name: str, path: list[str], value: Any) -> None:
        _put(self.scenario, path, value, name)

    def _put_prevalence(self, name: str, path: list[str], value: Any) -> None:
        rate = share(name, value, remedy="It is P(bias group | disease).")
        rates = dict(zip(CLASSES, (1 - rate, rate), strict=True))
        _put(self.scenario, [*self._path_of_bias(name, path), "prevalence"], rates, name)

    def _put_d_prime(self, name: str, path: list[str], value: Any) -> None:
        self._path_of_bias(name, path)
        self.d_prime[path[0]] = positive(name, value)

    def _put_config(self, name: str, path: list[str], value: Any) -> None:
        if path[0] not in self.config:
            raise UnknownNameError.among(name, path[0], self.config)
        self.config[path[0]] = value

    def _put_network(self, name: str, path: list[str], value: Any) -> None:
        self.network[path[0]] = value

    def _put_mitigation(self, name: str, path: list[str], value: Any) -> None:
        mitigation = mitigation_from(value)
        self.mitigation = mitigation.to_dict() if mitigation else None

    def _path_of_bias(self, name: str, path: list[str]) -> list[str]:
        if path[0] not in self.base.biases:
            raise UnknownNameError.among(name, path[0], self.base.biases)
        return ["bias", *(path if isinstance(self.base.bias, Mapping) else [])]


def _put(values: dict[str, Any], path: list[str], value: Any, name: str) -> None:
    # Only parents are checked here; the scenario checks the last word when it is built.
    for word in path[:-1]:
        if not isinstance(values.get(word), Mapping):
            raise UnknownNameError.among(name, word, values)
        values[word] = dict(values[word])
        values = values[word]
    values[path[-1]] = value
