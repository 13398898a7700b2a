"""Tables of people: classes, groups, splits and folds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedKFold

from simba_lab.core.errors import SimbaError, UnknownNameError, Words
from simba_lab.core.tables import check_complete, missing_in
from simba_lab.synthesis.design import FOLDS
from simba_lab.synthesis.scenario import RESERVED, SPLITS

# A random split in quarters: half to fit on, a quarter each to choose and to report on.
QUARTERS = np.array(["train", "train", "validation", "test"])
# Columns of a cohort's table that no group may be called.
TAKEN = (*RESERVED, "participant")


@dataclass(frozen=True)
class Columns:
    """What the columns of a table mean; the fields are those parameters of `read_bids`."""

    label: str
    disease: object
    control: object = None
    groups: str | Iterable[str] | Mapping[str, object] = ()
    split: str | None = None


def column(rows: pd.DataFrame, name: str, table: str) -> pd.Series:
    """Return a column of the table that errors call `table`."""
    if name not in rows.columns:
        raise UnknownNameError.among(f"a column of {table}", name, rows.columns)
    return rows[name]


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
    values = column(rows, columns.label, path.name)
    if columns.control is None:  # otherwise whoever is in neither class is left out
        meant = [columns.disease]
        check_complete(_of(columns.label, path), values, meant=meant, names=_names(rows))
    control = _control(values, path, columns)
    rows = rows[values.isin([str(columns.disease), control])]
    table = pd.DataFrame({"label": (rows[columns.label] == str(columns.disease)).astype(int)})
    least = int(table["label"].value_counts().min())
    if least < FOLDS:
        allowed = f"at least {FOLDS} subjects of each class"
        raise SimbaError(_of(columns.label, path), Words(f"{least} of one class"), allowed)
    groups = [columns.groups] if isinstance(columns.groups, str) else columns.groups
    members = dict(groups) if isinstance(groups, Mapping) else dict.fromkeys(groups)
    for name, member in members.items():
        table[name] = _membership(rows, name, member, path)
    labels, cells = table["label"].astype(str), table.astype(str).agg("/".join, axis=1)
    if columns.split is None:
        table.insert(0, "split", QUARTERS[_dealt(len(QUARTERS), cells, labels)])
    else:
        table.insert(0, "split", column(rows, columns.split, path.name))
        check_complete(_of(columns.split, path), table["split"], names=_names(rows))
        unknown = sorted(set(table["split"]) - set(SPLITS))
        if unknown:
            raise UnknownNameError.among(_of(columns.split, path), unknown[0], SPLITS)
    split = table["split"] + "/"
    table["fold"] = _dealt(FOLDS, split + cells, split + labels, labels)
    return table


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
        remedy = "Classes are learnt here; a number, such as an age, is read by `probe`."
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


def _membership(rows: pd.DataFrame, name: str, member: object, path: Path) -> np.ndarray:
    """Return a column as 0 and 1; `member` is the value that counts as 1, otherwise 1 itself."""
    if name in TAKEN:
        raise SimbaError("groups", name, f"none of {', '.join(TAKEN)}", "Rename the column.")
    values, field = column(rows, name, path.name), _of(name, path)
    present = sorted(set(values))
    check_complete(field, values, meant=[] if member is None else [member], names=_names(rows))
    if member is None and not set(present) <= {"0", "1"}:
        remedy = f"Or say which value counts as 1: groups={{{name!r}: value}}."
        raise SimbaError(field, present[:20], "of 0 and 1", remedy)
    if member is not None and str(member) not in present:
        raise UnknownNameError.among(f"groups[{name!r}]", member, present[:20])
    return (values == ("1" if member is None else str(member))).astype(int).to_numpy()


def _of(name: str, path: Path) -> str:
    return f"column {name!r} of {path}"


def _names(rows: pd.DataFrame) -> list[str]:
    """Return what errors call the subjects: the first column has their names, as a rule."""
    return rows.iloc[:, 0].tolist()


def _dealt(count: int, *keys: pd.Series) -> np.ndarray:
    """Deal subjects into `count` equal sets.

    They are stratified by the first key whose every value has enough subjects, else by the last.
    """
    key = next((key for key in keys if key.value_counts().min() >= count), keys[-1])
    folds = StratifiedKFold(count, shuffle=True, random_state=0).split(np.zeros(len(key)), key)
    numbers = np.empty(len(key), int)
    for number, (_, members) in enumerate(folds):
        numbers[members] = number
    return numbers
