"""Sweep: factorial experiments over scenario, network, settings and mitigation, with seeds; cached, resumable, parallel."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from joblib import Parallel, delayed
from tqdm.auto import tqdm

from simba_lab.core.compute import deterministic
from simba_lab.core.errors import SimbaError, UnknownNameError
from simba_lab.core.files import atomic_write, read_json, read_yaml, write_json
from simba_lab.experiments.judging import judge, judge_version
from simba_lab.interpretation.interventions.encoding_against_use import (
    encoding_and_use,
    encoding_version,
)
from simba_lab.synthesis.anatomy.template import load_template
from simba_lab.synthesis.effects import CLASSES, Effect, Morphology
from simba_lab.synthesis.observer import matched
from simba_lab.synthesis.rendering.studio import studio
from simba_lab.synthesis.scenario import Scenario
from simba_lab.synthesis.synthetic_cohort import SyntheticCohort, synthesise
from simba_lab.training.config import FitConfig
from simba_lab.training.fitting import fit
from simba_lab.training.identity import cache_folder, code_version, sources_digest
from simba_lab.training.mitigation.methods import mitigation_from
from simba_lab.training.networks import ResNet3D, SimBANet

NETWORKS = {"SimBANet": SimBANet, "SimBANet.paper": SimBANet.paper, "ResNet3D": ResNet3D}
# Looking inside takes new subjects, some of the test subjects, and untrained networks.
AUDIENCE, AUDIENCE_SEED, TWINS, UNTRAINED = 300, 10_000, 120, 2
# The first word of a field that an axis may set, and what follows it.
FIELDS = {
    "scenario": "a field of the scenario, such as scenario.bias.amplitude_mm",
    "config": "a field of FitConfig, such as config.epochs",
    "network": "name or an option of the network, such as network.widths",
    "mitigation": "nothing; values are names or mappings, as for fit",
    "prevalence": "a bias; values are P(bias group) in the disease class, one less that among controls",
    "d_prime": "a bias; values are the salience that its amplitude or strength is matched to",
}


@dataclass(frozen=True)
class Cell:
    """One experiment of a sweep: what to make, how to train, with which seed.

    Parameters
    ----------
    levels : dict
        Axis to value, as the table shows them.
    scenario : Scenario
    d_prime : dict
        Bias to the salience that it is to be matched to.
    network : dict
        ``name`` and options.
    config : FitConfig
    mitigation : dict, optional
    seed : int
        Of the cohort, the first weights and the batch order.
    inside : bool
        Whether to look inside the network too.
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
        parts = [
            self.scenario.to_dict(),
            self.d_prime,
            self.network,
            dataclasses.asdict(self.config),
            self.mitigation,
        ]
        return _digest(
            [*parts, self.seed, code_version(), _row_version(self.inside), torch.__version__]
        )

    def __str__(self) -> str:
        return ", ".join(
            f"{name} {value}" for name, value in {**self.levels, "seed": self.seed}.items()
        )


