"""How kernels are compiled: without the interpreter lock, and once per machine if possible.

Compiled code is kept beside the package, in the user's cache, or else in the lab's cache. Where
none of them can be written, code that is already there is used, and otherwise kernels are compiled
in each process.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numba as nb
from numba.core import caching

from simba_lab.core.files import cache_folder

# Contraction (fused multiply-add) and reassociation vectorise the inner loops; NaN and infinity
# keep their meaning.
FAST = {"contract", "reassoc", "nsz", "arcp"}
# Numba makes its settings when it is imported, so type checkers do not know them.
settings: Any = nb.config
inlined = nb.njit(inline="always", fastmath=FAST)


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a kernel, with its compiled code kept on disk if a folder allows it."""
    kernel: Any = nb.njit(nogil=True, fastmath=FAST)(function)
    for folder in (settings.CACHE_DIR, str(cache_folder() / "kernels")):
        with suppress(RuntimeError):  # no folder can be used
            kernel._cache = _cache_in(folder, function)
            break
    return kernel


def _cache_in(folder: str, function: Callable[..., Any]) -> caching.FunctionCache:
    """Return the cache of a kernel in a folder, or in one of Numba's own."""
    chosen, settings.CACHE_DIR = settings.CACHE_DIR, folder
    try:
        return _KernelCache(function)
    finally:
        settings.CACHE_DIR = chosen


def _require_code(locator: Any) -> None:
    """Accept a folder that cannot be written if it holds compiled code."""
    if not any(Path(locator.get_cache_path()).glob("*.nbi")):
        raise OSError("no compiled code")


def _readable(locator: type[object]) -> type[object]:
    """Return a locator that accepts folders that can only be read."""
    return type(locator.__name__, (locator,), {"ensure_cache_path": _require_code})


_FOLDERS: list[type[object]] = list(caching.CompileResultCacheImpl._locator_classes)
_FOLDERS += [_readable(locator) for locator in _FOLDERS]


class _Folders(caching.CompileResultCacheImpl):
    """Numba's choice of folders: the writable ones first, then those that can only be read."""

    _locator_classes = _FOLDERS


class _KernelCache(caching.FunctionCache):
    """Numba's cache of one function; what cannot be written is not kept."""

    _impl_class = _Folders

    def save_overload(self, sig: Any, data: Any) -> None:
        with suppress(OSError):
            super().save_overload(sig, data)
