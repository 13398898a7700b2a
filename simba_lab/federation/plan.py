"""Plan: what a federated training is, in words and numbers alone, so that it can be sent and written down."""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from simba_lab.core.errors import SimbaError, UnknownNameError
from simba_lab.core.files import atomic_write, new_file, read_json, write_json
from simba_lab.federation.clients import Client, VisitConfig, Weights
from simba_lab.federation.harmony import divided
from simba_lab.federation.reading import check_names
from simba_lab.federation.strategies import Step, fedavg, fedprox, fedtm, harmonised, travelling
from simba_lab.training.networks import NETWORKS, network_from

STRATEGIES: dict[str, Callable[..., Iterator[Step]]] = {
    "fedavg": fedavg,
    "fedprox": fedprox,
    "travelling": travelling,
    "fedtm": fedtm,
    "harmonised": harmonised,
}


@dataclass(frozen=True)
class Plan:
    """A federated training.

    Parameters
    ----------
    strategy : {"fedavg", "fedprox", "travelling", "fedtm", "harmonised"}
    sites : sequence of str
        Who takes part; their order is that of sums.
    options : mapping
        Of the strategy, such as ``{"cycles": 20, "decay": 0.95}``.
    network : mapping
        ``name`` (SimBANet or ResNet3D) and its options, the seed of its initial weights among them.
    visit : VisitConfig
    seed : int
    """

    strategy: str
    sites: Sequence[str]
    options: Mapping[str, Any] = field(default_factory=dict)
    network: Mapping[str, Any] = field(default_factory=lambda: {"name": "SimBANet"})
    visit: VisitConfig = field(default_factory=VisitConfig)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            raise UnknownNameError.among("plan.strategy", self.strategy, STRATEGIES)
        if self.network.get("name") not in NETWORKS:
            raise UnknownNameError.among("plan.network.name", self.network.get("name"), NETWORKS)
        try:
            inspect.signature(STRATEGIES[self.strategy]).bind(
                [], {}, seed=0, done=0, **self.options
            )
        except TypeError as error:
            raise SimbaError(
                "plan.options", dict(self.options), f"options of {self.strategy}", f"{error}."
            ) from error
        if not self.sites or len(set(self.sites)) < len(self.sites):
            raise SimbaError("plan.sites", list(self.sites), "at least one, each named once")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0:
            raise SimbaError("plan.seed", self.seed, "an integer of at least 0")

    def model(self) -> torch.nn.Module:
        """Return the network with its initial weights."""
        return network_from(self.network, field="plan.network")

    def steps(
        self, clients: Sequence[Client], weights: Weights | None = None, *, done: int = 0
    ) -> Iterator[Step]:
        """Go through the training with these clients, wherever they are; from a step that is `done`, with its weights."""
        weights = self.model().state_dict() if weights is None else weights
        here = {client.name: client for client in clients}
        missing = [name for name in self.sites if name not in here]
        if missing:
            raise SimbaError(
                "clients", sorted(here), f"of all sites of the plan; {missing[0]} is missing"
            )
        ordered = [here[name] for name in self.sites]
        return STRATEGIES[self.strategy](
            ordered, weights, seed=self.seed, done=done, **self.options
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as plain dictionaries, lists and numbers."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Plan:
        """Build a plan from what `to_dict` returns; unknown fields are errors."""
        check_names(values, "plan", [entry.name for entry in dataclasses.fields(cls)])
        visit = VisitConfig.from_dict(values.get("visit", {}), "plan.visit")
        return cls(**({**values, "sites": tuple(values.get("sites", ())), "visit": visit}))


class Ledger:
    """The steps of a plan in a folder: the history of all of them and the weights of the last.

    Every step is written before the next begins, the weights under another name first, so that a
    training that was killed goes on from its last whole step with the same bits.

    Parameters
    ----------
    folder : path
        New, or left behind by the same plan.
    plan : Plan

    Raises
    ------
    SimbaError
        If the folder holds another plan's steps or something else.
    """

    def __init__(self, folder: str | Path, plan: Plan) -> None:
        self.folder, self.plan = Path(folder), plan
        if not self.folder.absolute().parent.is_dir():
            raise SimbaError("folder", str(folder), "inside an existing folder")
        self.folder.mkdir(exist_ok=True)
        written = self._plan_file
        if written.is_file():
            if read_json(written, "ledger") != plan.to_dict():
                raise SimbaError(
                    "folder",
                    str(folder),
                    "new, or the ledger of this very plan",
                    "Choose another folder.",
                )
        elif any(self.folder.iterdir()):
            raise SimbaError(
                "folder",
                str(folder),
                "new, or the ledger of this very plan",
                "Nothing is overwritten.",
            )
        else:
            write_json(written, plan.to_dict())
        if self._steps_file.is_file() and not self._steps_file.read_bytes().endswith(b"\n"):
            with self._steps_file.open("a", encoding="utf-8") as file:
                file.write("\n")  # after a line that was being written at a kill

    @property
    def _plan_file(self) -> Path:
        return self.folder / "plan.json"

    @property
    def _weights_file(self) -> Path:
        return self.folder / "weights.safetensors"

    @property
    def _steps_file(self) -> Path:
        return self.folder / "steps.jsonl"

    def resume(self) -> tuple[Weights | None, int]:
        """Return the weights of the last step, a head's among them, and its number; None and 0 before the first."""
        if not self._weights_file.is_file():
            return None, 0
        try:
            with safe_open(self._weights_file, "pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}, int(
                    file.metadata()["step"]
                )
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise SimbaError(
                "ledger", str(self._weights_file), "as it was written", f"It is damaged: {error}"
            ) from error

    def network(self) -> Weights:
        """Return the weights of the network after the last step."""
        weights, _ = self.resume()
        if weights is None:
            raise SimbaError(
                "ledger", str(self.folder), "with at least one step", "The training has not begun."
            )
        return divided(weights)[0]

    def history(self) -> list[dict[str, Any]]:
        """Return number, phase, sites, losses and faults of every step."""
        if not self._steps_file.is_file():
            return []
        last = self.resume()[1]
        rows = {}
        for line in self._steps_file.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except (
                json.JSONDecodeError
            ):  # the line that was being written at a kill; its step is not done
                continue
            if row["number"] <= last:
                rows[row["number"]] = row
        return [rows[number] for number in sorted(rows)]

    def stopped(self, error: Exception) -> None:
        """Write down why the training stopped."""
        text = str(error) if isinstance(error, SimbaError) else f"{type(error).__name__}: {error}"
        atomic_write(self._reason_file, text)

    def reason(self) -> str | None:
        """Return why the training stopped; None if it did not, or goes on again."""
        return (
            self._reason_file.read_text(encoding="utf-8") if self._reason_file.is_file() else None
        )

    @property
    def _reason_file(self) -> Path:
        return self.folder / "stopped.txt"

    def __call__(self, step: Step) -> None:
        """Write a step."""
        self._reason_file.unlink(missing_ok=True)
        row = {name: value for name, value in vars(step).items() if name not in ("weights", "head")}
        with self._steps_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())
        whole = {name: value.contiguous() for name, value in (step.weights | step.head).items()}
        with new_file(self._weights_file) as part:
            save_file(whole, part, {"step": str(step.number)})
