"""The errors that the lab raises on purpose. Each says what was given, what is allowed and what to do."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


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
    """

    def __init__(self, field: str, value: object, allowed: str, remedy: str = "") -> None:
        self.field, self.value, self.allowed, self.remedy = field, value, allowed, remedy
        super().__init__(
            f"{field} must be {allowed}, got {value!r}." + (f" {remedy}" if remedy else "")
        )

    def __reduce__(self):
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
        near = [
            folded[key] for key in get_close_matches(str(value).casefold(), folded, n=4, cutoff=0.4)
        ]
        remedy = (
            f"Did you mean {', '.join(near)}?" if near else f"The names are: {', '.join(names)}."
        )
        return cls(field, value, f"one of {len(names)} known names", remedy)


class FoldingError(SimbaError):
    """A deformation that would fold the brain; names the largest amplitude that would not."""


class TemplateError(SimbaError):
    """A template, atlas or label table that is missing, corrupt or does not fit the others."""
