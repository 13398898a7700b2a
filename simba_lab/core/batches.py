"""From volumes to tensors: in order, or by row, from memory or made a batch ahead."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from simba_lab.core.cohort import Cohort


def batches(
    volumes: Cohort | Iterable[np.ndarray], size: int, device: str | torch.device = "cpu"
) -> Iterator[torch.Tensor]:
    """Iterate over tensors (N, 1, X, Y, Z), float32, of a cohort or of arrays (X, Y, Z)."""
    device = torch.device(device)
    if hasattr(volumes, "volumes"):
        volumes = volumes.volumes(device=str(device) if device.type != "cpu" else "cpu")
    arrays = iter(volumes)
    while chunk := [np.asarray(volume, np.float32) for volume in islice(arrays, size)]:
        yield torch.from_numpy(np.stack(chunk))[:, None].to(device)


class Feed:
    """The volumes of a cohort by row, as tensors on a device.

    Parameters
    ----------
    cohort : Cohort
    device : torch.device
        Volumes are rendered there as well; the tensors stay there if they take at most half of
        its free memory.
    memory_gb : float
        Largest cohort that is kept in memory. A larger one is rendered (or read from its store)
        again in each epoch, one batch ahead of the network.
    """

    def __init__(self, cohort: Cohort, device: torch.device, *, memory_gb: float = 4.0) -> None:
        self.cohort, self.device = cohort, device
        self._render_device = "cpu" if device.type == "cpu" else str(device)
        needed = 4 * len(cohort) * int(np.prod(cohort.lattice.shape))
        self._kept: torch.Tensor | None = None
        if needed <= memory_gb * 1e9:
            self._kept = torch.from_numpy(cohort.arrays(device=self._render_device))[:, None]
            if device.type == "cuda" and needed < torch.cuda.mem_get_info(device)[0] / 2:
                self._kept = self._kept.to(device)

    def __len__(self) -> int:
        return len(self.cohort)

    def batches(self, rows_by_batch: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Iterate over batches, shape (n, 1, X, Y, Z) each, given the rows of each."""
        if self._kept is not None:
            for rows in rows_by_batch:
                yield self._kept[rows.to(self._kept.device)].to(self.device)
            return
        with ThreadPoolExecutor(1) as ahead:
            following = iter(rows_by_batch)
            pending = [ahead.submit(self._rendered, rows) for rows in islice(following, 1)]
            while pending:
                volumes = pending.pop().result()
                pending = [ahead.submit(self._rendered, rows) for rows in islice(following, 1)]
                yield volumes.to(self.device)

    def _rendered(self, rows: torch.Tensor) -> torch.Tensor:
        volumes = self.cohort.where(rows.numpy()).arrays(device=self._render_device)
        return torch.from_numpy(volumes)[:, None]
