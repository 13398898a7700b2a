"""Question C: what is known of real groups. Correlational: groups differ in more than a mark."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from simba_lab.auditing.answers import Difference, spread_of
from simba_lab.auditing.inner_marks import half_of_each_class
from simba_lab.core.cohort import TwinCohort
from simba_lab.core.errors import SimbaError, Words
from simba_lab.core.intervals import delong
from simba_lab.core.tables import check_complete
from simba_lab.interpretation.hooks import edit
from simba_lab.interpretation.interventions.erasure import erase
from simba_lab.interpretation.interventions.twin_pairs import chosen_layers
from simba_lab.interpretation.probes.probing import ProbeSettings, probe
from simba_lab.interpretation.recording import record
from simba_lab.training.disparities import disparity
from simba_lab.training.predictions import gives_numbers, logits

if TYPE_CHECKING:
    from simba_lab.auditing.network_audit import Instruments

# Smaller groups say nothing of their own; numbers with more values than this are no codes.
LEAST_MEMBERS, MOST_CODES = 8, 8


def contrasts_of(base: TwinCohort, column: str) -> dict[str, np.ndarray]:
    """Return the comparisons of groups that a column gives: who is a member, 0 and 1, by name.

    Of two values the larger is compared with the smaller, of several each with all others, if it
    has enough members; numbers of more values are split at their median.

    Raises
    ------
    SimbaError
        If values are missing, or nobody can be compared.
    """
    values = base.table[column]
    check_complete(f"marked[{column!r}]", values, meant=("none", "missing"))
    count = values.nunique()
    if count == 2:
        return {column: (values == max(values.unique())).to_numpy(int)}
    if pd.api.types.is_numeric_dtype(values) and count > MOST_CODES:
        median = float(values.median())
        return {f"{column} above {median:g}": (values > median).to_numpy(int)}
    sizes = values.value_counts().sort_index()
    large = [value for value in sizes.index if LEAST_MEMBERS <= sizes[value] < len(base)]
    if not large:
        value = Words(", ".join(f"{value}: {size}" for value, size in sizes.items()) or "nobody")
        allowed = f"of a group of {LEAST_MEMBERS} people and others"
        raise SimbaError(f"marked[{column!r}]", value, allowed)
    return {f"{column} {value}": (values == value).to_numpy(int) for value in large}


def left_out_of(base: TwinCohort, column: str) -> str:
    """Return a sentence on groups that are too small to be compared with the others, if any."""
    values = base.table[column]
    sizes = values.value_counts().sort_index()
    if len(sizes) < 3 or (pd.api.types.is_numeric_dtype(values) and len(sizes) > MOST_CODES):
        return ""
    small = [f"{value} ({size})" for value, size in sizes.items() if size < LEAST_MEMBERS]
    text = f"Groups of {column} with fewer than {LEAST_MEMBERS} people count among the others only"
    return f"{text}: {', '.join(small)}." if small else ""


def read_groups(tools: Instruments, base: TwinCohort, column: str) -> pd.DataFrame:
    """Return how well a column is read from each layer given the label, its floor and its leak."""
    contrasts = contrasts_of(base, column)
    recordings = [
        record(network, base, layers=tools.layers, pixels=False, compute=tools.compute)
        for network in (tools.network, *tools.untrained)
    ]
    tables = {}
    for name, members in contrasts.items():
        read = probe(
            recordings[0],
            members,
            given="label",
            floors=recordings[1:] or None,
            permutations=0,
            settings=ProbeSettings(seed=tools.settings.seed),
        )
        table = read[["auroc", "auroc_low", "auroc_high"]].copy()
        table["floor"] = read.get("floor_untrained", np.nan)
        table["leak"] = read.get("auroc_leak", np.nan)
        tables[name] = table
    return pd.concat(tables, names=["column", "layer"])


def rates_of(
    tools: Instruments, base: TwinCohort, column: str, answers: np.ndarray
) -> pd.DataFrame:
    """Return differences of rates between the groups of a column, from the answers."""
    tables = {}
    for name, members in contrasts_of(base, column).items():
        people = replace(base, table=base.table.assign(**{name: members}))  # type: ignore[type-var]
        tables[name] = disparity(answers, people, by=name, seed=tools.settings.seed)
    table = pd.concat(tables, names=["column", "rate"])
    return table.rename(columns={"low": "difference_low", "high": "difference_high"})


def _concept(values: pd.Series) -> np.ndarray:
    """Return what is erased of a column: its numbers, or a column of 0 and 1 for each value."""
    codes = 2 < values.nunique() <= MOST_CODES
    if pd.api.types.is_numeric_dtype(values) and not codes:
        return values.to_numpy(float)
    return pd.get_dummies(values, dtype=float).iloc[:, 1:].to_numpy()


def erased_of(
    tools: Instruments, base: TwinCohort, column: str, answers: np.ndarray
) -> pd.DataFrame:
    """Return what becomes of the answers when a column is erased from each layer.

    A column of several values is erased with all of them. The erasure is fitted to half of the
    people, given the label, and judged on the others:
    ``moved``, the mean size of the change in spreads of the answers, with its interval; ``auroc``
    of the disease, ``before`` and ``after``.
    """
    first = half_of_each_class(base, tools.settings.seed, "halves")
    train, test = base.where(first), base.where(~first)
    contrasts_of(base, column)
    concept = _concept(base.table[column])[first]
    network, spread = tools.network, spread_of(answers)
    rows: dict[tuple[str, str], dict[str, float]] = {}
    for layer in chosen_layers(network, tools.layers, base):
        erasure = erase(
            network,
            train,
            concept,
            layers=[layer],
            given="label",
            compute=tools.compute,
            seed=tools.settings.seed,
        )
        with edit(network, erasure):
            after = logits(network, test)
        before = answers[~first]
        row = Difference(np.abs(after - before) / spread, 0.05).columns("moved")
        if not gives_numbers(network):
            row["before"] = delong(test["label"], before).estimate
            row["after"] = delong(test["label"], after).estimate
        rows[column, layer] = row
    index = pd.MultiIndex.from_tuples(list(rows), names=["column", "layer"])
    return pd.DataFrame(list(rows.values()), index=index)
