"""Travel log: what a network knows, uses and forgets after every round or visit."""

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

from simba_lab.core.cohort import Cohort
from simba_lab.core.errors import SimbaError, UnknownNameError
from simba_lab.federation.sites import Federation
from simba_lab.federation.strategies import Step
from simba_lab.interpretation.probes.probing import probe
from simba_lab.interpretation.recording import record
from simba_lab.training.metrics import evaluate
from simba_lab.training.predictions import logits
from simba_lab.training.twins import twin_table


class TravelLog:
    """Watches a training over many sites: give it to `follow`, then look at its tables.

    After each step the network is shown held-out subjects of all sites, among whom the site tells
    nothing of the disease, their twins with and without each bias, and the training subjects of
    every site, or of some.

    Parameters
    ----------
    model : torch.nn.Module
        The architecture; a copy takes the weights of each step.
    federation : Federation
    cohort : Cohort, optional
        Held-out subjects to look at; ``federation.test`` by default.
    biases : sequence of str, optional
        Which to follow; by default those that not everybody carries (everybody has a scanner).
    layers : sequence of str, optional
        As for `simba_lab.record`; an empty sequence leaves the probes out, which take most of the
        time.
    sites : sequence of str, optional
        Whose training subjects are shown; those of all by default. An empty sequence leaves
        forgetting out, which takes most of the time that probes do not.
    every : int
        Look after each so many steps; the last of a plan is looked at if it is a multiple.

    Attributes
    ----------
    steps : pandas.DataFrame
        ``number``, ``phase``, ``sites``; ``auroc`` of the disease with interval; for each bias
        ``BIAS.effect``, the twin effect in logits, with interval.
    layers : pandas.DataFrame
        ``number``, ``layer``, ``target`` (``disease``, each bias, ``site``) and the ``auroc`` of a
        linear probe there, with interval; within classes of the disease for all but itself. The
        site is left out where it has fewer subjects than there are folds.
    sites : pandas.DataFrame
        ``number``, ``site``; ``loss``, the mean log loss on its training subjects; ``since``, steps
        since its last part in the training, missing before the first; ``forgotten``, the loss less
        what it was right after that.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        federation: Federation,
        *,
        cohort: Cohort | None = None,
        biases: Sequence[str] | None = None,
        layers: Sequence[str] | None = None,
        sites: Sequence[str] | None = None,
        every: int = 1,
    ) -> None:
        _check_every(every)
        self.cohort = federation.test if cohort is None else cohort
        known = self.cohort.biases
        if biases is None:
            biases = [name for name in known if 0 < self.cohort[name].mean() < 1]
        for name in biases:
            if name not in known:
                raise UnknownNameError.among("biases", name, known)
        self._model, self._chosen, self._every = copy.deepcopy(model).eval(), layers, every
        self._volumes = self.cohort.arrays()
        self._twins = {
            name: (
                self.cohort.twin(without=name).arrays(),
                self.cohort.twin(carrying=name).arrays(),
            )
            for name in biases
        }
        chosen = federation.names if sites is None else sites
        self._own = {name: (part := federation.at(name), part.arrays()) for name in chosen}
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
        """Return an empty log for another training, which looks at the volumes of this one: they are not rendered again.

        Parameters
        ----------
        layers, every
            As of the log itself.
        sites : sequence of str, optional
            Some of those that this log looks at; all of them by default.
        """
        _check_every(every)
        other = copy.copy(self)
        other._model, other._chosen, other._every = copy.deepcopy(self._model), layers, every
        if sites is not None:
            for name in sites:
                if name not in self._own:
                    raise UnknownNameError.among("sites", name, self._own)
            other._own = {name: self._own[name] for name in sites}
        other._rows, other._visited = {name: [] for name in self._rows}, {}
        return other

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
        judged = evaluate(logits(self._model, self._volumes), self.cohort, by=None).loc["all"]
        row = {"number": step.number, "phase": step.phase, "sites": ", ".join(step.sites)}
        row |= {name: float(judged[name]) for name in ("auroc", "auroc_low", "auroc_high")}
        for bias, (off, on) in self._twins.items():
            found = twin_table(
                logits(self._model, off), logits(self._model, on), self.cohort, effect=bias
            ).loc[bias]
            row |= {
                f"{bias}.effect{end}": float(found[f"logit{end}"]) for end in ("", "_low", "_high")
            }
        self._rows["steps"].append(row)
        if self._chosen is not None and len(self._chosen) == 0:
            return
        recording = replace(
            record(self._model, self._volumes, layers=self._chosen, pixels=False),
            table=self.cohort.table,
        )
        for target, column in self._targets.items():
            given = None if target == "disease" else "label"
            table = probe(recording, column, given=given, permutations=0)
            for layer, entry in table.iterrows():
                scores = {name: float(entry[name]) for name in ("auroc", "auroc_low", "auroc_high")}
                self._rows["layers"].append(
                    {"number": step.number, "layer": layer, "target": target} | scores
                )

    def _look_at_sites(self, step: Step, looked: bool) -> None:
        for name, (part, volumes) in self._own.items():
            if not looked and name not in step.sites:
                continue
            loss = float(
                log_loss(part["label"], expit(logits(self._model, volumes)), labels=[0, 1])
            )
            if name in step.sites:
                self._visited[name] = (step.number, loss)
            last, then = self._visited.get(name, (np.nan, np.nan))
            if looked:
                entry = {"number": step.number, "site": name, "loss": loss}
                self._rows["sites"].append(
                    entry | {"since": step.number - last, "forgotten": loss - then}
                )

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


def _check_every(every: object) -> None:
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise SimbaError("every", every, "an integer of at least 1")


__all__ = ["TravelLog"]
