"""audit_answers: an audit of a tool that nobody can look into, from its scores of planted twins."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from simba_lab.auditing.answers import LEAST_SCANS, answer_table, spread_of
from simba_lab.auditing.cautions import cautions_of
from simba_lab.auditing.marks import mark_in_words
from simba_lab.auditing.results import Audit
from simba_lab.core.checks import Positive, choice
from simba_lab.core.errors import SimbaError, Words
from simba_lab.core.tables import read_rows
from simba_lab.scans.bids_description import software_version
from simba_lab.scans.planting.plans import read_plan
from simba_lab.scans.planting.planted_images import IMAGES, PLAN, UNMARKED

SCALES = ("logit", "probability", "number")
SHOWN = 5
NOTES = [
    "Marks that were not planted were not tested, nor weaker or stronger ones.",
    "The twins differ in the planted mark alone; what the scans carry of themselves is not known.",
    "Where in the network a mark is read or used is not known: only answers were seen.",
    "Whether a real scanner leaves a mark like the planted one is not shown here.",
]


def audit_answers(
    answers: str | Path, planted: str | Path, *, scores: str | None = None, bound: Positive = 0.5
) -> Audit:
    """Audit any tool by its scores of scans and their planted twins.

    The scans are those of `export_planted` (``simba-lab plant``); the tool, whatever it is, scored
    each image. This gives question A of an audit; the others need a network.

    Parameters
    ----------
    answers : path
        A .csv or .tsv with ``file``, or ``participant`` and ``mark``, and ``score``: one row for
        each image. Columns ``control``, ``control2``, ... hold the scores of control networks.
    planted : path
        The folder that `export_planted` wrote.
    scores : {"logit", "probability", "number"}, optional
        What the scores are. Probabilities become logits, exactly. Numbers, such as an age, have no
        decisions. By default they are logits, and refused if all lie between 0 and 1.
    bound : float
        Changes within this many standard deviations of the tool's own answers do not matter.

    Returns
    -------
    Audit

    Raises
    ------
    SimbaError
        If an image is missing, twice in the table or unknown, a score is no finite number,
        the folder is not complete, or there are fewer than 16 scans.

    Examples
    --------
    >>> import simba_lab as sb
    >>> sb.auditing.audit_answers("answers.csv", "planted")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    simba_lab.core.errors.SimbaError: planted must be a folder that ...
    """
    answers, planted = Path(answers), Path(planted)
    scale = None if scores is None else choice("scores", scores, SCALES)
    images = _images(planted)
    scored = _matched(answers, images)
    columns = ["score", *_controls(scored)]
    values = {name: _numbers(scored, name, scale) for name in columns}
    marks = [mark for mark in dict.fromkeys(images["mark"]) if mark != UNMARKED]
    rows = {mark: np.flatnonzero(images["mark"] == mark) for mark in [UNMARKED, *marks]}
    pairs = []
    for name in columns:
        off = values[name][rows[UNMARKED]]
        on = np.stack([values[name][rows[mark]] for mark in marks], axis=1)
        pairs.append((off, on, spread_of(off, f"answers.{name}")))
    off, on, spread = pairs[0]
    table = answer_table(
        off,
        on,
        spread,
        marks=marks,
        controls=[pair[:2] for pair in pairs[1:]],
        bound=bound,
        decisions=scale != "number",
    )
    effects = read_plan(planted / PLAN).marks
    return Audit(
        marks=table,
        layers=None,
        groups=None,
        rates=None,
        erased=None,
        maps=None,
        settings={
            "title": "Does this tool use a shortcut?",
            "subtitle": f"{len(off)} scans, {len(marks)} planted marks; only answers were seen",
            "described": {mark: mark_in_words(effects[mark]) for mark in marks if mark in effects},
            "scans": len(off),
            "bound": bound,
            "scores": scale or "logit",
            "controls": len(columns) - 1,
            "spread of the answers": spread,
        },
        provenance={
            "answers": answers.name,
            "SHA-256 of the answers": hashlib.sha256(answers.read_bytes()).hexdigest(),
            "planted scans": str(planted),
            "software": f"simba-lab {software_version()}",
        },
        notes=list(NOTES),
        cautions=cautions_of(table, len(pairs) - 1),
    )


@dataclass(frozen=True)
class _Name:
    """How an image is called in somebody's table: by its file, or by participant and mark."""

    columns: tuple[str, ...]

    def of(self, rows: pd.DataFrame) -> list[str]:
        if self.columns == ("file",):
            # Tools write paths of their own machine; names of images differ all the same.
            return [re.split(r"[/\\]", name)[-1] for name in rows["file"]]
        pairs = zip(rows["participant"], rows["mark"], strict=True)
        return [f"{owner.lstrip(chr(39))} {mark}" for owner, mark in pairs]


