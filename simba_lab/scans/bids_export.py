"""export_bids: a cohort as a BIDS dataset that any neuroimaging software reads, with its truth."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from joblib import effective_n_jobs
from tqdm.auto import tqdm

from simba_lab.core.checks import choice, workers
from simba_lab.core.cohort import Cohort
from simba_lab.core.errors import SimbaError, Words
from simba_lab.core.files import new_folder
from simba_lab.scans.bids_description import (
    PIPELINE,
    camel,
    describe_derivative,
    describe_raw,
    mask_sidecar,
    participant,
    raw_sidecar,
    twin_sidecar,
    write_sidecar,
)
from simba_lab.scans.image_writing import nifti_bytes
from simba_lab.synthesis.synthetic_cohort import SyntheticCohort


def export_bids(
    cohort: Cohort,
    folder: str | Path,
    *,
    twins: str | Iterable[str] = (),
    masks: bool = True,
    name: str = "SimBA Lab cohort",
    authors: Iterable[str] = (),
    n_jobs: int = -1,
    progress: bool = False,
) -> Path:
    """Write a cohort as a BIDS dataset: a folder per subject, the table as ``participants.tsv``.

    Twins and masks go to ``derivatives/simba-lab``, a BIDS derivative of its own, as
    ``sub-0001_desc-withoutBias_T1w.nii.gz`` and ``sub-0001_desc-bias_mask.nii.gz``.
    ``code/scenario.yaml`` holds the scenario. The bytes depend on scenario, seed, subjects and
    versions of the software alone. The dataset appears under its name when it is complete, and not
    at all if anything goes wrong.

    Parameters
    ----------
    cohort : SyntheticCohort
        A synthesised cohort, or some subjects or a twin of one.
    folder : path
        Where to write; it must not exist, and the folder that it is in must.
    twins : names of effects
        For each of them, write all subjects once more without that effect.
    masks : bool
        Whether to write, for each effect, the voxels that it changes in each subject
        (`TwinCohort.changed`).
    name : str
        What to call the dataset.
    authors : names
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
        If the folder exists, cannot be written or does not fit on the disk, or if the cohort is not
        synthetic.
    UnknownNameError
        If the scenario has no such effect.

    References
    ----------
    Gorgolewski et al. 2016, "The brain imaging data structure",
    https://doi.org/10.1038/sdata.2016.44.

    Examples
    --------
    >>> import tempfile
    >>> import simba_lab as sb
    >>> scenario = sb.Scenario(64, sb.Morphology("Insula_L", 2.5), spacing_mm=8)
    >>> cohort = sb.synthesise(scenario).where(range(2))
    >>> folder = sb.export_bids(cohort, tempfile.mkdtemp() + "/dataset", twins=["disease"])
    >>> sorted(path.name for path in folder.glob("derivatives/simba-lab/sub-0001/anat/*.nii.gz"))
    ['sub-0001_desc-disease_mask.nii.gz', 'sub-0001_desc-withoutDisease_T1w.nii.gz']
    """
    cohort, n_jobs = _exportable(cohort), workers("n_jobs", n_jobs)
    authors = [authors] if isinstance(authors, str) else list(authors)
    twins = [twins] if isinstance(twins, str) else list(dict.fromkeys(twins))
    for effect in twins:
        choice("twins", effect, cohort.effects)
    masked = list(cohort.effects) if masks else []
    with new_folder(folder) as root:
        describe_raw(cohort, root, name, authors)
        if twins or masked:
            describe_derivative(cohort, root / "derivatives" / PIPELINE, name, authors)
        twins_without = {effect: cohort.twin(without=effect) for effect in twins}
        _ = cohort.lattice, cohort.template  # made once, before threads ask for them
        with ThreadPoolExecutor(effective_n_jobs(n_jobs)) as pool:
            jobs = [
                pool.submit(_write_subject, cohort, root, twins_without, masked, index)
                for index in range(len(cohort))
            ]
            finished = as_completed(jobs)
            try:
                for job in tqdm(finished, total=len(jobs), desc="BIDS", disable=not progress):
                    job.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    return Path(folder)


def _exportable(cohort: Cohort) -> SyntheticCohort:
    if not isinstance(cohort, SyntheticCohort):
        remedy = "Somebody's images stay as they are."
        raise SimbaError("cohort", type(cohort).__name__, "a synthetic cohort", remedy)
    if not len(cohort) or not cohort.table.index.is_unique:
        allowed = "of at least one subject, none of them twice"
        raise SimbaError("cohort", Words(f"{len(cohort)} subjects"), allowed)
    labels = [camel(effect).lower() for effect in cohort.effects]
    if "" in labels or len(set(labels)) < len(labels) or "participant_id" in cohort.effects:
        allowed = "of effects whose names differ in the letters a-z and digits"
        raise SimbaError("cohort.scenario", list(cohort.effects), allowed)
    return cohort


def _write_subject(
    cohort: SyntheticCohort,
    root: Path,
    twins: dict[str, SyntheticCohort],
    masked: list[str],
    index: int,
) -> None:
    """Write the image of one subject, its twins and its masks."""
    subject, affine = participant(cohort, index), cohort.lattice.affine
    raw, derived = root / subject / "anat", root / "derivatives" / PIPELINE / subject / "anat"
    raw.mkdir(parents=True)
    sidecar = raw_sidecar(cohort.magnitudes(index))
    _write_image(raw / f"{subject}_T1w", cohort.array(index), affine, sidecar)
    if twins or masked:
        derived.mkdir(parents=True)
    for effect, twin in twins.items():
        label = camel(effect)
        path = derived / f"{subject}_desc-without{label[0].upper()}{label[1:]}_T1w"
        sidecar = twin_sidecar(subject, effect, twin.magnitudes(index))
        _write_image(path, twin.array(index), affine, sidecar)
    for effect in masked:
        mask = cohort.changed(index, effect).astype(np.uint8)
        path = derived / f"{subject}_desc-{camel(effect)}_mask"
        _write_image(path, mask, affine, mask_sidecar(subject, effect))


def _write_image(
    stem: Path, array: np.ndarray, affine: np.ndarray, sidecar: dict[str, Any]
) -> None:
    image = nib.Nifti1Image(array, affine)
    image.set_sform(affine, code="aligned")
    image.set_qform(affine, code="aligned")
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = b"simulated by SimBA Lab"
    stem.with_name(f"{stem.name}.nii.gz").write_bytes(nifti_bytes(image))
    write_sidecar(stem.with_name(f"{stem.name}.json"), sidecar)
