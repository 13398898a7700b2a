"""Audit: what an audit found, question by question, and its report."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from simba_lab.core.border import checks_arguments


@checks_arguments
@dataclass(frozen=True)
class Audit:
    """What an audit found. Made by `audit` and `audit_answers`.

    Parameters
    ----------
    marks : pandas.DataFrame
        Question A, one row for each mark, indexed by ``mark``: ``effect`` (change of the answer in
        spreads of the network's own answers), ``logit`` (or ``number``), ``flips``, all with
        intervals; ``control``, ``excess``, ``bound``, ``smallest`` (what these scans could show),
        ``verdict`` (``used``, ``not used``, ``cannot tell``) and ``needs`` (what would settle it).
    layers, maps : pandas.DataFrame, optional
        Where marks are read and used, and whether maps point at them.
    groups, rates, erased : pandas.DataFrame, optional
        Question C: what is known of real groups, which is correlational.
    recipe : pandas.DataFrame, optional
        Question B, from `audit_recipe`.
    settings, provenance : dict
    notes : list of str
        What the audit cannot show.
    cautions : list of str
        What somebody has to know who reads the verdicts alone: on the first screen of a report.

    Examples
    --------
    >>> import pandas as pd
    >>> import simba_lab as sb
    >>> sb.auditing.Audit(pd.DataFrame({"effect": [0.1]}, index=["scanner"])).marks.shape
    (1, 1)
    """

    marks: pd.DataFrame
    layers: pd.DataFrame | None = None
    groups: pd.DataFrame | None = None
    rates: pd.DataFrame | None = None
    erased: pd.DataFrame | None = None
    maps: pd.DataFrame | None = None
    recipe: pd.DataFrame | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    cautions: list[str] = field(default_factory=list)

    def save(self, path: str | Path) -> Path:
        """Write the report as one HTML file, and the tables as ``NAME_marks.csv`` beside it.

        Raises
        ------
        SimbaError
            If one of the files exists, or cannot be written.
        """
        from simba_lab.auditing.report import save_report

        return save_report(self, path)
