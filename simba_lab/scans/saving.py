"""save_cohort: volumes of a cohort rendered into a store. An interrupted call resumes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
from filelock import FileLock, Timeout
from joblib import Parallel, delayed
from tqdm.auto import tqdm

from simba_lab.core.checks import workers
from simba_lab.core.cohort import Cohort, TwinCohort
from simba_lab.core.errors import SimbaError, Words
from simba_lab.core.files import atomic_write, strangers, write_json
from simba_lab.core.fingerprint import code_fingerprint
from simba_lab.core.tables import column_types, table_text
from simba_lab.core.unfinished import disk_errors, is_unfinished
from simba_lab.scans.manifests import FORMAT, digest_of
from simba_lab.scans.planting.planted_cohort import PlantedCohort
from simba_lab.scans.planting.sources import sources_of
from simba_lab.scans.stores import (
    LOCK,
    MANIFEST,
    PROGRESS,
    TABLE,
    VOLUMES,
    checksum_of,
    npy_header,
    read_manifest,
    read_store,
)
from simba_lab.synthesis.synthetic_cohort import SyntheticCohort

# Volumes rendered before the finished ones are written down: large enough to keep all workers busy.
BATCH = 32
AnyCohort = TypeVar("AnyCohort", bound=Cohort)


def save_cohort(
    cohort: AnyCohort, folder: str | Path, *, n_jobs: int = -1, progress: bool = False
) -> AnyCohort:
    """Render a cohort into a folder and return the cohort that reads it.

    An interrupted call can be repeated: it resumes.

    Parameters
    ----------
    cohort : Cohort
    folder : path
        New, or left behind by an interrupted call for the same cohort.
    n_jobs : int
        Workers: threads by default, or those of the joblib backend that is active, such as a Ray
        cluster.
    progress : bool
        Show a progress bar.

    Returns
    -------
    Cohort
        The same subjects; their volumes are read from the folder.

    Raises
    ------
    SimbaError
        If the folder holds something else, if another process writes it, or if the disk is full;
        what was finished stays.

    Examples
    --------
    >>> import tempfile
    >>> import simba_lab as sb
    >>> scenario = sb.Scenario(64, sb.Morphology("Insula_L", 2.5), spacing_mm=8)
    >>> cohort = sb.synthesise(scenario)
    >>> stored = sb.save_cohort(cohort, tempfile.mkdtemp() + "/store")
    >>> bool((stored.array(3) == cohort.array(3)).all())
    True
    """
    folder = Path(folder)
    if not folder.absolute().parent.is_dir():
        raise SimbaError("folder", str(folder), "inside an existing folder")
    n_jobs = workers("n_jobs", n_jobs)
    head = _head(cohort)
    if not (folder / MANIFEST).is_file():
        with _locked(folder):
            if not (folder / MANIFEST).is_file():  # no other process was faster
                _check_strangers(folder)
                writer = _Writer(folder, head)
                writer.check_space()
                writer.write_table(_table_text(cohort).encode())
                try:
                    writer.write(cohort, n_jobs, progress)
                except BaseException:
                    writer.leave_nothing_unfinished()
                    raise
    manifest = read_manifest(folder)
    if {name: manifest.get(name) for name in head} != json.loads(json.dumps(head)):
        remedy = "It holds another, or one of another version; nothing is overwritten."
        raise SimbaError("folder", str(folder), "new, or a store of this very cohort", remedy)
    for name in (LOCK, PROGRESS):  # left by a process that died right after the manifest
        with suppress(OSError):
            (folder / name).unlink(missing_ok=True)
    return _stored(cohort, folder)


def _stored(cohort: AnyCohort, folder: Path) -> AnyCohort:
    field = "store" if isinstance(cohort, TwinCohort) else "source"
    return replace(cohort, **{field: read_store(folder)})  # type: ignore[type-var]


def _table_text(cohort: Cohort) -> str:
    return table_text(cohort.table.rename_axis("subject"), sep="\t")


def _head(cohort: Cohort) -> dict[str, Any]:
    """Return what identifies a store: everything in the manifest but the checksums."""
    table, subjects = _table_text(cohort).encode(), cohort.table.index
    if subjects.dtype.kind not in "iu" or subjects.has_duplicates or subjects.min() < 0:
        allowed = "indexed by the numbers of its subjects, each at least 0 and once"
        raise SimbaError("the table of the cohort", subjects.tolist(), allowed)
    switches = cohort.switches if isinstance(cohort, TwinCohort) else {}
    return {
        "format": FORMAT,
        "cohort": cohort.identity,
        "switches": dict(sorted(switches.items())),
        "shape": [len(cohort), *cohort.lattice.shape],
        "dtype": "<f4",
        "spacing_mm": cohort.lattice.spacing_mm,
        "origin_mm": list(cohort.lattice.origin_mm),
        "versions": versions(cohort),
        "subjects": cohort.table.index.tolist(),
        "table_sha256": hashlib.sha256(table).hexdigest(),
    }


def versions(cohort: Cohort) -> dict[str, str]:
    """Return what the bytes of a volume depend on beside its cohort: libraries, and the code."""
    libraries = {name: version(name) for name in ("numpy", "numba", "scipy")}
    code = {"rendering": code_fingerprint(SyntheticCohort)}
    if isinstance(cohort, PlantedCohort):
        code["planting"] = code_fingerprint(PlantedCohort)
    return libraries | code


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Make the folder, and keep other processes out of it; say what is wrong with the disk."""
    try:
        with disk_errors("folder", folder, "make room and call again: it resumes."):
            new = not folder.exists()
            folder.mkdir(exist_ok=True)
            with FileLock(folder / LOCK, timeout=0):
                try:
                    yield
                finally:
                    with suppress(OSError):
                        (folder / LOCK).unlink(missing_ok=True)
                        if new:
                            folder.rmdir()  # it stays if it holds anything
    except Timeout as error:
        raise SimbaError.problem(
            f"Another process is writing the folder {str(folder)!r}.",
            "A folder is written by one process at a time; wait, or choose another.",
        ) from error


