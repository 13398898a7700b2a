"""Digests of the files of a folder, in the folder: what was changed since is not believed."""

from __future__ import annotations

import hashlib
from pathlib import Path

from simba_lab.core.errors import SimbaError
from simba_lab.core.files import read_json, write_json

DIGESTS = "digests.json"


def write_digests(folder: Path) -> None:
    """Write the SHA-256 of every file of a folder to a file of it."""
    write_json(folder / DIGESTS, _digests(folder))


def damage(folder: Path) -> str:
    """Return what is wrong with a folder of `write_digests`; nothing if it is as it was."""
    if not folder.is_dir():
        return "There is no such folder."
    try:
        written, present = read_json(folder / DIGESTS, "digests"), _digests(folder)
    except SimbaError as error:
        return str(error)
    except OSError as error:
        return f"It cannot be read: {error}."
    if not isinstance(written, dict):
        return f"{DIGESTS} was changed."
    changed = [name for name in {**written, **present} if written.get(name) != present.get(name)]
    return f"{changed[0]} was changed." if changed else ""


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != DIGESTS)
    digests = {}
    for path in files:
        with path.open("rb") as handle:
            name = path.relative_to(folder).as_posix()
            digests[name] = hashlib.file_digest(handle, "sha256").hexdigest()
    return digests
