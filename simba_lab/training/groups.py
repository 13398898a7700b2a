"""The groups of a cohort: what a column, or several, divide its subjects into."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
import pandas as pd

from simba_lab.core.cohort import Cohort
from simba_lab.core.errors import SimbaError, Words
from simba_lab.core.tables import check_complete


def groups_of(cohort: Cohort, by: str | Sequence[str] | None) -> tuple[list[str], np.ndarray]:
    """Return the names of all groups, and the number of each subject's group, shape (n,).

    The groups of a bias are called ``NB`` and ``B``. Several columns give their intersections; None
    gives one group, ``all``.

    Raises
    ------
    SimbaError
        If a group has no members.
    """
    if by is None:
        return ["all"], np.zeros(len(cohort), int)
    columns = [by] if isinstance(by, str) else list(by)
    if not columns:
        raise SimbaError("by", by, "a column, several, or None")
    for column in columns:
        check_complete(f"cohort[{column!r}]", cohort[column], meant=("none", "missing"))
    words = [_words(cohort, column) for column in columns]
    index = pd.MultiIndex.from_product([list(word) for word in words])
    numbers = index.get_indexer(pd.MultiIndex.from_arrays([cohort[name] for name in columns]))
    names = list(words[0].values())
    if len(columns) > 1:
        levels = [
            [f"{column} {name}" for name in word.values()]
            for column, word in zip(columns, words, strict=True)
        ]
        names = [", ".join(combination) for combination in product(*levels)]
    members = np.bincount(numbers, minlength=len(names))
    if not members.all():
        empty = names[int(members.argmin())]
        remedy = (
            "Evaluate a larger cohort or fewer columns at once; with membership='joint' some "
            "intersections of biases are always empty."
        )
        value = f"no members of group {empty!r}"
        raise SimbaError(
            f"cohort[{by!r}]", Words(value), "a column with members in all groups", remedy
        )
    return names, numbers


def _words(cohort: Cohort, column: str) -> dict[object, str]:
    """Return how each value of a column is called, in order."""
    words = {0: "NB", 1: "B"} if column in cohort.biases else {}
    values = sorted(set(cohort[column].tolist()) | set(words))
    return {value: str(words.get(value, value)) for value in values}
