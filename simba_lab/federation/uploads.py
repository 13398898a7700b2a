"""Uploads: what a site counts and limits of what it sends; no plan or server can change it."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

from simba_lab.core.checks import not_negative, whole_number
from simba_lab.core.errors import SimbaError
from simba_lab.core.files import read_json, write_json
from simba_lab.federation.clients import SiteError
from simba_lab.federation.harmony import Weights
from simba_lab.federation.ledger import weights_digest

# Limits of a site, in the environment of its process.
LIMIT, LEAST = "SIMBA_LAB_UPLOADS", "SIMBA_LAB_LEAST_SUBJECTS"
# A change of weights shows the class of a site's subjects, the better the fewer they are.
DEFAULTS = {LIMIT: 1000, LEAST: 5}


def limit(name: str) -> int:
    """Return a limit of this site: from its environment, or the default."""
    text = os.environ.get(name)
    if text is None:
        return DEFAULTS[name]
    return whole_number(name, int(text) if text.isascii() and text.isdigit() else text)


class Uploads:
    """The count of a site's uploads, in a file of its kit: over all jobs and restarts.

    Parameters
    ----------
    file : path
        Made at the first upload.
    most : int
        Uploads that the site makes before it refuses.
    budget : float
        The sum of epsilons that its uploads may spend.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> from simba_lab.federation.uploads import Uploads
    >>> uploads = Uploads(pathlib.Path(tempfile.mkdtemp()) / "uploads.json", most=2)
    >>> uploads.add(epsilon=0.5)
    >>> uploads.count, uploads.epsilon
    (1, 0.5)
    """

    def __init__(self, file: Path, *, most: int, budget: float = math.inf) -> None:
        self._file, self._most, self._budget = file, most, budget
        self.count, self.epsilon = 0, 0.0
        if file.exists():
            values = read_json(file, "uploads")
            try:
                self.count = whole_number("uploads", values["uploads"], least=0)
                self.epsilon = not_negative("epsilon", values["epsilon"])
            except (KeyError, TypeError, SimbaError) as error:
                problem = f"{file} does not say how much this site has sent."
                raise SimbaError.problem(problem, "Restore it from a copy.") from error

    def check(self, *, epsilon: float = 0.0) -> None:
        """Raise an error if one more upload would pass a limit."""
        if self.count >= self._most:
            problem = f"This site has made its {self._most} uploads."
            raise SiteError.problem(problem, f"It allows more with {LIMIT} in its environment.")
        if self.epsilon + epsilon > self._budget:
            problem = f"This site has spent {self.epsilon:g} of its privacy budget {self._budget:g}"
            remedy = "It allows more with a larger budget in its policy."
            raise SiteError.problem(f"{problem}, an upload costs {epsilon:g}.", remedy)

    def add(self, *, epsilon: float = 0.0) -> None:
        """Count an upload that is about to be made."""
        self.check(epsilon=epsilon)
        count, spent = self.count + 1, self.epsilon + epsilon
        write_json(self._file, {"uploads": count, "epsilon": spent})
        self.count, self.epsilon = count, spent


class Visits:
    """The visits of one job at a site: in the order of its plan, and none twice.

    Parameters
    ----------
    phases : sequence of int
        The last number of each phase of the plan, see `Plan.phases`.

    Examples
    --------
    >>> from simba_lab.federation.uploads import Visits
    >>> visits = Visits([3])
    >>> visits.admit(2, {})
    >>> visits.admit(1, {})
    Traceback (most recent call last):
    simba_lab.federation.clients.SiteError: visit must be one after 2 and up to 3, got 1.
    """

    def __init__(self, phases: Sequence[int]) -> None:
        self._phases, self._last = list(phases), 0
        self._answered: set[str] = set()

    def admit(self, visit: int, weights: Weights) -> None:
        """Raise an error if the plan has no such visit now, or if it was answered before."""
        whole_number("visit", visit)
        call = weights_digest(weights, str(visit))
        phases, last = self._phases, self._last
        if call not in self._answered:
            while phases and not last < visit <= phases[0]:
                phases, last = phases[1:], 0
        if call in self._answered or not phases:
            allowed = f"one after {self._last} and up to {self._phases[0]}"
            raise SiteError("visit", visit, allowed)
        self._phases, self._last = phases, visit
        self._answered.add(call)


__all__ = ["LEAST", "LIMIT", "Uploads", "Visits", "limit"]
