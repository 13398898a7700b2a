"""The public border: what the lab hands out checks its arguments by its annotations.

Functions are wrapped where a room exports them, so that calls within the lab cost nothing; classes
are checked where they are defined, since files and manifests are read into them as well.
"""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import lazy_loader

if TYPE_CHECKING:
    from simba_lab.core.kinds import Take

T = TypeVar("T")
# `forward` is called by torch, in compiled and traced networks too; `from_dict` names the fields.
UNCHECKED = ("forward", "from_dict")
FUNCTIONS = (types.FunctionType, functools._lru_cache_wrapper)


def attach_stub(package: str, file: str) -> tuple[Callable[[str], Any], Any, list[str]]:
    """Attach lazy exports as `lazy_loader` does, with functions that check their arguments."""
    lazy, directory, names = lazy_loader.attach_stub(package, file)

    def exported(name: str) -> Any:
        value = lazy(name)
        if isinstance(value, FUNCTIONS) and not hasattr(value, "__checked__"):
            value = vars(sys.modules[package])[name] = _handed_out(value, package, name)
        return value

    return exported, directory, names


def checks_arguments(cls: type[T]) -> type[T]:
    """Check what a class is made with, and what its public methods are called with.

    The error names the argument, the value and what is allowed. Scalars of NumPy become plain ones.
    """
    for name, value in list(vars(cls).items()):
        if (name.startswith("_") and name != "__init__") or name in UNCHECKED:
            continue
        if isinstance(value, types.FunctionType):
            setattr(cls, name, _checking(value, skipped=1))
        elif isinstance(value, classmethod):
            setattr(cls, name, classmethod(_checking(value.__func__, skipped=1)))
    return cls


_wrappers: dict[Callable[..., Any], types.FunctionType] = {}


def _handed_out(function: Callable[..., Any], package: str, name: str) -> types.FunctionType:
    """Return the one wrapper of a function, whichever rooms export it."""
    if function not in _wrappers:
        wrapper = _checking(function)
        # Where it is found again: a pickled function is looked up by these names.
        wrapper.__module__, wrapper.__qualname__ = package, name
        _wrappers[function] = wrapper
    return _wrappers[function]


def _checking(function: Any, *, skipped: int = 0) -> types.FunctionType:
    arguments_of = _Arguments(function, skipped)

    def call(*arguments: Any, **options: Any) -> Any:
        arguments, options = arguments_of.taken(arguments, options)
        return function(*arguments, **options)

    # With the globals of what it wraps, so that doctest and digests see whose code it is.
    home = vars(sys.modules[function.__module__])
    wrapper = types.FunctionType(call.__code__, home, function.__name__, None, call.__closure__)
    functools.update_wrapper(wrapper, function)
    vars(wrapper)["__checked__"] = True
    return wrapper


class _Arguments:
    """How each argument of a function is taken, read from its annotations at the first call."""

    def __init__(self, function: Callable[..., Any], skipped: int) -> None:
        self._function, self._skipped = function, skipped
        self._in_order: list[str] = []
        self._rest = ""
        self._takers: dict[str, Take] | None = None

    def taken(
        self, arguments: tuple[Any, ...], options: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments as the code wants them, or raise the error that names one."""
        from simba_lab.core.errors import SimbaError, UnknownNameError
        from simba_lab.core.kinds import Mismatch

        takers = self._read() if self._takers is None else self._takers
        values = list(arguments)
        options = dict(options)
        try:
            for number in range(self._skipped, len(values)):
                place = number - self._skipped
                name = self._in_order[place] if place < len(self._in_order) else self._rest
                if name in takers:
                    values[number] = takers[name](values[number], name)
            for name, value in options.items():
                if name in takers:
                    options[name] = takers[name](value, name)
        except Mismatch as error:
            if error.names:
                raise UnknownNameError.among(error.path, error.value, error.names) from None
            raise SimbaError(error.path, error.value, error.allowed) from None
        return tuple(values), options

    def _read(self) -> dict[str, Take]:
        import inspect
        from typing import get_type_hints

        from simba_lab.core.checks import Seed
        from simba_lab.core.hints import kind_of
        from simba_lab.core.kinds import ANYTHING

        written = inspect.unwrap(self._function)
        parameters = list(inspect.signature(self._function).parameters.values())[self._skipped :]
        named = {parameter.name for parameter in parameters}
        hints = types.SimpleNamespace(
            __annotations__={n: h for n, h in written.__annotations__.items() if n in named}
        )
        module = sys.modules[written.__module__]
        known = get_type_hints(hints, vars(module), _NamesForCheckers(module), include_extras=True)
        # What is called seed starts generators, those of torch too, which take 63 bits.
        kinds = {
            name: kind_of(Seed if (name, hint) == ("seed", int) else hint)
            for name, hint in known.items()
        }
        for parameter in parameters:
            if parameter.kind is parameter.VAR_POSITIONAL:
                self._rest = parameter.name
            elif parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
                self._in_order.append(parameter.name)
        self._takers = {name: kind.take for name, kind in kinds.items() if kind is not ANYTHING}
        return self._takers


class _NamesForCheckers(dict[str, Any]):
    """The names that a module imports for type checkers only, imported when they are asked for."""

    def __init__(self, module: types.ModuleType) -> None:
        super().__init__()
        self._imports = _imports_for_checkers(module)

    def __missing__(self, name: str) -> Any:
        from importlib import import_module

        module, attribute = self._imports[name]
        value = import_module(module)
        self[name] = getattr(value, attribute) if attribute else value
        return self[name]


@functools.cache
def _imports_for_checkers(module: types.ModuleType) -> Mapping[str, tuple[str, str]]:
    """Return the module behind each name, and the name there if it is not the module itself."""
    import ast
    import inspect

    from simba_lab.core.source_code import is_for_checkers

    found: dict[str, tuple[str, str]] = {}
    for block in ast.walk(ast.parse(inspect.getsource(module))):
        if not isinstance(block, ast.If) or not is_for_checkers(block.test):
            continue
        for node in block.body:
            if isinstance(node, ast.ImportFrom) and node.module:
                found |= {
                    alias.asname or alias.name: (node.module, alias.name) for alias in node.names
                }
            elif isinstance(node, ast.Import):
                found |= {
                    alias.asname or alias.name.split(".")[0]: (
                        alias.name if alias.asname else alias.name.split(".")[0],
                        "",
                    )
                    for alias in node.names
                }
    return found
