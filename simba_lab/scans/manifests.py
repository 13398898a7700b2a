"""Manifests: what the manifest and the table of a store may say, as schemas."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    NonNegativeInt,
    PositiveInt,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from simba_lab.core.errors import SimbaError

FORMAT = "simba-lab cohort 1"
TYPES = r"^(text|bool|u?int(8|16|32|64)|float(16|32|64))$"
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Manifest(BaseModel):
    """The content of ``manifest.json``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["simba-lab cohort 1"]
    cohort: dict[str, Any]
    switches: dict[str, bool | Literal["other"]]
    shape: tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt]
    dtype: Literal["<f4"]
    spacing_mm: Annotated[FiniteFloat, Field(gt=0, le=100)]
    origin_mm: tuple[FiniteFloat, FiniteFloat, FiniteFloat]
    versions: dict[str, str]
    subjects: tuple[NonNegativeInt, ...]
    table_sha256: Sha256
    sha256: tuple[Sha256, ...]
    # Stores of earlier versions have neither.
    columns: dict[str, Annotated[str, Field(pattern=TYPES)]] = Field(default_factory=dict)
    digest: Sha256 | None = None
    # Where the scans of a planted cohort are.
    sources: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _agreeing(self) -> Manifest:
        counts = {self.shape[0], len(self.subjects), len(self.sha256), len(set(self.subjects))}
        if len(counts) != 1:
            raise ValueError("subjects, checksums and shape do not agree")
        return self


class Person(BaseModel):
    """A row of ``subjects.tsv``; there may be other columns."""

    model_config = ConfigDict(extra="allow")

    split: Literal["train", "validation", "test"] = "test"
    label: Literal[0, 1] = 0
    fold: NonNegativeInt = 0


class Somebody(Person):
    """A row of somebody's scans: the label may be a number, such as the age."""

    label: FiniteFloat = 0  # type: ignore[assignment]


PEOPLE: dict[bool, TypeAdapter[Any]] = {
    False: TypeAdapter(list[Person]),
    True: TypeAdapter(list[Somebody]),
}


def manifest_of(values: object, path: Path) -> Manifest:
    """Return a manifest that fits its schema and its own digest.

    Raises
    ------
    SimbaError
        Naming the entry that does not fit.
    """
    try:
        manifest = Manifest.model_validate_json(json.dumps(values), strict=True)
    except (ValidationError, ValueError, RecursionError) as error:
        raise broken(path, f"It cannot be used: {problem_of(error)}.") from error
    assert isinstance(values, dict)
    if manifest.digest is not None and manifest.digest != digest_of(values):
        raise broken(path, "It was changed since it was written: its digest is another.")
    return manifest


def digest_of(values: dict[str, Any]) -> str:
    """Return the SHA-256 of a manifest without its digest."""
    content = {name: value for name, value in values.items() if name != "digest"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def check_people(table: pd.DataFrame, manifest: Manifest, path: Path) -> None:
    """Raise unless a table has the subjects of its manifest, and splits, labels and folds."""
    if table.index.tolist() != list(manifest.subjects):
        value = f"{len(table)} rows for {len(manifest.subjects)} subjects"
        raise broken(path, f"Its subjects are not those of the manifest ({value}).")
    fields = [name for name in Person.model_fields if name in table]
    try:
        numbers = bool({"files", "scans"} & set(manifest.cohort))
        PEOPLE[numbers].validate_python(table[fields].to_dict("records"))
    except ValidationError as error:
        raise broken(path, f"It cannot be used: row {problem_of(error)}.") from error


def problem_of(error: Exception) -> str:
    """Return the first problem that a schema found, with its place and the value."""
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors(include_url=False, include_context=False)[0]
    place = ".".join(str(step) for step in first["loc"])
    return f"{place}: {first['msg']}, got {first['input']!r}"[:300]


def broken(path: Path, problem: str) -> SimbaError:
    """Return the error for a file of a store."""
    remedy = f"{problem} Delete the folder and save the cohort again."
    return SimbaError("store", str(path), "complete and unchanged", remedy)
