"""Checks of arguments that many functions share: each returns the value, or raises an error."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, TypeGuard, TypeVar

import numpy as np

from simba_lab.core.errors import SimbaError, UnknownNameError, Words
from simba_lab.core.files import plain_number
from simba_lab.core.kinds import Rule

Built = TypeVar("Built")

# Annotations of the public border (`simba_lab.core.border`) that say more than a type.
Bound = Annotated[float, Rule("a number or infinite, not NaN", lambda value: value == value)]
Source = Annotated[str, Rule("a path or YAML text", lambda text: "\0" not in text)]

# More than this of anything that is counted is a slip of the finger, or never ends.
MOST = 1_000_000
# Threads and processes take memory before they do anything.
MOST_WORKERS = 512
MOST_PERMUTATIONS = 100_000
MOST_CELLS = 100_000

# Numbers with a range: the error names it, also where a value is no number at all.
_AT_LEAST_1 = Rule("an integer of at least 1", lambda value: value >= 1)
Count = Annotated[int, Rule(f"an integer of at most {MOST}", lambda n: n <= MOST), _AT_LEAST_1]
Threads = Annotated[
    int, Rule(f"an integer of at most {MOST_WORKERS}", lambda n: n <= MOST_WORKERS), _AT_LEAST_1
]
Seed = Annotated[int, Rule("an integer of at least 0 and 63 bits", lambda n: 0 <= n < 2**63)]
Numbers = Annotated[
    np.ndarray,
    Rule("an array of numbers", lambda values: values.ndim > 0 and values.dtype.kind in "biuf"),
]
Share = Annotated[float, Rule("a number from 0 to 1", lambda value: 0 <= value <= 1)]
Positive = Annotated[float, Rule("a finite number above 0", lambda value: 0 < value < np.inf)]


def columns(*names: str) -> Rule:
    """Return the rule for a table that must have certain columns, or levels of its index."""
    words = f"a table with {', '.join(names)}"
    return Rule(words, lambda table: {*names} <= {*table.columns, *table.index.names})


def whole_number(
    field: str, value: object, *, least: int = 1, most: int = MOST, remedy: str = ""
) -> int:
    """Return an integer from `least` to `most`; True and False are not integers here."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise SimbaError(field, value, f"an integer of at least {least}", remedy)
    if value > most:
        raise SimbaError(field, value, f"an integer of at most {most}", remedy)
    return int(value)


def seed_number(field: str, value: object) -> int:
    """Return an integer that seeds random numbers: from 0 to what 63 bits hold."""
    return whole_number(field, value, least=0, most=2**63 - 1)


def workers(field: str, value: object, tasks: int = MOST_WORKERS) -> int:
    """Return a number of threads or processes as joblib takes it; no more than there are tasks."""
    if isinstance(value, int | np.integer) and -MOST_WORKERS <= value < 0:
        return int(value)
    remedy = "-1 is one per core."
    return min(max(tasks, 1), whole_number(field, value, most=MOST_WORKERS, remedy=remedy))


def positive(field: str, value: object, *, remedy: str = "") -> float:
    """Return a finite number above 0."""
    if not is_number(value) or not 0 < value < np.inf:
        raise SimbaError(field, value, "a finite number above 0", remedy)
    return float(value)


def not_negative(field: str, value: object, *, remedy: str = "") -> float:
    """Return a finite number of at least 0."""
    if not is_number(value) or not 0 <= value < np.inf:
        raise SimbaError(field, value, "finite and at least 0", remedy)
    return float(value)


def below_one(field: str, value: object, *, remedy: str = "") -> float:
    """Return a number above 0 and below 1."""
    if not is_number(value) or not 0 < value < 1:
        raise SimbaError(field, value, "above 0 and below 1", remedy)
    return float(value)


def share(field: str, value: object, *, remedy: str = "") -> float:
    """Return a number from 0 to 1."""
    if not is_number(value) or not 0 <= value <= 1:
        raise SimbaError(field, value, "in [0, 1]", remedy)
    return float(value)


def choice(field: str, value: object, names: Iterable[str]) -> str:
    """Return one of some names; an error suggests the nearest."""
    names = list(names)
    if not isinstance(value, str) or value not in names:
        raise UnknownNameError.among(field, value, names)
    return value


