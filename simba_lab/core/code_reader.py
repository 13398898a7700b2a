"""Functions, classes and modules as part of a digest: by their bytecode and by what it uses."""

from __future__ import annotations

import functools
import hashlib
import importlib
import sys
import types
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np

from simba_lab.core import source_code
from simba_lab.core.bytecode import globals_in, hidden_look_ups, imports_in, names_in
from simba_lab.core.source_code import NotFingerprintable, code_fingerprint

# What a class has beside its code and its constants.
NOT_OF_A_CLASS = (
    "__abstractmethods__",
    "__annotations__",
    "__dataclass_fields__",
    "__dataclass_params__",
    "__dict__",
    "__doc__",
    "__firstlineno__",
    "__module__",
    "__parameters__",
    "__qualname__",
    "__static_attributes__",
    "__weakref__",
    "_abc_impl",
    # Of torch.autograd.Function: counted in a process.
    "_autograd_function_id",
    "_backward_cls",
)
DESCRIPTORS = (
    types.MethodDescriptorType,
    types.WrapperDescriptorType,
    types.ClassMethodDescriptorType,
    types.MemberDescriptorType,
    types.GetSetDescriptorType,
)
HAS_DOCSTRING = 0x4000000  # a flag of code from Python 3.13 on
OF_PYTHON = 1 << 9  # a flag of classes that a class statement made
# Libraries whose code is told by their version; of other installed ones the code itself is read.
TRUSTED = ("numpy", "pandas", "torch")


