"""Work on several layers at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from joblib import Parallel, delayed
from threadpoolctl import threadpool_limits

T = TypeVar("T")


def in_threads(function: Callable[..., T], jobs: Iterable[tuple]) -> list[T]:
    """Return the results of a function for several tuples of arguments, such as the layers of a network.

    Decompositions take one thread each: their rounding then does not depend on the machine's number
    of cores.
    """
    with threadpool_limits(1):
        return Parallel(n_jobs=-1, prefer="threads")(delayed(function)(*job) for job in jobs)
