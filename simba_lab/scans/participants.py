"""Tables of people: who is in which class, group, split and fold."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedKFold

from simba_lab.core.errors import SimbaError, TemplateError, UnknownNameError
from simba_lab.synthesis.design import FOLDS
from simba_lab.synthesis.scenario import RESERVED, SPLITS

# A random split in quarters: half to fit on, a quarter each to choose and to report on.
QUARTERS = np.array(["train", "train", "validation", "test"])
MISSING = ("", "n/a", "nan", "NaN", "NA")


def read_rows(path: Path) -> pd.DataFrame:
    """Read a table (.csv with commas or .tsv with tabs) as text: nothing is guessed.

    Raises
    ------
    TemplateError
        If the file is missing, empty or damaged.
    """
    if path.suffix not in (".csv", ".tsv") or not path.is_file():
        raise TemplateError("table", str(path), "an existing .csv or .tsv file", "Check the path.")
    try:
        with path.open(newline="", encoding="utf-8-sig") as handle:
            header, *rows = csv.reader(handle, delimiter="\t" if path.suffix == ".tsv" else ",")
    except (OSError, ValueError, csv.Error) as error:
        raise TemplateError(
            "table",
            str(path),
            "a readable table with a header",
            f"It is empty or damaged ({error}).",
        ) from error
    rows = [row for row in rows if row]
    ragged = [row for row in rows if len(row) != len(header)]
    if not rows or ragged or len(set(header)) < len(header):
        raise TemplateError(
            "table",
            str(path),
            "a table with at least one row, as many cells in each as in the header, no column twice",
            f"The header is {header}" + (f", a row is {ragged[0]}." if ragged else "."),
        )
    return pd.DataFrame(rows, columns=header, dtype=str)


def column(rows: pd.DataFrame, name: str, where: str) -> pd.Series:
    """Return a column of a table that is called `where`, or say which there are."""
    if name not in rows.columns:
        raise UnknownNameError.among(f"a column of {where}", name, rows.columns)
    return rows[name]


def assign(
    rows: pd.DataFrame,
    where: Path,
    label: str,
    disease: object,
    control: object,
    groups: Iterable[str] | Mapping,
    split: str | None,
) -> pd.DataFrame:
    """Return the design of those who belong to one of two classes.

    Parameters
    ----------
    rows : pandas.DataFrame of str
        What `read_rows` returns.
    where : path
        What errors call the table.
    label, disease, control, groups, split
        As in `simba_lab.synthesis.exchange.imports.read_bids`.

    Returns
    -------
    pandas.DataFrame
        ``split``, ``label``, the groups and ``fold``, with the index of `rows`.

    Raises
    ------
    SimbaError
        If a column or value is not there, a class has too few subjects, or it is not clear who
        belongs where.
    """
    values, source = column(rows, label, where.name), f"column {label!r} of {where}"
    present = sorted(set(values))
    others = [value for value in present if value != str(disease)]
    if len(present) < 2:
        raise SimbaError(
            source, present, "of at least two classes", "Nothing can be learnt from one."
        )
    if str(disease) not in present:
        raise UnknownNameError.among("disease", disease, present[:20])
    if control is None and (len(others) > 1 or others[0] in MISSING):
        raise SimbaError(
            "control",
            None,
            f"one of {others[:20]}",
            f"{source[0].upper()}{source[1:]} has more than two classes.",
        )
    if control is not None and str(control) not in others:
        raise UnknownNameError.among("control", control, others[:20])
    rows = rows[values.isin([str(disease), others[0] if control is None else str(control)])]
    table = pd.DataFrame({"label": (rows[label] == str(disease)).astype(int)})
    least = int(table["label"].value_counts().min())
    if least < FOLDS:
        raise SimbaError(
            source, f"{least} of one class", f"at least {FOLDS} subjects of each class"
        )
    groups = [groups] if isinstance(groups, str) else groups
    for name, one in (
        groups.items() if isinstance(groups, Mapping) else ((name, None) for name in groups)
    ):
        table[name] = _group(rows, name, one, where)
    classes, grouped = table["label"].astype(str), table.astype(str).agg("/".join, axis=1)
    if split is None:
        table.insert(0, "split", QUARTERS[_parts(len(QUARTERS), grouped, classes)])
    else:
        table.insert(0, "split", column(rows, split, where.name))
        unknown = sorted(set(table["split"]) - set(SPLITS))
        if unknown:
            raise UnknownNameError.among(f"column {split!r} of {where}", unknown[0], SPLITS)
    table["fold"] = _parts(
        FOLDS, table["split"] + "/" + grouped, table["split"] + "/" + classes, classes
    )
    return table


def _group(rows: pd.DataFrame, name: str, one: object, where: Path) -> np.ndarray:
    """Return a column as 0 and 1."""
    if name in (*RESERVED, "participant"):
        raise SimbaError(
            "groups",
            name,
            f"called anything but {', '.join((*RESERVED, 'participant'))}",
            "Rename the column.",
        )
    values = column(rows, name, where.name)
    present = sorted(set(values))
    if set(present) & set(MISSING):
        raise SimbaError(
            f"column {name!r} of {where}",
            present[:20],
            "without missing values",
            "Drop these subjects first.",
        )
    if one is None and not set(present) <= {"0", "1"}:
        raise SimbaError(
            f"column {name!r} of {where}",
            present[:20],
            "of 0 and 1",
            f"Or say who counts: groups={{{name!r}: value}}.",
        )
    if one is not None and str(one) not in present:
        raise UnknownNameError.among(f"groups[{name!r}]", one, present[:20])
    return (values == ("1" if one is None else str(one))).astype(int).to_numpy()


def _parts(count: int, *keys: pd.Series) -> np.ndarray:
    """Deal subjects into equal parts, stratified by the first key whose every value has enough subjects, else the last."""
    key = next((key for key in keys if key.value_counts().min() >= count), keys[-1])
    folds = StratifiedKFold(count, shuffle=True, random_state=0).split(np.zeros(len(key)), key)
    numbers = np.empty(len(key), int)
    for number, (_, members) in enumerate(folds):
        numbers[members] = number
    return numbers
