"""Reading what somebody wrote by hand: YAML files, names of fields."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from simba_lab.core import files
from simba_lab.core.errors import SimbaError, UnknownNameError


def read_yaml(
    path: str | Path, name: str, *, needed: Iterable[str], known: Iterable[str], examples: str
) -> dict[str, Any]:
    """Return the mapping in a YAML file; an error says if it is none, lacks a field or has one that nobody knows."""
    values, needed = files.read_yaml(path, name, examples=examples), list(needed)
    if not set(needed) <= set(values):
        words = " and ".join(filter(None, [", ".join(needed[:-1]), needed[-1]]))
        raise SimbaError(name, str(path), f"a mapping with {words}")
    check_names(values, name, known)
    return values


def check_names(values: Iterable[str], name: str, known: Iterable[str]) -> None:
    """Raise an error that names the first field which is not known."""
    known = list(known)
    for one in values:
        if one not in known:
            raise UnknownNameError.among(f"{name}.{one}", one, known)
