"""Readers of images: BIDS datasets, tables that name files, datasets of the SimBA papers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from simba_lab.core.border import checks_arguments
from simba_lab.core.errors import SimbaError
from simba_lab.core.files import inside
from simba_lab.core.tables import read_rows
from simba_lab.scans.bids_images import BidsImages, ScanFiles
from simba_lab.scans.participants import Columns, column, participants_table
from simba_lab.scans.preparation import Preparation
from simba_lab.scans.scan_cohort import ScanCohort
from simba_lab.scans.study import Study, scans_of

# Columns that hold the subjects' names if none is stated; the first that exists is taken.
SUBJECTS = ("subject", "participant_id")
SIMBA_COLUMNS = ("class_label", "bias_label", "effect_dst", "isv_dst", "filename")
SIMBA_SPLITS = {"train": "train", "val": "validation", "test": "test"}
AS_STATED, CENTRED = Preparation(), Preparation(align="centre")


@checks_arguments
@dataclass(frozen=True)
class TableImages:
    """A table that names images, and its columns that do, for `read_table`.

    Parameters
    ----------
    table : path
        A ``.csv`` (commas) or ``.tsv`` (tabs) with one row per subject.
    file : str
        Column that holds each subject's NIfTI file, relative to the folder of the table and inside
        it.
    subject : str, optional
        Column that holds the subjects' names. By default they are in ``subject`` or
        ``participant_id`` if there is such a column, otherwise subjects are called by their files.

    Examples
    --------
    >>> import simba_lab as sb
    >>> sb.scans.TableImages("clinic.csv", file="scan", subject="record").file
    'scan'
    """

    table: str | Path
    file: str = "file"
    subject: str | None = None


def read_bids(
    folder: str | Path | BidsImages,
    *,
    label: str | None = None,
    disease: object = None,
    control: object = None,
    groups: str | Iterable[str] | Mapping[str, object] = (),
    use: str | None = None,
    on_missing: str = "refuse",
    preparation: Preparation = AS_STATED,
) -> ScanCohort:
    """Read the T1-weighted images of a BIDS dataset as a cohort.

    Volumes are read when asked for, each time anew: save the cohort (`save_cohort`) to have them
    read and prepared once.

    Parameters
    ----------
    folder : path or BidsImages
        The dataset; its ``participants.tsv`` names the subjects. `BidsImages` says which of several
        images is meant, or that those of fMRIPrep or CAT12 are.
    label : str, optional
        Column of the table that holds the class, or without `disease` a number, such as the age,
        of networks that were trained elsewhere: `fit` learns classes alone.
        Without a label everybody is read, by ``participants.tsv`` or, where that is missing, by the
        folders; such scans can be planted in and audited.
    disease, control : str or number, optional
        Values of that column: the class to detect (label 1) and the other (label 0). `control` may
        be left out where the column has just two values. Subjects with a third value are left out.
    groups : column names, or mapping of column name to value
        Columns to compare groups by. A column of 0 and 1 is kept so; with a value, such as
        ``{"sex": "F"}``, subjects who have that value get 1; any other column keeps its values, as
        numbers if all are, otherwise as text.
    use : str, optional
        ``"train"``, ``"validation"`` or ``"test"``: what all these scans are for, such as the test
        of a network that was trained before. Any other name is a column that holds these words. By
        default half of the subjects are for training and a quarter each for validation and test,
        stratified by class (or quarters of the number) and groups, always the same.
    on_missing : {"refuse", "drop"}
        What is done with subjects whose image is missing, damaged or elsewhere than the template,
        or who have no label, group or use: an error, or they are left out with one warning that
        names them. To know of damage, ``"drop"`` reads each image once.
    preparation : Preparation
        How images are brought to the lattice and brightness of a template.

    Returns
    -------
    ScanCohort
        Its table has ``participant``, ``split``, ``label`` (unless there is none), the groups,
        ``fold`` (for cross-validation; stratified within splits, classes and groups as far as their
        sizes allow), and the other columns of ``participants.tsv``, except those of such names.

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
    images = folder if isinstance(folder, BidsImages) else BidsImages(folder)
    path = Path(images.folder) / "participants.tsv"
    columns = Columns(label, disease, control, groups, use)
    root = images.root()
    alone = label is None and not columns.members and columns.use_column is None
    rows = _people_with_folders(root) if alone and not path.is_file() else read_rows(path)
    names = column(rows, "participant_id", path.name)
    for name in names:
        if not re.fullmatch(r"sub-[0-9A-Za-z+]+", name):
            allowed = "sub- and letters and digits"
            raise SimbaError("participant_id", name, allowed, f"Correct {path}.")
    study = Study(rows, path, names, names, images.of)
    return study.cohort(columns, on_missing, preparation)


def _people_with_folders(root: Path) -> pd.DataFrame:
    names = sorted(path.name for path in root.glob("sub-*") if path.is_dir())
    if not names:
        allowed = "a BIDS dataset: a folder with sub-01, sub-02, ..."
        raise SimbaError("study", str(root), allowed)
    return pd.DataFrame({"participant_id": names})


def read_table(
    table: str | Path | TableImages,
    *,
    label: str | None = None,
    disease: object = None,
    control: object = None,
    groups: str | Iterable[str] | Mapping[str, object] = (),
    use: str | None = None,
    on_missing: str = "refuse",
    preparation: Preparation = AS_STATED,
) -> ScanCohort:
    r"""Read the images that a table names as a cohort. Volumes are read when asked for.

    Parameters
    ----------
    table : path or TableImages
        A ``.csv`` (commas) or ``.tsv`` (tabs) with one row per subject. `TableImages` says which
        columns name the files and the subjects.
    label, disease, control, groups, use, on_missing, preparation
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
    images = table if isinstance(table, TableImages) else TableImages(table)
    path = Path(images.table)
    rows = read_rows(path)
    subject = next((name for name in SUBJECTS if name in rows), images.file)
    names = column(rows, images.subject or subject, path.name)
    files = column(rows, images.file, path.name)
    field = f"a file named by {path.name}"

    def files_of(name: str) -> ScanFiles:
        return ScanFiles(inside(path.parent, name, field))

    columns = Columns(label, disease, control, groups, use)
    return Study(rows, path, names, files, files_of).cohort(columns, on_missing, preparation)


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
    columns = Columns("class_label", 1, 0, list(carrying), "split")
    design = participants_table(rows, folder, columns)
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
        paths.append(ScanFiles(path if path.is_file() else inside(images, name, field)))
    names = rows["folder"] + "/" + rows["filename"]
    return scans_of(design, names, paths, preparation)


def _simba_rows(folder: Path) -> pd.DataFrame:
    """Return the rows of the three tables, with the columns ``folder`` and ``split``."""
    tables = []
    for name, split in SIMBA_SPLITS.items():
        table = read_rows(folder / f"{name}.csv")
        for needed in SIMBA_COLUMNS:
            column(table, needed, f"{name}.csv")
        tables.append(table.assign(folder=name, split=split))
    return pd.concat(tables, ignore_index=True)
