"""Plans in YAML of what is planted in a study: marks, transforms, seed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from simba_lab.core.checks import known_fields, seed_number
from simba_lab.core.errors import SimbaError, TemplateError
from simba_lab.core.yaml_files import read_yaml
from simba_lab.scans.bids_images import BidsImages
from simba_lab.scans.planting.battery import battery
from simba_lab.scans.planting.placement import DisplacementField, Registration
from simba_lab.scans.planting.planted_cohort import PlantedCohort
from simba_lab.scans.planting.verb import plant
from simba_lab.scans.preparation import Preparation
from simba_lab.scans.readers import read_bids
from simba_lab.scans.scan_cohort import ScanCohort
from simba_lab.synthesis.effects import Effect
from simba_lab.synthesis.scenario import Scenario
from simba_lab.synthesis.scenario_values import scenario_fields

FIELDS = ("marks", "transforms", "seed")
PARTICIPANT = "{participant}"


@dataclass(frozen=True)
class PlantingPlan:
    """What is planted in the scans of a study, as a YAML file says it.

    Parameters
    ----------
    marks : mapping of name to effect
        Under ``marks``, in the words of the biases of a scenario:
        ``scanner: {kind: contrast, strength: 0.1}``; or ``battery``, see `battery`.
    transforms : str or mapping of participant to Registration, optional
        A displacement field of each scan, relative to the folder of the plan, with
        ``{participant}`` in its name; or by participant the name of one, ``{file: ..., vectors:
        LPS}``, an affine of 4 x 4 numbers, or null for a scan in the space of the template.
    folder : path
        Of the plan.
    seed : int
    """

    marks: Mapping[str, Effect]
    transforms: str | Mapping[str | int, Registration] | None = None
    folder: Path = Path()
    seed: int = 0

    def registrations(self, scans: ScanCohort) -> dict[str | int, Registration] | None:
        """Return the transform of each scan of a cohort; None if the plan has none."""
        if not isinstance(self.transforms, str):
            return None if self.transforms is None else dict(self.transforms)
        names: list[str | int] = [str(name) for name in scans.table["participant"]]
        pattern = self.transforms
        return {name: self.folder / pattern.replace(PARTICIPANT, str(name)) for name in names}

    def planted(self, scans: ScanCohort, *, n_jobs: int, progress: bool = False) -> PlantedCohort:
        """Return scans with the marks of the plan in them."""
        return plant(
            scans,
            self.marks,
            transforms=self.registrations(scans),
            seed=self.seed,
            n_jobs=n_jobs,
            progress=progress,
        )


def read_plan(path: str | Path) -> PlantingPlan:
    """Return the plan in a YAML file.

    Raises
    ------
    SimbaError
        If it is not one; the error names the field and the line.
    """

    def build(values: dict[str, Any]) -> PlantingPlan:
        known_fields("plan", values, FIELDS, needed=("marks",))
        transforms = _transforms(values.get("transforms"), Path(path).parent)
        seed = seed_number("plan.seed", values.get("seed", 0))
        return PlantingPlan(_marks(values["marks"]), transforms, Path(path).parent, seed)

    return read_yaml(path, "plan", build)


def _marks(values: object) -> dict[str, Effect]:
    if values == "battery":
        return battery()
    if not isinstance(values, Mapping) or not values:
        allowed = (
            "battery, or a mapping of names to marks: scanner: {kind: contrast, strength: 0.1}"
        )
        raise SimbaError("plan.marks", values, allowed)
    for name, entry in values.items():
        if not isinstance(entry, Mapping) or not {"region", "kind"} & set(entry):
            allowed = "a mapping with kind and strength, or with region and amplitude_mm"
            raise SimbaError(f"plan.marks.{name}", entry, allowed)
    try:
        marks: dict[str, Effect] = scenario_fields({"bias": values}, Scenario)["bias"]
    except SimbaError as error:
        raise error.with_field(error.field.replace("scenario.bias", "plan.marks")) from error
    return marks


def _transforms(values: object, folder: Path) -> str | dict[str | int, Registration] | None:
    if values is None:
        return None
    if isinstance(values, str) and PARTICIPANT in values:
        return values
    if not isinstance(values, Mapping):
        allowed = f"a file name with {PARTICIPANT}, or a mapping of participants to transforms"
        raise SimbaError("plan.transforms", values, allowed)
    return {
        str(name): _transform(f"plan.transforms[{name!r}]", entry, folder)
        for name, entry in values.items()
    }


def _transform(field: str, value: object, folder: Path) -> Registration:
    if value is None:
        return None
    if isinstance(value, str):
        return folder / value
    if isinstance(value, Mapping):
        entries = known_fields(field, value, ("file", "vectors"), needed=("file",))
        return DisplacementField(folder / str(entries["file"]), entries.get("vectors", "RAS"))
    try:
        affine = np.array(value, float)
    except (TypeError, ValueError):
        affine = np.zeros(0)
    if affine.shape != (4, 4):
        allowed = "a file, {file: ..., vectors: LPS}, 4 rows of 4 numbers, or null"
        raise SimbaError(field, value, allowed)
    return affine


def study_scans(
    study: str | Path | BidsImages, plan: PlantingPlan, *, spacing_mm: float = 4.0, **columns: Any
) -> ScanCohort:
    """Return the people of a BIDS dataset, to plant the marks of a plan in; columns: `read_bids`.

    Raises
    ------
    SimbaError
        As `read_bids` does; an image may lie elsewhere than the template if the plan has
        transforms.
    """
    align = "world" if plan.transforms is None else "centre"
    preparation = Preparation(spacing_mm=spacing_mm, align=align)
    try:
        return read_bids(study, preparation=preparation, **columns)
    except TemplateError as error:
        remedy = error.remedy.replace("use align='centre'", "give transforms in the plan")
        raise TemplateError(error.field, error.value, error.allowed, remedy) from error