class CodeReader:
    """Feeds code to a digest. Its subclass reads values that are not code."""

    def __init__(self) -> None:
        self.digest = hashlib.blake2b(digest_size=16)
        self.path: list[str] = []
        # Objects that are met again are told by their number: tied weights are not equal weights.
        self._numbers: dict[int, int] = {}
        self._alive: list[object] = []
        self._used: set[tuple[str, str]] = set()

    def read(self, value: object) -> None:
        """Feed any value."""
        raise NotImplementedError

    def word(self, *words: object) -> None:
        """Feed plain values whose representation says all."""
        text = repr(words).encode()
        self.digest.update(f"{len(text)}:".encode() + text)

    def refuse(self, value: object, why: str = "its content cannot be seen") -> NotFingerprintable:
        """Return the error that says which value cannot be read."""
        address = "".join(self.path).lstrip(".") or "the value"
        return NotFingerprintable(f"{address} is of type {type(value).__qualname__!r}: {why}")

    def at(self, step: str, value: object) -> None:
        """Read what is at a step below: ``.name`` or ``[3]``."""
        self.path.append(step)
        self.read(value)
        self.path.pop()

    def again(self, value: object) -> bool:
        """Return whether an object was read before, and note it."""
        if id(value) in self._numbers:
            self.word("again", self._numbers[id(value)])
            return True
        self._numbers[id(value)] = len(self._numbers)
        self._alive.append(value)
        return False

    def read_attributes(self, values: Mapping[str, object]) -> None:
        """Read attributes in the order of their names."""
        self.word("attributes", len(values))
        for name in sorted(values):
            self.word(name)
            self.at(f".{name}", values[name])

    def read_callable(self, value: Any) -> bool:
        """Read code of any kind; return whether it was code."""
        if isinstance(value, type):
            self.read_class(value)
        elif isinstance(value, types.FunctionType):
            self.read_function(value)
        elif isinstance(value, types.CodeType):
            self._bytecode(value)
        elif isinstance(value, types.ModuleType):
            self._module(value)
        elif isinstance(value, functools.partial):
            self.word("partial")
            self.read((value.func, value.args, value.keywords))
        elif isinstance(value, types.MethodType):
            self.word("method")
            self.read((value.__func__, value.__self__))
        elif isinstance(value, staticmethod | classmethod):
            self.word(type(value).__name__)
            self.read(value.__func__)
        elif isinstance(value, property):
            self.word("property")
            self.read((value.fget, value.fset, value.fdel))
        elif isinstance(value, functools.cached_property):
            self.word("cached property")
            self.read(value.func)
        elif isinstance(value, functools._lru_cache_wrapper):
            self.word("cached")
            self.read(value.__wrapped__)
        elif isinstance(getattr(value, "py_func", None), types.FunctionType):  # of numba
            self.word("compiled")
            self.read_function(value.py_func)
        else:
            return self._named(value)
        return True

    def _named(self, value: Any) -> bool:
        """Read what its name says: functions in C and descriptors of the libraries, types."""
        if isinstance(value, types.BuiltinFunctionType):
            self.word("builtin", value.__module__, value.__qualname__)
            if not isinstance(value.__self__, types.ModuleType | type(None)):
                self.read(value.__self__)
        elif isinstance(value, DESCRIPTORS):
            self.word("descriptor", value.__objclass__.__qualname__, value.__name__)
        elif isinstance(value, np.ufunc) and _is_of_numpy(value):
            self.word("ufunc", str(value.__name__), np.__version__)
        elif isinstance(value, types.GenericAlias | types.UnionType) or (
            type(value).__module__ == "typing"
        ):
            self.word("type", repr(value))
        else:
            return False
        return True

    def read_function(self, value: types.FunctionType) -> None:
        """Read a function: its bytecode, what it closes over, its defaults, the globals it uses."""
        value = vars(value)["__wrapped__"] if hasattr(value, "__checked__") else value
        if self.again(value):
            return
        # The globals say where a function is from; its __module__ may be copied from another.
        module = str(value.__globals__.get("__name__"))
        self.word("function", value.__qualname__.rpartition(".")[2])
        for cell in value.__closure__ or ():
            try:
                content = cell.cell_contents
            except ValueError:
                self.word("empty cell")
                continue
            self.at(f".{value.__name__}.closure", content)
        self.at(f".{value.__name__}.defaults", (value.__defaults__, value.__kwdefaults__))
        if vars(value):
            self.read_attributes(vars(value))
        self._bytecode(value.__code__)
        if _is_ours(module):
            self.word(code_fingerprint(module))
            return
        library = library_of(module)
        if not library:
            self._check_open(value)
            self._imports(value)
        self.word(library, module if library else "", value.__qualname__ if library else "")
        if not library or _is_read(library):
            self._globals(value, module if library else None)

    def _check_open(self, value: types.FunctionType) -> None:
        """Refuse code that looks things up by names that only a call knows."""
        if hidden := hidden_look_ups(value.__code__):
            raise self.refuse(value, f"it uses {hidden[0]}, so what it runs cannot be seen")

    def _imports(self, value: types.FunctionType) -> None:
        """Read what a function uses of the modules that it imports when it is called."""
        names = names_in(value.__code__)
        for name, level in sorted(imports_in(value.__code__)):
            package = str(value.__globals__.get("__package__") or "")
            try:
                module = importlib.import_module("." * level + name, package or None)
            except ImportError:
                self.word("cannot be imported", name)
                continue
            except Exception as error:  # whatever a module raises when it is imported
                raise self.refuse(value, f"it imports {name!r}, which fails: {error}") from error
            self.word("import", name)
            self._global(module, names)

    def _globals(self, value: types.FunctionType, only: str | None) -> None:
        """Read the globals that a function uses: all, or those that one module defines."""
        names = names_in(value.__code__)
        for name in sorted(globals_in(value.__code__)):
            if name not in value.__globals__:
                continue
            used = value.__globals__[name]
            if only is not None and getattr(used, "__module__", None) != only:
                continue
            self.word("global", name)
            self.path.append(f".{value.__name__}.{name}")
            self._global(used, names)
            self.path.pop()

    def _global(self, value: object, names: set[str]) -> None:
        """Read a global; of a module only what is used of it."""
        if not isinstance(value, types.ModuleType):
            self.read(value)
            return
        module = value.__name__
        if _is_ours(module) and hasattr(value, "__path__"):
            behind = set().union(*(source_code.defining_modules(module, name) for name in names))
            self.word(module, code_fingerprint(*behind) if behind else "")
        elif _is_ours(module) or library_of(module):
            self._module(value)
            self._replaced(value, names)
        else:
            for name in sorted(names & set(vars(value))):
                self.word("of a module", name)
                if (module, name) not in self._used:
                    self._used.add((module, name))
                    self._global(vars(value)[name], names)

    def _replaced(self, value: types.ModuleType, names: set[str]) -> None:
        """Read what somebody put in the place of functions of a library, under these names."""
        for name in sorted(names & set(vars(value))):
            used, place = vars(value)[name], (value.__name__, name)
            if isinstance(used, types.ModuleType) and library_of(used.__name__):
                if place not in self._used:
                    self._used.add(place)
                    self._replaced(used, names)
            elif isinstance(used, types.FunctionType) and not _is_of_library(used):
                self.word("replaced", *place)
                self.read_function(used)

    def _methods_replaced(self, value: type) -> None:
        """Read the methods of a library's class that somebody replaced."""
        for base in value.__mro__:
            for name, method in sorted(vars(base).items()):
                if isinstance(method, types.FunctionType) and not _is_of_library(method):
                    self.word("replaced", base.__qualname__, name)
                    self.read_function(method)

    def _bytecode(self, code: types.CodeType) -> None:
        """Read bytecode with its constants and names, without docstrings, places and addresses."""
        constants = list(code.co_consts)
        is_function = code.co_flags & 1 and not code.co_name.startswith("<")
        documented = sys.version_info < (3, 13) or code.co_flags & HAS_DOCSTRING
        if is_function and documented and constants and isinstance(constants[0], str):
            constants[0] = None
        self.word("code", code.co_code, code.co_names, code.co_varnames, code.co_freevars)
        self.word(code.co_argcount, code.co_kwonlyargcount, code.co_flags & ~HAS_DOCSTRING)
        self.word(code.co_cellvars, code.co_exceptiontable)
        for constant in constants:
            self.read(constant)

    def read_class(self, value: type) -> None:
        """Read a class: by name if a library's version says what it does, else by its code."""
        if self.again(value):
            return
        self.word("class", value.__qualname__)
        module = value.__module__
        if _is_found(value, module):
            if _is_ours(module):
                self.word(module, code_fingerprint(module))
                return
            if library := library_of(module):
                self.word(library, module)
                if not _is_read(library):
                    self._methods_replaced(value)
                    return
        for base in value.__bases__:
            self.read_class(base)
        if type(value) is not type:
            self.read_class(type(value))
        contents = {name: vars(value)[name] for name in vars(value) if name not in NOT_OF_A_CLASS}
        self.read_attributes(contents)

    def _module(self, value: types.ModuleType) -> None:
        module = value.__name__
        if _is_ours(module):
            self.word("module", module, code_fingerprint(module))
        elif library := library_of(module):
            self.word("module", module, library)
        elif not self.again(value):
            self.word("module")
            self.read_attributes({key: vars(value)[key] for key in vars(value) if key[:2] != "__"})


