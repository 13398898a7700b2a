"""The report of an audit: one HTML file that opens anywhere, and its tables as CSV beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np
import pandas as pd
from markupsafe import Markup

from simba_lab.auditing.forest_plot import ForestRow, forest_plot
from simba_lab.core.checks import is_number
from simba_lab.core.errors import SimbaError
from simba_lab.core.files import check_absent, write_new
from simba_lab.core.tables import table_text

if TYPE_CHECKING:
    from simba_lab.auditing.results import Audit

# Of each verdict: colour and shape, a symbol in text.
LOOKS = {"used": ("used", "▲"), "not used": ("free", "●"), "cannot tell": ("open", "◇")}
# What is smaller is 0.00, without a sign.
LEAST_SHOWN = 0.005
UNIT = "spreads of the network's own answers"
TITLES = {
    "layers": "Layer by layer: what is read, and what passes",
    "maps": "Maps: do they point at the mark?",
    "groups": "Read from the layers",
    "rates": "Performance by group",
    "erased": "With a column erased",
}
CAPTIONS = {
    "marks": "Change of the answer for the same scans with the mark, with 95 % intervals.",
    "layers": "read: how well the mark is read from a layer (AUROC). floor: from untrained "
    "networks. passes: share of the mark's effect on the answer that passes through the layer.",
    "maps": "Maps of attribution, scored against the voxels that the planted mark changes.",
    "groups": "auroc: how well the column is read from a layer, given the label. floor: from "
    "untrained networks. leak: what follows from the label alone.",
    "rates": "Differences between groups of people, with 95 % intervals.",
    "erased": "Answers after a column was erased from a layer, with 95 % intervals.",
}
INNER, OUTER = ("layers", "maps"), ("groups", "rates", "erased")


def save_report(audit: Audit, path: str | Path) -> Path:
    """Write the page of an audit, and its tables beside it as ``NAME_marks.csv`` and so on.

    Raises
    ------
    SimbaError
        If one of the files is there already, or cannot be written; then nothing was written over.
    """
    path, tables = report_path(path), _tables(audit)
    names = {table: path.with_name(f"{path.stem}_{table}.csv") for table in tables}
    for file in names.values():
        check_absent(file, "file")
    page = html_of(audit, files=[file.name for file in names.values()])
    for table, file in names.items():
        write_new(file, table_text(tables[table]))
    write_new(path, page)
    return path


def report_path(path: str | Path) -> Path:
    """Return where a report can be written; raise an error before anything is computed.

    Raises
    ------
    SimbaError
        If it is no HTML file, exists, or its folder does not or cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() not in (".html", ".htm"):
        raise SimbaError("report", str(path), "a file called report.html, or so")
    check_absent(path, "report")
    if not path.absolute().parent.is_dir():
        raise SimbaError("report", str(path), "in a folder that exists")
    trial = path.with_name(f".{path.name}.trial")
    write_new(trial, "")  # what stands against it is found now
    trial.unlink(missing_ok=True)
    return path


def html_of(audit: Audit, *, files: Sequence[str] = ()) -> str:
    """Return the page of an audit; `files` are named as those with its tables."""
    marks = _optional(audit, "marks")
    settings, provenance = dict(audit.settings), dict(audit.provenance)
    command = provenance.pop("command", None)
    described = settings.pop("described", {})
    return _template("report.html").render(
        title=str(settings.pop("title", "Does this network use a shortcut?")),
        subtitle=str(settings.pop("subtitle", "Audit by planted marks")),
        verdicts=[] if marks is None else _verdicts(marks, described),
        summary="" if marks is None else _summary(marks),
        plot="" if marks is None else _plot(marks),
        marks=None if marks is None else shown_table(marks, "marks"),
        inner=_shown(audit, INNER),
        outer=_shown(audit, OUTER),
        recipe=_shown(audit, ("recipe", "recipes")),
        notes=[str(note) for note in audit.notes],
        cautions=[str(caution) for caution in audit.cautions],
        command=command,
        settings=_facts(settings),
        provenance=_facts(provenance),
        files=list(files),
    )


@cache
def _template(name: str) -> jinja2.Template:
    text = (files("simba_lab.auditing") / name).read_text(encoding="utf-8")
    options = {"trim_blocks": True, "lstrip_blocks": True, "undefined": jinja2.StrictUndefined}
    return jinja2.Environment(autoescape=True, **options).from_string(text)  # type: ignore[arg-type]


def _optional(audit: Audit, name: str) -> pd.DataFrame | None:
    table = getattr(audit, name, None)
    return table if isinstance(table, pd.DataFrame) and len(table) else None


def _tables(audit: Audit) -> dict[str, pd.DataFrame]:
    names = ("marks", *INNER, *OUTER, "recipe")
    tables = {name: _optional(audit, name) for name in names}
    return {name: table for name, table in tables.items() if table is not None}


def _shown(audit: Audit, names: Sequence[str]) -> list[ShownTable]:
    tables = {name: _optional(audit, name) for name in names}
    return [shown_table(table, name) for name, table in tables.items() if table is not None]


# -- the first screen --


def _summary(marks: pd.DataFrame) -> str:
    verdicts = [str(verdict) for verdict in marks["verdict"]]
    counts = {name: verdicts.count(name) for name in LOOKS}
    parts = [f"{number} {name}" for name, number in counts.items() if number]
    noun = "mark" if len(verdicts) == 1 else "marks"
    return f"{len(verdicts)} {noun}: {', '.join(parts)}."


