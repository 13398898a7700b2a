"""Tables of people: classes or numbers, groups, splits and folds."""

from __future__ import annotations

import re
import warnings
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedKFold

from simba_lab.core.errors import NAMES, SimbaError, UnknownNameError, Words
from simba_lab.core.tables import check_complete, missing_in
from simba_lab.synthesis.design import FOLDS
from simba_lab.synthesis.scenario import RESERVED, SPLITS

# A random split in quarters: half to fit on, a quarter each to choose and to report on.
QUARTERS = np.array(["train", "train", "validation", "test"])
# Columns of a cohort's table that no group may be called.
TAKEN = (*RESERVED, "participant")
# What is written as numbers are; 0012 is the name of a site.
NUMBER = re.compile(r"[-+]?(0|[1-9]\d*)(\.\d*)?([eE][-+]?\d+)?")
# Numbers with fewer values than this are codes of classes, or of groups.
LEAST_NUMBERS, MOST_CODES = 3, 8


@dataclass(frozen=True)
class Columns:
    """What the columns of a table mean; the fields are those parameters of `read_bids`."""

    label: str | None = None
    disease: object = None
    control: object = None
    groups: str | Iterable[str] | Mapping[str, object] = ()
    use: str | None = None

    @property
    def members(self) -> dict[str, object]:
        """The columns of groups, and the value that counts as 1, or None."""
        groups = [self.groups] if isinstance(self.groups, str) else self.groups
        return dict(groups) if isinstance(groups, Mapping) else dict.fromkeys(groups)

    @property
    def use_column(self) -> str | None:
        """The column that says what each person is for, unless all are for the same."""
        return None if self.use in SPLITS else self.use


def column(rows: pd.DataFrame, name: str, table: str) -> pd.Series:
    """Return a column of the table that errors call `table`."""
    if name not in rows.columns:
        raise UnknownNameError.among(f"a column of {table}", name, rows.columns)
    return rows[name]


def as_numbers(values: pd.Series, *, gaps: bool = False) -> pd.Series | None:
    """Return text as numbers, integers where all are; None if one is not written as a number.

    With `gaps` missing values become NaN.
    """
    missing = missing_in(values) if gaps else np.zeros(len(values), bool)
    written = values[~missing]
    if written.empty or not all(NUMBER.fullmatch(text) for text in written):
        return None
    numbers = pd.to_numeric(values.where(~missing))
    return numbers if np.isfinite(numbers[~missing]).all() else None


def gaps(rows: pd.DataFrame, path: Path, columns: Columns) -> dict[Hashable, str]:
    """Return the rows in which a value is missing that a cohort needs, and which."""
    needed: dict[str, list[object]] = {
        name: [] if member is None else [member] for name, member in columns.members.items()
    }
    if columns.label is not None and columns.control is None:
        needed[columns.label] = [columns.disease]
    if columns.use_column is not None:
        needed[columns.use_column] = []
    reasons: dict[Hashable, str] = {}
    for name, meant in needed.items():
        missing = missing_in(column(rows, name, path.name), meant=meant)
        reasons |= dict.fromkeys(rows.index[missing], f"no value of {name!r}")
    return reasons


def classified(rows: pd.DataFrame, path: Path, columns: Columns) -> pd.DataFrame:
    """Return the rows of whoever is in one of the two classes; all if there are none."""
    if columns.label is None or columns.control is None:
        return rows
    classes = {str(columns.disease), str(columns.control)}
    return rows[column(rows, columns.label, path.name).isin(classes)]


