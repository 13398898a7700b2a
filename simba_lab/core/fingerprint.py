"""What a result follows from, as digests by content: values of any kind, networks, their code."""

from __future__ import annotations

import dataclasses
import enum
import functools
import logging
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import PurePath
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from simba_lab.core.code_reader import CodeReader, library_of
from simba_lab.core.source_code import NAME, NotFingerprintable, code_fingerprint

if TYPE_CHECKING:
    import torch

__all__ = ["NotFingerprintable", "code_fingerprint", "fingerprint", "network_fingerprint"]

HOOKS = (
    "_backward_hooks",
    "_backward_pre_hooks",
    "_forward_hooks",
    "_forward_pre_hooks",
    "_load_state_dict_post_hooks",
    "_load_state_dict_pre_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
)
HOOK_OPTIONS = (
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks_with_kwargs",
)
PLAIN = (type(None), bool, int, float, complex, str, bytes, type(Ellipsis), type(NotImplemented))


def fingerprint(*values: object) -> str:
    """Return a digest of values by their content, the same in every process.

    Functions and classes count by their code, by what they close over, and by the globals that they
    use; arrays, tensors and tables by type, shape and bytes; other objects by class and attributes.
    Code of the lab counts with all that it imports, large libraries by name and version.

    Raises
    ------
    NotFingerprintable
        For what does not show its content: open files, locks, generators, objects of C libraries.

    Examples
    --------
    >>> from simba_lab.core.fingerprint import fingerprint
    >>> fingerprint({"rate": 0.1}) == fingerprint({"rate": 0.1})
    True
    >>> fingerprint([1, 2]) == fingerprint([1.0, 2])
    False
    """
    reader = _Reader()
    for value in values:
        reader.read(value)
    return reader.digest.hexdigest()


def network_fingerprint(model: torch.nn.Module) -> str:
    """Return a digest of all that the forward pass of a network can see.

    That is the code of its classes and of the helpers that they use, attributes of any kind,
    submodules whether registered or not, parameters, buffers, what is frozen, and hooks. The mode
    (training or evaluation) and the device do not count.

    Raises
    ------
    NotFingerprintable
        If an attribute does not show its content; the message says where it is.
    """
    return fingerprint(model)


