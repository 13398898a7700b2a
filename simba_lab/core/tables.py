"""Tables: the one reader of other people's, the one writer of ours, and what a missing value is."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from simba_lab.core.errors import SimbaError, TemplateError, Words
from simba_lab.core.files import read_text

# What people write where they have no value; capitals do not matter.
MISSING = {"", "-", "--", ".", "?", "n/a", "na", "n.a.", "n.a", "#n/a", "<na>", "nan", "nat"}
MISSING |= {"null", "(null)", "none", "nil", "missing", "#value!", "#null!"}
# A spreadsheet takes a cell that begins so for a formula, and runs it.
FORMULA = re.compile(r"'*[=+\-@\t\r]")
Values: TypeAlias = Sequence[Any] | np.ndarray | pd.Series
SEPARATORS = {".tsv": "\t", ".csv": ","}


# -- tables of other people --


def read_rows(path: str | Path, field: str = "table") -> pd.DataFrame:
    """Read a table (.csv with commas or .tsv with tabs) as text: nothing is guessed.

    Spaces around cells are left out, and lines without content. Each other line is a row. In a
    .tsv quotes are letters, unless they enclose a cell.

    Raises
    ------
    TemplateError
        If the file is missing, empty or damaged, or a row has other cells than the header. The
        message names the line.
    """
    path = Path(path)
    if path.suffix.lower() not in SEPARATORS or not path.is_file():
        raise TemplateError(field, str(path), "an existing .csv or .tsv file", "Check the path.")
    try:
        text = read_text(path, field, "a table")
    except SimbaError as error:
        raise TemplateError(error.field, error.value, error.allowed, error.remedy) from error
    lines = _cells_by_line(text, SEPARATORS[path.suffix.lower()], field, path)
    if len(lines) < 2:
        remedy = "It has no header, or no row below it."
        raise TemplateError(field, str(path), "a table with a header", remedy)
    (_, header), *rows = lines.items()
    if len(set(header)) < len(header):
        allowed = "a table with rows as long as its header, and no column twice"
        raise TemplateError(field, str(path), allowed, f"The header is {header}.")
    for number, cells in lines.items():
        if len(cells) != len(header):
            allowed = "a table with rows as long as its header"
            remedy = (
                f"Line {number} has {len(cells)} cells and the header {len(header)}: {cells[:6]}."
            )
            raise TemplateError(field, str(path), allowed, remedy)
    return pd.DataFrame([cells for _, cells in rows], columns=header, dtype=str)


def _cells_by_line(text: str, separator: str, field: str, path: Path) -> dict[int, list[str]]:
    """Return the cells of each line that has any, by the number of the line."""
    tabs = separator == "\t"
    lines = {}
    for number, line in enumerate(re.split(r"\r\n|\r|\n", text), 1):
        try:
            if tabs:
                cells = [_unquoted(cell) for cell in line.split(separator)]
            else:
                cells = [cell.strip() for cell in next(csv.reader([line], strict=True), [])]
        except csv.Error as error:
            problem = f"Line {number}: {error}."
            remedy = f"{problem} Close its quotes; a cell cannot go on in the next line."
            raise TemplateError(field, str(path), "a table", remedy) from error
        if any(cells):
            lines[number] = cells
    return lines


def _unquoted(cell: str) -> str:
    cell = cell.strip()
    if len(cell) > 1 and cell.startswith('"') and cell.endswith('"'):
        return cell[1:-1].replace('""', '"').strip()
    return cell


def missing_in(values: Values, *, meant: Iterable[Any] = ()) -> np.ndarray:
    """Tell which values are missing, bool: NaN, None, blanks, and words such as ``n/a``.

    Parameters
    ----------
    values : iterable
    meant : iterable
        Values that somebody named, whatever they look like: a class may be called ``none``.
    """
    if isinstance(values, np.ndarray | pd.Series) and values.dtype.kind in "biuf":
        return np.asarray(pd.isna(values))
    named = {str(value) for value in meant}
    return np.array([_is_missing(value, named) for value in values], bool)


def _is_missing(value: Any, named: set[str]) -> bool:
    if isinstance(value, str):
        return value not in named and value.strip().casefold() in MISSING
    return value is None or bool(pd.api.types.is_scalar(value) and pd.isna(value))


def check_complete(
    field: str, values: Values, *, meant: Iterable[Any] = (), names: Iterable[Any] = ()
) -> None:
    """Raise if values are missing; the error says how many, and whose.

    Parameters
    ----------
    field : str
    values : iterable
    meant : iterable
        As for `missing_in`.
    names : iterable
        Whose values these are, such as names of subjects.
    """
    missing = np.flatnonzero(missing_in(values, meant=meant))
    if not missing.size:
        return
    values = list(values)
    written = sorted({str(values[row]) for row in missing})
    subjects = [str(name) for name in names]
    whose = f" ({', '.join(subjects[row] for row in missing[:5])})" if subjects else ""
    value = f"{missing.size} of {len(values)} missing{whose}, written as {written[:5]}"
    raise SimbaError(field, Words(value), "without missing values", "Drop these subjects first.")


# -- tables of ours --


def table_text(table: pd.DataFrame, **options: Any) -> str:
    """Return a table as the text of a file; options are those of `pandas.DataFrame.to_csv`.

    Text that a spreadsheet would take for a formula gets an apostrophe in front; numbers stay.
    """
    safe = table.copy(deep=False)
    safe.columns = [_neutral(name) for name in table.columns]
    for position, dtype in enumerate(table.dtypes):
        if not pd.api.types.is_numeric_dtype(dtype):
            safe.isetitem(position, [_neutral(value) for value in table.iloc[:, position]])
    if not isinstance(table.index, pd.MultiIndex):
        if not pd.api.types.is_numeric_dtype(table.index.dtype):
            safe.index = pd.Index([_neutral(value) for value in table.index])
        safe.index.name = _neutral(table.index.name)
    else:
        safe.index = table.index.map(lambda values: tuple(_neutral(value) for value in values))
        safe.index.names = [_neutral(name) for name in table.index.names]
    text: str = safe.to_csv(**{"lineterminator": "\n"} | options)
    return text


def _neutral(value: Any) -> Any:
    if isinstance(value, str) and FORMULA.match(value) and not _is_number(value):
        return f"'{value}"
    return value


def _is_number(text: str) -> bool:
    return bool(re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", text))


def column_types(table: pd.DataFrame) -> dict[str, str]:
    """Return what the columns of a table hold: ``text``, or the type of its numbers."""
    types = {}
    for name, dtype in table.dtypes.items():
        numeric = pd.api.types.is_numeric_dtype(dtype) and dtype != "boolean"
        plain = str(dtype) if isinstance(dtype, np.dtype) else "float64"  # with missing values
        types[str(name)] = plain if numeric else "text"
    return types


def parse_table(content: bytes, index: str, types: Mapping[str, str]) -> pd.DataFrame:
    """Return the table that `table_text` wrote with tabs: text stays text, ``0001`` and ``NA`` too.

    Parameters
    ----------
    content : bytes
    index : str
        The column that is the index, of whole numbers.
    types : mapping of column to type
        From `column_types`. A column that is not in it holds numbers if these are written as
        numbers are: ``0001`` and ``1E5`` are not.

    Raises
    ------
    ValueError
        If a column does not hold what its type says, or is not there.
    """
    table = pd.read_csv(
        io.BytesIO(content), sep="\t", dtype=str, keep_default_na=False, encoding="utf-8"
    )
    absent = {index, *types} - set(table.columns)
    if absent:
        raise ValueError(f"it has no column {sorted(absent)[0]!r}")
    columns = {}
    for name in table.columns:
        kind = "int64" if name == index else types.get(name) or _guessed(table[name])
        columns[name] = _as_type(table[name], kind)
    return pd.DataFrame(columns).set_index(index)


def _as_type(values: pd.Series, kind: str) -> pd.Series:
    if kind == "text":
        return values.map(lambda text: text[1:] if re.match(r"'+[=+\-@\t\r]", text) else text)
    if kind == "bool":
        if not set(values) <= {"True", "False"}:
            raise ValueError(f"column {values.name!r} does not hold {kind}")
        return values == "True"
    if kind.startswith("float"):
        # To the last bit, as Python reads them.
        return values.map(lambda text: float(text) if text else np.nan).astype(kind)
    return values.map(int).astype(kind)


def _guessed(values: pd.Series) -> str:
    """Return the type of a column from its text: numbers are what comes back as it was."""
    for kind, function in (("int64", int), ("float64", float)):
        try:
            if all(repr(function(text)) == text or not text for text in values):
                return kind if kind == "float64" or all(values) else "float64"
        except ValueError:
            pass
    return "bool" if set(values) <= {"True", "False"} else "text"
