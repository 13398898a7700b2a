"""Which settings train a network fastest on this machine."""

from __future__ import annotations

import time
from itertools import product

import numpy as np
import pandas as pd
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from simba_lab.core.checks import whole_number
from simba_lab.core.cohort import Cohort
from simba_lab.core.compute import deterministic, laid_out
from simba_lab.core.errors import SimbaError
from simba_lab.core.network_adapter import copied, trainable, with_gradients
from simba_lab.training.config import FitConfig, Precision
from simba_lab.training.networks import logit

# The other precisions of FitConfig need scaling, or lose too much.
PRECISIONS: tuple[Precision, ...] = ("32-true", "bf16-mixed")
WARM_UP_STEPS = 2


@with_gradients()
def fastest(
    model: torch.nn.Module, cohort: Cohort, config: FitConfig | None = None, *, steps: int = 6
) -> tuple[FitConfig, pd.DataFrame]:
    """Return the settings with which a network trains fastest here, and how long each takes.

    Precisions and memory layouts are measured. Settings whose network, hardware or arithmetic
    fails, or whose loss is not finite, are left out. A fit with the returned settings is as
    repeatable as any.

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

    Raises
    ------
    SimbaError
        If the network cannot be trained on these volumes with any of the settings.

    Examples
    --------
    >>> import simba_lab as sb
    >>> scenario = sb.Scenario(
    ...     64, sb.Morphology("Insula_L", 2.5), sb.Morphology("Putamen_L", 2.5), spacing_mm=8
    ... )
    >>> cohort = sb.synthesise(scenario)
    >>> config, table = sb.training.fastest(sb.SimBANet((4, 8)), cohort, steps=1)
    >>> list(table.columns), len(table)
    (['precision', 'channels_last', 'ms_per_volume'], 4)
    """
    config = config or FitConfig()
    whole_number("steps", steps)
    subjects = cohort.train.where(np.arange(min(config.batch_size, len(cohort.train))))
    volumes = torch.from_numpy(subjects.arrays())[:, None]
    labels = torch.from_numpy(subjects["label"].astype(np.float32))
    rows = []
    for precision, channels_last in product(PRECISIONS, (True, False)):
        settings = config.replace(precision=precision, channels_last=channels_last)
        try:
            seconds = _seconds_per_step(model, volumes, labels, settings, steps)
        except (RuntimeError, ValueError):
            seconds = np.nan
        rows.append((precision, channels_last, 1e3 * seconds / len(subjects)))
    table = pd.DataFrame(rows, columns=["precision", "channels_last", "ms_per_volume"])
    if table["ms_per_volume"].isna().all():
        allowed = "a network that can be trained on these volumes"
        raise SimbaError("model", type(model).__name__, allowed)
    precision, channels_last, _ = rows[int(table["ms_per_volume"].idxmin())]
    return config.replace(precision=precision, channels_last=channels_last), table


def _seconds_per_step(
    model: torch.nn.Module,
    volumes: torch.Tensor,
    labels: torch.Tensor,
    config: FitConfig,
    steps: int,
) -> float:
    from lightning_fabric import Fabric  # slow to import

    fabric = Fabric(accelerator=config.accelerator, devices=1, precision=config.precision)
    layout = torch.channels_last_3d if config.channels_last else torch.contiguous_format
    with deterministic(config.threads), torch.random.fork_rng():
        body = laid_out(copied(trainable(model)), layout)
        optimiser = torch.optim.AdamW(body.parameters(), lr=config.learning_rate)
        network, optimiser = fabric.setup(body, optimiser)
        network.train()
        volumes = fabric.to_device(volumes).contiguous(memory_format=layout)
        labels = fabric.to_device(labels)
        times = []
        for _ in range(WARM_UP_STEPS + steps):
            start = time.perf_counter()
            logits = logit(network(volumes)).float()
            loss = binary_cross_entropy_with_logits(logits, labels)
            optimiser.zero_grad()
            fabric.backward(loss)
            optimiser.step()
            if not np.isfinite(loss.item()):  # also waits for the device
                raise ValueError("loss is not finite")
            times.append(time.perf_counter() - start)
    return float(np.median(times[WARM_UP_STEPS:]))
