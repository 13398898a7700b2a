"""What the bits of a computation depend on besides its inputs: threads and kernels."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache

import torch

# Sums in a different order round differently: the number of threads is part of the arithmetic, so
# it is fixed.
THREADS = 2
_chosen: ContextVar[int | None] = ContextVar("threads of the surrounding computation", default=None)


# Parameters of glibc's mallopt, and the largest values that its own adaptation would reach.
TRIM, MMAP, LARGEST = -1, -3, 32 * 2**20


@cache
def _keep_freed_memory() -> None:
    """Let the C library keep what tensors free, so that the next step need not ask the system for fresh pages.

    A training step of small volumes is a fifth faster with it; no result depends on it. At most 64
    MiB are kept.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):  # glibc alone has it
        library.mallopt(TRIM, 2 * LARGEST)
        library.mallopt(MMAP, LARGEST)


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Put a network in evaluation mode, and each of its parts back to the mode that it had."""
    before = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in before.items():
            module.training = training


@contextmanager
def deterministic(threads: int | None = None) -> Iterator[None]:
    """Run torch with a fixed number of threads and deterministic kernels, whatever the machine's settings are.

    Parameters
    ----------
    threads : int, optional
        By default as many as the surrounding ``deterministic`` has, or `THREADS`.
    """
    _keep_freed_memory()
    threads = threads or _chosen.get() or THREADS
    before = (
        torch.get_num_threads(),
        torch.backends.cudnn.deterministic,
        torch.backends.cudnn.benchmark,
    )
    token = _chosen.set(threads)
    torch.set_num_threads(threads)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    try:
        yield
    finally:
        _chosen.reset(token)
        torch.set_num_threads(before[0])
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = before[1:]
