"""Study: rows of a table and the files of people, and how a cohort is made of them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from joblib import Parallel, delayed

from simba_lab.core.checks import choice
from simba_lab.core.errors import SimbaError, Words
from simba_lab.core.tables import check_complete, missing_in
from simba_lab.scans.bids_images import ScanFiles
from simba_lab.scans.participants import (
    Columns,
    classified,
    gaps,
    other_columns,
    participants_table,
    warn_of_dropped,
)
from simba_lab.scans.preparation import Preparation, for_each_subject
from simba_lab.scans.scan_cohort import ScanCohort


@dataclass(frozen=True, eq=False)
class Study:
    """A table of people and their files.

    Parameters
    ----------
    rows : pandas.DataFrame of str
        What `read_rows` returns.
    path : path
        What errors call the table.
    names : pandas.Series of str
        Of the people.
    keys : pandas.Series of str
        What `files` takes for each of them.
    files : callable
    """

    rows: pd.DataFrame
    path: Path
    names: pd.Series
    keys: pd.Series
    files: Callable[[str], ScanFiles]

    def cohort(self, columns: Columns, on_missing: str, preparation: Preparation) -> ScanCohort:
        """Return the cohort of these people.

        Raises
        ------
        SimbaError
            As `read_bids` does.
        """
        rows = self.rows
        if choice("on_missing", on_missing, ("refuse", "drop")) == "drop":
            rows = self._complete(columns, preparation)
        try:
            design = participants_table(rows, self.path, columns)
            chosen = design.index
            lines = [f"subject {name}" for name in self.names[chosen]]
            field = f"column {self.keys.name!r} of {self.path}"
            check_complete(field, self.keys[chosen], names=lines)
        except SimbaError as error:
            if error.remedy == "Drop these subjects first.":
                raise error.with_place('on_missing="drop" does.') from error
            raise
        files = for_each_subject(self.files, self.keys[chosen])
        used = [self.names.name, self.keys.name, columns.label, columns.use_column]
        others = other_columns(rows, design, [str(name) for name in used])
        return scans_of(design, self.names[chosen], files, preparation, others=others)

    def _complete(self, columns: Columns, preparation: Preparation) -> pd.DataFrame:
        """Return the rows in which nothing is missing; warn of the others."""
        people = classified(self.rows, self.path, columns)
        reasons = gaps(people, self.path, columns)
        absent = missing_in(self.keys[people.index])
        reasons |= dict.fromkeys(people.index[absent], f"no value of {self.keys.name!r}")
        look = preparation.opener()

        def problem(row: Hashable) -> str:
            try:
                image, mask = self.files(self.keys[row])
                look(f"image of {self.names[row]}", image, mask, True)
            except SimbaError as error:
                return f"the image is not {error.allowed}" if error.allowed else str(error)
            return ""

        present = [row for row in people.index if row not in reasons]
        problems = Parallel(n_jobs=-1, prefer="threads")(delayed(problem)(row) for row in present)
        reasons |= {row: text for row, text in zip(present, problems, strict=True) if text}
        named = {self.names[row]: reasons[row] for row in people.index if row in reasons}
        warn_of_dropped(named, len(people))
        if len(reasons) == len(people):
            value = Words("nobody whose image and values are complete")
            raise SimbaError(str(self.path), value, "a table of people with images")
        return people.drop(index=list(reasons))


def scans_of(
    design: pd.DataFrame,
    names: Iterable[str],
    files: list[ScanFiles],
    preparation: Preparation,
    *,
    others: pd.DataFrame | None = None,
) -> ScanCohort:
    """Return the cohort of a design and its files, each opened once.

    Other columns follow those of the design; the identity of the volumes does not know of them.
    """
    names = list(names)
    _check_unique("file", [str(image) for image, _ in files])
    _check_unique("subject", names)
    design.insert(0, "participant", names)
    labels = [name.removeprefix("sub-") for name in names]
    numbers = [int(label) for label in labels if re.fullmatch("[0-9]{1,15}", label)]
    numbered = len(set(numbers)) == len(design)
    index = pd.Index(numbers if numbered else range(len(design)), name="subject")
    table = design.set_axis(index)
    paths = {row: image for row, (image, _) in zip(index.tolist(), files, strict=True)}
    masks = {row: mask for row, (_, mask) in zip(index.tolist(), files, strict=True) if mask}
    images = preparation.images(paths, table=table, masks=masks)
    if others is not None:
        table = pd.concat([table, others.set_axis(index)], axis=1)
    return ScanCohort(table, images)


def _check_unique(noun: str, values: list[str]) -> None:
    value, times = Counter(values).most_common(1)[0]
    if times > 1:
        remedy = f"This {noun} is in {times} rows."
        raise SimbaError(f"the {noun}s of the table", value, "different in each row", remedy)
