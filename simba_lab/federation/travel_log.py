"""Travel log: what a network encodes, uses and forgets after every round or visit."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.special import expit
from sklearn.metrics import log_loss

from simba_lab.core.border import checks_arguments
from simba_lab.core.checks import choice, whole_number
from simba_lab.core.cohort import TwinCohort
from simba_lab.core.network_adapter import copied, trainable
from simba_lab.federation.federated_cohort import Federation
from simba_lab.federation.steps import Step
from simba_lab.interpretation.probes.probing import probe
from simba_lab.interpretation.recording import record
from simba_lab.training.metrics import evaluate
from simba_lab.training.predictions import logits
from simba_lab.training.twin_effects import twin_table


@checks_arguments
class TravelLog:
    """Watches a training over many sites: give it to `follow`, then look at its tables.

    After each step the network sees held-out subjects of all sites (whose site says nothing about
    the disease), their twins with and without each bias, and the training subjects of some sites.

    Parameters
    ----------
    model : torch.nn.Module
        The architecture; a copy takes the weights of each step.
    federation : Federation
    cohort : TwinCohort, optional
        Held-out subjects to look at; ``federation.test`` by default.
    biases : sequence of str, optional
        The biases to follow; by default all but those that everybody carries, such as scanners.
    layers : sequence of str, optional
        As for `simba_lab.record`. An empty sequence omits the probes, which take most of the time.
    sites : sequence of str, optional
        Sites whose training subjects are shown; all by default. An empty sequence omits forgetting,
        which takes most of the remaining time.
    every : int
        Look after steps whose number is a multiple of this.

    Attributes
    ----------
    steps : pandas.DataFrame
        ``number``, ``phase``, ``sites``; ``auroc`` of the disease with interval; for each bias
        ``BIAS.effect``, the twin effect in logits, with interval.
    layers : pandas.DataFrame
        ``number``, ``layer``, ``target`` (``disease``, each bias, ``site``) and the ``auroc`` of a
        linear probe, with interval; within classes of the disease, except for the disease itself.
        The site is omitted if a site has fewer subjects than there are folds.
    sites : pandas.DataFrame
        ``number``, ``site``; ``loss``, the mean log loss on its training subjects; ``since``, steps
        since the site last trained, missing before the first time; ``forgotten``, the loss less
        that right after the site last trained.

    Examples
    --------
    >>> import simba_lab as sb
    >>> scenario = sb.Scenario(64, sb.Morphology("Insula_L", 2.5), spacing_mm=8)
    >>> sites = [sb.federation.Site("north", 6), sb.federation.Site("south", 4)]
    >>> federation = sb.federation.hospitals(scenario, sites, validation=4, test=4)
    >>> model = sb.SimBANet((2, 2), norm="group", seed=0)
    >>> log = sb.federation.TravelLog(model, federation, layers=[])
    >>> log(sb.federation.Step(1, "visit", ("north",), model.state_dict()))
    >>> list(log.sites)
    ['number', 'site', 'loss', 'since', 'forgotten']
    """

    def __init__(
        self,
        model: torch.nn.Module,
        federation: Federation,
        *,
        cohort: TwinCohort | None = None,
        biases: Sequence[str] | None = None,
        layers: Sequence[str] | None = None,
        sites: Sequence[str] | None = None,
        every: int = 1,
    ) -> None:
        whole_number("every", every)
        self.cohort = federation.test if cohort is None else cohort
        possible_biases = self.cohort.biases
        if biases is None:
            biases = [name for name in possible_biases if 0 < self.cohort[name].mean() < 1]
        for name in biases:
            choice("biases", name, possible_biases)
        self._model, self._layers, self._every = copied(trainable(model)).eval(), layers, every
        self._volumes = self.cohort.arrays()
        self._twins = {
            name: [self.cohort.twin(**{state: name}).arrays() for state in ("without", "carrying")]
            for name in biases
        }
        self._training = {}
        for name in federation.names if sites is None else sites:
            training = federation.at(name)
            self._training[name] = training, training.arrays()
        self._targets = {"disease": "label", **{name: name for name in biases}}
        counts = np.unique(self.cohort["site"], return_counts=True)[1]
        if len(counts) > 1 and counts.min() >= len(np.unique(self.cohort["fold"])):
            self._targets["site"] = "site"
        self._rows: dict[str, list[dict[str, Any]]] = {"steps": [], "layers": [], "sites": []}
        self._visited: dict[str, tuple[int, float]] = {}

    def again(
        self,
        *,
        layers: Sequence[str] | None = None,
        sites: Sequence[str] | None = None,
        every: int = 1,
    ) -> TravelLog:
        """Return an empty log for another training that uses the volumes of this log.

        Parameters
        ----------
        layers, every
            As of the log itself.
        sites : sequence of str, optional
            Some of those that this log looks at; all of them by default.
        """
        whole_number("every", every)
        log = copy.copy(self)
        log._model, log._layers, log._every = copied(self._model), layers, every
        if sites is not None:
            for name in sites:
                choice("sites", name, self._training)
            log._training = {name: self._training[name] for name in sites}
        log._rows, log._visited = {name: [] for name in self._rows}, {}
        return log

    def __call__(self, step: Step) -> None:
        """Look at the network after a step."""
        looked = step.number % self._every == 0
        if not looked and not step.sites:
            return
        self._model.load_state_dict(step.weights)
        self._look_at_sites(step, looked)
        if looked:
            self._look(step)

    def _look(self, step: Step) -> None:
        measures = evaluate(logits(self._model, self._volumes), self.cohort, by=None).loc["all"]
        row = {"number": step.number, "phase": step.phase, "sites": ", ".join(step.sites)}
        row |= {name: float(measures[name]) for name in ("auroc", "auroc_low", "auroc_high")}
        for bias, volumes in self._twins.items():
            off, on = (logits(self._model, twins) for twins in volumes)
            effect = twin_table(off, on, self.cohort, effect=bias).loc[bias]
            for end in ("", "_low", "_high"):
                row[f"{bias}.effect{end}"] = float(effect[f"logit{end}"])
        self._rows["steps"].append(row)
        if self._layers is None or len(self._layers):
            self._probe(step)

    def _probe(self, step: Step) -> None:
        recording = record(self._model, self._volumes, layers=self._layers, pixels=False)
        recording = replace(recording, table=self.cohort.table)
        for target, column in self._targets.items():
            condition = None if target == "disease" else "label"
            table = probe(recording, column, given=condition, permutations=0)
            for layer, entry in table.iterrows():
                row = {"number": step.number, "layer": layer, "target": target}
                row |= {name: float(entry[name]) for name in ("auroc", "auroc_low", "auroc_high")}
                self._rows["layers"].append(row)

    def _look_at_sites(self, step: Step, looked: bool) -> None:
        for name, (training, volumes) in self._training.items():
            if not looked and name not in step.sites:
                continue
            probabilities = expit(logits(self._model, volumes))
            loss = float(log_loss(training["label"], probabilities, labels=[0, 1]))
            if name in step.sites:
                self._visited[name] = (step.number, loss)
            last, least = self._visited.get(name, (np.nan, np.nan))
            if looked:
                row = {"number": step.number, "site": name, "loss": loss}
                row |= {"since": step.number - last, "forgotten": loss - least}
                self._rows["sites"].append(row)

    @property
    def steps(self) -> pd.DataFrame:
        """One row per step."""
        return pd.DataFrame(self._rows["steps"])

    @property
    def layers(self) -> pd.DataFrame:
        """One row per step, target and layer."""
        return pd.DataFrame(self._rows["layers"])

    @property
    def sites(self) -> pd.DataFrame:
        """One row per step and site."""
        return pd.DataFrame(self._rows["sites"])


__all__ = ["TravelLog"]
