"""The errors that the lab raises on purpose: problem, value, what is allowed, remedy."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any, Self


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
        sentence = field if not allowed else f"{field} must be {allowed}, got {value!r}."
        super().__init__(sentence + (f" {remedy}" if remedy else ""))

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
        names = list(names)
        folded = {name.casefold(): name for name in names}
        close = get_close_matches(str(value).casefold(), folded, n=4, cutoff=0.4)
        nearest = [folded[key] for key in close]
        if nearest:
            remedy = f"Did you mean {', '.join(nearest)}?"
        else:
            remedy = f"The names are: {', '.join(names)}."
        return cls(field, value, f"one of {len(names)} known names", remedy)


class FoldingError(SimbaError):
    """A deformation that would fold the brain; names the largest amplitude that would not."""


class TemplateError(SimbaError):
    """A template, atlas or label table that is missing, corrupt or does not fit the others."""
