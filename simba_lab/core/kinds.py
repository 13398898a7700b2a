"""Kinds of plain values: numbers, texts, paths and arrays, in words and as the code wants them."""

from __future__ import annotations

import collections.abc as abc
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from simba_lab.core.files import plain_number

Take = Callable[[Any, str], Any]
LONGEST_NAME = 255  # bytes of a file's name, of most file systems


class Mismatch(Exception):
    """A value that an annotation does not allow."""

    def __init__(self, path: str, value: object, allowed: str, names: tuple[str, ...] = ()) -> None:
        self.path, self.value, self.allowed, self.names = path, value, allowed, names


@dataclass(frozen=True)
class Rule:
    """What numbers or names of a type must fulfil: ``Annotated[float, Rule("above 0", ...)]``.

    Parameters
    ----------
    words : str
        What is allowed, to follow "must be".
    holds : callable
        Whether a value of the type is allowed.
    many : str
        The same in the plural; by default `words`.
    """

    words: str
    holds: Callable[[Any], bool]
    many: str = ""


@dataclass(frozen=True)
class Kind:
    """What an annotation allows: words for one and for many, and how a value is taken."""

    words: str
    many: str
    take: Take


def _anything(value: Any, path: str) -> Any:
    return value


def _whole(value: Any, path: str) -> int:
    value = plain_number(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise Mismatch(path, value, "an integer")
    return value


def any_number(value: Any, path: str) -> float:
    """Take a number, which may be infinite or NaN."""
    value = plain_number(value)
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise Mismatch(path, value, "a finite number")
    if isinstance(value, int) and abs(value) > sys.float_info.max:
        raise Mismatch(path, value, "a finite number")
    return float(value) if abs(value) >= 2**63 else value  # NumPy takes no integer that long


def _number(value: Any, path: str) -> float:
    number = any_number(value, path)
    if not abs(number) <= sys.float_info.max:  # NaN fails this too
        raise Mismatch(path, value, "a finite number")
    return number


def _truth(value: Any, path: str) -> bool:
    value = plain_number(value)
    if not isinstance(value, bool):
        raise Mismatch(path, value, "True or False")
    return value


def _text(value: Any, path: str) -> str:
    if not isinstance(value, str):
        raise Mismatch(path, value, "a text")
    if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
        raise Mismatch(path, value, "a text of whole Unicode characters")
    return str(value)


def _path(value: Any, path: str) -> Any:
    if not isinstance(value, str | os.PathLike) or isinstance(os.fspath(value), bytes):
        raise Mismatch(path, value, "a path")
    text = _text(os.fspath(value), path)
    long = any(len(name.encode()) > LONGEST_NAME for name in Path(text).parts)
    if not text or "\0" in text or long:
        raise Mismatch(path, value, "a path that a file can have")
    return value


def _nothing(value: Any, path: str) -> None:
    if value is not None:
        raise Mismatch(path, value, "None")


def _array(value: Any, path: str) -> np.ndarray:
    if isinstance(value, str | bytes | dict | set | type(None)) or not (
        hasattr(value, "__array__") or isinstance(value, abc.Sequence)
    ):
        raise Mismatch(path, value, ARRAY.words)
    if isinstance(value, np.ndarray):
        return value
    try:
        array = np.asarray(value.detach() if hasattr(value, "detach") else value)
    except (TypeError, ValueError, OverflowError):
        raise Mismatch(path, value, ARRAY.words) from None
    if array.dtype == object and not hasattr(value, "__array__"):
        plain = (str, int, float, type(None), np.generic)
        if not all(isinstance(entry, plain) for entry in array.ravel()):
            raise Mismatch(path, value, ARRAY.words)
    return array


def _called(value: Any, path: str) -> Any:
    if not callable(value):
        raise Mismatch(path, value, "a function")
    return value


ANYTHING = Kind("anything", "values", _anything)
ARRAY = Kind("an array", "arrays", _array)
PLAIN: dict[Any, Kind] = {
    Any: ANYTHING,
    object: ANYTHING,
    None: Kind("None", "None", _nothing),
    type(None): Kind("None", "None", _nothing),
    bool: Kind("True or False", "True or False", _truth),
    int: Kind("an integer", "integers", _whole),
    float: Kind("a finite number", "finite numbers", _number),
    str: Kind("a text", "texts", _text),
    Path: Kind("a path", "paths", _path),
    abc.Callable: Kind("a function", "functions", _called),
}
