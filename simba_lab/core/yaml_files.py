"""YAML: the one reader of the package, which trusts nothing and names lines, and the one writer."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any, TypeVar, overload

import yaml

from simba_lab.core.errors import SimbaError
from simba_lab.core.files import atomic_write, plain_number, read_text

# What nobody writes by hand: larger or deeper YAML is an accident or an attack.
YAML_BYTES, YAML_DEPTH, LARGEST_INTEGER = 2**20, 32, 2**63 - 1
DECIMAL = re.compile(r"[-+]?(0|[1-9][0-9_]*)")
# The steps of a field's name, as in ``study.sites[2].prevalence['bias']``.
STEP = re.compile(r"\['([^']*)'\]|\[(\d+)\]|([^.\[\]]+)")

Built = TypeVar("Built")
Build = Callable[[dict[str, Any]], Built]
# Where a value is: its keys from the top, its line, and the text of a plain value.
Place = tuple[list[str], int, str | None]


@overload
def read_yaml(source: str | Path, field: str, *, examples: str = "") -> dict[str, Any]: ...
@overload
def read_yaml(
    source: str | Path, field: str, build: Build[Built], *, examples: str = ""
) -> Built: ...
def read_yaml(
    source: str | Path, field: str, build: Build[Any] = dict, *, examples: str = ""
) -> Any:
    r"""Return what is built of the mapping in a YAML file, or in YAML text of more than one line.

    Parameters
    ----------
    source : path or str
        A file; a string with a line break is taken as the text itself.
    field : str
        What is read, such as ``"scenario"``: errors name it.
    build : function of a dict
        What to make of the mapping; its errors get the line of the value that they are about.
    examples : str
        Folder with examples, named in the error if there is no such file.

    Raises
    ------
    SimbaError
        If the file is missing, is not YAML, holds no mapping, names a key twice, has anchors or
        aliases, or is larger or deeper than anybody writes by hand; and whatever `build` raises.
        The message names line and key.

    Examples
    --------
    >>> from simba_lab.core.yaml_files import read_yaml
    >>> read_yaml("subjects: 64\nspacing_mm: 4\n", "scenario")
    {'subjects': 64, 'spacing_mm': 4}
    """
    if isinstance(source, str) and "\n" in source:
        return parse_yaml(source, field, build)
    path = Path(source)
    if not path.is_file():
        remedy = f"Examples are in {examples}." if examples else "Check the path."
        raise SimbaError(field, str(source), "an existing YAML file", remedy)
    text = read_text(path, field, "a YAML file", most=YAML_BYTES)
    return parse_yaml(text, field, build, name=str(path))


@overload
def parse_yaml(text: str, field: str, *, name: str | None = None) -> dict[str, Any]: ...
@overload
def parse_yaml(text: str, field: str, build: Build[Built], *, name: str | None = None) -> Built: ...
def parse_yaml(text: str, field: str, build: Build[Any] = dict, *, name: str | None = None) -> Any:
    """Return what is built of YAML text (see `read_yaml`); errors call the text `name`."""
    name = text[:80] if name is None else name
    if len(text) > YAML_BYTES:
        raise SimbaError(field, name, f"YAML of at most {YAML_BYTES} characters")
    try:
        loader = _Loader(text.removeprefix("\ufeff"))
        values = loader.get_single_data()
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        problem = f"Line {line}: the character {chr(error.character)!r} is not allowed."
        raise SimbaError(field, name, "valid YAML", problem) from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"Line {mark.line + 1}: " if mark else ""
        problem = f"{place}{error.problem or error.context}."
        raise SimbaError(field, name, "valid YAML", problem) from error
    if not isinstance(values, dict):
        allowed = "a mapping of field names to values"
        raise SimbaError(field, name, allowed, "Line 1: write 'name: value'.")
    try:
        return build(values)
    except SimbaError as error:
        written = _line_of(error, field, loader.places)
        if written is None:
            raise
        raise error.with_place(f"See line {written}.") from error


def to_yaml(values: Mapping[str, Any]) -> str:
    """Return plain values as YAML, in their order, without aliases."""
    text: str = yaml.dump(dict(values), Dumper=_Dumper, sort_keys=False)
    return text


def write_yaml(path: str | Path, values: Mapping[str, Any]) -> None:
    """Write plain values to a YAML file, complete or not at all."""
    atomic_write(path, to_yaml(values))


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """Safe loader with limits; it remembers the line of each key and entry, and plain values.

    It refuses aliases, keys that occur twice or are no text, numbers that are not plain decimals,
    and nesting that is too deep. Dates stay text.
    """

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, pattern) for tag, pattern in resolvers if "timestamp" not in tag]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.keys: list[str] = []
        self.places: list[Place] = []

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        if parent is not None:
            self.keys.append(_key_of(index))
        if getattr(event, "anchor", None) is not None:
            self._refuse("anchors and aliases are not allowed; write the value out", event)
        if len(self.keys) > YAML_DEPTH:
            self._refuse(f"nested deeper than {YAML_DEPTH} levels", event)
        if parent is not None and index is not None:
            mark = index.start_mark if isinstance(index, yaml.Node) else event.start_mark
            steps = [step for key in self.keys for step in _steps(key)]
            self.places.append((steps, mark.line + 1, getattr(event, "value", None)))
        node = super().compose_node(parent, index)
        if parent is not None:
            self.keys.pop()
        return node

    def _refuse(self, problem: str, event: yaml.Event) -> None:
        entries = [f"entry {int(key) + 1}" if key.isdigit() else key for key in self.keys[:6]]
        address = f" at {'.'.join(entries)}" if entries else ""
        raise yaml.MarkedYAMLError(problem=problem + address, problem_mark=event.start_mark)

    def construct_mapping(self, node: yaml.Node, deep: bool = False) -> dict[Hashable, Any]:
        keys: set[str] = set()
        for key_node, _ in getattr(node, "value", ()):
            key = self.construct_object(key_node, deep=True)
            problem = None
            if not isinstance(key, str):
                written = getattr(key_node, "value", key)
                written = written if isinstance(written, str) else "a list or a mapping"
                problem = f"a key must be text, and {written[:80]} is not; write it in quotes"
            elif key in keys:
                problem = f"the key {key[:80]!r} occurs twice"
            if problem:
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key_node.start_mark)
            keys.add(key)
        mapping: dict[Hashable, Any] = super().construct_mapping(node, deep=deep)
        return mapping

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        # YAML 1.1 would take 010 for 8 and 12:30 for 750.
        if DECIMAL.fullmatch(node.value) and len(node.value) < 25:
            number = int(node.value)
            if abs(number) <= LARGEST_INTEGER:
                return number
        problem = f"{node.value[:30]} is not a plain decimal integer of a sane size"
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)

    def construct_yaml_float(self, node: yaml.ScalarNode) -> float:
        if ":" not in node.value:
            number: float = super().construct_yaml_float(node)
            return number
        problem = f"{node.value[:30]} is not a plain decimal number"
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Leave merge keys (``<<``) alone: nothing constructs them, so they are errors."""


