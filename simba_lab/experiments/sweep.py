"""Sweep: factorial experiments over scenario, network, settings and mitigation, with seeds."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd

from simba_lab.core.border import checks_arguments
from simba_lab.core.checks import (
    MOST_CELLS,
    built,
    known_fields,
    mapping,
    seed_number,
    whole_number,
    workers,
)
from simba_lab.core.errors import SimbaError, UnknownNameError
from simba_lab.core.files import cache_root
from simba_lab.core.yaml_files import read_yaml
from simba_lab.experiments.axes import Draft, split_field
from simba_lab.experiments.cells import Cell, matches_of, row_code, row_of, scale_of
from simba_lab.experiments.parallel import in_parallel, worker_processes
from simba_lab.experiments.results import save_results
from simba_lab.synthesis.anatomy.template import load_template
from simba_lab.synthesis.effects import Morphology
from simba_lab.synthesis.scenario import Scenario
from simba_lab.training.config import FitConfig
from simba_lab.training.networks import network_from


@checks_arguments
@dataclass(frozen=True)
class Sweep:
    """A factorial experiment: every combination of the axes, with every seed.

    Rows are cached, so that an interrupted sweep resumes, and computed in parallel.

    Parameters
    ----------
    scenario : Scenario
        What all cells start from.
    axes : mapping of str to sequence or mapping
        A field (``scenario.bias.amplitude_mm``, ``config.epochs``, ``network.widths``,
        ``mitigation``, ``prevalence.bias``, ``d_prime.bias``) and its values; or any other name,
        and for each of its levels a mapping of fields to values that are set together.
    seeds : sequence of int
        Of the cohort, the first weights and the batch order: another seed draws everything anew.
    config : FitConfig
        Its seed is replaced. One thread each is fastest for many small networks.
    network : mapping
        ``name`` (SimBANet, SimBANet.paper or ResNet3D) and options.
    inside : bool
        Whether to measure what is encoded and what is used, for each layer and bias
        (`encoding_and_use`). This doubles the time. Mitigations that make several networks have
        no inside.

    Raises
    ------
    SimbaError
        If any cell is not valid: all are checked before the first is run.

    Examples
    --------
    >>> import simba_lab as sb
    >>> scenario = sb.Scenario(64, sb.Morphology("Insula_L", 2.5), sb.Morphology("Putamen_L", 2.5))
    >>> axes = {"prevalence.bias": [0.5, 0.8], "mitigation": ["none", "reweighing"]}
    >>> sweep = sb.Sweep(scenario, axes, seeds=(0, 1))
    >>> print(len(sweep.cells()), sweep.cells()[0])
    8 prevalence.bias 0.5, mitigation none, seed 0
    """

    scenario: Scenario
    axes: Mapping[str, Sequence | Mapping[str, Mapping]]
    seeds: Sequence[int] = (0, 1, 2)
    config: FitConfig = field(default_factory=lambda: FitConfig(epochs=8, threads=1))
    network: Mapping[str, Any] = field(default_factory=lambda: {"name": "SimBANet"})
    inside: bool = False

    def __post_init__(self) -> None:
        if not self.axes:
            raise SimbaError("sweep.axes", dict(self.axes), "at least one axis")
        for name, levels in self.axes.items():
            axis = f"sweep.axes[{name!r}]"
            if not isinstance(levels, Mapping):
                split_field(name, axis)
                if isinstance(levels, str) or not isinstance(levels, Sequence):
                    raise SimbaError(axis, levels, "a list of values, or a mapping of levels")
            if not len(levels):
                raise SimbaError(axis, levels, "a list of at least one value")
        count = math.prod(len(levels) for levels in self.axes.values()) * len(self.seeds)
        whole_number("the number of cells", count, least=0, most=MOST_CELLS)
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise SimbaError("sweep.seeds", list(self.seeds), "different integers, at least one")
        for seed in self.seeds:
            seed_number("sweep.seeds", seed)
        self.cells()  # every mistake is found now

    def cells(self) -> list[Cell]:
        """Return all cells, those of one seed together."""
        levels = [
            list(values.items())
            if isinstance(values, Mapping)
            else [(value, {name: value}) for value in values]
            for name, values in self.axes.items()
        ]
        return [
            self._cell(dict(zip(self.axes, combination, strict=True)), seed)
            for seed in self.seeds
            for combination in product(*levels)
        ]

    def _cell(self, combination: Mapping[str, tuple[Any, Mapping[str, Any]]], seed: int) -> Cell:
        """Return the cell of one level of each axis: what the table shows, and what it sets."""
        values: dict[str, Any] = {}
        for axis, (_, settings) in combination.items():
            for name in settings:
                if name in values:
                    raise SimbaError(f"sweep.axes[{axis!r}]", name, "a field of no other axis")
            values |= settings
        draft = Draft(self.scenario, self.network, dataclasses.replace(self.config, seed=seed))
        draft.put_all(values)
        scenario = Scenario.from_dict(draft.scenario)
        _check_regions(scenario)
        network_from(draft.network, seed=seed)
        if self.inside and draft.mitigation and draft.mitigation["name"] == "group_models":
            remedy = "It trains a network for each group, so there is no single inside."
            raise SimbaError("sweep.inside", True, "False with group_models", remedy)
        return Cell(
            levels={axis: level for axis, (level, _) in combination.items()},
            scenario=scenario,
            d_prime=draft.d_prime,
            network=draft.network,
            config=FitConfig(**draft.config),
            mitigation=draft.mitigation,
            seed=seed,
            inside=self.inside,
        )

    def run(
        self,
        *,
        n_jobs: int = -1,
        cache: str | Path | bool = True,
        memory_gb: float = 4.0,
        progress: bool = False,
    ) -> pd.DataFrame:
        """Run all cells that are not cached, and return one row per cell.

        Parameters
        ----------
        n_jobs : int
            Processes (joblib's convention: -1 is one per core), or workers of the joblib backend
            that is active: with ``joblib.parallel_backend("ray")`` those of a cluster. The numbers
            do not depend on it.
        cache : bool or path
            Where rows and networks are kept: True for the user's cache folder. An interrupted sweep
            resumes from there.
        memory_gb : float
            For the volumes of each process, as for `fit`.
        progress : bool
            Whether to show progress and the time left.

        Returns
        -------
        pandas.DataFrame
            The axes and ``seed``; for each bias its ``size`` (amplitude in mm, or strength); what
            `judge` measures; with `inside` the columns of `encoding_and_use` after ``bias.layer.``
            (see `layers_of`).

        Raises
        ------
        SimbaError
            If cells failed: the message names the first of them. The rows of the others are kept.
        """
        cells, root = self.cells(), cache_root(cache)
        matches = dict.fromkeys(match for cell in cells for match in matches_of(cell).values())
        with worker_processes(workers("n_jobs", n_jobs, len(cells))) as jobs:
            matchings = [(match, root) for match in matches]
            factors = in_parallel(jobs, scale_of, matchings, progress=progress, unit="matching")
            scale = dict(zip(matches, factors, strict=True))
            scales = [
                {bias: scale[match] for bias, match in matches_of(cell).items()} for cell in cells
            ]
            arguments = [
                (cell, factors, root, memory_gb)
                for cell, factors in zip(cells, scales, strict=True)
            ]
            rows = in_parallel(jobs, row_of, arguments, progress=progress, unit="cells")
        failed = [number for number, row in enumerate(rows) if isinstance(row, str)]
        if failed:
            first = f"The first is {cells[failed[0]]}: {rows[failed[0]]}"
            raise SimbaError.problem(
                f"{len(failed)} of {len(cells)} cells failed. {first}",
                "Correct it and run again; the other cells are kept.",
            )
        return pd.DataFrame(
            [
                {**cell.levels, "seed": cell.seed} | row
                for cell, row in zip(cells, rows, strict=True)
            ]
        )

    def save(self, table: pd.DataFrame, folder: str | Path, *, seconds: float) -> None:
        """Write the table of a run and what it follows from to a new folder.

        `read_results` reads both.
        """
        provenance = {"sweep": self.to_dict(), "code": row_code(self.inside)}
        save_results(table, folder, provenance, seconds=seconds)

    def to_dict(self) -> dict[str, Any]:
        """Return the sweep as plain dictionaries, lists and numbers."""
        axes = {
            name: {level: dict(settings) for level, settings in levels.items()}
            if isinstance(levels, Mapping)
            else list(levels)
            for name, levels in self.axes.items()
        }
        config = dataclasses.asdict(self.config)
        del config["seed"]
        return {
            "scenario": self.scenario.to_dict(),
            "axes": axes,
            "seeds": list(self.seeds),
            "config": config,
            "network": dict(self.network),
            "inside": self.inside,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Sweep:
        """Build a sweep from what `to_dict` returns; unknown fields are errors."""
        known_fields("sweep", values, [entry.name for entry in dataclasses.fields(cls)])
        for name in {"scenario", "axes", *values} & {"scenario", "axes", "config", "network"}:
            mapping(f"sweep.{name}", values.get(name))
        arguments = {**values, "scenario": Scenario.from_dict(values["scenario"])}
        if "config" in values:
            names = [entry.name for entry in dataclasses.fields(FitConfig)]
            config = known_fields("sweep.config", values["config"], names)
            arguments["config"] = built(FitConfig, {"threads": 1, **config}, "sweep.config")
        return built(cls, arguments, "sweep")

    @classmethod
    def from_yaml(cls, path: str | Path) -> Sweep:
        """Read a sweep from a YAML file; examples are in ``data/sweeps/``."""
        return read_yaml(path, "sweep", cls.from_dict, examples="data/sweeps/")


def _check_regions(scenario: Scenario) -> None:
    regions = load_template(scenario.template).regions
    for name, effect in scenario.effects.items():
        if isinstance(effect, Morphology) and effect.region not in regions:
            raise UnknownNameError.among(f"scenario.{name}.region", effect.region, regions)
