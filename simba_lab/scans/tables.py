"""Cohorts of somebody else's images: BIDS datasets, a table with files, and the datasets of the SimBA papers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from simba_lab.core.errors import SimbaError, TemplateError
from simba_lab.core.files import inside
from simba_lab.scans.image_files import image_files
from simba_lab.scans.participants import assign, column, read_rows
from simba_lab.scans.scan_cohort import ScanCohort
from simba_lab.synthesis.anatomy.template import Template, load_template

SIMBA_COLUMNS = ("class_label", "bias_label", "effect_dst", "isv_dst", "filename")
SIMBA_SPLITS = {"train": "train", "val": "validation", "test": "test"}


def read_bids(
    folder: str | Path,
    *,
    label: str,
    disease: object,
    control: object = None,
    groups: Iterable[str] | Mapping = (),
    split: str | None = None,
    entities: Mapping[str, str] | None = None,
    spacing_mm: float = 4.0,
    template: str | Template = "icbm2009c",
    align: str = "world",
    rescale: bool = True,
) -> ScanCohort:
    """Read the T1-weighted images of a BIDS dataset as a cohort. Volumes are read when asked for; see `image_files`.

    Each time a volume is asked for its file is read again: save the cohort (`save_cohort`) to have
    that done once.

    Parameters
    ----------
    folder : path
        The dataset; its ``participants.tsv`` names the subjects.
    label : str
        Column of the table that holds the class.
    disease, control : str or number
        Values of that column: the class to detect (label 1) and the other (label 0). `control` may
        be left out where there are just two values. Where it is given, subjects with a third value
        are left out.
    groups : column names, or mapping of column name to value
        Columns to compare groups by, kept under their names as 0 and 1. A column that is named
        alone must hold 0 and 1; with a value, such as ``{"sex": "F"}``, subjects who have that
        value get 1.
    split : str, optional
        Column that holds train, validation and test. Without one, half of the subjects are for
        training and a quarter each for validation and test, stratified by class and groups, always
        the same.
    entities : mapping of str to str, optional
        Which image to take if subjects have several, such as ``{"ses": "01", "run": "1"}``.
    spacing_mm : float
        Voxel size of the volumes.
    template : str or Template
        Whose field of view and brain mask are used.
    align : {"world", "centre"}
        Take positions as the affines state them, or move each image's centre of intensity to the
        template's.
    rescale : bool
        Whether to bring each image's 99th percentile in the brain to the template's, which is about
        1.

    Returns
    -------
    ScanCohort
        Without a scenario. Its table has ``participant``, ``split``, ``label``, the groups and
        ``fold`` (for cross-validation; stratified within splits, classes and groups as far as their
        sizes allow).

    Raises
    ------
    SimbaError
        If the table and the files do not fit each other or the arguments; damaged images raise it
        when they are read.

    References
    ----------
    Gorgolewski et al. 2016, "The brain imaging data structure",
    https://doi.org/10.1038/sdata.2016.44.
    """
    folder = Path(folder)
    rows = read_rows(folder / "participants.tsv")
    for name in column(rows, "participant_id", "participants.tsv"):
        if not re.fullmatch(r"sub-[0-9A-Za-z+]+", name):
            raise SimbaError(
                "participant_id",
                name,
                "sub- and letters and digits",
                f"Correct {folder / 'participants.tsv'}.",
            )
    table = assign(rows, folder / "participants.tsv", label, disease, control, groups, split)
    names = rows["participant_id"][table.index]
    paths = [_t1w(folder, name, dict(entities or {})) for name in names]
    return _cohort(table, names, paths, spacing_mm, template, align, rescale)


def read_table(
    table: str | Path,
    *,
    label: str,
    disease: object,
    control: object = None,
    files: str = "file",
    subject: str | None = None,
    groups: Iterable[str] | Mapping = (),
    split: str | None = None,
    spacing_mm: float = 4.0,
    template: str | Template = "icbm2009c",
    align: str = "world",
    rescale: bool = True,
) -> ScanCohort:
    """Read the images that a table names as a cohort. Volumes are read when asked for; see `image_files`.

    Parameters
    ----------
    table : path
        A ``.csv`` (commas) or ``.tsv`` (tabs) with one row per subject.
    files : str
        Column that holds each subject's NIfTI file, relative to the folder of the table and inside
        it.
    subject : str, optional
        Column that holds the subjects' names; they are called by their files without it.
    label, disease, control, groups, split, spacing_mm, template, align, rescale
        As in `read_bids`.

    Returns
    -------
    ScanCohort
        As `read_bids` returns it.

    Raises
    ------
    SimbaError
        As in `read_bids`, and if a file lies outside the folder of the table.
    """
    where = Path(table)
    rows = read_rows(where)
    design = assign(rows, where, label, disease, control, groups, split)
    files = column(rows, files, where.name)[design.index]
    names = files if subject is None else column(rows, subject, where.name)[design.index]
    paths = [inside(where.parent, name, f"a file named by {where.name}") for name in files]
    return _cohort(design, names, paths, spacing_mm, template, align, rescale)


def read_simba(
    folder: str | Path,
    *,
    images: str | Path | None = None,
    spacing_mm: float = 4.0,
    template: str | Template = "icbm2009c",
    align: str = "centre",
    rescale: bool = True,
) -> ScanCohort:
    """Read a dataset in the layout of the SimBA papers (Stanley et al. 2023, 2024) as a cohort.

    What is known of that layout was read from the generating and training scripts that the authors
    published; the archives of data themselves were not at hand, so the place of the images is an
    argument. An experiment has ``train.csv``, ``val.csv`` and ``test.csv`` with the columns
    ``class_label`` (1: disease), ``bias_label``, ``effect_dst`` and ``isv_dst`` (magnitudes of
    disease and subject effect), ``filename`` and ``filepath`` (a path of the authors' machine, not
    used here). Images are called ``00012_<isv>_S_<effect>_D.nii.gz``, with ``_<magnitude>_B``
    before the ending if the image carries the bias. In experiments with two biases ``bias_label``
    is 0 (both), 1 (intensity), 2 (morphology) or 3 (none); they become the columns ``morphology``
    and ``intensity``, otherwise it becomes ``bias``.

    The images lie in the space of the SRI24 atlas with the origin in a corner, so they are centred
    on the template by default; they are not registered to it.

    Parameters
    ----------
    folder : path
        Where the three tables are.
    images : path, optional
        Where the folders ``train``, ``val`` and ``test`` with the images are, if not in `folder`.
        Images that are not in these folders are looked for beside them.
    spacing_mm, template, align, rescale
        As in `read_bids`.

    Returns
    -------
    ScanCohort
        With the published splits; ``disease_magnitude`` and ``subject_magnitude`` are in its table.

    Raises
    ------
    SimbaError
        As in `read_bids`.

    References
    ----------
    Stanley et al. 2023, "A flexible framework for simulating and evaluating biases in deep
    learning-based medical image analysis", https://doi.org/10.1007/978-3-031-43895-0_46. Stanley et
    al. 2024, "Towards objective and systematic evaluation of bias in artificial intelligence for
    medical imaging", https://doi.org/10.1093/jamia/ocae165.
    """
    folder, images = Path(folder), Path(images or folder)
    parts = {name: read_rows(folder / f"{name}.csv") for name in SIMBA_SPLITS}
    for name, part in parts.items():
        for needed in SIMBA_COLUMNS:
            column(part, needed, f"{name}.csv")
    rows = pd.concat(
        [part.assign(part=name, split=SIMBA_SPLITS[name]) for name, part in parts.items()],
        ignore_index=True,
    )
    code = rows["bias_label"]
    if not set(code) <= {"0", "1", "2", "3"}:
        raise SimbaError(
            "bias_label",
            sorted(set(code)),
            "0 or 1, or 0 to 3 for two biases",
            f"Check the tables in {folder}.",
        )
    groups = (
        {"bias": ["1"]}
        if set(code) <= {"0", "1"}
        else {"morphology": ["0", "2"], "intensity": ["0", "1"]}
    )
    for name, carriers in groups.items():
        rows[name] = np.where(code.isin(carriers), "1", "0")
    table = assign(rows, folder, "class_label", 1, 0, list(groups), "split")
    rows = rows.loc[table.index]
    for needed, name in (("effect_dst", "disease_magnitude"), ("isv_dst", "subject_magnitude")):
        table[name] = pd.to_numeric(rows[needed], errors="coerce").astype(float)
        if table[name].isna().any():
            raise SimbaError(
                needed,
                rows[needed][table[name].isna().idxmax()],
                "a number",
                f"Check the tables in {folder}.",
            )
    paths = []
    for part, name in zip(rows["part"], rows["filename"], strict=True):
        table_name = f"a file named by {part}.csv"
        split = inside(images, f"{part}/{name}", table_name)
        paths.append(split if split.is_file() else inside(images, name, table_name))
    return _cohort(
        table, rows["part"] + "/" + rows["filename"], paths, spacing_mm, template, align, rescale
    )


def _cohort(
    table: pd.DataFrame,
    names: Iterable[str],
    paths: list[Path],
    spacing_mm: float,
    template: str | Template,
    align: str,
    rescale: bool,
) -> ScanCohort:
    """Put table and files together, and open every file once."""
    names = list(names)
    for what, values in (("file", [str(path) for path in paths]), ("subject", names)):
        name, times = Counter(values).most_common(1)[0]
        if times > 1:
            raise SimbaError(
                f"the {what}s of the table",
                name,
                "different in each row",
                f"This {what} is in {times} rows.",
            )
    table.insert(0, "participant", names)
    labels = [name.removeprefix("sub-") for name in names]
    numbers = [int(label) for label in labels if re.fullmatch("[0-9]{1,15}", label)]
    table.index = pd.Index(
        numbers if len(set(numbers)) == len(table) else range(len(table)), name="subject"
    )
    template = load_template(template) if isinstance(template, str) else template
    files = dict(zip(table.index.tolist(), paths, strict=True))
    source = image_files(
        files,
        template,
        spacing_mm=spacing_mm,
        align=align,
        rescale=rescale,
        table=table.to_csv(lineterminator="\n"),
    )
    return ScanCohort(table, source)


def _t1w(folder: Path, participant: str, entities: dict[str, str]) -> Path:
    """Return the one T1-weighted image of a participant."""
    images = [*(folder / participant).glob("anat/*"), *(folder / participant).glob("ses-*/anat/*")]
    found = sorted(
        path
        for path in images
        if re.fullmatch(rf"{re.escape(participant)}_(.*_)?T1w\.nii(\.gz)?", path.name)
    )
    wanted = {f"{key}-{value}" for key, value in entities.items()}
    chosen = [path for path in found if wanted <= set(path.name.split("_"))]
    if len(chosen) != 1:
        names = ", ".join(path.name for path in found[:6]) or "none"
        raise TemplateError(
            f"T1w image of {participant}",
            str(folder / participant),
            "exactly one file",
            f"Found: {names}. "
            + (
                "Choose with entities={'ses': ..., 'run': ...}." if found else "The table names it."
            ),
        )
    name = chosen[0].relative_to(folder).as_posix()
    return inside(folder, name, "a file named by participants.tsv")
