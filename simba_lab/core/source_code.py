"""The lab's own code as digests: of the syntax trees of the modules that a result imports."""

from __future__ import annotations

import ast
import hashlib
import sys
import time
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

NAME = "simba_lab"
# Annotations that say what a dataclass does with a field.
MEANINGFUL = ("ClassVar", "InitVar", "KW_ONLY")
_STARTED = time.time()


class NotFingerprintable(TypeError):
    """A value of which nobody can say by its content whether it is the same as another."""


def code_fingerprint(
    *roots: object, leave_out: Iterable[str] = (), package: Path | None = None
) -> str:
    """Return a digest of the code of some modules, and of all modules of the lab that they import.

    What counts is the syntax tree. Comments, docstrings, layout, annotations, and imports that only
    annotations need do not count. Imports are read from the code: those of modules and of
    functions, but not those for type checkers; the lazy exports of a room lead to the modules that
    define them.

    Parameters
    ----------
    *roots : module, function, class or str
        Modules of the lab, their names, or what is defined in them.
    leave_out : iterable of str
        Rooms or modules that are not followed, such as ``"simba_lab.interpretation"``.
    package : path, optional
        The folder ``simba_lab`` to read; by default the one that runs.

    Raises
    ------
    NotFingerprintable
        If a module was edited after this process had imported it: what runs is not what is read.

    Examples
    --------
    >>> from simba_lab.core.source_code import code_fingerprint
    >>> len(code_fingerprint("simba_lab.core.lattice"))
    32
    """
    folder = Path(__file__).parents[1] if package is None else Path(package)
    names = tuple(sorted({_module_name(root) for root in roots}))
    return _closure_digest(folder, names, tuple(leave_out))


def modules_behind(
    *roots: object, leave_out: Iterable[str] = (), package: Path | None = None
) -> list[str]:
    """Return the names of the modules that `code_fingerprint` takes into account."""
    folder = Path(__file__).parents[1] if package is None else Path(package)
    names = tuple(sorted({_module_name(root) for root in roots}))
    return _closure(folder, names, tuple(leave_out))


def defining_modules(package_name: str, name: str) -> set[str]:
    """Return the modules of the lab that a name of one of its packages leads to."""
    return _imported_from(Path(__file__).parents[1], package_name, name)


def _module_name(root: object) -> str:
    if isinstance(root, ModuleType):
        return root.__name__
    # What a room hands out wraps the function: the module that defines it counts.
    root = getattr(root, "__wrapped__", root)
    return root if isinstance(root, str) else str(getattr(root, "__module__", None))


