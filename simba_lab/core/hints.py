"""Annotations as checks: what a parameter takes, in words, and the value as the code wants it.

Checkers of types look at one random entry of a sequence (beartype) or copy what they check
(pydantic). Here every entry is looked at, nothing is copied that need not be, scalars of NumPy
become plain numbers, and the words are those of the lab.
"""

from __future__ import annotations

import collections.abc as abc
import types
import typing
from collections.abc import Hashable
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import numpy as np

from simba_lab.core.kinds import ANYTHING, ARRAY, PLAIN, Kind, Mismatch, Rule, any_number

# Classes of others in words, for one and for many.
WORDS = {
    "BaseEstimator": ("an estimator of scikit-learn", "estimators of scikit-learn"),
    "Cohort": ("a cohort", "cohorts"),
    "DataFrame": ("a table (pandas.DataFrame)", "tables (pandas.DataFrame)"),
    "Nifti1Image": ("a NIfTI image", "NIfTI images"),
    "SpatialImage": ("a NIfTI image", "NIfTI images"),
    "Module": ("a network (torch.nn.Module)", "networks (torch.nn.Module)"),
    "Tensor": ("a tensor", "tensors"),
    "TwinCohort": ("a cohort with twins", "cohorts with twins"),
}


def kind_of(hint: Any) -> Kind:
    """Return what an annotation allows."""
    return _known(hint) if isinstance(hint, Hashable) else _new(hint)


@cache
def _known(hint: Any) -> Kind:
    return _new(hint)


def _new(hint: Any) -> Kind:
    origin, arguments = get_origin(hint), get_args(hint)
    if isinstance(hint, TypeVar):
        return kind_of(hint.__bound__) if hint.__bound__ else ANYTHING
    if origin is typing.Annotated:
        return _ruled(kind_of(arguments[0]), hint.__metadata__)
    if origin is Literal:
        return _literal(arguments)
    if origin in (Union, types.UnionType):
        return _union(arguments)
    plain = origin or hint
    if plain in PLAIN:
        return PLAIN[plain]
    if plain is tuple:
        return _tuple(arguments)
    if plain in (abc.Mapping, dict):
        return _mapping(arguments)
    if plain in (abc.Sequence, abc.Iterable, abc.Collection, list):
        return _sequence(arguments, lazy=plain is abc.Iterable)
    if plain is np.ndarray:
        return ARRAY
    return _instance(plain) if isinstance(plain, type) else ANYTHING


def _ruled(kind: Kind, metadata: tuple[Any, ...]) -> Kind:
    # A rule may allow infinity.
    take_plain = any_number if kind is PLAIN[float] else kind.take
    rules = [rule for rule in metadata if isinstance(rule, Rule)]
    words = rules[-1].words if rules else kind.words
    many = (rules[-1].many or words) if rules else kind.many

    def take(value: Any, path: str) -> Any:
        try:
            taken = take_plain(value, path)
        except Mismatch:
            raise Mismatch(path, value, words) from None
        for rule in rules:
            if not rule.holds(taken):
                raise Mismatch(path, value, rule.words)
        return taken

    return Kind(words, many, take)


def _literal(choices: tuple[Any, ...]) -> Kind:
    words = f"one of {', '.join(map(repr, choices))}" if len(choices) > 1 else repr(choices[0])

    def take(value: Any, path: str) -> Any:
        taken = value.item() if isinstance(value, np.generic) else value
        if not any(type(taken) is type(choice) and taken == choice for choice in choices):
            texts = isinstance(value, str) and all(isinstance(choice, str) for choice in choices)
            raise Mismatch(path, value, words, choices if texts else ())
        return taken

    return Kind(words, words, take)


def _union(hints: tuple[Any, ...]) -> Kind:
    # A text beside a path is a path.
    hints = tuple(hint for hint in hints if not (hint is str and Path in hints))
    kinds = [kind_of(hint) for hint in hints]
    if ANYTHING in kinds:
        return ANYTHING
    words, many = _listed([kind.words for kind in kinds]), _listed([kind.many for kind in kinds])
    # A mapping beside names is a mapping, not its keys.
    plain = [get_origin(hint) or hint for hint in hints]
    mappings = [kind for kind, cls in zip(kinds, plain, strict=True) if cls in (abc.Mapping, dict)]

    def take(value: Any, path: str) -> Any:
        nearest: Mismatch | None = None
        for kind in (mappings if isinstance(value, abc.Mapping) else ()) or kinds:
            try:
                return kind.take(value, path)
            except Mismatch as error:
                # Of a sequence or mapping, the entry that is wrong says more than the whole.
                ruled = error.path != path or error.allowed not in (kind.words, words)
                if ruled and (nearest is None or len(error.path) > len(nearest.path)):
                    nearest = error
        if nearest is not None and nearest.path != path:
            raise nearest
        raise Mismatch(path, value, words)

    return Kind(words, many, take)


