"""Cohorts on disk: volumes that are memory-mapped, a manifest with their checksums, and synthesis that resumes.

A store is a folder with four files of fixed names. ``volumes.npy`` and ``subjects.tsv`` can be read
by anything; ``manifest.json`` says what they follow from and comes last, so a folder with a
manifest is complete. ``progress.tsv`` is the list of finished volumes while a store is being
written.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from filelock import FileLock, Timeout
from joblib import Parallel, delayed
from tqdm import tqdm

from simba_lab.core.cohort import Cohort
from simba_lab.core.errors import SimbaError
from simba_lab.core.files import atomic_write, read_json, strangers, write_json
from simba_lab.core.lattice import Lattice
from simba_lab.scans.scan_cohort import ScanCohort
from simba_lab.synthesis.scenario import Scenario
from simba_lab.synthesis.synthetic_cohort import SyntheticCohort

FORMAT = "simba-lab cohort 1"
MANIFEST, VOLUMES, TABLE, PROGRESS, LOCK = (
    "manifest.json",
    "volumes.npy",
    "subjects.tsv",
    "progress.tsv",
    "writing.lock",
)
# Volumes rendered before the finished ones are written down: large enough to keep all workers busy.
BATCH = 32


@dataclass(frozen=True, eq=False)
class Store:
    """The volumes of a folder, read when asked for; a `Source` of a cohort.

    Parameters
    ----------
    folder : Path
    lattice : Lattice
        Where the voxels are.
    subjects : tuple of int
        Whose volumes these are, in the order of the file.
    identity : dict
        What they follow from: the manifest without its checksums.
    checksums : tuple of str
        SHA-256 of each volume's bytes.
    """

    folder: Path
    lattice: Lattice
    subjects: tuple[int, ...]
    identity: dict[str, Any]
    checksums: tuple[str, ...]

    @property
    def switches(self) -> dict[str, bool]:
        """The effects that were switched when the volumes were written (see `Cohort.twin`)."""
        return dict(self.identity["switches"])

    @cached_property
    def _rows(self) -> dict[int, int]:
        return {subject: row for row, subject in enumerate(self.subjects)}

    @cached_property
    def _volumes(self) -> np.ndarray:
        return np.load(self.folder / VOLUMES, mmap_mode="r", allow_pickle=False)

    def __getstate__(self) -> dict[str, Any]:
        # A memory map would be copied to other processes; they open their own.
        return {
            name: value
            for name, value in self.__dict__.items()
            if name not in ("_volumes", "_rows")
        }

    def array(self, subject: int) -> np.ndarray:
        """Return the volume of a subject: float32, shape (X, Y, Z)."""
        return np.array(self._volumes[self._rows[subject]])

    def verify(self, *, progress: bool = False) -> None:
        """Compare every volume with its checksum; an error names the first subject that differs."""
        pairs = zip(self.subjects, self.checksums, strict=True)
        for subject, checksum in tqdm(
            pairs, total=len(self.subjects), unit="volume", disable=not progress
        ):
            if _checksum(self.array(subject)) != checksum:
                raise SimbaError(
                    "store",
                    str(self.folder / VOLUMES),
                    "unchanged since it was written",
                    f"Subject {subject} has another checksum. Delete the folder and save the cohort again.",
                )


def save_cohort(
    cohort: Cohort, folder: str | Path, *, n_jobs: int = -1, progress: bool = False
) -> Cohort:
    """Render a cohort into a folder and return the cohort that reads it. An interrupted call can be repeated: it resumes.

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

    Raises
    ------
    SimbaError
        If the folder holds something else, if another process writes it, or if the disk is full;
        what was finished stays.
    """
    folder = Path(folder)
    if not folder.absolute().parent.is_dir():
        raise SimbaError("folder", str(folder), "inside an existing folder")
    head = _head(cohort)
    if (folder / MANIFEST).is_file():
        if {
            name: value for name, value in _read_json(folder / MANIFEST).items() if name in head
        } != _as_json(head):
            hint = "It holds another, or one of another version; nothing is overwritten."
            raise SimbaError("folder", str(folder), "new, or a store of this very cohort", hint)
        for name in (LOCK, PROGRESS):  # left by a process that died right after the manifest
            (folder / name).unlink(missing_ok=True)
        return _stored(cohort, folder)
    try:
        folder.mkdir(exist_ok=True)
        with FileLock(folder / LOCK, timeout=0):
            _write(cohort, folder, head, n_jobs, progress)
    except Timeout as error:
        raise SimbaError(
            "folder", str(folder), "written by one process at a time", "Another one is at it."
        ) from error
    except OSError as error:
        if error.errno not in (
            errno.ENOSPC,
            errno.EDQUOT,
            errno.EACCES,
            errno.EROFS,
            errno.ENOTDIR,
            errno.EEXIST,
        ):
            raise
        raise SimbaError(
            "folder",
            str(folder),
            "writable, with space left",
            f"{error.strerror}. Make room and call again: it resumes.",
        ) from error
    (folder / LOCK).unlink(missing_ok=True)
    return _stored(cohort, folder)


def open_cohort(folder: str | Path, *, verify: bool = False) -> Cohort:
    """Return the cohort of a store. Volumes are memory-mapped; twins are rendered, which needs its scenario.

    Parameters
    ----------
    folder : path
    verify : bool
        Compare all volumes with their checksums first.

    Raises
    ------
    SimbaError
        If the folder holds no complete store, or one that does not fit its manifest.
    """
    store = _store(Path(folder))
    if verify:
        store.verify()
    text = (store.folder / TABLE).read_bytes()
    if hashlib.sha256(text).hexdigest() != store.identity["table_sha256"]:
        raise _broken(store.folder / TABLE, "The table has been changed.")
    table = pd.read_csv(
        io.BytesIO(text), sep="\t", index_col="subject", float_precision="round_trip"
    )
    known = store.identity["cohort"]
    if "scenario" not in known:
        return ScanCohort(table, store)
    scenario = Scenario.from_dict(known["scenario"])
    return SyntheticCohort(scenario, int(known["seed"]), table, store.switches, store)


def _stored(cohort: Cohort, folder: Path) -> Cohort:
    name = "store" if isinstance(cohort, SyntheticCohort) else "source"
    return replace(cohort, **{name: _store(folder)})  # type: ignore[type-var]


def _head(cohort: Cohort) -> dict[str, Any]:
    """Return what identifies a store: everything in the manifest but the checksums."""
    table = cohort.table.to_csv(sep="\t").encode()
    return {
        "format": FORMAT,
        "cohort": cohort.identity,
        "switches": dict(sorted(getattr(cohort, "switches", {}).items())),
        "shape": [len(cohort), *cohort.lattice.shape],
        "dtype": "<f4",
        "spacing_mm": cohort.lattice.spacing_mm,
        "origin_mm": list(cohort.lattice.origin_mm),
        "versions": versions(),
        "subjects": cohort.table.index.tolist(),
        "table_sha256": hashlib.sha256(table).hexdigest(),
    }


@lru_cache(maxsize=1)
def versions() -> dict[str, str]:
    """Return what the bytes of a volume depend on besides its cohort: libraries, and a digest of the code that renders."""
    digest = hashlib.sha256()
    for path in sorted((Path(__file__).parents[1] / "synthesis").rglob("*.py")):
        digest.update(path.read_bytes())
    return {name: version(name) for name in ("numpy", "numba", "scipy")} | {
        "rendering": digest.hexdigest()[:16]
    }


def _write(cohort: Cohort, folder: Path, head: dict[str, Any], n_jobs: int, progress: bool) -> None:
    unknown = strangers(folder, (VOLUMES, TABLE, PROGRESS, LOCK, MANIFEST))
    if unknown:
        hint = f"It holds {unknown[0]!r}; nothing is overwritten."
        raise SimbaError("folder", str(folder), "new or a store", hint)
    prefix, shape = _npy_header(tuple(head["shape"])), tuple(head["shape"][1:])
    size = 4 * int(np.prod(shape))
    done = _finished(folder, head, prefix, size, shape)
    room, needed = shutil.disk_usage(folder).free, size * (len(cohort) - len(done))
    if room < needed:
        raise SimbaError(
            "folder",
            f"{room / 1e9:.1f} GB free at {folder}",
            f"at least {needed / 1e9:.1f} GB of free space",
            "Make room, write elsewhere, or raise spacing_mm.",
        )
    atomic_write(folder / TABLE, cohort.table.to_csv(sep="\t").encode())
    checksums = dict(done)
    with (
        (folder / VOLUMES).open("r+b" if (folder / VOLUMES).exists() else "w+b") as volumes,
        (folder / PROGRESS).open("a", encoding="ascii") as log,
    ):
        os.pwrite(volumes.fileno(), prefix, 0)
        if not done:
            log.write(_digest(head) + "\n")
            log.flush()
        rows = [row for row in range(len(cohort)) if row not in done]
        bar = tqdm(total=len(cohort), initial=len(done), unit="volume", disable=not progress)
        with bar, Parallel(n_jobs=n_jobs, prefer="threads") as jobs:
            for batch in _batches(rows):
                for row, volume in zip(
                    batch,
                    jobs(delayed(cohort.array)(row, keep=False) for row in batch),
                    strict=True,
                ):
                    _write_all(
                        volumes.fileno(),
                        volume.astype("<f4", copy=False).tobytes(),
                        len(prefix) + row * size,
                    )
                    checksums[row] = _checksum(volume)
                    # A line means that the bytes are with the operating system: they outlive this
                    # process.
                    log.write(f"{row}\t{checksums[row]}\n")
                log.flush()
                bar.update(len(batch))
        os.fsync(volumes.fileno())
    manifest = head | {"sha256": [checksums[row] for row in range(len(cohort))]}
    write_json(folder / MANIFEST, manifest)
    (folder / PROGRESS).unlink()


def _finished(
    folder: Path, head: dict[str, Any], prefix: bytes, size: int, shape: tuple[int, ...]
) -> dict[int, str]:
    """Rows that an interrupted call finished, with their checksums, compared with the bytes that are there."""
    path = folder / PROGRESS
    if not path.is_file() or not (folder / VOLUMES).is_file():
        for name in (PROGRESS, VOLUMES):
            (folder / name).unlink(missing_ok=True)
        return {}
    first, *lines = path.read_text(encoding="ascii", errors="replace").split("\n")
    if first != _digest(head):
        if first == "" or len(first) < 64:  # killed before the first line was out
            (folder / PROGRESS).unlink()
            (folder / VOLUMES).unlink()
            return {}
        hint = "It was begun for another, or by another version; delete it."
        raise SimbaError("folder", str(folder), "new, or begun for this very cohort", hint)
    done = {}
    with (folder / VOLUMES).open("rb") as volumes:
        for line in lines[:-1]:  # what follows the last line break may be half a line
            row, _, checksum = line.partition("\t")
            if row.isdigit() and len(checksum) == 64 and int(row) < head["shape"][0]:
                found = os.pread(volumes.fileno(), size, len(prefix) + int(row) * size)
                if hashlib.sha256(found).hexdigest() == checksum:
                    done[int(row)] = checksum
    lines = [first, *(f"{row}\t{checksum}" for row, checksum in done.items())]
    atomic_write(path, "\n".join(lines) + "\n")
    return done


def _store(folder: Path) -> Store:
    if not (folder / MANIFEST).is_file():
        hint = (
            "It was interrupted; save the cohort again."
            if (folder / PROGRESS).is_file()
            else "Check the path."
        )
        raise SimbaError("folder", str(folder), "a complete store of a cohort", hint)
    manifest = _read_json(folder / MANIFEST)
    try:
        if manifest["format"] != FORMAT or manifest["dtype"] != "<f4":
            raise ValueError(f"its format is {manifest['format']!r}, {manifest['dtype']!r}")
        shape = tuple(int(n) for n in manifest["shape"])
        subjects = tuple(int(subject) for subject in manifest["subjects"])
        checksums = tuple(str(checksum) for checksum in manifest["sha256"])
        if (
            len(shape) != 4
            or min(shape) < 1
            or len({shape[0], len(subjects), len(checksums), len(set(subjects))}) != 1
        ):
            raise ValueError("its subjects, checksums and shape do not agree")
        lattice = Lattice(
            shape[1:], float(manifest["spacing_mm"]), tuple(float(v) for v in manifest["origin_mm"])
        )
        identity = {name: manifest[name] for name in ("cohort", "switches", "table_sha256")}
    except (KeyError, TypeError, ValueError) as error:
        raise _broken(folder / MANIFEST, f"({error})") from error
    # The manifest names no files, and a shape that it claims is held against the file before
    # anything is read.
    prefix = _npy_header(shape)
    volumes = folder / VOLUMES
    expected = len(prefix) + 4 * int(np.prod(shape, dtype=object))
    if not volumes.is_file() or volumes.stat().st_size != expected:
        raise _broken(volumes, f"{expected} bytes follow from the manifest.")
    with volumes.open("rb") as handle:
        if handle.read(len(prefix)) != prefix:
            raise _broken(volumes, "Its header does not fit the manifest.")
    return Store(folder, lattice, subjects, identity, checksums)


def _broken(path: Path, why: str) -> SimbaError:
    return SimbaError(
        "store",
        str(path),
        "complete and unchanged",
        f"{why} Delete the folder and save the cohort again.",
    )


def _npy_header(shape: tuple[int, ...]) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": "<f4", "fortran_order": False, "shape": shape}
    )
    return buffer.getvalue()


def _batches(rows: list[int]) -> Iterator[list[int]]:
    for start in range(0, len(rows), BATCH):
        yield rows[start : start + BATCH]


def _write_all(descriptor: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = read_json(path, "store")
    except SimbaError as error:
        raise _broken(path, f"({error})") from error
    if not isinstance(values, dict):
        raise _broken(path, "It is not an object.")
    return values


def _as_json(values: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(values))


def _digest(head: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(head, sort_keys=True).encode()).hexdigest()


def _checksum(volume: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(volume, dtype="<f4").tobytes()).hexdigest()
