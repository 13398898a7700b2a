"""Readers of images: BIDS datasets, tables that name files, datasets of the SimBA papers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from simba_lab.core.border import checks_arguments
from simba_lab.core.errors import SimbaError, TemplateError
from simba_lab.core.files import inside
from simba_lab.core.tables import check_complete, read_rows
from simba_lab.scans.participants import Columns, column, participants_table
from simba_lab.scans.preparation import Preparation, for_each_subject
from simba_lab.scans.scan_cohort import ScanCohort

# Columns that hold the subjects' names if none is stated; the first that exists is taken.
SUBJECTS = ("subject", "participant_id")
SIMBA_COLUMNS = ("class_label", "bias_label", "effect_dst", "isv_dst", "filename")
SIMBA_SPLITS = {"train": "train", "val": "validation", "test": "test"}
AS_STATED, CENTRED = Preparation(), Preparation(align="centre")


@checks_arguments
@dataclass(frozen=True)
class NameColumns:
    """The columns of a table that name the files and the subjects.

    Parameters
    ----------
    file : str
        Column that holds each subject's NIfTI file, relative to the folder of the table and inside
        it.
    subject : str, optional
        Column that holds the subjects' names. By default they are in ``subject`` or
        ``participant_id`` if there is such a column, otherwise subjects are called by their files.

    Examples
    --------
    >>> import simba_lab as sb
    >>> sb.scans.NameColumns(file="scan", subject="record")
    NameColumns(file='scan', subject='record')
    """

    file: str = "file"
    subject: str | None = None


DEFAULT_NAMES = NameColumns()


def read_bids(
    folder: str | Path,
    *,
    label: str,
    disease: object,
    control: object = None,
    groups: str | Iterable[str] | Mapping[str, object] = (),
    split: str | None = None,
    entities: Mapping[str, str | int | None] | None = None,
    preparation: Preparation = AS_STATED,
) -> ScanCohort:
    """Read the T1-weighted images of a BIDS dataset as a cohort.

    Volumes are read when asked for, each time anew: save the cohort (`save_cohort`) to have them
    read and prepared once.

    Parameters
    ----------
    folder : path
        The dataset; its ``participants.tsv`` names the subjects.
    label : str
        Column of the table that holds the class.
    disease, control : str or number
        Values of that column: the class to detect (label 1) and the other (label 0). `control` may
        be left out where the column has just two values. Subjects with a third value are left out.
    groups : column names, or mapping of column name to value
        Columns to compare groups by, kept under their names as 0 and 1. A column that is named
        alone must hold 0 and 1; with a value, such as ``{"sex": "F"}``, subjects who have that
        value get 1.
    split : str, optional
        Column that holds train, validation and test. Without one, half of the subjects are for
        training and a quarter each for validation and test, stratified by class and groups, always
        the same.
    entities : mapping of str to str or None, optional
        Which image to take if subjects have several, such as ``{"ses": "01", "run": "1"}``; None
        stands for an image without that entity: ``{"space": None}``.
    preparation : Preparation
        How images are brought to the lattice and brightness of a template.

    Returns
    -------
    ScanCohort
        Its table has ``participant``, ``split``, ``label``, the groups and ``fold`` (for
        cross-validation; stratified within splits, classes and groups as far as their sizes allow).

    Raises
    ------
    SimbaError
        If the table and the files do not fit each other or the arguments; damaged images raise it
        when they are read.

    References
    ----------
    Gorgolewski et al. 2016, "The brain imaging data structure",
    https://doi.org/10.1038/sdata.2016.44.

    Examples
    --------
    >>> import tempfile
    >>> import simba_lab as sb
    >>> scenario = sb.Scenario(64, sb.Morphology("Insula_L", 2.5), spacing_mm=8)
    >>> cohort = sb.synthesise(scenario)
    >>> folder = sb.export_bids(cohort, tempfile.mkdtemp() + "/dataset", masks=False)
    >>> preparation = sb.scans.Preparation(spacing_mm=8)
    >>> scans = sb.read_bids(folder, label="label", disease="disease", preparation=preparation)
    >>> scans.arrays().shape
    (64, 20, 24, 20)
    """
    folder = Path(folder)
    path = folder / "participants.tsv"
    rows = read_rows(path)
    for name in column(rows, "participant_id", path.name):
        if not re.fullmatch(r"sub-[0-9A-Za-z+]+", name):
            allowed = "sub- and letters and digits"
            raise SimbaError("participant_id", name, allowed, f"Correct {path}.")
    design = participants_table(rows, path, Columns(label, disease, control, groups, split))
    names = rows["participant_id"][design.index]
    paths = for_each_subject(lambda name: _t1w(folder, name, entities or {}), names)
    return _cohort(design, names, paths, preparation)


def read_table(
    table: str | Path,
    *,
    label: str,
    disease: object,
    control: object = None,
    groups: str | Iterable[str] | Mapping[str, object] = (),
    split: str | None = None,
    names: NameColumns = DEFAULT_NAMES,
    preparation: Preparation = AS_STATED,
) -> ScanCohort:
    r"""Read the images that a table names as a cohort. Volumes are read when asked for.

    Parameters
    ----------
    table : path
        A ``.csv`` (commas) or ``.tsv`` (tabs) with one row per subject.
    names : NameColumns
        Which columns name the files and the subjects.
    label, disease, control, groups, split, preparation
        As in `read_bids`.

    Returns
    -------
    ScanCohort
        As `read_bids` returns it.

    Raises
    ------
    SimbaError
        As in `read_bids`, and if a file lies outside the folder of the table.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import nibabel as nib
    >>> import simba_lab as sb
    >>> folder, image = Path(tempfile.mkdtemp()), sb.load_template().image().slicer[::8, ::8, ::8]
    >>> rows = ["file,group"]
    >>> for number in range(10):
    ...     nib.save(image, folder / f"{number}.nii.gz")
    ...     rows.append(f"{number}.nii.gz,{'patient' if number % 2 else 'healthy'}")
    >>> _ = (folder / "clinic.csv").write_text("\n".join(rows))
    >>> clinic = sb.scans.read_table(folder / "clinic.csv", label="group", disease="patient")
    >>> clinic["label"].tolist()
    [0, 1, 0, 1, 0, 1, 0, 1, 0, 1]
    """
    path = Path(table)
    rows = read_rows(path)
    design = participants_table(rows, path, Columns(label, disease, control, groups, split))
    rows = rows.loc[design.index]
    files = column(rows, names.file, path.name)
    subject = names.subject or next((name for name in SUBJECTS if name in rows), names.file)
    subjects = column(rows, subject, path.name)
    lines = [f"subject {name}" for name in subjects]
    check_complete(f"column {names.file!r} of {path}", files, names=lines)
    field = f"a file named by {path.name}"
    paths = [inside(path.parent, name, field) for name in files]
    return _cohort(design, subjects, paths, preparation)


def read_simba(
    folder: str | Path, *, images: str | Path | None = None, preparation: Preparation = CENTRED
) -> ScanCohort:
    """Read a dataset in the layout of the SimBA papers (Stanley et al. 2023, 2024) as a cohort.

    The layout is known from the generating and training scripts that the authors published. The
    archives of data were not at hand, so the place of the images is an argument. An experiment has
    ``train.csv``, ``val.csv`` and ``test.csv`` with the columns ``class_label`` (1: disease),
    ``bias_label``, ``effect_dst`` and ``isv_dst`` (magnitudes of disease and subject effect),
    ``filename`` and ``filepath`` (a path of the authors' machine, not used here). Images are called
    ``00012_<isv>_S_<effect>_D.nii.gz``, with ``_<magnitude>_B`` before the ending if the image
    carries the bias. In experiments with two biases ``bias_label`` is 0 (both), 1 (intensity), 2
    (morphology) or 3 (none); they become the columns ``morphology`` and ``intensity``. Otherwise it
    becomes ``bias``.

    The images lie in the space of the SRI24 atlas with the origin in a corner, so they are centred
    on the template by default; they are not registered to it.

    Parameters
    ----------
    folder : path
        Where the three tables are.
    images : path, optional
        Where the folders ``train``, ``val`` and ``test`` with the images are, if not in `folder`.
        Images that are not in these folders are looked for beside them.
    preparation : Preparation
        As in `read_bids`; centred by default.

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

    Examples
    --------
    >>> import simba_lab as sb
    >>> sb.scans.read_simba("experiment")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    simba_lab.core.errors.TemplateError: table must be an existing .csv or .tsv file, ...
    """
    folder, images = Path(folder), Path(images or folder)
    rows = _simba_rows(folder)
    code, remedy = rows["bias_label"], f"Check the tables in {folder}."
    if not set(code) <= {"0", "1", "2", "3"}:
        allowed = "0 or 1, or 0 to 3 for two biases"
        raise SimbaError("bias_label", sorted(set(code)), allowed, remedy)
    carrying = {"morphology": ["0", "2"], "intensity": ["0", "1"]}
    if set(code) <= {"0", "1"}:
        carrying = {"bias": ["1"]}
    for bias, codes in carrying.items():
        rows[bias] = np.where(code.isin(codes), "1", "0")
    design = participants_table(rows, folder, Columns("class_label", 1, 0, list(carrying), "split"))
    rows = rows.loc[design.index]
    for source, name in (("effect_dst", "disease_magnitude"), ("isv_dst", "subject_magnitude")):
        design[name] = pd.to_numeric(rows[source], errors="coerce").astype(float)
        if design[name].isna().any():
            value = rows[source][design[name].isna().idxmax()]
            raise SimbaError(source, value, "a number", remedy)
    paths = []
    for split, name in zip(rows["folder"], rows["filename"], strict=True):
        field = f"a file named by {split}.csv"
        path = inside(images, f"{split}/{name}", field)
        paths.append(path if path.is_file() else inside(images, name, field))
    return _cohort(design, rows["folder"] + "/" + rows["filename"], paths, preparation)


def _simba_rows(folder: Path) -> pd.DataFrame:
    """Return the rows of the three tables, with the columns ``folder`` and ``split``."""
    tables = []
    for name, split in SIMBA_SPLITS.items():
        table = read_rows(folder / f"{name}.csv")
        for needed in SIMBA_COLUMNS:
            column(table, needed, f"{name}.csv")
        tables.append(table.assign(folder=name, split=split))
    return pd.concat(tables, ignore_index=True)


def _cohort(
    design: pd.DataFrame, names: Iterable[str], paths: list[Path], preparation: Preparation
) -> ScanCohort:
    """Return the cohort of a design and its files, each opened once."""
    names = list(names)
    _check_unique("file", [str(path) for path in paths])
    _check_unique("subject", names)
    design.insert(0, "participant", names)
    labels = [name.removeprefix("sub-") for name in names]
    numbers = [int(label) for label in labels if re.fullmatch("[0-9]{1,15}", label)]
    numbered = len(set(numbers)) == len(design)
    design.index = pd.Index(numbers if numbered else range(len(design)), name="subject")
    files = dict(zip(design.index.tolist(), paths, strict=True))
    return ScanCohort(design, preparation.images(files, table=design))


def _check_unique(noun: str, values: list[str]) -> None:
    value, times = Counter(values).most_common(1)[0]
    if times > 1:
        remedy = f"This {noun} is in {times} rows."
        raise SimbaError(f"the {noun}s of the table", value, "different in each row", remedy)


def _t1w(folder: Path, participant: str, entities: Mapping[str, str | int | None]) -> Path:
    """Return the one T1-weighted image of a participant."""
    images = [*(folder / participant).glob("anat/*"), *(folder / participant).glob("ses-*/anat/*")]
    pattern = rf"{re.escape(participant)}_(.*_)?T1w\.nii(\.gz)?"
    candidates = sorted(path for path in images if re.fullmatch(pattern, path.name))
    chosen = [path for path in candidates if _has_entities(path.name, entities)]
    if len(chosen) != 1:
        names = ", ".join(path.name for path in candidates[:6]) or "none"
        hint = (
            "Choose with entities={'ses': '01', 'space': None}: None is an image without it."
            if candidates
            else "Check the table."
        )
        field = f"T1w image of {participant}"
        remedy = f"Found: {names}. {hint}"
        raise TemplateError(field, str(folder / participant), "exactly one file", remedy)
    name = chosen[0].relative_to(folder).as_posix()
    return inside(folder, name, "a file named by participants.tsv")


def _has_entities(name: str, entities: Mapping[str, str | int | None]) -> bool:
    present = dict(part.split("-", 1) for part in name.split("_") if "-" in part)
    return all(
        present.get(key) == (None if value is None else str(value))
        for key, value in entities.items()
    )
