"""What a BIDS dataset of a cohort says about itself: descriptions, tables and sidecars."""

from __future__ import annotations

import json
from dataclasses import fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from simba_lab.core.cohort import OTHER
from simba_lab.core.tables import table_text
from simba_lab.synthesis.effects import CLASSES, Effect
from simba_lab.synthesis.synthetic_cohort import SyntheticCohort

BIDS_VERSION = "1.10.0"
# The folder under derivatives/ and the name of the pipeline in it.
PIPELINE = "simba-lab"
SIMULATED = (
    "Simulated image of a person who does not exist, made by SimBA Lab from a brain template. "
    "No scanner was used."
)
LICENCE = "That of the template that the images are made from: {}"
SWITCHED = {True: "on", False: "off", OTHER: "in those outside the group"}

COLUMNS: dict[str, dict[str, Any]] = {
    "participant_id": {"Description": "Name of the simulated subject."},
    "label": {
        "Description": "Class.",
        "Levels": {"control": "without the disease", "disease": "with the disease"},
    },
    "split": {
        "Description": "Use.",
        "Levels": {"train": "fit on", "validation": "choose on", "test": "report on"},
    },
    "fold": {
        "Description": "Fold for cross-validation, matched within each split, class and bias group."
    },
}
README = """# {name}

{simulated}

- subjects: {count}; seed: {seed}; voxels: {spacing_mm:g} mm
- template: {template}
{effects}

`participants.tsv` is the design: class, split, bias groups, how strong each effect is and the
leading modes of anatomy. `code/scenario.yaml` and the seed make the same images again. White matter
is about 1, the background is 0, and positions are millimetres in the space of the template.
`derivatives/simba-lab` holds twins without an effect and masks of the voxels that an effect
changes, where these were exported.
"""
DERIVATIVE_README = """# {name}: twins and masks

{simulated}

- `desc-without<Effect>_T1w`: the same subject (anatomy, noise, other effects) without that effect
- `desc-<effect>_mask`: the voxels that the effect changes in that subject where it shows
"""


def describe_raw(cohort: SyntheticCohort, root: Path, name: str, authors: list[str]) -> None:
    """Write description, README, scenario and table of the participants."""
    write_sidecar(
        root / "dataset_description.json",
        _description(cohort, "raw", name, authors, "Scenario in code/scenario.yaml")
        | {"SourceDatasets": [{"DOI": "doi:10.1016/j.neuroimage.2010.07.033"}]},
    )
    lines = [f"- {in_words(effect, value)}" for effect, value in cohort.effects.items()]
    if cohort.switches:
        switches = sorted(cohort.switches.items())
        switched = ", ".join(f"{effect} {SWITCHED[state]}" for effect, state in switches)
        lines.append(f"- switched, whatever the table says: {switched}")
    readme = README.format(
        name=name,
        simulated=SIMULATED,
        count=len(cohort),
        seed=cohort.seed,
        spacing_mm=cohort.lattice.spacing_mm,
        template=f"{cohort.template.name}. {cohort.template.source}",
        effects="\n".join(lines),
    )
    _write_text(root / "README.md", readme)
    (root / "code").mkdir()
    _write_text(root / "code" / "scenario.yaml", cohort.scenario.to_yaml())
    table = cohort.table.reset_index(drop=True)
    table["label"] = table["label"].map(dict(enumerate(CLASSES)))
    table.insert(0, "participant_id", [participant(cohort, index) for index in range(len(cohort))])
    text = table_text(table, sep="\t", index=False, na_rep="n/a")
    _write_text(root / "participants.tsv", text)
    described = {column: _described(cohort, column) for column in table.columns}
    write_sidecar(root / "participants.json", described)


def describe_derivative(cohort: SyntheticCohort, root: Path, name: str, authors: list[str]) -> None:
    """Write description and README of the twins and masks."""
    root.mkdir(parents=True)
    title = f"{name}: twins and masks"
    write_sidecar(
        root / "dataset_description.json",
        _description(cohort, "derivative", title, authors, "Counterfactual twins, true masks")
        | {"SourceDatasets": [{"URL": "../.."}], "DatasetLinks": {"raw": "../.."}},
    )
    _write_text(root / "README.md", DERIVATIVE_README.format(name=name, simulated=SIMULATED))


