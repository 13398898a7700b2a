"""ScanCohort: somebody's images as a cohort, without a known truth and so without twins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from simba_lab.core.border import checks_arguments
from simba_lab.core.cohort import Cohort, Source
from simba_lab.core.lattice import Lattice
from simba_lab.core.tables import check_complete
from simba_lab.synthesis.rendering.scanner import BACKGROUND


@checks_arguments
@dataclass(frozen=True, eq=False)
class ScanCohort(Cohort):
    """People with images, without twins.

    Made by `read_bids`, `read_table` and `read_simba`, or opened from a store.

    Parameters
    ----------
    table : pandas.DataFrame
        One row per person: ``participant``, ``split``, ``label`` (1: disease), ``fold`` and the
        groups that were read.
    source : Source
        Where the volumes are read: files, or a store.

    Examples
    --------
    >>> import pandas as pd
    >>> import simba_lab as sb
    >>> people = pd.DataFrame({"split": "test", "label": [0, 1], "fold": [0, 1]})
    >>> images = sb.scans.Preparation(spacing_mm=8).images({})  # by subject: path
    >>> scans = sb.scans.ScanCohort(people, images)
    >>> len(scans.test), len(scans.train)
    (2, 0)
    """

    table: pd.DataFrame
    source: Source

    def __post_init__(self) -> None:
        for name in {"split", "label"} & set(self.table.columns):
            check_complete(f"the column {name!r} of the table", self.table[name])

    @property
    def identity(self) -> dict[str, Any]:
        """What the volumes follow from: the files that were read."""
        return self.source.identity

    @property
    def population(self) -> str:
        """The files: the same number is the same person where these are the same."""
        return repr(self.identity)

    @property
    def lattice(self) -> Lattice:
        """Where the voxels of the volumes are."""
        return self.source.lattice

    def array(self, index: int, *, keep: bool = True) -> np.ndarray:
        """Return one person: float32, shape (X, Y, Z), white matter about 1, background 0."""
        return self.source.array(int(self.table.index[index]))

    def brain(self, index: int) -> np.ndarray:
        """Return the voxels that are brighter than the background, bool, shape (X, Y, Z)."""
        return self.array(index) > BACKGROUND