def _key_of(index: Any) -> str:
    if isinstance(index, yaml.ScalarNode):
        return str(index.value)
    return str(index) if isinstance(index, int) else "a key"


# YAML 1.1 takes 1e-5 for a word, because it lacks a decimal point.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]+$"), list("-+0123456789")
)
for _kind in ("int", "float"):
    _Loader.add_constructor(
        f"tag:yaml.org,2002:{_kind}", getattr(_Loader, f"construct_yaml_{_kind}")
    )
# Values are those of JSON.
for _kind in ("binary", "omap", "pairs", "set", "timestamp"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", yaml.SafeLoader.construct_undefined)


def _line_of(error: SimbaError, whole: str, places: list[Place]) -> int | None:
    """Return the line of the value that an error is about, if its field names a single one.

    A part that knows nothing of the whole calls its field ``amplitude_mm``, or ``site.amplitude``:
    the last keys above a value count, and where they agree the value itself decides.
    """
    steps = _steps(error.field)
    names = {name for keys, _, _ in places for name in keys}
    while steps and steps[0] not in names:  # the name of the whole, such as scenario
        del steps[0]
    while steps:
        candidates = [place for place in places if place[0][-len(steps) :] == steps]
        if candidates:
            exact = [place for place in candidates if place[0] == steps]
            shown = ("null", "") if error.value is None else (error.shown, error.shown.strip("'"))
            if len(candidates) > 1:
                candidates = exact or [place for place in candidates if place[2] in shown]
            return candidates[0][1] if len(candidates) == 1 else None
        del steps[-1]  # what is missing, or not a mapping: the place that should hold it
    return 1 if _steps(error.field)[:1] == [whole] else None


def _steps(field: str) -> list[str]:
    return [next(filter(None, match.groups())) for match in STEP.finditer(field)]


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]
    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_data(self, data: Any) -> yaml.Node:
        return super().represent_data(plain_number(data))