def _check_strangers(folder: Path) -> None:
    unknown = strangers(folder, (MANIFEST, VOLUMES, TABLE, PROGRESS, LOCK))
    if unknown:
        remedy = f"It holds {unknown[0]!r}; nothing is overwritten."
        raise SimbaError("folder", str(folder), "new or a store", remedy)
    for path in filter(is_unfinished, folder.iterdir()):  # left by a writer that was killed
        path.unlink()


def _batches(rows: list[int]) -> Iterator[list[int]]:
    for start in range(0, len(rows), BATCH):
        yield rows[start : start + BATCH]


def _size(count: int) -> str:
    """Return a number of bytes in the unit that suits it."""
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= unit:
            return f"{count / unit:.3g} {name}"
    return f"{count} bytes"


class _Writer:
    """Writes the volumes of a store, and a line of progress for each."""

    def __init__(self, folder: Path, head: dict[str, Any]) -> None:
        self.folder, self.head = folder, head
        self.volumes, self.progress = folder / VOLUMES, folder / PROGRESS
        self.header = npy_header(tuple(head["shape"]))
        self.size = 4 * int(np.prod(head["shape"][1:]))
        self.digest = hashlib.sha256(json.dumps(head, sort_keys=True).encode()).hexdigest()
        self.checksums = self._finished()

    @property
    def missing(self) -> list[int]:
        """Rows that have to be rendered."""
        return [row for row in range(self.head["shape"][0]) if row not in self.checksums]

    def check_space(self) -> None:
        """Raise if the disk has no room for the missing volumes."""
        room, needed = shutil.disk_usage(self.folder).free, self.size * len(self.missing)
        if room < needed:
            value = f"{_size(room)} free at {self.folder}"
            allowed = f"at least {_size(needed)} of free space"
            remedy = "Make room, write elsewhere, or raise spacing_mm."
            raise SimbaError("folder", Words(value), allowed, remedy)

    def write_table(self, content: bytes) -> None:
        """Write the table, unless it is there already; another is not overwritten."""
        path = self.folder / TABLE
        if path.is_file() and path.read_bytes() != content:
            raise self._not_ours(TABLE)
        atomic_write(path, content)

    def write(self, cohort: Cohort, n_jobs: int, progress: bool) -> None:
        """Render the missing volumes, then write the manifest."""
        count, missing = len(cohort), self.missing
        mode = "r+b" if self.volumes.exists() else "w+b"
        bar = tqdm(total=count, initial=count - len(missing), unit="volume", disable=not progress)
        with self.volumes.open(mode) as volumes, self.progress.open("a", encoding="ascii") as log:
            os.pwrite(volumes.fileno(), self.header, 0)
            if not self.checksums:
                log.write(self.digest + "\n")
                log.flush()
            with bar, Parallel(n_jobs=n_jobs, prefer="threads") as jobs:
                for rows in _batches(missing):
                    arrays = jobs(delayed(cohort.array)(row, keep=False) for row in rows)
                    for row, array in zip(rows, arrays, strict=True):
                        # A line means that the bytes are with the operating system: they outlive
                        # this process.
                        log.write(f"{row}\t{self._put(volumes, row, array)}\n")
                    log.flush()
                    bar.update(len(rows))
            os.fsync(volumes.fileno())
        checksums = [self.checksums[row] for row in range(count)]
        write_json(self.folder / MANIFEST, self.manifest(checksums, cohort))
        self.progress.unlink()

    def leave_nothing_unfinished(self) -> None:
        """Delete the files of a call that finished no volume: there is nothing to resume."""
        if not self.checksums:
            with suppress(OSError):
                self._begin_anew()
                (self.folder / TABLE).unlink(missing_ok=True)

    def manifest(self, checksums: list[str], cohort: Cohort) -> dict[str, Any]:
        """Return what the manifest of a complete store holds."""
        values = self.head | {"sha256": checksums, "columns": column_types(cohort.table)}
        if isinstance(cohort, PlantedCohort):
            values["sources"] = sources_of(cohort.source)
        values = json.loads(json.dumps(values))
        return values | {"digest": digest_of(values)}

    def _put(self, volumes: IO[bytes], row: int, array: np.ndarray) -> str:
        """Write a volume to its place and return its checksum."""
        remaining = memoryview(array.astype("<f4", copy=False).tobytes())
        offset = len(self.header) + row * self.size
        while remaining:
            written = os.pwrite(volumes.fileno(), remaining, offset)
            remaining, offset = remaining[written:], offset + written
        self.checksums[row] = checksum_of(array)
        return self.checksums[row]

    def _finished(self) -> dict[int, str]:
        """Return the rows that an interrupted call finished, with the checksums of their bytes."""
        text = ""
        if self.progress.is_file():
            text = self.progress.read_text(encoding="ascii", errors="replace")
        digest, *lines = text.split("\n")
        if len(digest) < 64:  # killed before the first line was out: there is at most a header
            if self.volumes.is_file() and self.volumes.stat().st_size > len(self.header):
                raise self._not_ours(VOLUMES)
            return self._begin_anew()
        if not self.volumes.is_file():
            return self._begin_anew()
        if digest != self.digest:
            allowed = "new, or begun for this very cohort"
            remedy = "It was begun for another, or by another version; delete it."
            raise SimbaError("folder", str(self.folder), allowed, remedy)
        checksums = {}
        with self.volumes.open("rb") as volumes:
            for line in lines[:-1]:  # what follows the last line break may be half a line
                number, _, checksum = line.partition("\t")
                complete = number.isdigit() and len(checksum) == 64
                if complete and int(number) < self.head["shape"][0]:
                    offset = len(self.header) + int(number) * self.size
                    content = os.pread(volumes.fileno(), self.size, offset)
                    if hashlib.sha256(content).hexdigest() == checksum:
                        checksums[int(number)] = checksum
        if not checksums:
            return self._begin_anew()
        finished = [digest, *(f"{row}\t{checksum}" for row, checksum in checksums.items())]
        atomic_write(self.progress, "\n".join(finished) + "\n")
        return checksums

    def _not_ours(self, name: str) -> SimbaError:
        remedy = f"It holds another {name!r}; nothing is overwritten."
        return SimbaError("folder", str(self.folder), "new, or begun for this very cohort", remedy)

    def _begin_anew(self) -> dict[int, str]:
        for path in (self.progress, self.volumes):
            path.unlink(missing_ok=True)
        return {}
