"""Run: a fitted network, how it came about, and both on disk."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch

from simba_lab.core.border import checks_arguments
from simba_lab.core.cohort import Cohort
from simba_lab.core.digests import damage, write_digests
from simba_lab.core.errors import SimbaError, Words
from simba_lab.core.files import new_folder, read_json, write_json
from simba_lab.core.network_adapter import copied, trainable
from simba_lab.training import tensor_files
from simba_lab.training.config import FitConfig
from simba_lab.training.group_routed import GroupRouted

Weights = dict[str, torch.Tensor]


class Fitted(NamedTuple):
    """What training gives: from this and a network a `Run` is made.

    Parameters
    ----------
    weights : dict
        Of the best epoch.
    history : pandas.DataFrame
    snapshots : tuple of dict
    facts : dict
        About the hardware: ``device``, ``devices``, ``memory_layout``.
    """

    weights: Weights
    history: pd.DataFrame
    snapshots: tuple[Weights, ...]
    facts: dict[str, Any]


@checks_arguments
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

    Examples
    --------
    >>> import simba_lab as sb
    >>> scenario = sb.Scenario(
    ...     64, sb.Morphology("Insula_L", 2.5), sb.Morphology("Putamen_L", 2.5), spacing_mm=8
    ... )
    >>> cohort = sb.synthesise(scenario)
    >>> config = sb.FitConfig(epochs=1, snapshots=True)
    >>> run = sb.fit(sb.SimBANet((4, 8)), cohort, config, cache=False)
    >>> list(run.history.columns[:3]), len(run.snapshots)
    (['train_loss', 'validation_loss', 'validation_accuracy'], 2)
    >>> network = run.at(0)  # as it was before the first epoch
    """

    model: torch.nn.Module
    history: pd.DataFrame
    config: FitConfig
    provenance: dict[str, Any]
    snapshots: tuple[Weights, ...] = ()

    def at(self, epoch: int) -> torch.nn.Module:
        """Return the network as it was after so many epochs; 0 is before the first."""
        if not self.snapshots:
            raise SimbaError("run", Words("no snapshots"), "fitted with FitConfig(snapshots=True)")
        if not isinstance(epoch, int) or not 0 <= epoch < len(self.snapshots):
            raise SimbaError("epoch", epoch, f"an integer from 0 to {len(self.snapshots) - 1}")
        model = copied(self.model)
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
        """Write weights (safetensors), history (CSV) and provenance (JSON) to a new folder.

        All of it is written, or nothing. `load` compares the files with their digests.
        """
        with new_folder(folder, parents=True) as unfinished:
            self.write(unfinished)
            write_digests(unfinished)

    def write(self, folder: Path) -> None:
        """Write the files of a run to a folder that exists."""
        record = {"config": dataclasses.asdict(self.config), "provenance": self.provenance}
        facts = {"what": "weights of a run"}
        tensor_files.write(folder / "weights.safetensors", self.model.state_dict(), facts)
        if self.snapshots:
            numbered = {
                f"{epoch}/{name}": value
                for epoch, weights in enumerate(self.snapshots)
                for name, value in weights.items()
            }
            facts = {"what": "weights after each epoch"}
            tensor_files.write(folder / "snapshots.safetensors", numbered, facts)
        self.history.to_csv(folder / "history.csv")
        write_json(folder / "run.json", record)

    @classmethod
    def load(cls, folder: str | Path, model: torch.nn.Module) -> Run:
        """Read a run back into a network of the same architecture (`model` is copied).

        Raises
        ------
        SimbaError
            If the folder is not a run, if a file of it was changed since it was written, or if the
            network is another.
        """
        folder = Path(folder)
        if damaged := damage(folder):
            allowed = "a folder written by Run.save, and unchanged since"
            raise SimbaError("run", str(folder), allowed, damaged)
        try:
            record = read_json(folder / "run.json", "run")
            config, provenance = FitConfig(**record["config"]), record["provenance"]
            history = pd.read_csv(folder / "history.csv", index_col="epoch")
        except (OSError, ValueError, KeyError, TypeError) as error:
            remedy = f"It cannot be read: {error}"
            raise SimbaError("run", str(folder), "a folder written by Run.save", remedy) from error
        weights, _ = tensor_files.read(folder / "weights.safetensors", field="run")
        routed, model = provenance.get("routed"), trainable(model)
        network = GroupRouted.of_copies(model, **routed) if routed else copied(model)
        try:
            network.load_state_dict(weights)
        except RuntimeError as error:
            allowed, remedy = "of the saved architecture", str(error).splitlines()[-1].strip()
            raise SimbaError("model", type(model).__name__, allowed, remedy) from error
        snapshots = _read_snapshots(folder) if config.snapshots else ()
        return cls(network.eval(), history, config, provenance, snapshots)


def _read_snapshots(folder: Path) -> tuple[Weights, ...]:
    numbered, _ = tensor_files.read(folder / "snapshots.safetensors", field="run")
    snapshots: dict[int, Weights] = {}
    for name, value in numbered.items():
        epoch, _, key = name.partition("/")
        snapshots.setdefault(int(epoch), {})[key] = value
    return tuple(snapshots[epoch] for epoch in sorted(snapshots))
