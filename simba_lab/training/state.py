"""Where a fit stands: all that it has changed, and how it goes on from a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from simba_lab.core.errors import SimbaError
from simba_lab.training import tensor_files
from simba_lab.training.mitigation.objective import Objective
from simba_lab.training.run import Weights

# What a checkpoint holds besides snapshots.
SECTIONS = ("network", "best", "optimiser", "objective")
COUNTERS = ("epoch", "step", "seen", "total", "rows")


class FitState:
    """All that a fit has changed since it began.

    Parameters
    ----------
    network : torch.nn.Module
    optimiser : torch.optim.Optimizer
    schedule : learning rate scheduler of PyTorch
    objective : Objective
    snapshots : bool
        Whether to keep the weights before the first epoch and after each.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        optimiser: torch.optim.Optimizer,
        schedule: torch.optim.lr_scheduler.LRScheduler,
        objective: Objective,
        *,
        snapshots: bool,
    ) -> None:
        self.network, self.optimiser = network, optimiser
        self.schedule, self.objective = schedule, objective
        self.epoch = self.step = self.seen = 0
        # Sum of the losses of the subjects seen in this epoch.
        self.total = 0.0
        # A row of the history for each epoch that is over.
        self.rows: list[dict[str, float]] = []
        self.best: Weights = {}
        self.snapshots: list[Weights] = [self._weights()] if snapshots else []

    def _weights(self) -> Weights:
        weights = self.network.state_dict()
        return {name: value.detach().cpu().clone() for name, value in weights.items()}

    def end_epoch(self, validation: Mapping[str, float], seconds: float) -> None:
        """Note how an epoch went, and keep the weights if no epoch was better."""
        row = {
            "epoch": self.epoch,
            "train_loss": self.total / self.seen,
            **validation,
            "seconds": seconds,
            "learning_rate": float(self.schedule.get_last_lr()[0]),
        }
        if all(row["validation_loss"] < earlier["validation_loss"] for earlier in self.rows):
            self.best = self._weights()
        if self.snapshots:
            self.snapshots.append(self._weights())
        self.rows.append(row)
        self.epoch, self.step, self.seen, self.total = self.epoch + 1, 0, 0, 0.0

    def is_over(self, epochs: int, patience: int | None) -> bool:
        """Return whether all epochs are done, or the last `patience` of them were no better."""
        if self.epoch >= epochs:
            return True
        if patience is None or len(self.rows) <= patience:
            return False
        best_epoch = int(np.argmin([row["validation_loss"] for row in self.rows]))
        return len(self.rows) - 1 - best_epoch >= patience

    def save(self, path: Path, identity: Mapping[str, str]) -> None:
        """Write everything that the next step depends on."""
        moments, groups = _optimiser_state(self.optimiser)
        sections: dict[str, Mapping[str, torch.Tensor]] = {
            "network": self.network.state_dict(),
            "best": self.best,
            "optimiser": moments,
            "objective": self.objective.state(),
        }
        sections |= {f"snapshot {number}": value for number, value in enumerate(self.snapshots)}
        tensors = {
            f"{section}/{name}": value
            for section, values in sections.items()
            for name, value in values.items()
        }
        facts = {
            "identity": dict(identity),
            "groups": groups,
            "schedule": self.schedule.state_dict(),
            "place": {name: getattr(self, name) for name in COUNTERS},
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        tensor_files.write(path, tensors, facts)

    def restore(self, path: Path, identity: Mapping[str, str]) -> None:
        """Go on from what `save` wrote, if it is of the same fit."""
        tensors, facts = tensor_files.read(path)
        saved: Mapping[str, Any] = facts.get("identity", {})
        different = [name for name, value in identity.items() if saved.get(name) != value]
        if different:
            remedy = f"It has another {' and another '.join(different)}. Delete it to start again."
            raise SimbaError("checkpoint", str(path), "of this very fit", remedy)
        sections: dict[str, Weights] = {section: {} for section in SECTIONS}
        for name, value in tensors.items():
            section, _, key = name.partition("/")
            sections.setdefault(section, {})[key] = value
        count = len(sections) - len(SECTIONS)
        self.snapshots = [sections[f"snapshot {number}"] for number in range(count)]
        self.network.load_state_dict(sections["network"])
        self.best = sections["best"]
        _restore_optimiser(self.optimiser, sections["optimiser"], facts["groups"])
        self.schedule.load_state_dict(facts["schedule"])
        self.objective.restore(sections["objective"])
        for name, value in facts["place"].items():
            setattr(self, name, value)


def _optimiser_state(
    optimiser: torch.optim.Optimizer,
) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    """Return the tensors of an optimiser by name, and its settings as plain values."""
    state = optimiser.state_dict()
    tensors = {
        f"{number}.{name}": torch.as_tensor(value)
        for number, entries in state["state"].items()
        for name, value in entries.items()
    }
    return tensors, state["param_groups"]


def _restore_optimiser(
    optimiser: torch.optim.Optimizer,
    tensors: Mapping[str, torch.Tensor],
    groups: list[dict[str, Any]],
) -> None:
    """Put back what `_optimiser_state` returned."""
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in tensors.items():
        number, key = name.split(".")
        # Laid out in memory as the parameter is: channels-last, maybe.
        parameter = parameters[int(number)]
        value = (
            torch.empty_like(parameter).copy_(value)
            if value.shape == parameter.shape and value.dim()
            else value.clone()
        )
        state.setdefault(int(number), {})[key] = value
    groups = [
        group | ({"betas": tuple(group["betas"])} if "betas" in group else {}) for group in groups
    ]
    optimiser.load_state_dict({"state": state, "param_groups": groups})
