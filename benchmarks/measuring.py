"""What the benchmarks share: a figure with its target, times, and the bandwidth of memory."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

# Larger than any cache, so that it is memory that is measured.
BANDWIDTH_VOXELS = 2**24


@dataclass(frozen=True)
class Figure:
    """One measured number.

    Parameters
    ----------
    name, unit : str
    value : float
    at_most, at_least : float, optional
        The target; a figure without one is there to be compared with.
    """

    name: str
    value: float
    unit: str = ""
    at_most: float | None = None
    at_least: float | None = None

    @property
    def verdict(self) -> str:
        """PASS, short, or nothing where there is no target."""
        if self.at_most is None and self.at_least is None:
            return ""
        low, high = (
            (-np.inf if self.at_least is None else self.at_least),
            (np.inf if self.at_most is None else self.at_most),
        )
        return "PASS" if low <= self.value <= high else "short"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self) | {"value": float(self.value), "verdict": self.verdict}

    def __str__(self) -> str:
        sign, target = ("<=", self.at_most) if self.at_most is not None else (">=", self.at_least)
        limit = "" if target is None else f"{sign} {target:g}"
        value = f"{self.value:>10.4g} {self.unit:<5}{limit:>9}"
        return f"  {self.name:<70}{value}  {self.verdict}".rstrip()


def machine() -> str:
    """Return the number of cores and the load, which decides whether times mean anything."""
    load = f"load before the start {os.getloadavg()[0]:.1f}"
    return f"{os.cpu_count()} cores, {load} (times are worth little above 0.3)"


def best_of(rounds: int, function: Callable[[], object]) -> float:
    """Return the least time of several rounds in seconds: other work of the machine only adds."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def bandwidth(cores: int) -> dict[str, float]:
    """Return bytes per second of a copy and of a sum on all cores.

    A copy reads one array and writes one; a sum reads two and writes one.

    References
    ----------
    McCalpin (1995), "Memory bandwidth and machine balance in current high performance computers",
    IEEE TCCA newsletter (its kernels "copy" and "add", and its way to count).
    """
    arrays = [np.ones((3, BANDWIDTH_VOXELS), np.float32) for _ in range(cores)]
    kinds = {
        "copy": (2, lambda a: np.copyto(a[0], a[1])),
        "sum": (3, lambda a: np.add(a[1], a[2], out=a[0])),
    }
    with ThreadPoolExecutor(cores) as threads:
        return {
            operation: touched
            * arrays[0][0].nbytes
            * cores
            / best_of(7, lambda step=step: list(threads.map(step, arrays)))
            for operation, (touched, step) in kinds.items()
        }
