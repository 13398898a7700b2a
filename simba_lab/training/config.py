"""FitConfig: how to train, validated when it is written down."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from simba_lab.core.compute import THREADS
from simba_lab.core.errors import SimbaError, UnknownNameError

SCHEDULES = ("one_cycle", "constant")
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "bf16-true")


@dataclass(frozen=True)
class FitConfig:
    """How to train.

    Parameters
    ----------
    epochs : int
        Passes over the training cohort. The weights of the epoch with the least validation loss are
        kept.
    batch_size : int
    learning_rate : float
        Peak of the schedule.
    schedule : {"one_cycle", "constant"}
        How the learning rate moves: up and down once (Smith and Topin 2019), or not at all.
    weight_decay : float
    patience : int, optional
        Stop after so many epochs without a smaller validation loss; never by default.
    seed : int
        Seed of the batch order and of dropout. Runs with the same seed see subjects in the same
        order.
    threads : int
        Threads of torch on the CPU. Part of the result, since sums round differently in another
        order.
    accelerator : str
        As Lightning Fabric names it: ``"auto"``, ``"cpu"``, ``"cuda"``.
    devices : int
        How many of them share each batch. Normalisation sees the share of its own device.
    precision : {"32-true", "bf16-mixed", "16-mixed", "bf16-true"}
        As Lightning Fabric names it.
    channels_last : bool
        Whether channels come last in memory, which oneDNN and cuDNN convolve faster. Networks that
        cannot are trained without.
    snapshots : bool
        Whether the run keeps the weights before the first epoch and after each (see `Run.at`).

    See Also
    --------
    simba_lab.fastest : measures which precision and memory layout are fastest here.
    """

    epochs: int = 12
    batch_size: int = 8
    learning_rate: float = 3e-3
    schedule: str = "one_cycle"
    weight_decay: float = 1e-2
    patience: int | None = None
    seed: int = 0
    threads: int = THREADS
    accelerator: str = "auto"
    devices: int = 1
    precision: str = "32-true"
    channels_last: bool = True
    snapshots: bool = False

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "threads", "devices"):
            _check_count(f"config.{name}", getattr(self, name))
        if self.patience is not None:
            _check_count("config.patience", self.patience)
        if not isinstance(self.seed, int) or self.seed < 0:
            raise SimbaError("config.seed", self.seed, "an integer of at least 0")
        if not _is_number(self.learning_rate) or not 0 < self.learning_rate < 1:
            raise SimbaError(
                "config.learning_rate",
                self.learning_rate,
                "above 0 and below 1",
                "3e-3 works for SimBANet.",
            )
        if not _is_number(self.weight_decay) or not 0 <= self.weight_decay < float("inf"):
            raise SimbaError("config.weight_decay", self.weight_decay, "finite and at least 0")
        if self.schedule not in SCHEDULES:
            raise UnknownNameError.among("config.schedule", self.schedule, SCHEDULES)
        if self.precision not in PRECISIONS:
            raise UnknownNameError.among("config.precision", self.precision, PRECISIONS)
        if self.batch_size % self.devices:
            raise SimbaError(
                "config.batch_size", self.batch_size, f"a multiple of the {self.devices} devices"
            )

    @classmethod
    def paper(cls, *, seed: int = 0, **changes: Any) -> FitConfig:
        """Return the settings of the published experiments: Adam at 1e-4, batches of 2, early stopping.

        References
        ----------
        Stanley et al. (2024), JAMIA 31:2613-2621.
        """
        published = {
            "epochs": 100,
            "batch_size": 2,
            "learning_rate": 1e-4,
            "schedule": "constant",
            "weight_decay": 0.0,
        }
        return cls(**(published | {"patience": 10, "seed": seed} | changes))

    def replace(self, **changes: Any) -> FitConfig:
        """Return the settings with some of them changed, validated anew."""
        known = [entry.name for entry in dataclasses.fields(self)]
        for name in changes:
            if name not in known:
                raise UnknownNameError.among(f"config.{name}", name, known)
        return dataclasses.replace(self, **changes)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_count(field: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise SimbaError(field, value, "an integer of at least 1")
