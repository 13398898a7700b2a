"""FitConfig: how to train, validated when it is written down."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from simba_lab.core.border import checks_arguments
from simba_lab.core.checks import Count, Seed, Threads, below_one, known_fields, not_negative
from simba_lab.core.compute import THREADS
from simba_lab.core.errors import SimbaError

Schedule = Literal["one_cycle", "constant"]
# As Lightning Fabric names them.
Precision = Literal["32-true", "bf16-mixed", "16-mixed", "bf16-true"]


@checks_arguments
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
    simba_lab.training.fastest : measures which precision and memory layout are fastest here.

    Examples
    --------
    >>> import simba_lab as sb
    >>> config = sb.FitConfig(epochs=3)
    >>> config.replace(seed=1).seed, config.precision
    (1, '32-true')
    """

    epochs: Count = 12
    batch_size: Count = 8
    learning_rate: float = 3e-3
    schedule: Schedule = "one_cycle"
    weight_decay: float = 1e-2
    patience: Count | None = None
    seed: Seed = 0
    threads: Threads = THREADS
    accelerator: str = "auto"
    devices: Count = 1
    precision: Precision = "32-true"
    channels_last: bool = True
    snapshots: bool = False

    def __post_init__(self) -> None:
        remedy = "3e-3 works for SimBANet."
        below_one("config.learning_rate", self.learning_rate, remedy=remedy)
        decay = not_negative("config.weight_decay", self.weight_decay)
        object.__setattr__(self, "weight_decay", decay)  # 0 and 0.0 have other digests
        if self.batch_size % self.devices:
            raise SimbaError(
                "config.batch_size", self.batch_size, f"a multiple of the {self.devices} devices"
            )

    @classmethod
    def paper(cls, *, seed: int = 0, **changes: Any) -> FitConfig:
        """Return the settings of the published experiments.

        Adam at a constant 1e-4, batches of 2, early stopping.

        References
        ----------
        Stanley et al. (2024), JAMIA 31:2613-2621.
        """
        published: dict[str, Any] = {
            "epochs": 100,
            "batch_size": 2,
            "learning_rate": 1e-4,
            "schedule": "constant",
            "weight_decay": 0.0,
        }
        return cls(**(published | {"patience": 10, "seed": seed} | changes))

    def replace(self, **changes: Any) -> FitConfig:
        """Return the settings with some of them changed, validated anew."""
        known_fields("config", changes, [entry.name for entry in dataclasses.fields(self)])
        return dataclasses.replace(self, **changes)
