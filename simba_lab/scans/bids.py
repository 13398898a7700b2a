"""Cohorts as BIDS datasets, so that any neuroimaging software reads them: images, twins and masks of what is true."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from joblib import effective_n_jobs
from tqdm.auto import tqdm

from simba_lab.core.errors import SimbaError, UnknownNameError
from simba_lab.core.files import new_folder
from simba_lab.synthesis.effects import CLASSES
from simba_lab.synthesis.synthetic_cohort import OTHER, SyntheticCohort

BIDS_VERSION = "1.10.0"
# The folder under derivatives/ and the name of the pipeline in it.
PIPELINE = "simba-lab"
SIMULATED = "Simulated image of a person who does not exist, made by SimBA Lab from a brain template. No scanner was used."
LICENCE = "That of the template that the images are made from: {}"
# deflate level: higher ones take several times longer and save a few per cent of a brain.
COMPRESSION = 4
SWITCHED = {True: "on", False: "off", OTHER: "in those outside the group"}

COLUMNS = {
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


def export_bids(
    cohort: SyntheticCohort,
    folder: str | Path,
    *,
    twins: Iterable[str] = (),
    masks: bool = True,
    name: str = "SimBA Lab cohort",
    authors: Iterable[str] = (),
    n_jobs: int = -1,
    progress: bool = False,
) -> Path:
    """Write a cohort as a BIDS dataset: one folder per subject, the design table as ``participants.tsv``.

    Twins and masks go to ``derivatives/simba-lab``, a BIDS derivative of its own, as
    ``sub-0001_desc-withoutBias_T1w.nii.gz`` and ``sub-0001_desc-bias_mask.nii.gz``.
    ``code/scenario.yaml`` holds the scenario. The bytes depend on scenario, seed, subjects and
    versions of the software alone. The dataset appears under its name when it is complete, and not
    at all if anything goes wrong.

    Parameters
    ----------
    cohort : SyntheticCohort
        A synthesised cohort, or a part or twin of one.
    folder : path
        Where to write; it must not exist, the folder that it is in must.
    twins : names of effects
        For each of them, write everybody once more without that effect.
    masks : bool
        Whether to write, for each effect, the voxels that it changes in each subject
        (`Cohort.changed`).
    name : str
        What to call the dataset.
    authors : names
        Who made it.
    n_jobs : int
        Threads (-1 is one per core); as many subjects are in memory at a time.
    progress : bool
        Whether to show a progress bar.

    Returns
    -------
    pathlib.Path
        `folder`.

    Raises
    ------
    SimbaError
        If the folder exists, cannot be written or does not fit on the disk, or the cohort was not
        synthesised here.
    UnknownNameError
        If the scenario has no such effect.

    References
    ----------
    Gorgolewski et al. 2016, "The brain imaging data structure",
    https://doi.org/10.1038/sdata.2016.44.
    """
    if not isinstance(cohort, SyntheticCohort):
        raise SimbaError(
            "cohort",
            "imported images",
            "a synthesised cohort",
            "Somebody's images stay as they are.",
        )
    if not len(cohort) or not cohort.table.index.is_unique:
        raise SimbaError(
            "cohort", f"{len(cohort)} subjects", "of at least one subject, none of them twice"
        )
    effects, authors = (
        cohort.scenario.effects,
        [authors] if isinstance(authors, str) else list(authors),
    )
    twins = [twins] if isinstance(twins, str) else list(dict.fromkeys(twins))
    for effect in twins:
        if effect not in effects:
            raise UnknownNameError.among("twins", effect, effects)
    words = [_camel(effect).lower() for effect in effects]
    if "" in words or len(set(words)) < len(words) or "participant_id" in effects:
        raise SimbaError(
            "cohort.scenario",
            list(effects),
            "of effects whose names differ in the letters a-z and digits",
        )

    with new_folder(folder) as root:
        _describe_raw(cohort, root, name, authors)
        if twins or masks:
            _describe_derivative(cohort, root / "derivatives" / PIPELINE, name, authors)
        counterfactual = {effect: cohort.twin(without=effect) for effect in twins}
        masked = list(effects) if masks else []
        _ = cohort.lattice, cohort.template  # made once, before threads ask for them
        with ThreadPoolExecutor(effective_n_jobs(n_jobs)) as pool:
            work = (cohort, root, counterfactual, masked)
            jobs = [pool.submit(_write_subject, *work, index) for index in range(len(cohort))]
            try:
                for job in tqdm(
                    as_completed(jobs), total=len(jobs), desc="BIDS", disable=not progress
                ):
                    job.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    return Path(folder)


def _write_subject(
    cohort: SyntheticCohort,
    root: Path,
    twins: dict[str, SyntheticCohort],
    masked: list[str],
    index: int,
) -> None:
    """Write the image of one subject, its twins and its masks."""
    subject, affine = _participant(cohort, index), cohort.lattice.affine
    raw, derived = root / subject / "anat", root / "derivatives" / PIPELINE / subject / "anat"
    raw.mkdir(parents=True)
    _write_image(
        raw / f"{subject}_T1w",
        cohort.array(index),
        affine,
        {
            "Description": SIMULATED,
            "Simulated": True,
            "EffectMagnitudes": _rounded(cohort.magnitudes(index)),
            "Manufacturer": "SimBA Lab (simulated)",
            "ManufacturersModelName": "none: simulated",
            "SoftwareVersions": f"simba-lab {_version()}",
            "PulseSequenceDetails": "None: the image is simulated, with the contrast of a T1-weighted template.",
            "MRAcquisitionType": "3D",
        },
    )
    if twins or masked:
        derived.mkdir(parents=True)
    image = f"bids:raw:{subject}/anat/{subject}_T1w.nii.gz"
    common = {"Simulated": True, "Sources": [image], "SpatialReference": image}
    for effect, twin in twins.items():
        word = _camel(effect)
        _write_image(
            derived / f"{subject}_desc-without{word[0].upper()}{word[1:]}_T1w",
            twin.array(index),
            affine,
            {
                "Description": f"Counterfactual twin: the same simulated subject without the effect {effect!r}.",
                **common,
                "SkullStripped": True,
                "EffectMagnitudes": _rounded(twin.magnitudes(index)),
            },
        )
    for effect in masked:
        mask = cohort.changed(index, effect).astype(np.uint8)
        _write_image(
            derived / f"{subject}_desc-{_camel(effect)}_mask",
            mask,
            affine,
            {
                "Description": f"Ground truth for attribution maps: the voxels (1) that the effect {effect!r} changes in this "
                "simulated subject by more than 2 % of the intensity of white matter where it shows. Whether it shows in the "
                "raw image is in EffectMagnitudes there.",
                **common,
                "Type": "ROI",
            },
        )


def _rounded(magnitudes: dict[str, float]) -> dict[str, float]:
    return {effect: round(value, 6) for effect, value in magnitudes.items()}


def _write_image(
    stem: Path, array: np.ndarray, affine: np.ndarray, sidecar: dict[str, Any]
) -> None:
    image = nib.Nifti1Image(array, affine)
    image.set_sform(affine, code="aligned")
    image.set_qform(affine, code="aligned")
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = b"simulated by SimBA Lab"
    # Neither name nor time in the gzip header: equal images make equal files.
    with (
        stem.with_name(f"{stem.name}.nii.gz").open("wb") as handle,
        gzip.GzipFile("", "wb", COMPRESSION, handle, mtime=0) as zipped,
    ):
        zipped.write(image.to_bytes())
    _write_json(stem.with_name(f"{stem.name}.json"), sidecar)


def _describe_raw(cohort: SyntheticCohort, root: Path, name: str, authors: list[str]) -> None:
    template = cohort.template
    _write_json(
        root / "dataset_description.json",
        {
            "Name": name,
            "BIDSVersion": BIDS_VERSION,
            "DatasetType": "raw",
            "License": LICENCE.format(template.source),
            **({"Authors": authors} if authors else {}),
            "GeneratedBy": [
                {
                    "Name": PIPELINE,
                    "Version": _version(),
                    "Description": "Scenario in code/scenario.yaml",
                }
            ],
            "SourceDatasets": [{"DOI": "doi:10.1016/j.neuroimage.2010.07.033"}],
        },
    )
    switched = ", ".join(
        f"{effect} {SWITCHED[state]}" for effect, state in sorted(cohort.switches.items())
    )
    text = [
        f"# {name}\n",
        f"{SIMULATED}\n",
        f"- subjects: {len(cohort)}; seed: {cohort.seed}; voxels: {cohort.lattice.spacing_mm:g} mm",
        f"- template: {template.name}. {template.source}",
        *(f"- {_in_words(effect, value)}" for effect, value in cohort.scenario.effects.items()),
        *([f"- switched, whatever the table says: {switched}"] if switched else []),
        "\n`participants.tsv` is the design: class, split, who carries which bias, how strong each effect is and the",
        "leading modes of anatomy. `code/scenario.yaml` and the seed make the same images again. White matter is about 1,",
        "the background is 0, and positions are millimetres in the space of the template. `derivatives/simba-lab` holds",
        "twins without an effect and masks of the voxels that an effect changes, where these were exported.\n",
    ]
    _write_text(root / "README.md", "\n".join(text))
    (root / "code").mkdir()
    _write_text(root / "code" / "scenario.yaml", cohort.scenario.to_yaml())
    table = cohort.table.reset_index(drop=True)
    table["label"] = table["label"].map(dict(enumerate(CLASSES)))
    table.insert(0, "participant_id", [_participant(cohort, index) for index in range(len(cohort))])
    with (root / "participants.tsv").open("w", encoding="utf-8", newline="") as handle:
        table.to_csv(handle, sep="\t", index=False, na_rep="n/a", lineterminator="\n")
    _write_json(
        root / "participants.json", {column: _described(cohort, column) for column in table.columns}
    )


def _describe_derivative(
    cohort: SyntheticCohort, root: Path, name: str, authors: list[str]
) -> None:
    root.mkdir(parents=True)
    _write_json(
        root / "dataset_description.json",
        {
            "Name": f"{name}: twins and masks",
            "BIDSVersion": BIDS_VERSION,
            "DatasetType": "derivative",
            "License": LICENCE.format(cohort.template.source),
            **({"Authors": authors} if authors else {}),
            "GeneratedBy": [
                {
                    "Name": PIPELINE,
                    "Version": _version(),
                    "Description": "Counterfactual twins, true masks",
                }
            ],
            "SourceDatasets": [{"URL": "../.."}],
            "DatasetLinks": {"raw": "../.."},
        },
    )
    _write_text(
        root / "README.md",
        f"# {name}: twins and masks\n\n{SIMULATED}\n\n"
        "- `desc-without<Effect>_T1w`: the same subject (same anatomy, noise and other effects) without that effect\n"
        "- `desc-<effect>_mask`: the voxels that the effect changes in that subject where it shows\n",
    )


def _described(cohort: SyntheticCohort, column: str) -> dict[str, Any]:
    """Return what participants.json says about a column."""
    effects, kind = cohort.scenario.effects, column.removesuffix("_magnitude")
    if column in effects:
        return {
            "Description": f"Whether the subject is in the bias group: it carries {_in_words(column, effects[column])}.",
            "Levels": {"0": "no", "1": "yes"},
        }
    if kind in effects:
        return {
            "Description": f"Magnitude drawn for {_in_words(kind, effects[kind])}, whether or not it shows.",
            "Units": "share of the nominal strength",
        }
    if column.startswith("anatomy_"):
        return {
            "Description": "Coefficient of a leading mode of healthy anatomy.",
            "Units": "standard deviations",
        }
    return COLUMNS.get(column, {"Description": "Column of the design table."})


def _in_words(name: str, effect: Any) -> str:
    values = {field.name: getattr(effect, field.name) for field in fields(effect)}
    parts = [
        f"{field} {value}"
        for field, value in values.items()
        if isinstance(value, int | float | str)
    ]
    return f"the effect {name!r} ({type(effect).__name__}: {', '.join(parts)})"


def _participant(cohort: SyntheticCohort, index: int) -> str:
    return f"sub-{int(cohort.table.index[index]):04d}"


def _camel(name: str) -> str:
    """Return a BIDS label: letters and digits alone."""
    first, *rest = [
        "".join(letter for letter in part if letter.isascii() and letter.isalnum())
        for part in name.split("_")
    ]
    return first + "".join(part.capitalize() for part in rest)


def _version() -> str:
    try:
        return version("simba-lab")
    except PackageNotFoundError:
        return "0"


def _write_json(path: Path, content: dict[str, Any]) -> None:
    _write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")
