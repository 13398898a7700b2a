"""Volumes kept in memory: networks are evaluated on the same subjects many times."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock

import numpy as np


class VolumeCache:
    """Volumes by key, up to a number of bytes; the volume that was not used for longest goes first.

    Parameters
    ----------
    size : int
        Bytes that volumes may take.
    """

    def __init__(self, size: int) -> None:
        self.size, self.used = size, 0
        self.volumes: OrderedDict[Hashable, np.ndarray] = OrderedDict()
        self.lock = Lock()

    def get(self, key: Hashable, render: Callable[[], np.ndarray]) -> np.ndarray:
        """Return the volume of a key, rendered if it is not in memory; never write to it."""
        with self.lock:
            if key in self.volumes:
                self.volumes.move_to_end(key)
                return self.volumes[key]
        volume = render()
        with self.lock:
            if key not in self.volumes:
                self.volumes[key] = volume
                self.used += volume.nbytes
            while self.used > self.size and self.volumes:
                self.used -= self.volumes.popitem(last=False)[1].nbytes
        return volume
