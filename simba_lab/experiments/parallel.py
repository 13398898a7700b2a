"""Many calls of one function, in processes or on a cluster, with the time left."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from joblib import Parallel, delayed
from joblib.parallel import BACKENDS, get_active_backend
from tqdm.auto import tqdm

# Seconds between two looks of a worker at the process that it works for.
LOOK_SECONDS = 1.0


def worker_processes(n_jobs: int) -> Parallel:
    """Return the workers of the joblib backend that is active; processes here end with this one."""
    options: dict[str, Any] = {}
    if isinstance(get_active_backend()[0], BACKENDS["loky"]):
        options = {"initializer": _end_with, "initargs": (os.getpid(),)}
    return Parallel(n_jobs=n_jobs, **options)


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


def _end_with(caller: int) -> None:
    """Let a worker end when the process that started it does, even if that was killed."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the caller's to answer
    threading.Thread(target=_look, args=(caller,), daemon=True).start()


def _look(caller: int) -> None:
    while os.getppid() == caller:
        time.sleep(LOOK_SECONDS)
    os._exit(1)