def keep_plain(instance: Any) -> None:
    """Put plain numbers in the place of NumPy's in a dataclass: keys and files tell them apart."""
    for entry in dataclasses.fields(instance):
        value = getattr(instance, entry.name)
        plain = plain_numbers(value)
        if plain is not value:
            object.__setattr__(instance, entry.name, plain)


def plain_numbers(value: Any) -> Any:
    """Return a value with plain numbers for NumPy's, also in mappings, lists and tuples."""
    if isinstance(value, dict | list | tuple):
        entries = value.values() if isinstance(value, dict) else value
        plain = [plain_numbers(entry) for entry in entries]
        if all(new is old for new, old in zip(plain, entries, strict=True)):
            return value
        return (
            dict(zip(value, plain, strict=True)) if isinstance(value, dict) else type(value)(plain)
        )
    return plain_number(value)


def mapping(field: str, values: object) -> Mapping[str, Any]:
    """Return a mapping; null and other values are errors."""
    if not isinstance(values, Mapping):
        raise SimbaError(field, values, "a mapping of field names to values")
    return values


def known_fields(
    field: str, values: object, names: Iterable[str], *, needed: Sequence[str] = ()
) -> Mapping[str, Any]:
    """Return a mapping that has all keys of `needed`, and no keys but those of `names`."""
    values, names = mapping(field, values), list(names)
    for name in values:
        if name not in names:
            raise UnknownNameError.among(f"{field}.{name}", name, names)
    if not set(needed) <= set(values):
        listed = " and ".join(filter(None, [", ".join(needed[:-1]), needed[-1]]))
        raise SimbaError(field, list(values), f"a mapping with {listed}")
    return values


def built(cls: type[Built], values: object, field: str, *, needed: Sequence[str] = ()) -> Built:
    """Return an object of a dataclass from a mapping, as files have them.

    An error names the field of the whole: ``scenario.disease.amplitude_mm``.
    """
    entries = {entry.name: entry for entry in dataclasses.fields(cls)}  # type: ignore[arg-type]
    missing = (dataclasses.MISSING, dataclasses.MISSING)
    needed = needed or [
        name for name, entry in entries.items() if (entry.default, entry.default_factory) == missing
    ]
    known_fields(field, values, entries, needed=needed)
    assert isinstance(values, Mapping)
    try:
        return cls(**values)
    except SimbaError as error:
        first = re.split(r"[.\[]", error.field, maxsplit=1)[0]
        if first in entries:
            raise error.with_field(f"{field}.{error.field}") from error
        if re.search(rf"\.{re.escape(first)}\b", field):
            # The magnitude of scenario.bias.magnitude['disease'].
            raise error.with_field(field) from error
        raise
    except (AttributeError, TypeError, ValueError, OverflowError) as error:
        allowed = f"made of values that a {cls.__name__} can have"
        raise SimbaError(field, dict(values), allowed, f"{error}.") from error


def of_shape(
    field: str, values: np.ndarray, shape: tuple[int, ...], remedy: str = ""
) -> np.ndarray:
    """Return an array of exactly this shape."""
    values = np.asarray(values)
    if values.shape != shape:
        raise SimbaError(field, values.shape, f"of shape {shape}", remedy)
    return values


def is_number(value: object) -> TypeGuard[float]:
    """Tell whether a value is a number, plain or of NumPy; True and False are none."""
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def positions(mask: object, count: int) -> np.ndarray:
    """Return the positions that a mask, or an array of positions, of `count` subjects means."""
    values = np.asarray(mask)
    remedy = "Compare for a mask: cohort['bias'] == 1."
    if values.ndim != 1 or (values.dtype.kind not in "biu" and values.size):
        allowed = "booleans, one for each subject, or integers that are positions"
        raise SimbaError("mask", values, allowed, remedy)
    if values.dtype == bool:
        if values.shape != (count,):
            raise SimbaError("mask", values.shape, f"of shape ({count},)")
        return np.flatnonzero(values)
    values = values.astype(int)
    binary = len(values) == count > 0 and values.min() >= 0 and values.max() <= 1
    if binary and sorted(values.tolist()) != list(range(count)):  # not even a new order
        field, value = "mask", "the integers 0 and 1, one for each subject"
        allowed = "booleans, or integers that are clearly positions"
        raise SimbaError(field, Words(value), allowed, remedy)
    outside = values[(values < -count) | (values >= count)]
    if outside.size:
        allowed = f"positions from {-count} to {count - 1}"
        raise SimbaError("mask", int(outside[0]), allowed, f"There are {count} subjects.")
    return values
