"""What a planted cohort is made from, as plain values in the manifest of a store, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from simba_lab.core.errors import SimbaError
from simba_lab.scans.planting.planted_scans import PlantedScans, stamp_of
from simba_lab.scans.planting.transforms import described, restored
from simba_lab.scans.preparation import Preparation
from simba_lab.synthesis.anatomy.template import Template
from simba_lab.synthesis.scenario import Scenario
from simba_lab.synthesis.scenario_values import plain, scenario_fields, template_value


def sources_of(source: PlantedScans) -> dict[str, Any]:
    """Return where the scans are, and how they lie in the template."""
    template = source.images.template
    masks = {
        str(subject): [str(path.absolute()), *stamp_of(path)]
        for subject, path in source.images.masks.items()
        if subject in source.stamps
    }
    return ({"masks": masks} if masks else {}) | {
        "files": {
            str(subject): [str(source.images.paths[subject].absolute()), *stamp]
            for subject, stamp in source.stamps.items()
        },
        "template": None if isinstance(template, Template) else plain(template),
        "transforms": {
            str(subject): described(transform, path=True)
            for subject, transform in source.transforms.items()
        },
    }


def source_of(
    identity: dict[str, Any], sources: dict[str, Any] | None, table: pd.DataFrame
) -> PlantedScans:
    """Return the source of a planted cohort: the inverse of `sources_of`. Opens no scan.

    Raises
    ------
    SimbaError
        If something was given in memory, which no manifest can hold.
    """
    if sources is None:
        raise KeyError("sources")
    scans, template = identity["scans"], sources["template"]
    if template is None:
        remedy = "Plant the effects again, and save them to the same folder: nothing is made twice."
        allowed = "a template of the lab, or TemplateFiles, to be opened"
        raise SimbaError("template", "one that was read from files", allowed, remedy)
    settings = {name: scans[name] for name in ("spacing_mm", "align", "rescale")}
    preparation = Preparation(template=template_value(template, "template"), **settings)
    files = {int(subject): entry for subject, entry in sources["files"].items()}
    paths = {subject: Path(entry[0]) for subject, entry in files.items()}
    masks = {int(subject): entry for subject, entry in sources.get("masks", {}).items()}
    for subject, (name, *stamp) in masks.items():
        if Path(name).is_file() and list(stamp_of(Path(name))) != stamp:
            remedy = "It was changed since; plant the effects again."
            raise SimbaError(f"mask of subject {subject}", name, "the mask that was used", remedy)
    effects = {
        name: scenario_fields({"disease": values}, Scenario)["disease"]
        for name, values in identity["planted"].items()
    }
    magnitudes = {name: table[f"{name}_magnitude"] for name in effects}
    return PlantedScans(
        preparation.reopened(
            paths, scans, {subject: Path(entry[0]) for subject, entry in masks.items()}
        ),
        effects,
        {name: (float(values.min()), float(values.max())) for name, values in magnitudes.items()},
        {
            int(subject): restored(values, int(subject))
            for subject, values in sources["transforms"].items()
        },
        {subject: (int(entry[1]), int(entry[2])) for subject, entry in files.items()},
        int(identity["seed"]),
    )