def _images(planted: Path) -> pd.DataFrame:
    """Return the table of all images, sorted so that the scans of all marks are in one order."""
    if not (planted / IMAGES).is_file():
        remedy = "Give the folder of simba-lab plant; if it was interrupted, run that again."
        raise SimbaError("planted", str(planted), f"a folder that holds {IMAGES}", remedy)
    images = read_rows(planted / IMAGES, "planted")
    if not {"file", "participant", "mark"} <= set(images.columns):
        allowed = "a table with file, participant and mark, as simba-lab plant writes it"
        raise SimbaError(f"planted/{IMAGES}", list(images.columns), allowed)
    counts = images["mark"].value_counts()
    if len(counts) < 2 or UNMARKED not in counts or counts.max() > counts.min():
        value = Words(", ".join(f"{number} of {mark}" for mark, number in counts.items()))
        raise SimbaError(f"planted/{IMAGES}", value, "a table with as many images of each mark")
    if counts.iloc[0] < LEAST_SCANS:
        value = Words(f"{counts.iloc[0]} scans")
        raise SimbaError("planted", value, f"at least {LEAST_SCANS} scans")
    return images.sort_values("participant", kind="stable", ignore_index=True)


def _matched(answers: Path, images: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of a table of answers in the order of the images."""
    table = read_rows(answers, "answers")
    by_file = "file" in table
    if "score" not in table or not (by_file or {"participant", "mark"} <= set(table.columns)):
        allowed = "a table with file (or participant and mark) and score"
        raise SimbaError("answers", list(table.columns), allowed)
    name = _Name(("file",) if by_file else ("participant", "mark"))
    given, expected = name.of(table), name.of(images)
    twice = sorted({entry for entry in given if given.count(entry) > 1}) if _repeats(given) else []
    for problem, entries in (
        ("unknown", sorted(set(given) - set(expected))),
        ("answered twice", twice),
        ("not answered", sorted(set(expected) - set(given))),
    ):
        if entries:
            value = Words(f"a table where {_counted(entries)} {problem}")
            raise SimbaError("answers", value, f"one row for each of {len(expected)} images")
    table.index = pd.Index(given)
    return table.loc[expected]


def _repeats(names: list[str]) -> bool:
    return len(set(names)) < len(names)


def _counted(entries: list[str]) -> str:
    shown = ", ".join(entries[:SHOWN]) + (", ..." if len(entries) > SHOWN else "")
    verb = "is" if len(entries) == 1 else "are"
    return f"{len(entries)} ({shown}) {verb}"


def _controls(table: pd.DataFrame) -> Iterable[str]:
    return [name for name in table.columns if re.fullmatch(r"control\d*", str(name))]


def _numbers(table: pd.DataFrame, column: str, scale: str | None) -> np.ndarray:
    """Return the scores of a column as logits, or numbers."""
    values: Any = pd.to_numeric(table[column], errors="coerce").to_numpy(float)
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        texts = [f"{table[column].iloc[row]!r} of {table.index[row]}" for row in bad[:SHOWN]]
        more = ", ..." if bad.size > SHOWN else ""
        value = Words(f"{bad.size} of {len(values)} that are none: {', '.join(texts)}{more}")
        raise SimbaError(f"answers.{column}", value, "finite numbers")
    within = (values >= 0) & (values <= 1)
    if scale is None and within.all():
        value = Words(f"{len(values)} numbers from {values.min():g} to {values.max():g}")
        remedy = 'Say what they are: scores="probability" (--scores probability), or "logit".'
        raise SimbaError(f"answers.{column}", value, "logits", remedy)
    if scale != "probability":
        return values
    certain = np.flatnonzero((values <= 0) | (values >= 1))
    if certain.size:
        value = Words(
            f"{certain.size} that are not, such as {values[certain[0]]:g} of "
            f"{table.index[certain[0]]}"
        )
        remedy = "Write more digits, or give logits: 0 and 1 have no logit."
        raise SimbaError(f"answers.{column}", value, "probabilities above 0 and below 1", remedy)
    return np.log(values) - np.log1p(-values)
