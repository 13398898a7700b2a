"""Question C: what is known of real groups. Correlational: groups differ in more than a mark."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from simba_lab.auditing.answers import Difference, spread_of
from simba_lab.auditing.inner_marks import half_of_each_class
from simba_lab.core.cohort import TwinCohort
from simba_lab.core.intervals import delong
from simba_lab.interpretation.hooks import edit
from simba_lab.interpretation.interventions.erasure import erase
from simba_lab.interpretation.interventions.twin_pairs import chosen_layers
from simba_lab.interpretation.probes.probing import ProbeSettings, probe
from simba_lab.interpretation.recording import record
from simba_lab.training.disparities import disparity
from simba_lab.training.predictions import logits

if TYPE_CHECKING:
    from simba_lab.auditing.network_audit import Instruments


def read_groups(tools: Instruments, base: TwinCohort, column: str) -> pd.DataFrame:
    """Return how well a column is read from each layer given the label, its floor and its leak."""
    recordings = [
        record(network, base, layers=tools.layers, pixels=False, compute=tools.compute)
        for network in (tools.network, *tools.untrained)
    ]
    read = probe(
        recordings[0],
        column,
        given="label",
        floors=recordings[1:] or None,
        permutations=0,
        settings=ProbeSettings(seed=tools.settings.seed),
    )
    score = "auroc" if "auroc" in read else "r2"
    table = read[[score, f"{score}_low", f"{score}_high"]].copy()
    table["floor"] = read.get("floor_untrained", np.nan)
    table["leak"] = read.get(f"{score}_leak", np.nan)
    return pd.concat({column: table}, names=["column", "layer"])


def rates_of(
    tools: Instruments, base: TwinCohort, column: str, answers: np.ndarray
) -> pd.DataFrame:
    """Return differences of rates between the two groups of a column, from the answers."""
    table = disparity(answers, base, by=column, seed=tools.settings.seed)
    table = table.rename(columns={"low": "difference_low", "high": "difference_high"})
    return pd.concat({column: table}, names=["column", "rate"])


def erased_of(
    tools: Instruments, base: TwinCohort, column: str, answers: np.ndarray
) -> pd.DataFrame:
    """Return what becomes of the answers when a column is erased from each layer.

    The erasure is fitted to half of the people, given the label, and judged on the others:
    ``moved``, the mean size of the change in spreads of the answers, with its interval; ``auroc``
    of the disease, ``before`` and ``after``.
    """
    first = half_of_each_class(base, tools.settings.seed, "halves")
    train, test = base.where(first), base.where(~first)
    network, spread = tools.network, spread_of(answers)
    rows: dict[tuple[str, str], dict[str, float]] = {}
    for layer in chosen_layers(network, tools.layers, base):
        erasure = erase(
            network,
            train,
            train[column],
            layers=[layer],
            given="label",
            compute=tools.compute,
            seed=tools.settings.seed,
        )
        with edit(network, erasure):
            after = logits(network, test)
        before = answers[~first]
        rows[column, layer] = {
            **Difference(np.abs(after - before) / spread, 0.05).columns("moved"),
            "before": delong(test["label"], before).estimate,
            "after": delong(test["label"], after).estimate,
        }
    index = pd.MultiIndex.from_tuples(list(rows), names=["column", "layer"])
    return pd.DataFrame(list(rows.values()), index=index)