def _description(
    cohort: SyntheticCohort, dataset_type: str, name: str, authors: list[str], origin: str
) -> dict[str, Any]:
    return {
        "Name": name,
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": dataset_type,
        "License": LICENCE.format(cohort.template.source),
        **({"Authors": authors} if authors else {}),
        "GeneratedBy": [{"Name": PIPELINE, "Version": software_version(), "Description": origin}],
    }


def raw_sidecar(magnitudes: dict[str, float]) -> dict[str, Any]:
    """Return what goes beside the image of a subject."""
    return {
        "Description": SIMULATED,
        "Simulated": True,
        "EffectMagnitudes": _rounded(magnitudes),
        "Manufacturer": "SimBA Lab (simulated)",
        "ManufacturersModelName": "none: simulated",
        "SoftwareVersions": f"simba-lab {software_version()}",
        "PulseSequenceDetails": (
            "None: the image is simulated, with the contrast of a T1-weighted template."
        ),
        "MRAcquisitionType": "3D",
    }


def twin_sidecar(subject: str, effect: str, magnitudes: dict[str, float]) -> dict[str, Any]:
    """Return what goes beside a twin."""
    description = f"Counterfactual twin: the same simulated subject without the effect {effect!r}."
    return {
        "Description": description,
        **_derived_from(subject),
        "SkullStripped": True,
        "EffectMagnitudes": _rounded(magnitudes),
    }


def mask_sidecar(subject: str, effect: str) -> dict[str, Any]:
    """Return what goes beside a mask."""
    description = (
        f"Ground truth for attribution maps: the voxels (1) that the effect {effect!r} changes in "
        "this simulated subject by more than 2 % of the intensity of white matter where it shows. "
        "Whether it shows in the raw image is in EffectMagnitudes there."
    )
    return {"Description": description, **_derived_from(subject), "Type": "ROI"}


def write_sidecar(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file as BIDS has them: in UTF-8, to be read by people too."""
    _write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def participant(cohort: SyntheticCohort, index: int) -> str:
    """Return the BIDS name of a subject."""
    return f"sub-{int(cohort.table.index[index]):04d}"


def camel(name: str) -> str:
    """Return a BIDS label: letters and digits alone."""
    first, *following = [
        "".join(letter for letter in word if letter.isascii() and letter.isalnum())
        for word in name.split("_")
    ]
    return first + "".join(word.capitalize() for word in following)


def in_words(name: str, effect: Effect) -> str:
    """Return an effect as a phrase with its numbers and names."""
    values = {field.name: getattr(effect, field.name) for field in fields(effect)}
    settings = [
        f"{field} {value}"
        for field, value in values.items()
        if isinstance(value, int | float | str)
    ]
    return f"the effect {name!r} ({type(effect).__name__}: {', '.join(settings)})"


def software_version() -> str:
    """Return the version of the lab, or 0 if it is not installed."""
    try:
        return version("simba-lab")
    except PackageNotFoundError:
        return "0"


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")


def _derived_from(subject: str) -> dict[str, Any]:
    image = f"bids:raw:{subject}/anat/{subject}_T1w.nii.gz"
    return {"Simulated": True, "Sources": [image], "SpatialReference": image}


def _rounded(magnitudes: dict[str, float]) -> dict[str, float]:
    return {effect: round(value, 6) for effect, value in magnitudes.items()}


def _described(cohort: SyntheticCohort, column: str) -> dict[str, Any]:
    """Return what participants.json says about a column."""
    effects, effect = cohort.effects, column.removesuffix("_magnitude")
    if column in effects:
        carried = in_words(column, effects[column])
        return {
            "Description": f"Whether the subject is in the bias group: it carries {carried}.",
            "Levels": {"0": "no", "1": "yes"},
        }
    if effect in effects:
        drawn = in_words(effect, effects[effect])
        return {
            "Description": f"Magnitude drawn for {drawn}, whether or not it shows.",
            "Units": "share of the nominal strength",
        }
    if column.startswith("anatomy_"):
        return {
            "Description": "Coefficient of a leading mode of healthy anatomy.",
            "Units": "standard deviations",
        }
    return COLUMNS.get(column, {"Description": "Column of the design table."})
