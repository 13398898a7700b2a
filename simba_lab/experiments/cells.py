"""Cells: one experiment of a sweep, and the row of results that it gives."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from simba_lab.core.border import checks_arguments
from simba_lab.core.compute import deterministic
from simba_lab.core.errors import SimbaError
from simba_lab.core.fingerprint import code_fingerprint, fingerprint
from simba_lab.core.remember import remembered
from simba_lab.experiments.judging import judge
from simba_lab.interpretation.interventions.encoding_against_use import encoding_and_use
from simba_lab.synthesis.effects import Effect, Morphology
from simba_lab.synthesis.observer import matched
from simba_lab.synthesis.rendering.renderer import clear_cache
from simba_lab.synthesis.scenario import Scenario
from simba_lab.synthesis.synthetic_cohort import SyntheticCohort, synthesise
from simba_lab.training.config import FitConfig
from simba_lab.training.fitting import fit
from simba_lab.training.networks import network_from

# Looking inside takes new subjects, some of the test subjects, and untrained networks. The seeds
# are far from those of sweeps: no other cell has these subjects or these first weights.
AUDIENCE, AUDIENCE_SEED, TWINS, UNTRAINED = 300, 10_000, 120, 2

# What a table shows of a cell, and its row does not depend on.
NOT_OF_A_ROW = ("levels",)
# A scenario, an effect in it, and the d' that the effect is to be matched to.
Match = tuple[Scenario, Effect, float]


@checks_arguments
@dataclass(frozen=True)
class Cell:
    """One experiment of a sweep: what to make, how to train, with which seed.

    Parameters
    ----------
    levels : dict
        Axis to value, as the table shows them.
    scenario : Scenario
    d_prime : dict
        Bias to the salience that it is matched to.
    network : dict
        ``name`` and options.
    config : FitConfig
    mitigation : dict, optional
    seed : int
        Of the cohort, the first weights and the batch order.
    inside : bool
        Whether to look inside the network too.

    Examples
    --------
    >>> import simba_lab as sb
    >>> scenario = sb.Scenario(64, sb.Morphology("Insula_L", 2.5), sb.Morphology("Putamen_L", 2.5))
    >>> str(sb.Sweep(scenario, {"prevalence.bias": [0.9]}, seeds=(3,)).cells()[0])
    'prevalence.bias 0.9, seed 3'
    """

    levels: dict[str, Any]
    scenario: Scenario
    d_prime: dict[str, float]
    network: dict[str, Any]
    config: FitConfig
    mitigation: dict[str, Any] | None
    seed: int
    inside: bool = False

    @property
    def key(self) -> str:
        """Digest of all that the row of the cell follows from."""
        settings = {name: vars(self)[name] for name in vars(self) if name not in NOT_OF_A_ROW}
        settings |= {"scenario": self.scenario.to_dict(), "config": dataclasses.asdict(self.config)}
        return fingerprint(settings, row_code(self.inside), torch.__version__)

    def __str__(self) -> str:
        levels = {**self.levels, "seed": self.seed}
        return ", ".join(f"{name} {value}" for name, value in levels.items())


def matches_of(cell: Cell) -> dict[str, Match]:
    """Return for each bias of a cell what is to be matched: scenario, effect and d'.

    Prevalence does not change how easily an effect is seen, so cells that differ in prevalence
    alone share a match.
    """
    plain = cell.scenario.replace(bias=None, subjects=1000)
    return {
        bias: (plain, dataclasses.replace(cell.scenario.biases[bias], prevalence=None), d_prime)
        for bias, d_prime in cell.d_prime.items()
    }


def scale_of(match: Match, root: Path | None) -> float:
    """Return the factor that gives an effect the wanted d'; `root` is the cache folder, if any."""
    scenario, effect, d_prime = match

    def compute(_: Path | None) -> dict[str, float]:
        sized = matched(effect, d_prime=d_prime, scenario=scenario)
        return {"factor": _size(sized) / _size(effect)}

    key = fingerprint(scenario, effect, d_prime, code_fingerprint(matched))
    return remembered("scales", key, compute, cache=root or False)["factor"]


def row_of(
    cell: Cell, scales: Mapping[str, float], root: Path | None, memory_gb: float = 4.0
) -> dict[str, Any] | str:
    """Return the row of a cell, or the message of the error that it raised.

    Parameters
    ----------
    cell : Cell
    scales : mapping of bias to float
        From `scale_of`.
    root : path, optional
        Cache folder for rows and networks.
    memory_gb : float
        For volumes, as for `fit`.
    """
    try:
        return remembered(
            "cells", cell.key, lambda _: _run(cell, scales, root, memory_gb), cache=root or False
        )
    except SimbaError as error:
        return str(error)
    finally:
        # No other cell needs these volumes, and joblib replaces workers whose memory grows.
        clear_cache()


def _run(
    cell: Cell, scales: Mapping[str, float], root: Path | None, memory_gb: float
) -> dict[str, Any]:
    biases = {
        name: effect.scaled(scales[name]) if name in scales else effect
        for name, effect in cell.scenario.biases.items()
    }
    is_named = isinstance(cell.scenario.bias, Mapping)
    scenario = cell.scenario.replace(bias=biases if is_named else biases.get("bias"))
    cohort = synthesise(scenario, seed=cell.seed)
    start = time.perf_counter()
    with deterministic(cell.config.threads):
        run = fit(
            network_from(cell.network, seed=cell.seed),
            cohort,
            cell.config,
            mitigation=cell.mitigation,
            cache=root or False,
            memory_gb=memory_gb,
        )
        measures = judge(run.model, cohort.test)
        if cell.inside:
            measures |= _look_inside(run.model, cell, cohort)
    sizes = {f"{name}.size" if is_named else "size": _size(biases[name]) for name in biases}
    kept_epoch = int(run.history.index[run.history["kept"]][0])
    seconds = round(time.perf_counter() - start, 1)
    return sizes | measures | {"kept_epoch": kept_epoch, "seconds": seconds}


def _look_inside(model: torch.nn.Module, cell: Cell, cohort: SyntheticCohort) -> dict[str, float]:
    """Return what is encoded and what is used, for each bias and layer."""
    unbiased = cohort.scenario.unbiased().replace(subjects=AUDIENCE)
    audience = synthesise(unbiased, seed=AUDIENCE_SEED + cell.seed)
    test = cohort.test.where(np.arange(min(TWINS, len(cohort.test))))
    untrained = [
        network_from(cell.network, seed=AUDIENCE_SEED + number) for number in range(UNTRAINED)
    ]
    columns: dict[str, float] = {}
    for bias in cohort.biases:
        table = encoding_and_use(
            model, audience, test, effect=bias, untrained=untrained, seed=cell.seed
        )
        for layer, row in table.iterrows():
            columns |= {f"{bias}.{layer}.{name}": float(value) for name, value in row.items()}
    return columns


def row_code(inside: bool = False) -> str:
    """Return a digest of the code that makes a row; what looks inside counts where it is used."""
    return code_fingerprint(__name__, leave_out=() if inside else ("simba_lab.interpretation",))


def _size(effect: Effect) -> float:
    return float(effect.amplitude_mm if isinstance(effect, Morphology) else effect.strength)
