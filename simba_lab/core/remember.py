"""Results that are computed once, and kept by the digest of what they follow from."""

from __future__ import annotations

import hashlib
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock

from simba_lab.core.errors import SimbaError
from simba_lab.core.files import cache_root, new_folder, read_json, write_json

T = TypeVar("T")
DIGESTS = "digests.json"
_told: set[str] = set()


def save_as_json(value: Any, folder: Path) -> None:
    """Write a plain value to a folder, for `remembered`."""
    write_json(folder / "value.json", value)


def load_json(folder: Path) -> Any:
    """Read what `save_as_json` wrote."""
    return read_json(folder / "value.json", "cache")


def remembered(
    collection: str,
    key: str | None,
    make: Callable[[Path | None], T],
    *,
    cache: str | Path | bool = True,
    save: Callable[[T, Path], None] = save_as_json,
    load: Callable[[Path], T] = load_json,
) -> T:
    """Return a result that was made before, or make it and keep it.

    One process makes it and the others that want it wait. An entry appears complete or not at all;
    its files are compared with their digests when it is read, and a damaged one is made anew, with
    a warning. Where the cache cannot be written nothing is kept, with one warning.

    Parameters
    ----------
    collection : str
        Folder of such results under the cache folder, such as ``"runs"``.
    key : str, optional
        Digest of what the result follows from; None for what cannot be told, and is not kept.
    make : callable
        Returns the result. It is given a path for unfinished work, which is the same for the same
        key, or None if nothing can be kept.
    cache : bool or path
        Where results are kept: True for the user's cache folder, False for nowhere.
    save, load : callable
        Write the result to a folder that exists, and read it from there; JSON by default.

    Examples
    --------
    >>> import tempfile
    >>> from simba_lab.core.remember import remembered
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     first = remembered("sums", "2+2", lambda _: 4, cache=folder)
    ...     second = remembered("sums", "2+2", lambda _: 5, cache=folder)
    >>> first, second
    (4, 4)
    """
    root = cache_root(cache)
    if root is None or key is None:
        return make(None)
    entry = root / collection / key
    if _is_whole(entry):
        try:
            return load(entry)
        except (OSError, ValueError, KeyError) as error:
            _tell(f"{entry} cannot be read ({error}); it is made anew.")
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{entry}.lock")
        lock.acquire()
    except OSError as error:
        _tell(f"The cache {root} cannot be written ({error.strerror}); results are not kept.")
        return make(None)
    try:
        return _made(entry, make, save, load)
    finally:
        lock.release()


def _made(
    entry: Path,
    make: Callable[[Path | None], T],
    save: Callable[[T, Path], None],
    load: Callable[[Path], T],
) -> T:
    if _is_whole(entry):  # another process was faster
        try:
            return load(entry)
        except (OSError, ValueError, KeyError):
            pass
    if entry.exists():
        _tell(f"{entry} is damaged; it is made anew.")
        shutil.rmtree(entry, ignore_errors=True)
    value = make(entry.with_name(f"{entry.name}.checkpoint"))
    try:
        with new_folder(entry) as folder:
            save(value, folder)
            write_json(folder / DIGESTS, _digests(folder))
    except SimbaError as error:
        _tell(f"The result is not kept: {error}")
        return value
    return load(entry)


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != DIGESTS)
    digests = {}
    for path in files:
        with path.open("rb") as handle:
            name = path.relative_to(folder).as_posix()
            digests[name] = hashlib.file_digest(handle, "sha256").hexdigest()
    return digests


def _is_whole(entry: Path) -> bool:
    if not entry.is_dir():
        return False
    try:
        return bool(read_json(entry / DIGESTS, "cache") == _digests(entry))
    except (OSError, SimbaError):
        return False


def _tell(message: str) -> None:
    """Warn once in a process."""
    if message not in _told:
        _told.add(message)
        warnings.warn(message, stacklevel=4)
