"""Many calls of one function, in processes or on a cluster, with the time left."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from joblib import Parallel, delayed
from tqdm.auto import tqdm


def in_parallel(
    jobs: Parallel,
    function: Callable[..., Any],
    arguments: Sequence[tuple[Any, ...]],
    *,
    progress: bool,
    unit: str,
) -> list[Any]:
    """Call a function once per tuple of arguments, and return the results in their order."""
    results: list[Any] = [None] * len(arguments)
    calls = [
        delayed(_numbered)(number, function, *values) for number, values in enumerate(arguments)
    ]
    with tqdm(total=len(calls), disable=not progress or not calls, unit=unit, desc=unit) as bar:
        for number, result in _as_completed(jobs, calls):
            results[number] = result
            bar.update()
    return results


def _as_completed(jobs: Parallel, calls: list[Any]) -> Iterator[tuple[int, Any]]:
    # Not every joblib backend returns results one by one; all return a few rounds of calls at once.
    size = 8 * max(1, jobs._effective_n_jobs())
    for start in range(0, len(calls), size):
        yield from jobs(calls[start : start + size])


def _numbered(number: int, function: Callable[..., Any], *values: Any) -> tuple[int, Any]:
    return number, function(*values)
