"""Stores: cohorts on disk, with volumes that are read when asked for and checked by checksums.

A store is a folder with four files of fixed names. ``volumes.npy`` and ``subjects.tsv`` can be read
by anything; ``manifest.json`` says what they follow from and comes last, so a folder with a
manifest is complete. ``progress.tsv`` lists the finished volumes while a store is being written.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from simba_lab.core.border import checks_arguments
from simba_lab.core.cohort import Cohort
from simba_lab.core.errors import SimbaError
from simba_lab.core.files import read_json
from simba_lab.core.lattice import Lattice
from simba_lab.core.tables import parse_table
from simba_lab.scans.manifests import broken, check_people, manifest_of
from simba_lab.scans.planting.planted_cohort import PlantedCohort
from simba_lab.scans.planting.sources import source_of
from simba_lab.scans.scan_cohort import ScanCohort
from simba_lab.synthesis.scenario import Scenario
from simba_lab.synthesis.synthetic_cohort import SyntheticCohort

MANIFEST, VOLUMES, TABLE = "manifest.json", "volumes.npy", "subjects.tsv"
PROGRESS, LOCK = "progress.tsv", "writing.lock"


@checks_arguments
@dataclass(frozen=True, eq=False)
class Store:
    """The volumes of a folder, read when asked for; a `Source` of a cohort.

    Parameters
    ----------
    folder : Path
    lattice : Lattice
        Where the voxels are.
    subjects : tuple of int
        The subject of each volume, in the order of the file.
    identity : dict
        What the volumes follow from: the cohort's identity, its switches, a digest of its table.
    checksums : tuple of str
        SHA-256 of each volume's bytes.

    Examples
    --------
    >>> import tempfile
    >>> import simba_lab as sb
    >>> scenario = sb.Scenario(64, sb.Morphology("Insula_L", 2.5), spacing_mm=8)
    >>> cohort = sb.synthesise(scenario).where(range(4))
    >>> stored = sb.save_cohort(cohort, tempfile.mkdtemp() + "/store")
    >>> stored.store.subjects
    (0, 1, 2, 3)
    """

    folder: Path
    lattice: Lattice
    subjects: tuple[int, ...]
    identity: dict[str, Any]
    checksums: tuple[str, ...]

    @property
    def switches(self) -> dict[str, bool | str]:
        """The effects that were switched when the volumes were written (see `TwinCohort`)."""
        return dict(self.identity["switches"])

    @cached_property
    def _rows(self) -> dict[int, int]:
        return {subject: row for row, subject in enumerate(self.subjects)}

    @cached_property
    def _checked(self) -> set[int]:
        """The subjects whose volumes were held against their checksums in this process."""
        return set()

    def __getstate__(self) -> dict[str, Any]:
        # Another process checks what it reads by itself.
        cached = ("_checked", "_rows")
        return {name: value for name, value in self.__dict__.items() if name not in cached}

    def array(self, subject: int) -> np.ndarray:
        """Return the volume of a subject: float32, shape (X, Y, Z).

        A process compares each volume with its checksum when it reads it for the first time.

        Raises
        ------
        SimbaError
            If the volume was changed since it was saved, or cannot be read.
        """
        volume = self._read(subject)
        if subject not in self._checked:
            self._check(subject, volume)
        return volume

    def _read(self, subject: int) -> np.ndarray:
        path, shape = self.folder / VOLUMES, self.lattice.shape
        count = int(np.prod(shape))
        offset = len(npy_header((len(self.subjects), *shape))) + 4 * count * self._rows[subject]
        try:
            # Not memory-mapped: a disk that fails would end the process instead of the call.
            volume = np.fromfile(path, "<f4", count, offset=offset)
        except OSError as error:
            raise broken(path, f"It cannot be read: {error.strerror or error}.") from error
        if volume.size != count:
            raise broken(path, f"Subject {subject} is not in it.")
        return volume.astype(np.float32, copy=False).reshape(shape)

    def _check(self, subject: int, volume: np.ndarray) -> None:
        if checksum_of(volume) != self.checksums[self._rows[subject]]:
            raise broken(self.folder / VOLUMES, f"Subject {subject} has another checksum.")
        self._checked.add(subject)

    def verify(self, *, progress: bool = False) -> None:
        """Compare every volume with its checksum; an error names the first subject that differs."""
        for subject in tqdm(self.subjects, unit="volume", disable=not progress):
            self._check(subject, self._read(subject))


def open_cohort(folder: str | Path, *, verify: bool = False) -> Cohort:
    """Return the cohort of a store.

    Volumes are read when they are asked for, and compared with their checksums. Twins of a
    synthetic cohort are rendered from its scenario, those of a planted cohort from the files of the
    scans, which have to be where they were.

    Parameters
    ----------
    folder : path
    verify : bool
        Compare all volumes with their checksums now, and not when each is read for the first time.

    Returns
    -------
    SyntheticCohort, PlantedCohort or ScanCohort
        As it was saved.

    Raises
    ------
    SimbaError
        If the folder holds no complete store, or one that does not fit its manifest.

    Examples
    --------
    >>> import tempfile
    >>> import simba_lab as sb
    >>> scenario = sb.Scenario(64, sb.Morphology("Insula_L", 2.5), spacing_mm=8)
    >>> folder = tempfile.mkdtemp() + "/store"
    >>> _ = sb.save_cohort(sb.synthesise(scenario), folder)
    >>> sb.open_cohort(folder, verify=True).arrays().shape
    (64, 20, 24, 20)
    """
    store = read_store(Path(folder))
    if verify:
        store.verify()
    table = _table_of(store)
    origin = store.identity["cohort"]
    if "planted" in origin:
        return _planted(store, table)
    if "scenario" not in origin:
        return ScanCohort(table, store)
    try:
        scenario = Scenario.from_dict(origin["scenario"])
        return SyntheticCohort(scenario, int(origin["seed"]), table, store.switches, store)
    except (KeyError, TypeError, ValueError) as error:
        raise broken(store.folder / MANIFEST, f"Its cohort cannot be used: {error}.") from error


def _planted(store: Store, table: pd.DataFrame) -> PlantedCohort:
    path = store.folder / MANIFEST
    manifest = manifest_of(read_manifest(store.folder), path)
    try:
        source = source_of(manifest.cohort, manifest.sources, table)
    except (KeyError, TypeError, ValueError, AttributeError, OSError) as error:
        if isinstance(error, SimbaError):
            raise
        raise broken(path, f"Its cohort cannot be used: {error}.") from error
    return PlantedCohort(table, source, store.switches, store)


def _table_of(store: Store) -> pd.DataFrame:
    path = store.folder / TABLE
    try:
        content = path.read_bytes()
    except OSError as error:
        raise broken(path, f"It cannot be read: {error.strerror or error}.") from error
    if hashlib.sha256(content).hexdigest() != store.identity["table_sha256"]:
        raise broken(path, "The table has been changed.")
    manifest = manifest_of(read_manifest(store.folder), store.folder / MANIFEST)
    try:
        table = parse_table(content, "subject", manifest.columns)
    except ValueError as error:  # pandas has its own kinds of it
        raise broken(path, f"It cannot be used: {error}.") from error
    check_people(table, manifest, path)
    return table


def read_store(folder: Path) -> Store:
    """Return the volumes of a complete store, after a look at manifest and sizes.

    Raises
    ------
    SimbaError
        If the folder holds no complete store, or one that does not fit its manifest.
    """
    path = folder / MANIFEST
    if not path.is_file():
        interrupted = (folder / PROGRESS).is_file()
        remedy = "It was interrupted; save the cohort again." if interrupted else "Check the path."
        raise SimbaError("folder", str(folder), "a complete store of a cohort", remedy)
    manifest = manifest_of(read_manifest(folder), path)
    x, y, z = manifest.shape[1:]
    lattice = Lattice((x, y, z), manifest.spacing_mm, manifest.origin_mm)
    identity = {name: getattr(manifest, name) for name in ("cohort", "switches", "table_sha256")}
    _check_volumes(folder / VOLUMES, manifest.shape)
    return Store(folder, lattice, manifest.subjects, identity, manifest.sha256)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return what the manifest of a store holds."""
    values = read_json(folder / MANIFEST, "manifest of the store")
    if not isinstance(values, dict):
        raise broken(folder / MANIFEST, "It is not an object.")
    return values


def npy_header(shape: tuple[int, ...]) -> bytes:
    """Return the header of a ``.npy`` file of float32."""
    buffer = io.BytesIO()
    fields = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, fields)
    return buffer.getvalue()


def checksum_of(volume: np.ndarray) -> str:
    """Return the SHA-256 of a volume's bytes as they are stored."""
    return hashlib.sha256(np.ascontiguousarray(volume, dtype="<f4").tobytes()).hexdigest()


def _check_volumes(path: Path, shape: tuple[int, ...]) -> None:
    """Raise unless the file has the size and the header of the manifest's shape.

    The manifest names no files, and a shape that it claims is compared with the file before
    anything is read.
    """
    header = npy_header(shape)
    expected = len(header) + 4 * int(np.prod(shape, dtype=object))
    if not path.is_file() or path.stat().st_size != expected:
        raise broken(path, f"{expected} bytes follow from the manifest.")
    with path.open("rb") as handle:
        if handle.read(len(header)) != header:
            raise broken(path, "Its header does not fit the manifest.")
