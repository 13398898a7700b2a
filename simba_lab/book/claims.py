"""Executable claims: a statement, an estimate, an interval, and the verdict that follows."""

from __future__ import annotations

from dataclasses import dataclass

from simba_lab.core.border import checks_arguments
from simba_lab.core.checks import Bound
from simba_lab.core.errors import SimbaError

VERDICTS = ("confirmed", "refuted", "undecided")


@checks_arguments
@dataclass(frozen=True)
class Claim:
    """A statement about a number, and what was measured.

    Parameters
    ----------
    statement : str
        A sentence without numbers that a run could change.
    estimate, low, high : float
        The measurement and its interval.
    expected : tuple of float
        Range of values, ends included, in which the statement is true.

    Examples
    --------
    >>> import simba_lab as sb
    >>> sb.book.Claim("It is small", 0.9, 0.7, 1.1, expected=(0, 1)).verdict
    'undecided'
    """

    statement: str
    estimate: float
    low: Bound
    high: Bound
    expected: tuple[Bound, Bound]

    def __post_init__(self) -> None:
        if not self.low <= self.estimate <= self.high:  # NaN fails this too
            raise SimbaError(
                "claim",
                (self.low, self.estimate, self.high),
                "ordered: low <= estimate <= high, not NaN",
            )
        if not self.expected[0] <= self.expected[1]:
            raise SimbaError("claim.expected", self.expected, "a range (from, to)")

    @property
    def verdict(self) -> str:
        """What follows: the interval lies in the expected range, outside it, or across an end."""
        if self.expected[0] <= self.low and self.high <= self.expected[1]:
            return "confirmed"
        if self.high < self.expected[0] or self.low > self.expected[1]:
            return "refuted"
        return "undecided"


def check(
    statement: str,
    estimate: float | bool,
    *,
    low: Bound | None = None,
    high: Bound | None = None,
    expected: tuple[Bound, Bound],
    verdict: str = "confirmed",
) -> Claim:
    """Check a claim against its measurement, and print one fixed line.

    The line has no number in it, so a stored output stays valid from run to run.

    Parameters
    ----------
    statement : str
    estimate : float
    low, high : float, optional
        Interval of the estimate; a number that is exact needs none.
    expected : tuple of float
        Range in which the statement is true.
    verdict : {"confirmed", "refuted", "undecided"}
        What the text around the claim says about it.

    Raises
    ------
    AssertionError
        If the measurement does not give that verdict; the message holds the numbers.

    Examples
    --------
    >>> import simba_lab as sb
    >>> claim = sb.book.check("Two is even", 2 % 2, expected=(0, 0))
    confirmed: Two is even
    >>> claim.verdict
    'confirmed'
    """
    if verdict not in VERDICTS:
        raise SimbaError("verdict", verdict, f"one of {', '.join(VERDICTS)}")
    estimate = float(estimate)
    claim = Claim(
        statement,
        estimate,
        float(estimate if low is None else low),
        float(estimate if high is None else high),
        expected,
    )
    if claim.verdict != verdict:
        raise AssertionError(
            f"The text says {verdict}, the measurement {claim.verdict}: {statement} "
            f"Measured {claim.estimate:.4g} [{claim.low:.4g}, {claim.high:.4g}], "
            f"expected {expected}."
        )
    print(f"{verdict}: {statement}")
    return claim


def check_answer(answer: float | None, truth: float, tolerance: float) -> str:
    """Return what to tell a reader who answered an exercise; None means not answered yet.

    Examples
    --------
    >>> import simba_lab as sb
    >>> sb.book.check_answer(1.05, truth=1, tolerance=0.1)
    'Right.'
    """
    if answer is None:
        return "Not answered yet: replace None."
    return "Right." if abs(answer - truth) <= tolerance else "Not yet."
