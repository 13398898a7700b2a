"""Transforms of people's scans to the template: by name, as plain values, and back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd

from simba_lab.core.errors import SimbaError
from simba_lab.core.fingerprint import fingerprint
from simba_lab.scans.planting.placement import DisplacementField, Registration

# Of what was given in memory a store keeps the digest alone.
DIGEST = "digest"


def by_subject(
    transforms: Mapping[Any, Registration] | None, table: pd.DataFrame
) -> dict[int, Registration]:
    """Return the transform of each subject, given by the names of people or by their numbers.

    Raises
    ------
    SimbaError
        If one has none, or if its file is missing.
    """
    if transforms is None:
        return {}
    names = table.get("participant", table.index)
    chosen: dict[int, Registration] = {}
    missing = []
    for number, name in zip(table.index.tolist(), names, strict=True):
        key = name if name in transforms else number
        if key not in transforms:
            missing.append(str(name))
            continue
        chosen[int(number)] = transforms[key]
        _check_file(f"transforms[{key!r}]", transforms[key])
    if missing:
        shown = ", ".join(missing[:6]) + (", ..." if len(missing) > 6 else "")
        value = f"a mapping without {len(missing)} of {len(table)}: {shown}"
        remedy = "Give None for a scan that lies in the space of the template."
        raise SimbaError("transforms", value, "given for each scan, by participant", remedy)
    return chosen


def _check_file(field: str, transform: Registration) -> None:
    image = transform.image if isinstance(transform, DisplacementField) else transform
    if isinstance(image, str | Path) and not Path(image).is_file():
        raise SimbaError(field, str(image), "an existing file", "Check the path.")


def described(transform: Registration, *, path: bool) -> Any:
    """Return a transform as plain values; `path`: with the place of its file, to read it again."""
    if transform is None:
        return None
    if isinstance(transform, str | Path | nib.spatialimages.SpatialImage):
        transform = DisplacementField(transform)
    if not isinstance(transform, DisplacementField):
        return np.asarray(transform, float).tolist()
    image, vectors = transform.image, transform.vectors
    if isinstance(image, str | Path):
        file = Path(image)
        status = file.stat()
        values = {"file": file.name, "bytes": status.st_size, "changed": status.st_mtime_ns}
        return values | {"vectors": vectors} | ({"path": str(file.absolute())} if path else {})
    content = fingerprint(np.asarray(image.dataobj), np.asarray(image.affine))
    return {DIGEST: content, "vectors": vectors}


def restored(values: Any, subject: int) -> Registration:
    """Return the transform that `described` with its path stands for.

    Raises
    ------
    SimbaError
        If it was given in memory, or its file was changed.
    """
    if values is None:
        return None
    if isinstance(values, list):
        return np.array(values, float)
    field = f"transform of subject {subject}"
    remedy = "Plant the effects again, and save them to the same folder: nothing is made twice."
    if DIGEST in values:
        raise SimbaError(field, "an image in memory", "a file or an affine, to be opened", remedy)
    transform = DisplacementField(values["path"], values["vectors"])
    if not Path(values["path"]).is_file() or described(transform, path=True) != values:
        raise SimbaError(field, values["path"], "the file that was planted with", remedy)
    return transform
