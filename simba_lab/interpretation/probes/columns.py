"""Values for each row of a recording: a column of its table by name, or an array of one's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np
import pandas as pd

from simba_lab.core.checks import of_shape
from simba_lab.core.errors import SimbaError, UnknownNameError, Words
from simba_lab.core.tables import check_complete

Grams = Mapping[str, np.ndarray]
# One value per row: the name of a column, or the values themselves.
Column = str | np.ndarray | Sequence
# Networks by the name of their floor, or the untrained ones: several, or a recording by itself.
Floors = Mapping[str, Grams | Sequence[Grams]] | Sequence[Grams] | Grams


def values_of(recording: Grams, values: Column, field: str) -> np.ndarray:
    """Return a column of the recording's table, or the array that was given in its place.

    Raises
    ------
    UnknownNameError
        If the table has no such column.
    SimbaError
        If a column is named and there is no table.
    """
    if not isinstance(values, str):
        values = np.asarray(values)
        if values.ndim == 1:
            check_complete(field, values, meant=("none", "missing"))
        return values
    table = getattr(recording, "table", None)
    if table is None:
        raise SimbaError.problem(
            f"This recording has no table to look up {field}={values!r} in.",
            "Record a cohort, or pass an array with a value for each volume.",
        )
    if values not in table.columns:
        raise UnknownNameError.among(field, values, table.columns)
    check_complete(f"{field} ({values!r})", table[values], meant=("none", "missing"))
    return table[values].to_numpy()


def folds_or_default(recording: Grams, folds: int | Column | None) -> int | np.ndarray:
    """Return folds as a number or an array; by default the folds of the design, or else five."""
    if folds is None:
        folds = "fold" if _has_folds(getattr(recording, "table", None)) else 5
    if isinstance(folds, str) or np.ndim(folds):
        return values_of(recording, cast(Column, folds), "folds")
    return cast(int, folds)


def _has_folds(table: pd.DataFrame | None) -> bool:
    """Return whether every row of a table is in a fold, and there are two at least."""
    if table is None or "fold" not in table:
        return False
    return bool(table["fold"].notna().all() and len(table["fold"].unique()) > 1)


def groups_of_two(recording: Grams, values: Column, field: str) -> np.ndarray:
    """Return 0 and 1 as integers, or raise an error that names the variable."""
    values = values_of(recording, values, field)
    levels = np.unique(values.astype(str))[:5].tolist()
    if values.ndim != 1 or values.dtype.kind not in "biuf" or set(np.unique(values)) != {0, 1}:
        raise SimbaError(field, levels, "of two values, 0 and 1, one per subject")
    return values.astype(int)


def clusters_of(recording: Grams, count: int) -> np.ndarray:
    """Return a number for each volume, equal for volumes of the same subject."""
    subjects = getattr(recording, "subjects", None)
    if subjects is None:
        return np.arange(count)
    subjects = of_shape("subjects", subjects, (count,), "Pass one value for each volume.")
    return np.unique(subjects, return_inverse=True)[1]


def refuse_twins(recording: Grams) -> None:
    """Raise an error if a recording holds several volumes of one subject, which are dependent."""
    subjects = getattr(recording, "subjects", None)
    if subjects is not None and len(np.unique(subjects)) < len(subjects):
        raise SimbaError.problem(
            "The recording holds several volumes of one subject.",
            "Record the twins by themselves: two recordings can be compared.",
        )


def floors_by_name(floors: Floors | None) -> dict[str, list[Grams]]:
    """Return the networks of each floor; a plain sequence of recordings is called ``untrained``."""
    if floors is None:
        return {}
    if not isinstance(floors, Mapping):
        return {"untrained": list(floors)}
    if all(isinstance(gram, np.ndarray) for gram in floors.values()):  # a recording by itself
        return {"untrained": [cast(Grams, floors)]}
    return {
        name: [networks] if isinstance(networks, Mapping) else list(networks)
        for name, networks in floors.items()
    }


def gram_of(recording: Grams, layer: str, count: int, field: str = "recording") -> np.ndarray:
    """Return the Gram matrix of a layer in float64, or raise an error that names it."""
    name = f"{field}[{layer!r}]"
    gram = of_shape(name, np.asarray(recording[layer], np.float64), (count, count))
    if not np.isfinite(gram).all():
        raise SimbaError(name, Words("NaN or infinity"), "finite")
    return gram
