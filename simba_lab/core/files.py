"""Files: text and JSON read with care, complete writes, and paths that stay inside a folder."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PureWindowsPath
from typing import Any

from platformdirs import user_cache_path

from simba_lab.core.errors import SimbaError
from simba_lab.core.unfinished import disk_errors, is_unfinished, unfinished_file, unfinished_folder

# The manifest of a store of a million subjects has fewer.
TEXT_BYTES = 2**28


# -- reading --


def read_text(path: str | Path, field: str, noun: str, *, most: int = TEXT_BYTES) -> str:
    """Return the text of a file in UTF-8, with or without a byte order mark.

    Parameters
    ----------
    path : path
    field, noun : str
        What is read and what it should be, for errors: ``"study"``, ``"a YAML file"``.
    most : int
        Largest size in bytes.

    Raises
    ------
    SimbaError
        If the file cannot be read, is larger, or is not in UTF-8; then the line is named.
    """
    path = Path(path)
    content = b""
    try:
        if path.stat().st_size > most:
            raise SimbaError(field, str(path), f"{noun} of at most {most} bytes")
        content = path.read_bytes()
        return content.decode("utf-8-sig")
    except OSError as error:
        raise SimbaError(field, str(path), f"{noun} that can be read", f"{error}.") from error
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        remedy = f"Line {line} is not: save the file as UTF-8."
        if content.startswith((b"\xff\xfe", b"\xfe\xff")):
            remedy = "It is in UTF-16: save it as UTF-8."
        raise SimbaError(field, str(path), f"{noun} in UTF-8", remedy) from error


def read_json(path: str | Path, field: str) -> Any:
    """Return what a JSON file holds.

    Raises
    ------
    SimbaError
        If it cannot be read, is not JSON, or names a key twice.
    """
    text = read_text(path, field, "a file of valid JSON")
    try:
        return json.loads(text, object_pairs_hook=_without_twice)
    except (ValueError, RecursionError) as error:
        raise SimbaError(field, str(path), "a file of valid JSON", f"{error}.") from error


def _without_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {repeated!r} occurs twice")
    return values


# -- writing --


@contextmanager
def new_file(path: str | Path) -> Iterator[Path]:
    """Lend a hidden file beside a path; what is written there takes its name at the end.

    A reader sees the old file or the new one, never a part. After an error nothing is left; what a
    killed process left is cleared by the next that writes the same file.

    Raises
    ------
    SimbaError
        If the disk is full, or the file cannot be written.
    """
    path = Path(path)
    with disk_errors("file", path, "what was there is unchanged."), unfinished_file(path) as part:
        yield part
        with part.open("rb") as handle:
            os.fsync(handle.fileno())
        part.replace(path)


def atomic_write(path: str | Path, content: bytes | str) -> None:
    """Write a file so that a reader, or a kill, finds the old content or the new, never a part.

    Text is written in UTF-8 with the line breaks that it has.
    """
    with new_file(path) as unfinished:
        unfinished.write_bytes(content.encode() if isinstance(content, str) else content)


def write_new(path: str | Path, content: bytes | str) -> None:
    """Write a file, complete or not at all; what exists stays, unless it is the same.

    Raises
    ------
    SimbaError
        If something else is there, or if the file cannot be written.
    """
    path = Path(path)
    content = content.encode() if isinstance(content, str) else content
    with disk_errors("file", path, "nothing was left behind."):
        if path.is_file() and path.stat().st_size == len(content) and path.read_bytes() == content:
            return
        check_absent(path, "file")
        with unfinished_file(path) as unfinished:
            unfinished.write_bytes(content)
            with unfinished.open("rb") as handle:
                os.fsync(handle.fileno())
            try:
                os.link(unfinished, path)  # unlike a rename it replaces nothing
            except FileExistsError:
                check_absent(path, "file")
            except OSError:  # a file system without links
                check_absent(path, "file")
                unfinished.replace(path)


def write_json(path: str | Path, values: Any) -> None:
    """Write a JSON file, complete or not at all."""
    atomic_write(path, json.dumps(values, indent=1, default=_plain) + "\n")


def plain_number(value: Any) -> Any:
    """Return a plain number in the place of a scalar of NumPy or PyTorch; other values stay."""
    library = type(value).__module__.partition(".")[0]
    if library in ("numpy", "torch") and getattr(value, "ndim", None) == 0:
        return value.item()
    return value


def _plain(value: Any) -> Any:
    plain = plain_number(value)
    if plain is value:
        raise TypeError(f"{type(value).__name__} is no value of JSON")
    return plain


@contextmanager
def new_folder(path: str | Path, *, parents: bool = False) -> Iterator[Path]:
    """Lend a hidden folder beside the wanted one; it takes its name at the end, or vanishes.

    What a killed process left is cleared by the next that writes the same folder.

    Parameters
    ----------
    path : path
        Where the folder is to be; nothing may be there.
    parents : bool
        Whether to make the folders above it; otherwise the folder that it is in must exist.

    Raises
    ------
    SimbaError
        If something is there already, if another process is writing it, or if it cannot be written.
    """
    path = Path(path)
    check_absent(path)
    if not parents and not path.absolute().parent.is_dir():
        raise SimbaError("folder", str(path), "in a folder that exists", f"Make {path.parent}.")
    with (
        disk_errors("folder", path, "nothing was left behind."),
        unfinished_folder(path, parents=parents) as part,
    ):
        yield part
        check_absent(path)  # a rename would replace an empty folder
        part.rename(path)


def check_absent(path: Path, field: str = "folder") -> None:
    """Raise if something is at a path already."""
    if os.path.lexists(path):
        allowed = "a path where nothing exists yet"
        raise SimbaError(field, str(path), allowed, "Nothing is overwritten; choose another.")


# -- paths --


def absent_folder(path: str | Path) -> Path:
    """Return the path of a folder that can be made; raise an error before anything is computed.

    Raises
    ------
    SimbaError
        If the folder exists, or its parent does not.
    """
    path = Path(path)
    if path.exists():
        allowed = "a folder that does not exist yet"
        raise SimbaError("folder", str(path), allowed, "Nothing is overwritten.")
    if not path.absolute().parent.is_dir():
        raise SimbaError("folder", str(path), "in a folder that exists")
    return path


def inside(folder: str | Path, name: str, field: str) -> Path:
    """Return the path of a file that another file names, if it is inside a folder, links followed.

    Parameters
    ----------
    folder : path
    name : str
        As the other file has it: relative to the folder.
    field : str
        What the name is, for the error, such as ``"a file named by participants.tsv"``.

    Raises
    ------
    SimbaError
        If the name is absolute, climbs with ``..``, or leads outside through a link.
    """
    folder = Path(folder)
    pure = PureWindowsPath(name)  # knows both separators, and drives
    path = folder / name
    try:
        _ = path.is_file()  # raises if there can be no such name
        contained = path.resolve().is_relative_to(folder.resolve())
    except (OSError, ValueError, RuntimeError):
        contained = False
    if pure.root or pure.drive or ".." in pure.parts or not contained:
        allowed = f"a relative path inside {folder}"
        remedy = "Nothing else is opened."
        if path.is_symlink() and not contained:
            remedy = "It is a link that leads outside; copy the file into the folder."
        raise SimbaError(field, name, allowed, remedy)
    return path


def strangers(folder: Path, names: Iterable[str]) -> list[str]:
    """Return what a folder holds besides files of these names and what a killed writer left."""
    present = (path.name for path in folder.iterdir() if not is_unfinished(path))
    return sorted(set(present) - set(names))


def cache_folder() -> Path:
    """Return the folder of what can be made again: ``$SIMBA_LAB_CACHE``, or in the user's cache."""
    chosen = os.environ.get("SIMBA_LAB_CACHE")
    return Path(chosen) if chosen else user_cache_path("simba-lab")


def cache_root(cache: str | Path | bool) -> Path | None:
    """Return what an argument ``cache`` means: `cache_folder` (True), none (False), or a path."""
    if isinstance(cache, bool):
        return cache_folder() if cache else None
    return Path(cache)