@dataclass(frozen=True)
class Sweep:
    """A factorial experiment: every combination of the axes, with every seed.

    Parameters
    ----------
    scenario : Scenario
        What all cells start from.
    axes : mapping of str to sequence or mapping
        A field (``scenario.bias.amplitude_mm``, ``config.epochs``, ``network.widths``,
        ``mitigation``, ``prevalence.bias``, ``d_prime.bias``) and its values; or any other name,
        and for each level of it a mapping of fields to values that are set together.
    seeds : sequence of int
        Of the cohort, the first weights and the batch order: with another seed everything is drawn
        anew.
    config : FitConfig
        Its seed is replaced. One thread each is fastest for many small networks.
    network : mapping
        ``name`` (SimBANet, SimBANet.paper or ResNet3D) and options.
    inside : bool
        Whether to measure for each layer and bias what is encoded there and what is used
        (`encoding_and_use`). It takes about as long again; mitigations that make several networks
        have no inside.

    Raises
    ------
    SimbaError
        If any cell is not valid: all are checked before the first is run.

    Examples
    --------
    >>> sweep = Sweep(scenario, {"prevalence.bias": [0.5, 0.8], "mitigation": ["none", "reweighing"]})  # doctest: +SKIP
    >>> table = sweep.run(progress=True)  # doctest: +SKIP
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
            if not isinstance(levels, Mapping):
                _check_field(name, f"sweep.axes[{name!r}]")
                if isinstance(levels, str) or not isinstance(levels, Sequence):
                    raise SimbaError(
                        f"sweep.axes[{name!r}]", levels, "a list of values, or a mapping of levels"
                    )
            if not len(levels):
                raise SimbaError(f"sweep.axes[{name!r}]", levels, "with at least one value")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise SimbaError("sweep.seeds", list(self.seeds), "different integers, at least one")
        self.cells()  # every mistake is found now

    def cells(self) -> list[Cell]:
        """Return all cells, those of one seed together."""
        levels = [
            list(values.items())
            if isinstance(values, Mapping)
            else [(value, {name: value}) for value in values]
            for name, values in self.axes.items()
        ]
        cells = []
        for seed in self.seeds:
            for combination in product(*levels):
                shown = {
                    name: value for name, (value, _) in zip(self.axes, combination, strict=True)
                }
                fields: dict[str, Any] = {}
                for axis, (_, several) in zip(self.axes, combination, strict=True):
                    for name in several:
                        if name in fields:
                            raise SimbaError(
                                f"sweep.axes[{axis!r}]", name, "a field that no other axis sets"
                            )
                    fields |= several
                cells.append(self._cell(shown, fields, seed))
        return cells

    def _cell(self, shown: dict[str, Any], fields: Mapping[str, Any], seed: int) -> Cell:
        scenario, config = self.scenario.to_dict(), dataclasses.asdict(self.config) | {"seed": seed}
        network, mitigation, d_prime = dict(self.network), None, {}
        places = {name: _check_field(name, "sweep.axes") for name in fields}
        # The whole before its parts, in whatever order the axes come: an effect before its
        # prevalence.
        for name in sorted(
            fields, key=lambda name: (places[name][0] != "scenario", len(places[name][1]))
        ):
            value, (head, path) = fields[name], places[name]
            if head == "scenario":
                _put(scenario, path, value, name)
            elif head == "prevalence":
                if (
                    isinstance(value, bool)
                    or not isinstance(value, int | float)
                    or not 0 <= value <= 1
                ):
                    raise SimbaError(name, value, "in [0, 1]", "It is P(bias group | disease).")
                rates = dict(zip(CLASSES, (1 - value, value), strict=True))
                _put(scenario, _of_bias(self.scenario, path, name, "prevalence"), rates, name)
            elif head == "d_prime":
                _of_bias(self.scenario, path, name, "")
                if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
                    raise SimbaError(name, value, "a number above 0")
                d_prime[path[0]] = float(value)
            elif head == "config":
                if path[0] not in config:
                    raise UnknownNameError.among(name, path[0], config)
                config[path[0]] = value
            elif head == "network":
                network[path[0]] = value
            else:
                made = mitigation_from(value)
                mitigation = made and made.to_dict()
        made = Scenario.from_dict(scenario)
        for bias, effect in made.effects.items():
            if (
                isinstance(effect, Morphology)
                and effect.region not in load_template(made.template).regions
            ):
                raise UnknownNameError.among(
                    f"scenario.{bias}.region", effect.region, load_template(made.template).regions
                )
        _network(network, seed)
        if self.inside and mitigation and mitigation["name"] == "group_models":
            raise SimbaError(
                "sweep.inside",
                True,
                "False with group_models",
                "These are two networks, each for its own group.",
            )
        return Cell(
            shown, made, d_prime, network, FitConfig(**config), mitigation, seed, self.inside
        )

    def run(
        self,
        *,
        n_jobs: int = -1,
        cache: str | Path | bool = True,
        memory_gb: float = 4.0,
        progress: bool = False,
    ) -> pd.DataFrame:
        """Run all cells that were not run before, and return one row per cell.

        Parameters
        ----------
        n_jobs : int
            Processes (joblib's convention: -1 is one per core), or workers of the joblib backend
            that is active: with ``joblib.parallel_backend("ray")`` those of a cluster. The numbers
            do not depend on it.
        cache : bool or path
            Where rows and networks are kept: True for the user's cache folder. An interrupted sweep
            goes on from there.
        memory_gb : float
            For the volumes of each process, as for `fit`.
        progress : bool
            Whether to show progress and the time left.

        Returns
        -------
        pandas.DataFrame
            The axes and ``seed``; for each bias its ``size`` (amplitude in mm, or strength); then
            what `judge` measured, and the columns of `encoding_and_use`, if asked, after
            ``bias.layer.`` (see `layers_of`).

        Raises
        ------
        SimbaError
            If cells failed: the message names the first of them. All others have been run and kept.
        """
        cells = self.cells()
        root = cache if isinstance(cache, bool) else Path(cache)
        matches = dict.fromkeys(match for cell in cells for match in _matches(cell).values())
        with Parallel(n_jobs=n_jobs) as jobs:
            found = _in_parallel(
                jobs, _matched, [(match, root) for match in matches], progress, "matching"
            )
            factor = dict(zip(matches, found, strict=True))
            factors = [
                {bias: factor[match] for bias, match in _matches(cell).items()} for cell in cells
            ]
            arguments = [
                (cell, own, root, memory_gb) for cell, own in zip(cells, factors, strict=True)
            ]
            rows = _in_parallel(jobs, _row, arguments, progress, "cells")
        failed = [
            (cell, row) for cell, row in zip(cells, rows, strict=True) if isinstance(row, str)
        ]
        if failed:
            raise SimbaError(
                f"sweep: {len(failed)} of {len(cells)} cells",
                str(failed[0][0]),
                "possible to run",
                f"{failed[0][1]} The other cells are kept; run again after mending this.",
            )
        return pd.DataFrame(
            [
                {**cell.levels, "seed": cell.seed} | row
                for cell, row in zip(cells, rows, strict=True)
            ]
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the sweep as plain dictionaries, lists and numbers."""
        axes = {
            name: {level: dict(fields) for level, fields in values.items()}
            if isinstance(values, Mapping)
            else list(values)
            for name, values in self.axes.items()
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
        if not isinstance(values, Mapping):
            raise SimbaError("sweep", values, "a mapping of field names to values")
        known = [entry.name for entry in dataclasses.fields(cls)]
        for name in values:
            if name not in known:
                raise UnknownNameError.among(f"sweep.{name}", name, known)
        for name in ("scenario", "axes"):
            if not isinstance(values.get(name), Mapping):
                raise SimbaError(f"sweep.{name}", values.get(name), "a mapping")
        arguments = dict(values) | {"scenario": Scenario.from_dict(values["scenario"])}
        if "config" in values:
            names = [entry.name for entry in dataclasses.fields(FitConfig)]
            for name in values["config"]:
                if name not in names:
                    raise UnknownNameError.among(f"sweep.config.{name}", name, names)
            arguments["config"] = FitConfig(**({"threads": 1} | dict(values["config"])))
        return cls(**arguments)

    @classmethod
    def from_yaml(cls, path: str | Path) -> Sweep:
        """Read a sweep from a YAML file."""
        return cls.from_dict(read_yaml(path, "sweep", examples="data/sweeps/"))

    def save(self, table: pd.DataFrame, folder: str | Path, *, seconds: float) -> None:
        """Write the table of a run (CSV) and what it follows from (``manifest.json``) to a folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        text = table.to_csv(index=False, float_format="%.6g", lineterminator="\n")
        manifest = {
            "cells": len(table),
            "cells_sha256": hashlib.sha256(text.encode()).hexdigest(),
            "sweep": self.to_dict(),
            "fitting_code": code_version(),
            "judging_code": _row_version(self.inside),
            "torch": torch.__version__,
            "python": platform.python_version(),
            "processor": _processor(),
            "cores": os.cpu_count(),
            "minutes": round(seconds / 60, 1),
        }
        atomic_write(folder / "cells.csv", text)
        write_json(folder / "manifest.json", manifest)


def read_results(folder: str | Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Return the table and the manifest that `Sweep.save` wrote, after checking that they belong together."""
    folder = Path(folder)
    try:
        text = (folder / "cells.csv").read_bytes()
        manifest = read_json(folder / "manifest.json", "results")
        expected = manifest["cells_sha256"]
    except (OSError, KeyError, TypeError) as error:
        raise SimbaError(
            "results", str(folder), "a folder written by Sweep.save", f"It cannot be read: {error}"
        ) from error
    if hashlib.sha256(text).hexdigest() != expected:
        raise SimbaError(
            "results",
            str(folder),
            "as they were written",
            "cells.csv was changed since; run the sweep again.",
        )
    return pd.read_csv(folder / "cells.csv", keep_default_na=False, na_values=[""]), manifest


def _in_parallel(
    jobs: Parallel, function, arguments: list[tuple], progress: bool, unit: str
) -> list:
    """Call a function in parallel and return its results in order; shows the time left."""
    results: list = [None] * len(arguments)
    calls = [delayed(_numbered)(number, function, *each) for number, each in enumerate(arguments)]
    with tqdm(total=len(calls), disable=not progress or not calls, unit=unit, desc=unit) as bar:
        for number, result in _as_they_come(jobs, calls):
            results[number] = result
            bar.update()
    return results


def _as_they_come(jobs: Parallel, calls: list) -> Iterator[tuple[int, Any]]:
    # Not every backend hands results over as they come; a few rounds of calls at a time do on all
    # of them.
    size = 8 * max(1, jobs._effective_n_jobs())
    for start in range(0, len(calls), size):
        yield from jobs(calls[start : start + size])


def _numbered(number: int, function, *arguments: Any) -> tuple[int, Any]:
    return number, function(*arguments)


Match = tuple[Scenario, Effect, float]


def _matches(cell: Cell) -> dict[str, Match]:
    """Return what has to be matched for each bias of a cell: in which scenario, which effect, to which d'.

    Prevalence does not change how easily an effect is seen: cells that differ in it alone share a
    match.
    """
    plain = cell.scenario.replace(bias=None, subjects=1000)
    return {
        bias: (plain, dataclasses.replace(cell.scenario.biases[bias], prevalence=None), value)
        for bias, value in cell.d_prime.items()
    }


def _root(cache: Path | bool) -> Path | None:
    return None if cache is False else (cache_folder() if cache is True else cache)


def _matched(match: Match, cache: Path | bool) -> float:
    """Return the factor by which an effect has to be scaled."""
    scenario, effect, value = match
    size = "amplitude_mm" if isinstance(effect, Morphology) else "strength"

    def compute() -> dict[str, float]:
        return {
            "factor": getattr(matched(effect, d_prime=value, scenario=scenario), size)
            / getattr(effect, size)
        }

    return _remembered(
        _root(cache), _digest([repr(scenario), repr(effect), value, code_version()]), compute
    )["factor"]


def _row(
    cell: Cell, factors: dict[str, float], cache: Path | bool, memory_gb: float = 4.0
) -> dict[str, Any] | str:
    """Return the row of a cell, or why there is none."""

    def compute() -> dict[str, Any]:
        biases = {
            name: effect.scaled(factors[name]) if name in factors else effect
            for name, effect in cell.scenario.biases.items()
        }
        several = isinstance(cell.scenario.bias, Mapping)
        scenario = cell.scenario.replace(bias=biases if several else biases.get("bias"))
        cohort = synthesise(scenario, seed=cell.seed)
        start = time.perf_counter()
        with deterministic(cell.config.threads):
            model = _network(cell.network, cell.seed)
            run = fit(
                model,
                cohort,
                cell.config,
                mitigation=cell.mitigation,
                cache=cache,
                memory_gb=memory_gb,
            )
            found = judge(run.model, cohort.test)
            if cell.inside:
                found |= _inside(run.model, cell, cohort)
        sizes = {
            f"{name}.size" if several else "size": _size(effect) for name, effect in biases.items()
        }
        kept = run.history.index[run.history["kept"]]
        return (
            sizes
            | found
            | {"kept_epoch": int(kept[0]), "seconds": round(time.perf_counter() - start, 1)}
        )

    try:
        return _remembered(_root(cache), cell.key, compute)
    except SimbaError as error:
        return str(error)
    finally:
        studio.cache_clear()  # volumes of this cell serve no other; workers that grow are replaced, which takes long


def _inside(model: torch.nn.Module, cell: Cell, cohort: SyntheticCohort) -> dict[str, float]:
    """Return what is encoded and what is used, for each bias and layer."""
    # Seeds far from those of sweeps: neither subjects nor first weights are those of another cell.
    audience = synthesise(
        cohort.scenario.unbiased().replace(subjects=AUDIENCE), seed=AUDIENCE_SEED + cell.seed
    )
    test = cohort.test.where(np.arange(min(TWINS, len(cohort.test))))
    untrained = [_network(cell.network, AUDIENCE_SEED + number) for number in range(UNTRAINED)]
    found = {}
    for bias in cohort.biases:
        table = encoding_and_use(
            model, audience, test, bias=bias, untrained=untrained, seed=cell.seed
        )
        for layer, row in table.iterrows():
            found |= {f"{bias}.{layer}.{column}": float(value) for column, value in row.items()}
    return found


def layers_of(table: pd.DataFrame) -> pd.DataFrame:
    """Return the columns that a sweep with ``inside`` noted, one row per cell, bias and layer.

    Parameters
    ----------
    table : pandas.DataFrame
        From `Sweep.run` or `read_results`.

    Returns
    -------
    pandas.DataFrame
        ``bias``, ``layer``, the axes and ``seed``, then the columns of `encoding_and_use`.
    """
    inside = [str(name).rsplit(".", 2) for name in table if str(name).endswith(".above_floor")]
    if not inside:
        raise SimbaError("table", "without columns of layers", "of a sweep with inside: true")
    axes = list(table.columns[: list(table.columns).index("seed") + 1])
    parts = []
    for bias, layer, _ in inside:
        start = f"{bias}.{layer}."
        own = {name: name.removeprefix(start) for name in table if str(name).startswith(start)}
        part = table[[*axes, *own]].rename(columns=own)
        part.insert(0, "bias", bias)
        part.insert(1, "layer", layer)
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


@cache
def _row_version(inside: bool = False) -> str:
    """Return a digest of the code that makes a row of a run: this module, what judges, and what looks inside."""
    return _digest(
        [sources_digest([Path(__file__)]), judge_version(), encoding_version() if inside else ""]
    )[:16]


def _size(effect) -> float:
    return float(effect.amplitude_mm if isinstance(effect, Morphology) else effect.strength)


def _remembered(root: Path | None, key: str, compute) -> dict[str, Any]:
    if root is None:
        return compute()
    path = root / "cells" / f"{key}.json"
    if path.exists():
        return read_json(path, "cache")
    found = compute()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, found)
    return found


def _network(options: Mapping[str, Any], seed: int) -> torch.nn.Module:
    options = dict(options)
    name = options.pop("name", "SimBANet")
    if name not in NETWORKS:
        raise UnknownNameError.among("network.name", name, NETWORKS)
    if "widths" in options:
        options["widths"] = tuple(options["widths"])
    try:
        return NETWORKS[name](**options, seed=seed)
    except TypeError as error:
        raise SimbaError("network", options, f"options of {name}", str(error)) from error


def _check_field(name: str, where: str) -> tuple[str, list[str]]:
    head, *path = str(name).split(".")
    if head not in FIELDS:
        raise UnknownNameError.among(where, name, FIELDS)
    if (head == "mitigation") != (not path):
        raise SimbaError(where, name, f"{head}, followed by {FIELDS[head]}")
    return head, path


def _of_bias(scenario: Scenario, path: list[str], name: str, last: str) -> list[str]:
    """Return where a bias is in the dictionary of a scenario."""
    if path[0] not in scenario.biases:
        raise UnknownNameError.among(name, path[0], scenario.biases)
    return ["bias", *(path if isinstance(scenario.bias, Mapping) else []), last]


def _put(values: dict, path: list[str], value: Any, name: str) -> None:
    """Set a nested entry; its parents exist, and what it may be called is checked when the scenario is built."""
    for part in path[:-1]:
        if not isinstance(values.get(part), Mapping):
            raise UnknownNameError.among(name, part, values)
        values[part] = dict(values[part])
        values = values[part]
    values[path[-1]] = value


def _digest(parts: object) -> str:
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
