"""Which settings train a network fastest on this machine."""

from __future__ import annotations

import copy
import time
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from simba_lab.core.compute import deterministic
from simba_lab.core.errors import SimbaError
from simba_lab.training.config import FitConfig
from simba_lab.training.networks import logit

if TYPE_CHECKING:
    from simba_lab.core.cohort import Cohort


def fastest(
    model: torch.nn.Module, cohort: Cohort, config: FitConfig | None = None, *, steps: int = 6
) -> tuple[FitConfig, pd.DataFrame]:
    """Measure which precision and memory layout train a network fastest here, and return settings with them.

    Settings whose network, hardware or arithmetic fails, or whose loss is not finite, are left out.
    The settings are then fixed: a fit with them is as repeatable as any.

    Parameters
    ----------
    model, cohort, config
        As for `fit`.
    steps : int
        Timed steps of each setting, after two for warming up.

    Returns
    -------
    FitConfig
        `config` with the fastest `precision` and `channels_last`.
    pandas.DataFrame
        One row per setting: ``precision``, ``channels_last``, ``ms_per_volume`` (median; NaN if it
        does not work).
    """
    config = config or FitConfig()
    rows = []
    few = cohort.train.where(np.arange(min(config.batch_size, len(cohort.train))))
    volumes = torch.from_numpy(few.arrays())[:, None]
    labels = torch.from_numpy(few["label"].astype(np.float32))
    for precision in ("32-true", "bf16-mixed"):
        for channels_last in (True, False):
            try:
                seconds = _timed(model, volumes, labels, config, precision, channels_last, steps)
            except (RuntimeError, ValueError):
                seconds = np.nan
            rows.append(
                {
                    "precision": precision,
                    "channels_last": channels_last,
                    "ms_per_volume": 1e3 * seconds / len(few),
                }
            )
    table = pd.DataFrame(rows)
    if table["ms_per_volume"].isna().all():
        raise SimbaError(
            "model", type(model).__name__, "a network that can be trained on these volumes"
        )
    best = table.loc[table["ms_per_volume"].idxmin()]
    return config.replace(
        precision=best["precision"], channels_last=bool(best["channels_last"])
    ), table


def _timed(
    model, volumes, labels, config: FitConfig, precision: str, channels_last: bool, steps: int
) -> float:
    from lightning_fabric import Fabric  # slow to import

    fabric = Fabric(accelerator=config.accelerator, devices=1, precision=precision)
    layout = torch.channels_last_3d if channels_last else torch.contiguous_format
    with deterministic(config.threads), torch.random.fork_rng():
        body = copy.deepcopy(model).to(memory_format=layout)
        network, optimiser = fabric.setup(
            body, torch.optim.AdamW(body.parameters(), lr=config.learning_rate)
        )
        network.train()
        x, y = fabric.to_device(volumes).contiguous(memory_format=layout), fabric.to_device(labels)
        times = []
        for _ in range(steps + 2):
            start = time.perf_counter()
            loss = torch.nn.functional.binary_cross_entropy_with_logits(
                logit(network(x)).float(), y
            )
            optimiser.zero_grad()
            fabric.backward(loss)
            optimiser.step()
            if not np.isfinite(loss.item()):  # also waits for the device
                raise ValueError("loss is not finite")
            times.append(time.perf_counter() - start)
    return float(np.median(times[2:]))