def _verdicts(marks: pd.DataFrame, described: Mapping[str, str]) -> list[dict[str, str]]:
    entries = []
    for mark, row in marks.iterrows():
        verdict = str(row["verdict"])
        look, symbol = LOOKS.get(verdict, LOOKS["cannot tell"])
        entries.append(
            {
                "mark": str(mark),
                "words": str(described.get(str(mark), "")),
                "verdict": verdict,
                "look": look,
                "symbol": symbol,
                "sentence": sentence(row),
                "settles": _needs(row) if look == "open" else "",
            }
        )
    return entries


def sentence(row: pd.Series) -> str:
    """Return what a row of `Audit.marks` says, for somebody who never saw the table."""
    name = judged(row)
    change = f"{_signed(row[name])} spreads (95 % interval {_signed(row[f'{name}_low'])} to "
    change += f"{_signed(row[f'{name}_high'])})"
    bound = row.get("bound", np.nan)
    limit = f"the bound of {bound:g}" if _is_known(bound) else "what is negligible"
    text = f"This mark alone moves the answer by {change}"
    if name == "excess":
        text = f"This mark alone moves the answer by {_signed(row['effect'])} spreads, and that of "
        text += f"control networks by {_signed(row['control'])}: the excess is {change}"
    text += {"used": f", beyond {limit}.", "not used": f": within {limit}."}.get(
        str(row["verdict"]), f": neither surely within {limit} nor surely beyond."
    )
    flips = row.get("flips", np.nan)
    if _is_known(flips):
        text += f" The decision changes in {100 * flips:.0f} % of the scans."
    return text


def judged(row: pd.Series) -> str:
    """Return what the verdict is about: the excess over control networks, if there are any."""
    return "excess" if _is_known(row.get("excess", np.nan)) else "effect"


def _needs(row: pd.Series) -> str:
    needs = row.get("needs", "")
    if isinstance(needs, str):
        return needs
    return f"about {needs:.0f} scans, or a control network." if _is_known(needs) else ""


def _is_known(value: object) -> bool:
    return is_number(value) and bool(np.isfinite(value))


def _signed(value: float) -> str:
    if not _is_known(value):
        return "unknown"
    return f"{value:+.2f}".replace("-", "−") if abs(value) >= LEAST_SHOWN else "0.00"


def _plot(marks: pd.DataFrame) -> Markup:
    names = {judged(row) for _, row in marks.iterrows()}
    rows = [
        ForestRow(
            str(mark),
            float(row[judged(row)]),
            float(row[f"{judged(row)}_low"]),
            float(row[f"{judged(row)}_high"]),
            LOOKS.get(str(row["verdict"]), LOOKS["cannot tell"])[0],
            str(row["verdict"]),
        )
        for mark, row in marks.iterrows()
    ]
    bounds = marks["bound"].dropna().unique() if "bound" in marks else []
    bound = float(bounds[0]) if len(bounds) == 1 else None
    # Made of our own template, which escapes the names.
    unit = f"excess over control networks, {UNIT}" if names == {"excess"} else UNIT
    return Markup(forest_plot(_template("forest_plot.html"), rows, bound=bound, unit=unit))


# -- tables --


@dataclass(frozen=True)
class ShownTable:
    """A table as text: intervals in one cell with what they are of."""

    title: str
    caption: str
    header: list[str]
    rows: list[dict[str, Any]]


def shown_table(table: pd.DataFrame, name: str) -> ShownTable:
    """Return a table as text, ``x``, ``x_low`` and ``x_high`` in one cell."""
    names = [str(column) for column in table.columns]
    merged = {
        column
        for column in names
        if column.endswith(("_low", "_high")) and column.rpartition("_")[0] in names
    }
    # The sentences say what is needed.
    kept = [column for column in names if column not in merged and column != "needs"]
    levels = [str(level) if level is not None else "" for level in table.index.names]
    rows = []
    for position, key in enumerate(table.index):
        values = dict(zip(names, table.iloc[position].tolist(), strict=True))
        keys = key if isinstance(key, tuple) else (key,)
        cells = [_cell(column, values) for column in kept]
        rows.append({"names": [_text(level) for level in keys], "cells": cells})
    header = [word.replace("_", " ").strip() or "row" for word in (*levels, *kept)]
    title = TITLES.get(name, name.replace("_", " ").capitalize())
    return ShownTable(title, CAPTIONS.get(name, title), header, rows)


def _cell(column: str, values: Mapping[str, Any]) -> dict[str, str]:
    value = values[column]
    text = _text(value)
    low, high = values.get(f"{column}_low"), values.get(f"{column}_high")
    if _is_known(low) and _is_known(high):
        text += f" ({_text(low)} to {_text(high)})"
    look = LOOKS[value][0] if column == "verdict" and value in LOOKS else ""
    if not look and isinstance(value, str) and len(value) > 24:
        look = "text"
    return {"text": text, "look": look}


def _text(value: object) -> str:
    if isinstance(value, tuple | list):
        return " to ".join(_text(entry) for entry in value)
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if value is None or (isinstance(value, float | np.floating) and np.isnan(value)):
        return "–"
    if isinstance(value, float | np.floating):
        number = float(value)
        rounded = f"{number:.0f}" if abs(number) >= 1000 else f"{number:.3g}"
        return rounded.replace("-", "−")
    return str(value)


def _facts(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return settings as words and text, nested ones as JSON."""
    facts = []
    for name, value in values.items():
        if isinstance(value, Mapping | list | tuple):
            value = json.dumps(value, default=str, ensure_ascii=False)
        facts.append((str(name).replace("_", " "), _text(value)))
    return facts