def _is_ours(module: str) -> bool:
    return module.split(".")[0] == source_code.NAME


def _is_of_numpy(value: np.ufunc) -> bool:
    return vars(np).get(str(value.__name__)) is value


def _is_found(value: type, module: str) -> bool:
    """Return whether a class is what its module has under its name: a name may be borrowed."""
    defined: Any = sys.modules.get(module)
    for name in value.__qualname__.split("."):
        defined = getattr(defined, name, None)
    return defined is value or not value.__flags__ & OF_PYTHON


@cache
def library_of(module: str) -> str:
    """Return name and version of an installed library, or nothing for somebody's own module."""
    top = module.split(".")[0]
    if top == "__main__":
        return ""
    if top in sys.stdlib_module_names:
        return "Python"
    loaded = sys.modules.get(top)
    path = getattr(loaded, "__file__", None) or next(iter(getattr(loaded, "__path__", [])), "")
    if "site-packages" not in path and "dist-packages" not in path:
        return ""
    return f"{top} {getattr(loaded, '__version__', '')}"


def _is_read(library: str) -> bool:
    return library != "Python" and library.split()[0] not in TRUSTED


def _is_of_library(value: types.FunctionType) -> bool:
    module = str(value.__globals__.get("__name__"))
    return bool(library_of(module)) or _is_ours(module)