@cache
def _closure_digest(folder: Path, names: tuple[str, ...], leave_out: tuple[str, ...]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name in _closure(folder, names, leave_out):
        digest.update(f"{name} {_Source.of(folder, name).digest};".encode())
    return digest.hexdigest()


def _closure(folder: Path, names: tuple[str, ...], leave_out: tuple[str, ...]) -> list[str]:
    reached: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        skipped = any(name == room or name.startswith(f"{room}.") for room in leave_out)
        if name in reached or skipped:
            continue
        reached.add(name)
        waiting += _Source.of(folder, name).imports
    return sorted(reached)


class _Source:
    """One module of the lab: the digest of its syntax tree, and the modules that it imports."""

    def __init__(self, folder: Path, name: str) -> None:
        path = _path(folder, name)
        if path is None:
            raise NotFingerprintable(f"{name!r} is not a module of the lab")
        loaded = getattr(sys.modules.get(name), "__file__", None)
        if loaded == str(path) and path.stat().st_mtime > _STARTED:
            raise NotFingerprintable(f"{name} was edited after it was imported; start Python anew")
        reading = _Reading(ast.parse(path.read_bytes()))
        lazy = path.name == "__init__.py" and "'attach_stub'" in reading.words
        self.digest = "" if lazy else _digest(reading.words)
        self.imports = [] if lazy else sorted(self._followed(folder, name, path, reading))

    @staticmethod
    @cache
    def of(folder: Path, name: str) -> _Source:
        """Return a module, read once in a process."""
        return _Source(folder, name)

    @staticmethod
    def _followed(folder: Path, name: str, path: Path, reading: _Reading) -> set[str]:
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        followed: set[str] = set()
        for node in reading.imports:
            if isinstance(node, ast.Import):
                for alias in node.names:
                    if alias.name.split(".")[0] == NAME:
                        followed.update(_with_parents(alias.name))
                continue
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join(above) if node.level else ""
            source = ".".join(filter(None, [base, node.module]))
            if source.split(".")[0] == NAME:
                for alias in node.names:
                    followed |= _imported_from(folder, source, alias.name)
        return followed


def _digest(words: list[str]) -> str:
    return hashlib.blake2b("\n".join(words).encode(), digest_size=16).hexdigest()


def _path(folder: Path, name: str) -> Path | None:
    top, *names = name.split(".")
    if top != NAME:
        return None
    stem = folder.joinpath(*names)
    for path in (stem / "__init__.py", stem.with_suffix(".py")):
        if path.is_file():
            return path
    return None


def _with_parents(name: str) -> Iterator[str]:
    names = name.split(".")
    return (".".join(names[:count]) for count in range(1, len(names) + 1))


def _imported_from(folder: Path, source: str, name: str) -> set[str]:
    """Return the modules behind ``from source import name``: packages of lazy exports lead on."""
    if _path(folder, f"{source}.{name}") is not None:
        return set(_with_parents(f"{source}.{name}"))
    path = _path(folder, source)
    if path is not None and path.name == "__init__.py":
        room = _lazy_exports(path.with_suffix(".pyi")).get(name)
        if room is not None:
            inner, original = room
            return _imported_from(folder, ".".join(filter(None, [source, inner])), original)
    return set(_with_parents(source))


@cache
def _lazy_exports(stub: Path) -> dict[str, tuple[str, str]]:
    """Return, for each name of a stub, the module under the package and the name in it."""
    if not stub.is_file():
        return {}
    imports = [
        node for node in ast.parse(stub.read_bytes()).body if isinstance(node, ast.ImportFrom)
    ]
    return {
        alias.asname or alias.name: (node.module or "", alias.name)
        for node in imports
        for alias in node.names
    }


class _Reading:
    """What a syntax tree says without comments, docstrings and annotations, and what it imports."""

    def __init__(self, tree: ast.Module) -> None:
        self.words: list[str] = []
        self.imports: list[ast.Import | ast.ImportFrom] = []
        self._names: set[str] = set()
        self._idle: list[tuple[int, ast.ImportFrom]] = []
        self._read(tree)
        for position, node in self._idle:
            self.words[position] = self._from(node)

    def _read(self, node: Any) -> None:
        if isinstance(node, list):
            self.words.append("[")
            for entry in node:
                if not _is_text(entry) and not isinstance(entry, ast.Pass):
                    self._read(entry)
            self.words.append("]")
        elif not isinstance(node, ast.AST):
            self.words.append(repr(node))
        elif isinstance(node, ast.If) and is_for_checkers(node.test):
            for entry in node.orelse:
                self._read(entry)
        elif isinstance(node, ast.ImportFrom):
            # Known at the end: names of other libraries that only annotations use do not count.
            self.imports.append(node)
            self._idle.append((len(self.words), node))
            self.words.append("")
        else:
            if isinstance(node, ast.Name):
                self._names.add(node.id)
            elif isinstance(node, ast.Import):
                self.imports.append(node)
            self.words.append(type(node).__name__)
            for field in node._fields:
                if field not in ("annotation", "returns", "ctx", "type_comment"):
                    self._read(getattr(node, field, None))
                elif field == "annotation" and isinstance(node, ast.AnnAssign):
                    text = ast.unparse(node.annotation)
                    self.words += [word for word in MEANINGFUL if word in text]

    def _from(self, node: ast.ImportFrom) -> str:
        is_ours = node.level or (node.module or "").split(".")[0] == NAME
        names = [
            (alias.name, alias.asname)
            for alias in node.names
            if is_ours or alias.name == "*" or (alias.asname or alias.name) in self._names
        ]
        return repr((node.module, node.level, names)) if names else ""


def _is_text(node: Any) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def is_for_checkers(test: ast.expr) -> bool:
    """Return whether an `if` asks for ``TYPE_CHECKING``."""
    name = test.id if isinstance(test, ast.Name) else getattr(test, "attr", "")
    return bool(name == "TYPE_CHECKING")
