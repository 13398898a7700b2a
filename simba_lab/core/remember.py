"""Results that are computed once, and kept by the digest of what they follow from."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock

from simba_lab.core.digests import damage, write_digests
from simba_lab.core.errors import SimbaError
from simba_lab.core.files import cache_root, new_folder, read_json, write_json

T = TypeVar("T")
# What reading an entry can raise: it is then made anew.
UNREADABLE = (OSError, ValueError, KeyError, TypeError)
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
    kept: Callable[[Path], None] = lambda _: None,
) -> T:
    """Return a result that was made before, or make it and keep it.

    One process makes it and the others that want it wait. An entry appears complete or not at all;
    its files are compared with their digests when it is read, and a damaged one is made anew, with
    a warning. Where the cache cannot be written nothing is kept, with one warning: no error of a
    disk costs a result that was made.

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
    kept : callable
        Called with the path for unfinished work when the result is safe: that work can go.

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
    if entry.is_dir() and not damage(entry):
        try:
            value = load(entry)
            kept(_unfinished(entry))
            return value
        except UNREADABLE as error:
            _tell(f"{entry} cannot be read ({error}); it is made anew.")
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{entry}.lock")
        lock.acquire()
    except OSError as error:
        problem = error.strerror or error
        _tell(f"The cache {root} cannot be written ({problem}); results are not kept.")
        return make(None)
    try:
        return _made(entry, make, save, load, kept)
    finally:
        lock.release()


def _made(
    entry: Path,
    make: Callable[[Path | None], T],
    save: Callable[[T, Path], None],
    load: Callable[[Path], T],
    kept: Callable[[Path], None],
) -> T:
    if os.path.lexists(entry):
        damaged = damage(entry)
        if not damaged:  # another process was faster
            try:
                return load(entry)
            except UNREADABLE as error:
                damaged = str(error)
        _tell(f"{entry} is damaged; it is made anew. {damaged}")
        _remove(entry)
    value = make(_unfinished(entry))
    try:
        with new_folder(entry) as folder:
            save(value, folder)
            write_digests(folder)
        kept(_unfinished(entry))
        return load(entry)
    except (OSError, SimbaError) as error:
        _tell(f"The result is not kept: {error}")
        return value


def _unfinished(entry: Path) -> Path:
    return entry.with_name(f"{entry.name}.checkpoint")


def _remove(entry: Path) -> None:
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry, ignore_errors=True)
    else:
        entry.unlink(missing_ok=True)


def _tell(message: str) -> None:
    """Warn once in a process."""
    if message not in _told:
        _told.add(message)
        warnings.warn(message, stacklevel=4)
