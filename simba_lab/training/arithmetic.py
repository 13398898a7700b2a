"""What the bits of a computation depend on besides its inputs: threads and kernels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

# Sums in a different order round differently: the number of threads is part of the arithmetic, so it is fixed.
THREADS = 2
_chosen: ContextVar[int | None] = ContextVar("threads of the surrounding computation", default=None)


@contextmanager
def deterministic(threads: int | None = None) -> Iterator[None]:
    """Run torch with a fixed number of threads and deterministic kernels, whatever the machine's settings are.

    Parameters
    ----------
    threads : int, optional
        By default as many as the surrounding ``deterministic`` has, or `THREADS`.
    """
    threads = threads or _chosen.get() or THREADS
    before = torch.get_num_threads(), torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    token = _chosen.set(threads)
    torch.set_num_threads(threads)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    try:
        yield
    finally:
        _chosen.reset(token)
        torch.set_num_threads(before[0])
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = before[1:]