def _listed(words: list[str]) -> str:
    words = list(dict.fromkeys(words))
    return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _entries(value: Any, path: str, words: str) -> Any:
    """Return a sequence as it is, or a list of the entries of an array or column."""
    if isinstance(value, str | bytes | abc.Mapping) or value is None:
        raise Mismatch(path, value, words)
    if isinstance(value, abc.Sequence | abc.Set | abc.KeysView | abc.ValuesView):
        return value
    if hasattr(value, "tolist") and np.ndim(value) > 0:
        return value.tolist() if np.ndim(value) == 1 else list(value)
    raise Mismatch(path, value, words)


def _sequence(arguments: tuple[Any, ...], *, lazy: bool) -> Kind:
    entry = kind_of(arguments[0]) if arguments else ANYTHING
    words = f"a sequence of {entry.many}"
    if not arguments:
        words = "a sequence"
    # Volumes are read as they are needed; numbers and names may as well be read at once.
    read = bool(arguments) and arguments[0] in (int, float, str, Path)

    def take(value: Any, path: str) -> Any:
        if lazy and not read and not isinstance(value, str | bytes):
            if hasattr(value, "__iter__") or hasattr(value, "__getitem__"):
                return value
        elif lazy and isinstance(value, abc.Iterator | abc.Mapping):
            value = list(value)  # of a mapping its keys, as in any loop
        values = _entries(value, path, words)
        if entry is ANYTHING:
            return values
        taken = [entry.take(each, f"{path}[{number}]") for number, each in enumerate(values)]
        same = all(new is old for new, old in zip(taken, values, strict=True))
        return values if same else type(values)(taken) if type(values) is tuple else taken

    return Kind(words, f"sequences of {entry.many}", take)


def _tuple(arguments: tuple[Any, ...]) -> Kind:
    if not arguments:
        return _sequence((), lazy=False)
    if arguments[-1] is Ellipsis:
        sequence = _sequence(arguments[:1], lazy=False)
        return Kind(
            sequence.words, sequence.many, lambda value, path: tuple(sequence.take(value, path))
        )
    kinds = [kind_of(argument) for argument in arguments]
    if all(kind == kinds[0] for kind in kinds):
        words = f"{len(kinds)} {kinds[0].many}"
    else:
        words = f"a tuple of {', '.join(kind.words for kind in kinds)}"

    def take(value: Any, path: str) -> tuple[Any, ...]:
        values = _entries(value, path, words)
        if len(values) != len(kinds):
            raise Mismatch(path, value, words)
        return tuple(
            kind.take(each, f"{path}[{number}]")
            for number, (kind, each) in enumerate(zip(kinds, values, strict=True))
        )

    return Kind(words, f"tuples of {words}", take)


def _mapping(arguments: tuple[Any, ...]) -> Kind:
    key, entry = (kind_of(argument) for argument in arguments or (Any, Any))
    words = "a mapping" if not arguments else f"a mapping from {key.many} to {entry.many}"

    def take(value: Any, path: str) -> Any:
        if not isinstance(value, abc.Mapping):
            raise Mismatch(path, value, words)
        taken, same = {}, True
        for name, each in value.items():
            new_name, new = (
                key.take(name, f"a key of {path}"),
                entry.take(each, f"{path}[{name!r}]"),
            )
            same &= new_name is name and new is each
            taken[new_name] = new
        return value if same else taken

    return Kind(words, words.replace("a mapping", "mappings", 1), take)


def _instance(cls: type) -> Kind:
    name = cls.__name__
    article = "an" if name[0] in "AEIO" else "a"
    words, many = WORDS.get(name, (f"{article} {name}", f"{name} objects"))
    if getattr(cls, "_is_protocol", False):
        members = [member for member in vars(cls) if not member.startswith("_")]
        members += [member for member in cls.__annotations__ if not member.startswith("_")]

        def conforms(value: Any) -> bool:
            return not isinstance(value, type) and all(hasattr(value, name) for name in members)
    else:

        def conforms(value: Any) -> bool:
            return isinstance(value, cls)

    def take(value: Any, path: str) -> Any:
        if not conforms(value):
            raise Mismatch(path, value, words)
        return value

    return Kind(words, many, take)
