"""Plan: a federated training as plain values, so that it can be sent and written down."""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from simba_lab.core.border import checks_arguments
from simba_lab.core.checks import built, choice, known_fields, mapping, seed_number
from simba_lab.core.errors import SimbaError
from simba_lab.federation.clients import Client, VisitConfig, Weights
from simba_lab.federation.harmony import Harmonisation
from simba_lab.federation.journeys import harmonised, travelling
from simba_lab.federation.steps import Step
from simba_lab.federation.strategies import fedavg, fedprox, fedtm
from simba_lab.training.networks import network_from

STRATEGIES: dict[str, Callable[..., Iterator[Step]]] = {
    "fedavg": fedavg,
    "fedprox": fedprox,
    "travelling": travelling,
    "fedtm": fedtm,
    "harmonised": harmonised,
}


@checks_arguments
@dataclass(frozen=True)
class Plan:
    """A federated training.

    Parameters
    ----------
    strategy : {"fedavg", "fedprox", "travelling", "fedtm", "harmonised"}
    sites : sequence of str
        Names of the sites, in the order in which weights are summed.
    options : mapping
        Of the strategy, such as ``{"cycles": 20, "decay": 0.95}``; `Harmonisation` as a mapping.
    network : mapping
        ``name`` (SimBANet or ResNet3D) and its options, with the seed of its initial weights.
    visit : VisitConfig
    seed : int

    Raises
    ------
    SimbaError
        If a field is unknown or out of range.

    Examples
    --------
    >>> import simba_lab as sb
    >>> plan = sb.federation.Plan("travelling", ("north", "south"), {"cycles": 2})
    >>> plan.to_dict()["options"]
    {'cycles': 2}
    """

    strategy: str
    sites: Sequence[str]
    options: Mapping[str, Any] = field(default_factory=dict)
    network: Mapping[str, Any] = field(default_factory=lambda: {"name": "SimBANet"})
    visit: VisitConfig = field(default_factory=VisitConfig)
    seed: int = 0

    def __post_init__(self) -> None:
        choice("plan.strategy", self.strategy, STRATEGIES)
        self.model()  # unknown networks and options are errors now
        try:
            arguments = self._arguments()
            inspect.signature(STRATEGIES[self.strategy]).bind([], {}, seed=0, **arguments)
        except TypeError as error:
            allowed = f"options of {self.strategy}"
            raise SimbaError("plan.options", dict(self.options), allowed, f"{error}.") from error
        if not self.sites or len(set(self.sites)) < len(self.sites):
            raise SimbaError("plan.sites", list(self.sites), "at least one, each named once")
        seed_number("plan.seed", self.seed)

    def _arguments(self) -> dict[str, Any]:
        arguments = dict(self.options)
        if isinstance(arguments.get("harmony"), Mapping):
            arguments["harmony"] = Harmonisation(**arguments["harmony"])
        return arguments

    def model(self) -> torch.nn.Module:
        """Return the network with its initial weights."""
        return network_from(self.network, field="plan.network")

    def start(self) -> Step:
        """Return step 0: the initial weights."""
        return Step(0, "start", (), self.model().state_dict())

    def phases(self) -> list[int]:
        """Return the last number of a visit in each phase: rounds, or visits of all sites."""
        options = self.options
        rounds = [options["rounds"]] if "rounds" in options else []
        return rounds + ([options["cycles"] * len(self.sites)] if "cycles" in options else [])

    def steps(
        self, clients: Sequence[Client], start: Weights | Step | None = None
    ) -> Iterator[Step]:
        """Run the training with these clients.

        Parameters
        ----------
        clients : sequence of Client
            Of all sites of the plan, in any order.
        start : Step, optional
            A finished step to resume from; by default the training begins.
        """
        by_name = {client.name: client for client in clients}
        missing = [name for name in self.sites if name not in by_name]
        if missing:
            allowed, remedy = "those of all sites of the plan", f"{missing[0]} is missing."
            raise SimbaError("clients", sorted(by_name), allowed, remedy)
        ordered = [by_name[name] for name in self.sites]
        start = self.start() if start is None else start
        return STRATEGIES[self.strategy](ordered, start, seed=self.seed, **self._arguments())

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as plain dictionaries, lists and numbers."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Plan:
        """Build a plan from what `to_dict` returns; unknown fields are errors."""
        known_fields("plan", values, [entry.name for entry in dataclasses.fields(cls)])
        for name in {"options", "network"} & set(values):
            mapping(f"plan.{name}", values[name])
        visit = VisitConfig.from_dict(values.get("visit", {}), "plan.visit")
        values = {**values, "sites": tuple(values.get("sites", ())), "visit": visit}
        return built(cls, values, "plan")
