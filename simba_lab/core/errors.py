"""The errors that the lab raises on purpose: problem, value, what is allowed, remedy."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from itertools import islice
from math import prod
from reprlib import Repr
from typing import Any, Self

# Longer values and sentences hide the problem, or fill a screen with somebody's hostile file.
SHORT, LONG, NAMES = 300, 1200, 40


class _Shortened(Repr):
    """A representation of any value in a few hundred characters, whatever the value is."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother, self.maxlong = 4, SHORT, SHORT, 40
        self.maxlist = self.maxtuple = self.maxset = self.maxfrozenset = self.maxdeque = 24
        self.maxdict = self.maxarray = 12

    def repr_int(self, x: int, level: int) -> str:
        # Python refuses to write numbers of thousands of digits.
        return repr(x) if x.bit_length() < 256 else f"an integer of {x.bit_length()} bits"

    def repr_ndarray(self, x: Any, level: int) -> str:
        if x.ndim and prod(x.shape) > 24:
            return f"an array of {x.dtype}, shape {x.shape}"
        return " ".join(super().repr_instance(x, level).split())

    def repr_Tensor(self, x: Any, level: int) -> str:
        return self.repr_ndarray(x, level) if x.ndim else self.repr_instance(x, level)

    def repr_instance(self, x: Any, level: int) -> str:
        text = super().repr_instance(x, level)
        if "\n" not in text:
            return text
        # Tables, cohorts and networks take many lines: their kind and size say more.
        name, shape = type(x).__name__, getattr(x, "shape", None)
        size = f" of shape {shape}" if isinstance(shape, tuple) else ""
        if not size and hasattr(x, "__len__"):
            size = f" of {len(x)}"
        return f"{'an' if name[0] in 'AEIO' else 'a'} {name}{size}"


def shown(value: object) -> str:
    """Return a value as errors show it: `repr`, of at most a few hundred characters."""
    item = getattr(value, "item", None)
    if type(value).__module__ == "numpy" and callable(item) and not getattr(value, "ndim", 1):
        value = item()  # 1.4, not np.float64(1.4)
    return _cut(_Shortened().repr(value), 2 * SHORT)


def _cut(text: str, most: int) -> str:
    if len(text) <= most:
        return text
    return f"{text[: most - 43]} ... {text[-38:]}"


class Words(str):
    """A value that is a phrase of the lab, not what somebody wrote: errors show it unquoted."""

    def __repr__(self) -> str:
        return " ".join(self.split())


class SimbaError(ValueError):
    """Bad input, described so that it can be mended without reading the code.

    Parameters
    ----------
    field : str
        What was wrong, as the user wrote it, such as ``"scenario.bias.prevalence['disease']"``.
    value : object
        The value that was given.
    allowed : str
        The values that would be accepted.
    remedy : str
        What to do.

    Examples
    --------
    >>> import simba_lab as sb
    >>> str(sb.SimbaError("noise", 1.4, "in [0, 1]", "0.03 looks like a good scanner."))
    'noise must be in [0, 1], got 1.4. 0.03 looks like a good scanner.'
    >>> str(sb.SimbaError.problem("Training was aborted after step 3.", "Submit it again."))
    'Training was aborted after step 3. Submit it again.'
    """

    def __init__(self, field: str, value: object, allowed: str, remedy: str = "") -> None:
        self.field, self.value, self.allowed, self.remedy = field, value, allowed, remedy
        sentence = _cut(field, LONG)
        if allowed:
            sentence = f"{_cut(field, SHORT)} must be {_cut(allowed, LONG)}, got {self.shown}."
        super().__init__(sentence + (f" {_cut(remedy, LONG)}" if remedy else ""))

    @property
    def shown(self) -> str:
        """The value as the message shows it."""
        return shown(self.value)

    def with_field(self, field: str) -> Self:
        """Return the same error about a field with another name."""
        return type(self)(field, self.value, self.allowed, self.remedy)

    def with_place(self, place: str) -> Self:
        """Return the same error with a sentence that says where the value is written."""
        remedy = f"{self.remedy} {place}" if self.remedy else place
        return type(self)(self.field, self.value, self.allowed, remedy)

    @classmethod
    def problem(cls, sentence: str, remedy: str = "") -> Self:
        """Return an error that states a problem in a sentence, where no single value is wrong."""
        return cls(sentence, None, "", remedy)

    def __reduce__(self) -> tuple[Any, ...]:
        # A worker process sends its errors home through copyreg, which would pass the message as
        # the field.
        return type(self), (self.field, self.value, self.allowed, self.remedy)


class UnknownNameError(SimbaError):
    """A name (region, layer, method, column) that does not exist; suggests the nearest ones."""

    @classmethod
    def among(cls, field: str, value: object, names: Iterable[str]) -> UnknownNameError:
        """Build the error for `value` given the `names` that exist."""
        names = [str(name) for name in names]
        folded = {name.casefold(): name for name in names}
        # Its time grows with the square of the length.
        written = value if isinstance(value, str) else shown(value)
        close = get_close_matches(written[:100].casefold(), folded, n=4, cutoff=0.4)
        nearest = [folded[key] for key in close]
        if nearest:
            remedy = f"Did you mean {', '.join(nearest)}?"
        else:
            more = f" and {len(names) - NAMES} more" if len(names) > NAMES else ""
            remedy = f"The names are: {', '.join(islice(names, NAMES))}{more}."
        return cls(field, value, f"one of {len(names)} known names", remedy)


class FoldingError(SimbaError):
    """A deformation that would fold the brain; names the largest amplitude that would not."""


class TemplateError(SimbaError):
    """A template, atlas or label table that is missing, corrupt or does not fit the others."""
