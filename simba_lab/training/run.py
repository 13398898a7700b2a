"""Run: a fitted network, how it came about, and both on disk."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from simba_lab.core.cohort import Cohort
from simba_lab.core.errors import SimbaError
from simba_lab.core.files import new_folder, read_json, write_json
from simba_lab.training import checkpoints
from simba_lab.training.config import FitConfig
from simba_lab.training.networks import GroupRouted


@dataclass(frozen=True, eq=False)
class Run:
    """A fitted network and how it came about.

    Parameters
    ----------
    model : torch.nn.Module
        In evaluation mode, on the CPU, with the weights of the best epoch. With `BiasGroupModels` a
        `GroupRouted`.
    history : pandas.DataFrame
        One row per epoch: ``train_loss``, ``validation_loss``, ``validation_accuracy``,
        ``learning_rate``, ``seconds``, ``kept``. With one network per group, a column ``group`` and
        one row per epoch and group.
    config : FitConfig
    provenance : dict
        Scenario, mitigation, seeds, code and library versions, device, seconds.
    snapshots : tuple of dict
        Weights before the first epoch and after each, if ``config.snapshots``.
    """

    model: torch.nn.Module
    history: pd.DataFrame
    config: FitConfig
    provenance: dict[str, Any]
    snapshots: tuple[dict[str, torch.Tensor], ...] = ()

    def at(self, epoch: int) -> torch.nn.Module:
        """Return the network as it was after so many epochs; 0 is before the first."""
        if not self.snapshots:
            raise SimbaError("run", "no snapshots", "fitted with FitConfig(snapshots=True)")
        if not isinstance(epoch, int) or not 0 <= epoch < len(self.snapshots):
            raise SimbaError("epoch", epoch, f"an integer from 0 to {len(self.snapshots) - 1}")
        model = copy.deepcopy(self.model)
        model.load_state_dict(self.snapshots[epoch])
        return model.eval()

    def check_fitted_on(self, cohort: Cohort) -> None:
        """Raise unless the network was fitted on the cohort that these subjects belong to."""
        fitted, asked = self.provenance["cohort"], cohort.identity
        if fitted == asked:
            return
        changed = [name for name, value in asked.items() if fitted.get(name) != value]
        if isinstance(asked.get("scenario"), dict) and "scenario" in changed:
            scenario = fitted.get("scenario", {})
            fields = asked["scenario"].items()
            changed = [f"scenario.{name}" for name, value in fields if scenario.get(name) != value]
        remedy = f"These differ: {', '.join(changed)}."
        raise SimbaError.problem("The run was fitted on another cohort.", remedy)

    def save(self, folder: str | Path) -> None:
        """Write weights (safetensors), history (CSV) and provenance (JSON) to a folder, all of it or nothing."""
        with new_folder(folder, parents=True) as part:
            record = {"config": dataclasses.asdict(self.config), "provenance": self.provenance}
            checkpoints.write(
                part / "weights.safetensors", self.model.state_dict(), {"what": "weights of a run"}
            )
            if self.snapshots:
                numbered = {
                    f"{k}/{name}": value
                    for k, one in enumerate(self.snapshots)
                    for name, value in one.items()
                }
                checkpoints.write(
                    part / "snapshots.safetensors", numbered, {"what": "weights after each epoch"}
                )
            self.history.to_csv(part / "history.csv")
            write_json(part / "run.json", record)

    @classmethod
    def load(cls, folder: str | Path, model: torch.nn.Module) -> Run:
        """Read a run back into a network of the same architecture (`model` is copied)."""
        folder = Path(folder)
        try:
            record = read_json(folder / "run.json", "run")
            config, provenance = FitConfig(**record["config"]), record["provenance"]
            history = pd.read_csv(folder / "history.csv", index_col="epoch")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SimbaError(
                "run", str(folder), "a folder written by Run.save", f"It cannot be read: {error}"
            ) from error
        weights, _ = checkpoints.read(folder / "weights.safetensors", field="run")
        model = copy.deepcopy(model)
        routed = provenance.get("routed")
        if routed:
            model = routed_by(model, routed["by"], routed["groups"])
        try:
            model.load_state_dict(weights)
        except RuntimeError as error:
            raise SimbaError(
                "model",
                type(model).__name__,
                "of the architecture that was saved",
                str(error).splitlines()[-1].strip(),
            ) from error
        snapshots: list[dict[str, torch.Tensor]] = []
        if config.snapshots:
            numbered, _ = checkpoints.read(folder / "snapshots.safetensors", field="run")
            snapshots = [
                {} for _ in range(1 + max(int(name.partition("/")[0]) for name in numbered))
            ]
            for name, value in numbered.items():
                number, _, rest = name.partition("/")
                snapshots[int(number)][rest] = value
        return cls(model.eval(), history, config, provenance, tuple(snapshots))


def routed_by(model: torch.nn.Module, by: str, groups: Sequence[int | str]) -> GroupRouted:
    """Return a network per group, each a copy of `model`."""
    return GroupRouted([copy.deepcopy(model) for _ in groups], by, groups)
