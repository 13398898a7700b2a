"""Files: YAML and JSON read with care, complete writes, and paths that stay inside a folder."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PureWindowsPath
from typing import Any

import yaml
from platformdirs import user_cache_path

from simba_lab.core.errors import SimbaError
from simba_lab.core.unfinished import disk_errors, is_unfinished, unfinished_file, unfinished_folder

# What nobody writes by hand: larger or deeper YAML is an accident or an attack.
YAML_BYTES, YAML_DEPTH = 2**20, 32


# -- reading --


def read_yaml(source: str | Path, field: str, *, examples: str = "") -> dict[str, Any]:
    r"""Return the mapping that a YAML file holds, or YAML text of more than one line.

    Parameters
    ----------
    source : path or str
        A file; a string with a line break is taken as the text itself.
    field : str
        What is read, such as ``"scenario"``: errors name it.
    examples : str
        Folder with examples, named in the error if there is no such file.

    Raises
    ------
    SimbaError
        If the file is missing, is not YAML, holds no mapping, names a key twice, has anchors or
        aliases, or is larger or deeper than anybody writes by hand. The message names line and key.

    Examples
    --------
    >>> from simba_lab.core.files import read_yaml
    >>> read_yaml("subjects: 64\nspacing_mm: 4\n", "scenario")
    {'subjects': 64, 'spacing_mm': 4}
    """
    if isinstance(source, str) and "\n" in source:
        return parse_yaml(source, field)
    path = Path(source)
    if not path.is_file():
        remedy = f"Examples are in {examples}." if examples else "Check the path."
        raise SimbaError(field, str(source), "an existing YAML file", remedy)
    try:
        if path.stat().st_size > YAML_BYTES:
            raise SimbaError(field, str(path), f"a YAML file of at most {YAML_BYTES} bytes")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SimbaError(field, str(path), "a YAML file in UTF-8", f"{error}.") from error
    return parse_yaml(text, field, name=str(path))


def parse_yaml(text: str, field: str, *, name: str | None = None) -> dict[str, Any]:
    """Return the mapping that YAML text holds; `name` stands for the text in messages."""
    name = text[:80] if name is None else name
    if len(text) > YAML_BYTES:
        raise SimbaError(field, name, f"YAML of at most {YAML_BYTES} characters")
    try:
        values = yaml.load(text, _Loader)  # a safe loader, with further limits
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise SimbaError(field, name, "valid YAML", _yaml_problem(error)) from error
    if not isinstance(values, dict):
        raise SimbaError(field, name, "a mapping of field names to values")
    return values


def _yaml_problem(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"Line {error.problem_mark.line + 1}: {error.problem}."
    return f"{error}."


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """Safe loader that refuses aliases, keys that occur twice, and nesting that is too deep."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.keys: list[str] = []

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        if isinstance(index, yaml.ScalarNode):
            self.keys.append(str(index.value))
        elif parent is not None:
            self.keys.append(f"entry {index + 1}" if isinstance(index, int) else "a key")
        if getattr(event, "anchor", None) is not None:
            self._refuse("anchors and aliases are not allowed; write the value out", event)
        if len(self.keys) > YAML_DEPTH:
            self._refuse(f"nested deeper than {YAML_DEPTH} levels", event)
        node = super().compose_node(parent, index)
        if parent is not None:
            self.keys.pop()
        return node

    def _refuse(self, problem: str, event: yaml.Event) -> None:
        address = f" at {'.'.join(self.keys[:6])}" if self.keys else ""
        raise yaml.MarkedYAMLError(problem=problem + address, problem_mark=event.start_mark)

    def construct_mapping(self, node: yaml.Node, deep: bool = False) -> dict[Hashable, Any]:
        mapping: dict[Hashable, Any] = super().construct_mapping(node, deep=deep)
        if len(mapping) < len(node.value):
            keys: set[Any] = set()
            for key_node, _ in node.value:
                key = self.construct_object(key_node)
                if key in keys:
                    problem = f"the key {key!r} occurs twice"
                    raise yaml.MarkedYAMLError(problem=problem, problem_mark=key_node.start_mark)
                keys.add(key)
        return mapping

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Leave merge keys (``<<``) alone: nothing constructs them, so they are errors."""


# YAML 1.1 takes 1e-5 for a word, because it lacks a decimal point.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def read_json(path: str | Path, field: str) -> Any:
    """Return what a JSON file holds.

    Raises
    ------
    SimbaError
        If it cannot be read, is not JSON, or names a key twice.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        return json.loads(text, object_pairs_hook=_without_twice)
    except (OSError, ValueError, RecursionError) as error:
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


def write_json(path: str | Path, values: Any, *, indent: int | None = 1) -> None:
    """Write a JSON file, complete or not at all."""
    atomic_write(path, json.dumps(values, indent=indent) + "\n")


def to_yaml(values: Mapping[str, Any]) -> str:
    """Return plain values as YAML, in their order, without aliases."""
    text: str = yaml.dump(dict(values), Dumper=_Dumper, sort_keys=False)
    return text


def write_yaml(path: str | Path, values: Mapping[str, Any]) -> None:
    """Write plain values to a YAML file, complete or not at all."""
    atomic_write(path, to_yaml(values))


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]
    def ignore_aliases(self, data: Any) -> bool:
        return True


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
    _check_absent(path)
    if not parents and not path.absolute().parent.is_dir():
        raise SimbaError("folder", str(path), "in a folder that exists", f"Make {path.parent}.")
    with (
        disk_errors("folder", path, "nothing was left behind."),
        unfinished_folder(path, parents=parents) as part,
    ):
        yield part
        _check_absent(path)  # a rename would replace an empty folder
        part.rename(path)


def _check_absent(path: Path) -> None:
    if os.path.lexists(path):
        allowed = "a path where nothing exists yet"
        raise SimbaError("folder", str(path), allowed, "Nothing is overwritten; choose another.")


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
        raise SimbaError(field, name, allowed, "Nothing else is opened.")
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