class _Reader(CodeReader):
    """Feeds values to a digest, each with its type, so that no two different ones read alike."""

    def __init__(self) -> None:
        super().__init__()
        self._open: dict[int, int] = {}

    def read(self, value: object) -> None:
        if type(value) in PLAIN:
            self.word(type(value).__name__, value)
            return
        if id(value) in self._open:
            self.word("within", self._open[id(value)])
            return
        self._open[id(value)] = len(self._open)
        try:
            self._read(value)
        except RecursionError:
            raise self.refuse(value, "it is nested too deeply") from None
        finally:
            del self._open[id(value)]

    def _read(self, value: Any) -> None:
        if type(value) in (list, tuple):
            self.word(type(value).__name__, len(value))
            for number, entry in enumerate(value):
                self.at(f"[{number}]", entry)
        elif type(value) in (dict, MappingProxyType):
            self._mapping(type(value).__name__, value.items())
        elif type(value) in (set, frozenset):
            self.word(type(value).__name__, sorted(fingerprint(entry) for entry in value))
        elif isinstance(value, enum.Enum):
            self.word("enum", value.name)
            self.read_class(type(value))
        elif isinstance(value, PurePath):
            self.word("path", str(value))
        elif isinstance(value, logging.Logger):
            self.word("logger")
        elif not self.read_callable(value) and not self._data(value):
            self._object(value)

    def _mapping(self, name: str, items: Iterable[tuple[object, object]]) -> None:
        entries = list(items)
        self.word(name, len(entries))
        for key, entry in entries:
            self.read(key)
            self.at(f".{key}" if isinstance(key, str) else f"[{key!r:.40}]", entry)

    # -- data --

    def _data(self, value: Any) -> bool:
        """Read arrays, tensors, tables and networks; return whether it was one of those."""
        torch, pandas = sys.modules.get("torch"), sys.modules.get("pandas")
        if isinstance(value, np.ndarray):
            self._array(value)
        elif isinstance(value, np.generic):
            self.word("scalar", value.dtype.str, value.tobytes())
        elif isinstance(value, np.dtype):
            self.word("dtype", value.descr if value.names else value.str)
        elif isinstance(value, np.random.Generator):
            self.word("random", type(value.bit_generator).__name__)
            self.read(dict(value.bit_generator.state))
        elif torch is not None and isinstance(value, torch.nn.Module):
            self._network(value)
        elif torch is not None and isinstance(value, torch.Tensor):
            self._tensor(value, torch)
        elif torch is not None and isinstance(value, _named_by_torch()):
            self.word(type(value).__name__, repr(value))
        elif torch is not None and isinstance(value, torch.Generator):
            self._tensor(value.get_state(), torch)
        elif pandas is not None and isinstance(value, pandas.DataFrame):
            self._table(value)
        elif pandas is not None and isinstance(value, pandas.Series | pandas.Index):
            self._column(value)
        else:
            return False
        return True

    def _array(self, value: np.ndarray[Any, Any]) -> None:
        self.word("array", value.dtype.str, value.dtype.descr, value.shape)
        if type(value) not in (np.ndarray, np.memmap):
            self.read_class(type(value))
            self.read(vars(value))
        plain = np.asarray(value)
        if plain.dtype.hasobject:
            self.read(plain.tolist())
        else:
            self.digest.update(np.ascontiguousarray(plain).tobytes())

    def _tensor(self, value: Any, torch: Any) -> None:
        if self.again(value):
            return
        is_dense = value.layout == torch.strided and not value.is_quantized and not value.is_meta
        if not is_dense or type(value).__name__.startswith("Uninitialized"):
            raise self.refuse(value, "only dense tensors show their numbers")
        self.word("tensor", type(value).__qualname__, str(value.dtype), tuple(value.shape))
        self.word(value.requires_grad, () if value.is_contiguous() else value.stride())
        plain = value.detach().resolve_conj().resolve_neg().cpu().contiguous()
        self.digest.update(plain.reshape(-1).view(torch.uint8).numpy().data)
        if vars(value):
            self.read_attributes(vars(value))

    def _table(self, value: Any) -> None:
        self.word("table", value.shape)
        self.read(dict(value.attrs))
        self.read(value.columns)
        self.read(value.index)
        for number in range(value.shape[1]):
            self._values(value.iloc[:, number])

    def _column(self, value: Any) -> None:
        self.word(type(value).__name__)
        self.read(list(value.names) if hasattr(value, "names") else value.name)
        if hasattr(value, "index"):
            self.read(value.index)
        self._values(value)

    def _values(self, value: Any) -> None:
        self.word(str(value.dtype), len(value))
        if isinstance(value.dtype, np.dtype) and not value.dtype.hasobject:
            self._array(value.to_numpy())
        elif hasattr(value.dtype, "categories"):
            self.word(bool(value.dtype.ordered))
            self.read(value.dtype.categories)
            self.read([None if entry != entry else entry for entry in value])
        else:
            gaps = np.asarray(value.isna())
            self._array(gaps)
            self.read([None if gap else entry for gap, entry in zip(gaps, value, strict=True)])

    # -- networks --

    def _network(self, value: Any) -> None:
        if self.again(value):
            return
        self.word("network")
        self.read_class(type(value))
        attributes = dict(vars(value))
        attributes.pop("training", None)
        options = [set(attributes.pop(name, None) or ()) for name in HOOK_OPTIONS]
        for name in HOOKS:
            hooks = attributes.pop(name, None) or {}
            self.word(name, len(hooks))
            for number, hook in hooks.items():  # numbers count up in a process: they say nothing
                self.word([number in chosen for chosen in options])
                self.at(f".{name}", hook)
        for name in ("_parameters", "_buffers", "_modules"):
            self._mapping(name, dict(attributes.pop(name, {})).items())
        self.read_attributes(attributes)
        for name, hooks in vars(sys.modules["torch.nn.modules.module"]).items():
            if name.startswith("_global_") and name.endswith("hooks") and hooks:
                self.at(f".{name}", list(hooks.values()))

    # -- anything else --

    def _object(self, value: object) -> None:
        cls = type(value)
        self.word("object")
        self.read_class(cls)
        if dataclasses.is_dataclass(value) and cls.__module__.split(".")[0] == NAME:
            names = [entry.name for entry in dataclasses.fields(value)]
            self.read_attributes({name: getattr(value, name) for name in names})
            return
        try:
            reduced = cast(Any, value.__reduce_ex__(4))
        except Exception:  # each library refuses in its own words
            raise self.refuse(value) from None
        attributes = getattr(value, "__dict__", {})
        # A cached property follows from the rest, and is there only after it was asked for.
        derived = {name for name in attributes if _is_derived(cls, name)}
        self.read_attributes({name: attributes[name] for name in attributes if name not in derived})
        if isinstance(reduced, str):
            if not library_of(cls.__module__):
                raise self.refuse(value)
            self.word("named", reduced)
            return
        make, arguments, state, entries, items = (list(reduced) + 3 * [None])[:5]
        if getattr(make, "__self__", None) is not value:
            self.read(make)
        self.read(tuple(argument for argument in arguments if argument is not cls))
        methods = ("__reduce_ex__", "__reduce__", "__getstate__")
        if any(getattr(cls, name) is not getattr(object, name, None) for name in methods):
            self.at("", state)
        elif isinstance(state, tuple):  # attributes, and slots
            self.read_attributes(state[1] or {})
        self.read(None if entries is None else list(entries))
        self._mapping("items", [] if items is None else items)


def _is_derived(cls: type, name: str) -> bool:
    return any(isinstance(vars(base).get(name), functools.cached_property) for base in cls.__mro__)


@cache
def _named_by_torch() -> tuple[type, ...]:
    names = ("dtype", "device", "Size", "memory_format", "layout")
    return tuple(getattr(sys.modules["torch"], name) for name in names)