def warn_of_dropped(reasons: Mapping[str, str], count: int) -> None:
    """Warn once of the people, by name, who were dropped of so many, and why."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        by_reason.setdefault(reason, []).append(name)
    listed = [
        f"{reason}: {', '.join(names[:NAMES])}{', ...' if len(names) > NAMES else ''}"
        for reason, names in by_reason.items()
    ]
    if reasons:
        text = f"{len(reasons)} of {count} people were dropped. {'; '.join(listed)}."
        warnings.warn(text, stacklevel=2)


def participants_table(rows: pd.DataFrame, path: Path, columns: Columns) -> pd.DataFrame:
    """Return the table of the subjects who belong to one of the two classes.

    Parameters
    ----------
    rows : pandas.DataFrame of str
        What `read_rows` returns.
    path : path
        What errors call the table.
    columns : Columns

    Returns
    -------
    pandas.DataFrame
        ``split``, ``label``, the groups and ``fold``, with the index of `rows`.

    Raises
    ------
    SimbaError
        If a column or value is missing, a class has too few subjects, or a class or group is not
        clear.
    """
    rows, labels = _labels(rows, path, columns)
    table = pd.DataFrame(index=rows.index)
    strata = {}
    if labels is not None:
        table["label"], strata["label"] = labels, _codes(labels, 4).astype(str)
    for name, member in columns.members.items():
        table[name] = _membership(rows, name, member, path)
        strata[name] = _codes(table[name], 2).astype(str)
    cells = pd.Series("", rows.index)
    if strata:
        cells = pd.DataFrame(strata).agg("/".join, axis=1)
    classes = strata.get("label", pd.Series("", rows.index))
    table.insert(0, "split", _splits(rows, path, columns, (cells, classes)))
    split = table["split"] + "/"
    table["fold"] = _dealt(FOLDS, split + cells, split + classes, classes)
    return table


def other_columns(rows: pd.DataFrame, table: pd.DataFrame, used: Iterable[str]) -> pd.DataFrame:
    """Return the columns of `rows` that a table lacks, as numbers where all that is known are.

    Columns are left out that have a name of the lab's own, or were read under another one.
    """
    left_out = {*TAKEN, *table.columns, *used, ""}
    kept = {}
    for name in rows.columns:
        own = name.startswith("anatomy_") or name.endswith("_magnitude")
        if name not in left_out and not own:
            numbers = as_numbers(rows[name], gaps=True)
            kept[name] = rows[name] if numbers is None else numbers
    return pd.DataFrame(kept, index=rows.index).loc[table.index]


def _labels(
    rows: pd.DataFrame, path: Path, columns: Columns
) -> tuple[pd.DataFrame, pd.Series | None]:
    """Return the rows of whoever has a label, and the labels: 0 and 1, or numbers; or None."""
    if columns.label is None:
        for name in ("disease", "control"):
            if getattr(columns, name) is not None:
                remedy = "It is a value of the column that label names."
                raise SimbaError(name, getattr(columns, name), "None without a label", remedy)
        return rows, None
    values = column(rows, columns.label, path.name)
    if columns.control is None:  # otherwise whoever is in neither class is left out
        meant = [] if columns.disease is None else [columns.disease]
        check_complete(_of(columns.label, path), values, meant=meant, names=_names(rows))
    numbers = as_numbers(values) if columns.disease is None else None
    if numbers is not None and columns.control is None and numbers.nunique() >= LEAST_NUMBERS:
        return rows, numbers
    control = _control(values, path, columns)
    rows = rows[values.isin([str(columns.disease), control])]
    labels = (rows[columns.label] == str(columns.disease)).astype(int)
    least = int(labels.value_counts().min())
    if least < FOLDS:
        allowed = f"at least {FOLDS} subjects of each class"
        raise SimbaError(_of(columns.label, path), Words(f"{least} of one class"), allowed)
    return rows, labels


def _codes(values: pd.Series, parts: int) -> pd.Series:
    """Return what stratifies a column: its values, of many numbers so many parts of equal size."""
    if not pd.api.types.is_numeric_dtype(values) or values.nunique() <= MOST_CODES:
        return values
    return (values.rank(method="first") - 1) * parts // len(values)


def _splits(
    rows: pd.DataFrame, path: Path, columns: Columns, strata: tuple[pd.Series, pd.Series]
) -> Iterable[str] | str:
    """Return what each person is for: the same for all, as a column says, or dealt by strata."""
    if columns.use is None:
        return QUARTERS[_dealt(len(QUARTERS), *strata)]
    if columns.use_column is None:
        return columns.use
    if columns.use not in rows:
        names = [*SPLITS, *rows.columns]
        raise UnknownNameError.among(
            f"use: a split, or a column of {path.name},", columns.use, names
        )
    values = rows[columns.use]
    check_complete(_of(columns.use, path), values, names=_names(rows))
    unknown = sorted(set(values) - set(SPLITS))
    if unknown:
        raise UnknownNameError.among(_of(columns.use, path), unknown[0], SPLITS)
    return values


def _control(values: pd.Series, path: Path, columns: Columns) -> str:
    """Return the value of the controls; check that the classes are clear."""
    disease = str(columns.disease)
    meant = [columns.disease, columns.control]
    present = sorted(set(values[~missing_in(values, meant=meant)]))
    alternatives = [value for value in present if value != disease]
    field = f"Column {columns.label!r} of {path}"
    if len(present) < 2:
        remedy = "Nothing can be learnt from one."
        raise SimbaError(field, present, "of at least two classes", remedy)
    if columns.disease is None and disease not in present:
        remedy = f"Without it the column has to hold numbers, {LEAST_NUMBERS} or more: a target."
        raise SimbaError("disease", None, f"one of {present[:20]}", remedy)
    if disease not in present:
        raise UnknownNameError.among("disease", columns.disease, present[:20])
    if columns.control is not None:
        if str(columns.control) not in alternatives:
            raise UnknownNameError.among("control", columns.control, alternatives[:20])
        return str(columns.control)
    if len(alternatives) > 1:
        remedy = f"{field} has more than two classes."
        raise SimbaError("control", None, f"one of {alternatives[:20]}", remedy)
    return alternatives[0]


def _membership(rows: pd.DataFrame, name: str, member: object, path: Path) -> pd.Series:
    """Return a column of groups: as 0 and 1 if one value counts as 1, otherwise as it is."""
    if name in TAKEN:
        raise SimbaError("groups", name, f"none of {', '.join(TAKEN)}", "Rename the column.")
    values, field = column(rows, name, path.name), _of(name, path)
    present = sorted(set(values))
    check_complete(field, values, meant=[] if member is None else [member], names=_names(rows))
    if member is not None:
        if str(member) not in present:
            raise UnknownNameError.among(f"groups[{name!r}]", member, present[:20])
        return (values == str(member)).astype(int)
    if set(present) <= {"0", "1"}:
        return values.astype(int)
    if len(present) < 2:
        remedy = "There is nothing to compare."
        raise SimbaError(field, present, "of at least two values", remedy)
    numbers = as_numbers(values)
    return values if numbers is None else numbers


def _of(name: str, path: Path) -> str:
    return f"column {name!r} of {path}"


def _names(rows: pd.DataFrame) -> list[str]:
    """Return what errors call the subjects: the first column has their names, as a rule."""
    return rows.iloc[:, 0].tolist()


def _dealt(count: int, *keys: pd.Series) -> np.ndarray:
    """Deal subjects into `count` equal sets.

    They are stratified by the first key whose every value has enough subjects, if any.
    """
    alike = pd.Series("", keys[0].index)
    key = next((key for key in (*keys, alike) if key.value_counts().min() >= count), None)
    if key is None:
        return np.arange(len(alike)) % count
    folds = StratifiedKFold(count, shuffle=True, random_state=0).split(np.zeros(len(key)), key)
    numbers = np.empty(len(key), int)
    for number, (_, members) in enumerate(folds):
        numbers[members] = number
    return numbers
