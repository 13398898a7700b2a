"""Classed: cohorts with classes, for what learns or counts them; checked at the call."""

from __future__ import annotations

from typing import Annotated

from simba_lab.core.cohort import Cohort
from simba_lab.core.kinds import Rule


def _has_classes(cohort: Cohort) -> bool:
    return "label" in cohort.table and bool(cohort.table["label"].isin([0, 1]).all())


# A label may be a number, such as the age, or missing.
Classed = Annotated[Cohort, Rule("a cohort whose labels are 0 and 1", _has_classes)]
