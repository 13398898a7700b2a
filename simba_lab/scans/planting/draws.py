"""Who carries a planted effect, and how strongly: drawn for each person by their name."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Mapping

import numpy as np
import pandas as pd

from simba_lab.core.errors import SimbaError
from simba_lab.core.rng import stream
from simba_lab.scans.planting.injection import MOST
from simba_lab.synthesis.effects import (
    CLASSES,
    EXAMPLE,
    Effect,
    Normal,
    magnitude_in,
    prevalence_in,
)
from simba_lab.synthesis.scenario import RESERVED

# What concepts, groups and columns are called already.
TAKEN = (*RESERVED, "participant", "random")
# As set, in everybody.
AS_SET, EVERYBODY = Normal(1.0, 0.0), 1.0


def completed(effects: Mapping[str, Effect], table: pd.DataFrame) -> dict[str, Effect]:
    """Return effects with a magnitude and a prevalence for each class, or raise the error.

    Raises
    ------
    SimbaError
        If there is none, one of them is no effect, a name cannot be that of a new column, or the
        classes differ and people have none.
    """
    if not isinstance(effects, Mapping) or not effects:
        raise SimbaError("effects", effects, f"a mapping of names to effects: {EXAMPLE}")
    columns = {str(name) for name in table.columns}
    for name, effect in effects.items():
        field = f"effects[{name!r}]"
        if not isinstance(effect, Effect):
            raise SimbaError(field, effect, EXAMPLE)
        column = str(name).startswith("anatomy_") or str(name).endswith("_magnitude")
        if column or name in TAKEN or not str(name).isidentifier():
            allowed = f"named by letters, digits and _, and not {', '.join(TAKEN)}"
            raise SimbaError("effects", name, allowed)
        for new in (name, f"{name}_magnitude"):
            if new in columns:
                remedy = f"The table has a column {new!r} already."
                raise SimbaError("effects", name, "the name of a new column", remedy)
    whole = {
        name: dataclasses.replace(
            effect,
            magnitude=AS_SET if effect.magnitude is None else effect.magnitude,
            prevalence=EVERYBODY if effect.prevalence is None else effect.prevalence,
        )
        for name, effect in effects.items()
    }
    if not _labelled(table):
        for name, effect in whole.items():
            _check_one_for_both(name, effect)
    return whole


def _labelled(table: pd.DataFrame) -> bool:
    return "label" in table and set(table["label"]) <= {0, 1}


def _check_one_for_both(name: str, effect: Effect) -> None:
    fields = {
        "prevalence": (prevalence_in, "one number"),
        "magnitude": (magnitude_in, "one distribution"),
    }
    for field, (of_class, allowed) in fields.items():
        if of_class(effect, "disease") != of_class(effect, "control"):
            remedy = "These people have no labels of 0 and 1."
            value = getattr(effect, field)
            raise SimbaError(f"effects[{name!r}].{field}", value, allowed, remedy)


def drawn(table: pd.DataFrame, effects: Mapping[str, Effect], seed: int) -> pd.DataFrame:
    """Return a table with two more columns for each effect: its group, and its magnitude.

    Everybody has a rank by their own name, and those of low rank are members: as many of each
    class of each split as the prevalence says, to the nearest whole number, and of the members of
    one effect as large a share as of the others in the next. A magnitude depends on nothing but
    effect, seed and name.

    Parameters
    ----------
    table : pandas.DataFrame
        One row per person.
    effects : mapping of name to effect
        From `completed`.
    seed : int

    Raises
    ------
    SimbaError
        If a magnitude is too large to be meant.
    """
    planted = table.copy()
    owners = [str(name) for name in table.get("participant", table.index)]
    classes = table["label"].to_numpy() if _labelled(table) else np.ones(len(table), int)
    strata: list[Hashable] = [*zip(classes, table.get("split", classes), strict=True)]
    cells: list[tuple[int, ...]] = [()] * len(table)
    for name, effect in effects.items():
        ranks = _uniform(seed, owners, f"planted group/{name}")
        members = np.zeros(len(table), int)
        for stratum in dict.fromkeys(strata):
            rows = np.array([row for row, value in enumerate(strata) if value == stratum])
            share = prevalence_in(effect, CLASSES[int(classes[rows[0]])])
            members[_chosen(rows, [cells[row] for row in rows], ranks, share)] = 1
        planted[name] = members
        planted[f"{name}_magnitude"] = _magnitudes(name, effect, classes, owners, seed)
        cells = [(*cell, int(member)) for cell, member in zip(cells, members, strict=True)]
    return planted


def _uniform(seed: int, owners: list[str], purpose: str) -> np.ndarray:
    return np.array([stream(seed, owner, purpose).uniform(1e-9, 1 - 1e-9) for owner in owners])


def _chosen(
    rows: np.ndarray, cells: list[tuple[int, ...]], ranks: np.ndarray, share: float
) -> list[int]:
    """Return the members of one stratum: the same share of each of its cells, as far as it goes."""
    people = {
        cell: sorted(
            (row for row, value in zip(rows.tolist(), cells, strict=True) if value == cell),
            key=lambda row: ranks[row],
        )
        for cell in sorted(set(cells))
    }
    exact = {cell: share * len(members) + 1e-9 for cell, members in people.items()}
    missing = int(share * len(rows) + 0.5 + 1e-9) - sum(int(number) for number in exact.values())
    fullest = sorted(people, key=lambda cell: int(exact[cell]) - exact[cell])
    counts = {cell: int(exact[cell]) + (cell in fullest[:missing]) for cell in people}
    return [row for cell, members in people.items() for row in members[: counts[cell]]]


def _magnitudes(
    name: str, effect: Effect, classes: np.ndarray, owners: list[str], seed: int
) -> np.ndarray:
    shares = _uniform(seed, owners, f"planted magnitude/{name}")
    magnitudes = np.empty(len(owners))
    for number, class_name in enumerate(CLASSES):
        rows = classes == number
        magnitudes[rows] = magnitude_in(effect, class_name).ppf(shares[rows])
    worst = int(np.argmax(np.abs(magnitudes)))
    if abs(magnitudes[worst]) > MOST:
        field, allowed = f"effects[{name!r}].magnitude", f"from -{MOST} to {MOST} in everybody"
        remedy = f"That is the magnitude of {owners[worst]}; 1 is the effect as set."
        raise SimbaError(field, float(magnitudes[worst]), allowed, remedy)
    return magnitudes
