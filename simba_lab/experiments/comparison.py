"""Comparison: strategies against subjects per site, on the same subjects, tuned alike."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from simba_lab.core.border import checks_arguments
from simba_lab.core.checks import (
    MOST_CELLS,
    below_one,
    built,
    choice,
    known_fields,
    mapping,
    seed_number,
    whole_number,
    workers,
)
from simba_lab.core.cohort import Cohort
from simba_lab.core.compute import deterministic
from simba_lab.core.errors import SimbaError
from simba_lab.core.files import cache_root
from simba_lab.core.fingerprint import code_fingerprint, fingerprint
from simba_lab.core.remember import remembered
from simba_lab.core.yaml_files import read_yaml
from simba_lab.experiments.parallel import in_parallel, worker_processes
from simba_lab.experiments.results import save_results
from simba_lab.federation.clients import LocalClient, SiteError, VisitConfig, Weights
from simba_lab.federation.federated_cohort import Federation, hospitals
from simba_lab.federation.journeys import local, travelling
from simba_lab.federation.sites import Site
from simba_lab.federation.steps import follow
from simba_lab.federation.strategies import fedavg, fedtm
from simba_lab.synthesis.scenario import Scenario
from simba_lab.training.metrics import evaluate
from simba_lab.training.networks import network_from
from simba_lab.training.predictions import logits

STRATEGIES = ("central", "travelling", "fedtm", "fedavg", "local")
LONG = "fedavg_long"
LOCAL_SITES = 12  # local networks are trained at these sites alone: all sites are alike


@checks_arguments
@dataclass(frozen=True)
class Comparison:
    """The same subjects over few large sites or many small ones, and each strategy on them.

    Every strategy sees every subject `passes` times. For each size and seed its learning rate is
    that of `learning_rates` with the largest AUROC on validation subjects. Test subjects are looked
    at once, with that rate.

    Parameters
    ----------
    scenario : Scenario
        Without bias: the comparison is of how well the disease is learnt.
    subjects : int
        Training subjects of all sites together; a multiple of twice each size.
    per_site : sequence of int
        Training subjects per site.
    strategies : sequence of str
        Of central, travelling, fedtm, fedavg and local. Central has one site with all subjects, and
        batches of at most `per_site` subjects: as many updates as the travelling model.
    passes : int
        Rounds, or cycles. FedTM spends a quarter of them as rounds, the others as cycles.
    learning_rates : sequence of float
    seeds : sequence of int
        Of the subjects, the first weights and the order of visits.
    network : mapping
        ``name`` and options.
    visit : VisitConfig
        Its learning rate is replaced.
    long : sequence of int
        Sizes for which a strategy ``fedavg_long`` is added: FedAvg until it has made as many
        updates as the travelling model. It makes `passes` times the number of sites.
    validation, test : int
        Held-out subjects.

    Raises
    ------
    SimbaError
        If a setting is unknown, or a size does not divide the subjects.

    Examples
    --------
    >>> import simba_lab as sb
    >>> scenario = sb.Scenario(16, sb.Morphology("Insula_L", 2.5))
    >>> comparison = sb.experiments.Comparison(scenario, subjects=12, per_site=(1, 3), seeds=(0,))
    >>> comparison.cells()[0]
    ('central', 1, 0)
    """

    scenario: Scenario
    subjects: int = 240
    per_site: Sequence[int] = (1, 2, 5, 10, 20)
    strategies: Sequence[str] = STRATEGIES
    passes: int = 20
    learning_rates: Sequence[float] = (0.01, 0.03, 0.1, 0.3)
    seeds: Sequence[int] = (0, 1, 2)
    network: Mapping[str, Any] = field(
        default_factory=lambda: {"name": "SimBANet", "norm": "group"}
    )
    visit: VisitConfig = field(
        default_factory=lambda: VisitConfig(optimiser="sgd", weight_decay=1e-4, threads=1)
    )
    long: Sequence[int] = ()
    validation: int = 100
    test: int = 400

    def __post_init__(self) -> None:
        for name in ("per_site", "strategies", "learning_rates", "seeds", "long"):
            values = getattr(self, name)
            if isinstance(values, str) or not isinstance(values, Sequence):
                raise SimbaError(f"comparison.{name}", values, "a list of values")
        whole_number("comparison.subjects", self.subjects, least=2)
        for name in ("validation", "test"):
            whole_number(f"comparison.{name}", getattr(self, name))
        whole_number("comparison.passes", self.passes, least=4)
        count = len(self.strategies) * len(self.per_site) * len(self.seeds)
        whole_number("the number of cells", count, least=0, most=MOST_CELLS)
        for seed in self.seeds:
            seed_number("comparison.seeds", seed)
        for rate in self.learning_rates:
            below_one("comparison.learning_rates", rate)
        network_from(self.network, field="comparison.network")  # unknown options are errors now
        for name in self.strategies:
            choice("comparison.strategies", name, STRATEGIES)
        for size in self.per_site:
            if self.subjects % (2 * whole_number("comparison.per_site", size)):
                allowed = f"a number whose double divides {self.subjects}, the subjects"
                remedy = "All sizes then have the same subjects."
                raise SimbaError("comparison.per_site", size, allowed, remedy)
        for size in self.long:
            if size not in self.per_site:
                raise SimbaError("comparison.long", size, f"one of per_site, {list(self.per_site)}")
        for name in ("per_site", "strategies", "learning_rates", "seeds"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise SimbaError(f"comparison.{name}", list(values), "at least one, and none twice")

    def federation(self, per_site: int, seed: int) -> Federation:
        """Return the sites of one size, with classes as even as the size allows."""
        count = self.subjects // per_site
        sick = [per_site // 2 + (per_site % 2) * (number % 2) for number in range(count)]
        width = len(str(count))
        sites = [
            Site(f"site-{number + 1:0{width}d}", per_site, share / per_site)
            for number, share in enumerate(sick)
        ]
        return hospitals(
            self.scenario, sites, validation=self.validation, test=self.test, seed=seed
        )

    def cells(self) -> list[tuple[str, int, int]]:
        """Return strategy, subjects per site and seed of every row, slow ones first."""
        cells = [
            (name, size, seed)
            for name in self.strategies
            for size in self.per_site
            for seed in self.seeds
        ]
        cells += [(LONG, size, seed) for size in self.long for seed in self.seeds]
        return sorted(cells, key=lambda cell: (cell[0] != LONG, cell[1]))

    def run(
        self, *, n_jobs: int = -1, cache: str | Path | bool = True, progress: bool = False
    ) -> pd.DataFrame:
        """Run all cells that are not cached, and return one row per cell.

        Parameters
        ----------
        n_jobs : int
            Processes; -1 is one per core. The numbers do not depend on it.
        cache : bool or path
            Where rows are kept: True for the user's cache folder. An interrupted call resumes from
            there.
        progress : bool
            Whether to show progress and the time left.

        Returns
        -------
        pandas.DataFrame
            ``strategy``, ``per_site``, ``seed``; ``sites``; ``updates``, the number of consecutive
            gradient steps; the chosen ``learning_rate`` and its ``validation`` AUROC; the columns
            of `evaluate` on test subjects. For ``local``: means over the first twelve sites.
        """
        root = cache_root(cache)
        arguments = [(self, cell, root) for cell in self.cells()]
        with worker_processes(workers("n_jobs", n_jobs, len(arguments))) as jobs:
            rows = in_parallel(jobs, _row_of, arguments, progress=progress, unit="cells")
        order = {name: place for place, name in enumerate([*self.strategies, LONG])}
        frame = pd.DataFrame(rows).sort_values(
            ["strategy", "per_site", "seed"], key=lambda column: column.map(order).fillna(column)
        )
        return frame.reset_index(drop=True)

    def row(self, strategy: str, per_site: int, seed: int) -> dict[str, Any]:
        """Return the row of a cell: the learning rate is chosen on validation subjects.

        Test subjects are looked at once, with the networks of that rate.
        """
        federation, start = self.federation(per_site, seed), time.perf_counter()
        with deterministic(self.visit.threads):
            networks = self._trained(strategy, federation, per_site, seed)
            scores = {
                rate: np.mean(
                    [
                        self._judged(weights, federation.validation)["auroc"]
                        for weights in networks_of_rate
                    ]
                )
                for rate, networks_of_rate in networks.items()
            }
            best = max(scores, key=lambda rate: scores[rate])
            tested = [self._judged(weights, federation.test) for weights in networks[best]]
        return {
            "strategy": strategy,
            "per_site": per_site,
            "seed": seed,
            "sites": 1 if strategy == "central" else len(federation.sites),
            "updates": self._updates(strategy, per_site),
            "learning_rate": best,
            "validation": float(scores[best]),
            **pd.DataFrame(tested).mean().drop("n").astype(float).to_dict(),
            "seconds": round(time.perf_counter() - start, 1),
        }

    def _trained(
        self, strategy: str, federation: Federation, per_site: int, seed: int
    ) -> dict[float, list[Weights]]:
        """Return the networks of each learning rate with which all weights stay finite."""
        networks = {}
        for rate in self.learning_rates:
            try:
                networks[rate] = self._train(strategy, federation, per_site, seed, rate)
            except SiteError as error:
                if error.__cause__:  # not a site's weights are bad, something else failed
                    raise
        if not networks:
            rates = ", ".join(f"{rate:g}" for rate in self.learning_rates)
            problem = f"With learning_rates {rates} no weights stay finite."
            raise SimbaError.problem(problem, "Add smaller ones.")
        return networks

    def _model(self, seed: int) -> torch.nn.Module:
        return network_from({**self.network, "seed": seed}, field="comparison.network")

    def _updates(self, strategy: str, per_site: int) -> int:
        epochs, passes = self.visit.epochs, self.passes
        if strategy == "central":
            batch_size = min(per_site, self.visit.batch_size)
            return epochs * passes * math.ceil(self.subjects / batch_size)
        batches = epochs * math.ceil(per_site / self.visit.batch_size)
        cycles = {"travelling": passes, LONG: passes, "fedtm": passes - passes // 4}
        travelled = cycles.get(strategy, 0)
        return batches * (passes - travelled + travelled * (self.subjects // per_site))

    def _train(
        self, strategy: str, federation: Federation, per_site: int, seed: int, rate: float
    ) -> list[Weights]:
        model, config = self._model(seed), dataclasses.replace(self.visit, learning_rate=rate)
        if strategy == "central":
            config = dataclasses.replace(config, batch_size=min(per_site, config.batch_size))
            clients = [LocalClient("all", model, federation.pooled, config)]
        else:
            names = federation.names[:LOCAL_SITES] if strategy == "local" else federation.names
            clients = [LocalClient(name, model, federation.at(name), config) for name in names]
        weights, passes = model.state_dict(), self.passes
        if strategy == "local":
            return list(local(clients, weights, cycles=passes, seed=seed).values())
        if strategy == "fedavg":
            steps = fedavg(clients, weights, rounds=passes, seed=seed)
        elif strategy == LONG:
            steps = fedavg(clients, weights, rounds=passes * len(clients), seed=seed)
        elif strategy == "fedtm":
            steps = fedtm(
                clients,
                weights,
                rounds=passes // 4,
                cycles=passes - passes // 4,
                least=1,
                seed=seed,
            )
        else:  # central is a travelling model with a single site
            steps = travelling(clients, weights, cycles=passes, seed=seed)
        return [follow(steps).weights]

    def _judged(self, weights: Weights, cohort: Cohort) -> pd.Series:
        model = self._model(0)
        model.load_state_dict(weights)
        answers = logits(model, cohort)
        if not np.isfinite(answers).all():  # the rate was too large: chance
            answers = np.zeros(len(cohort))
        return evaluate(answers, cohort, by=None).loc["all"]

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as plain dictionaries, lists and numbers."""
        values = {entry.name: getattr(self, entry.name) for entry in dataclasses.fields(self)}
        values |= {"scenario": self.scenario.to_dict(), "visit": dataclasses.asdict(self.visit)}
        return json.loads(json.dumps(values))

    @classmethod
    def from_yaml(cls, path: str | Path) -> Comparison:
        """Read a comparison from a YAML file; unknown fields are errors."""
        return read_yaml(path, "comparison", cls._from_dict, examples="data/comparisons/")

    @classmethod
    def _from_dict(cls, values: dict[str, Any]) -> Comparison:
        names = [entry.name for entry in dataclasses.fields(cls)]
        known_fields("comparison", values, names, needed=["scenario"])
        if "visit" in values:
            values["visit"] = VisitConfig.from_dict(values["visit"], "comparison.visit")
        scenario = Scenario.from_dict({"subjects": 16, **mapping("scenario", values["scenario"])})
        return built(cls, {**values, "scenario": scenario}, "comparison")

    def save(self, table: pd.DataFrame, folder: str | Path) -> None:
        """Write the table of a run and what it follows from to a new folder.

        `read_results` reads both. The minutes of the manifest are those of all rows, whenever they
        were run.
        """
        provenance = {"comparison": self.to_dict(), "code": code_fingerprint(__name__)}
        save_results(table, folder, provenance, seconds=float(table["seconds"].sum()))


def _row_of(
    comparison: Comparison, cell: tuple[str, int, int], root: Path | None
) -> dict[str, Any]:
    values = comparison.to_dict()
    for name in ("per_site", "strategies", "seeds", "long"):  # a row is the same beside any others
        del values[name]
    key = fingerprint(values, cell, code_fingerprint(__name__), torch.__version__)
    return remembered("comparisons", key, lambda _: comparison.row(*cell), cache=root or False)
