"""Bring the volumes of a cohort to the network: from memory where they fit, else rendered or read a batch ahead."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from simba_lab.synthesis.synthetic_cohort import Cohort


class Feed:
    """The volumes of a cohort by row, as tensors on a device.

    Parameters
    ----------
    cohort : Cohort
    device : torch.device
        Volumes are rendered there as well, and stay there if they take at most half of its free
        memory.
    memory_gb : float
        Largest cohort that is kept in memory. A larger one is rendered (or read from its store)
        again in each epoch, one batch ahead of the network.
    """

    def __init__(self, cohort: Cohort, device: torch.device, *, memory_gb: float = 4.0) -> None:
        self.cohort, self.device = cohort, device
        self._room = "cpu" if device.type == "cpu" else str(device)
        needed = 4 * len(cohort) * int(np.prod(cohort.lattice.shape))
        self._kept: torch.Tensor | None = None
        if needed <= memory_gb * 2**30:
            self._kept = torch.from_numpy(cohort.arrays(device=self._room))[:, None]
            if device.type == "cuda" and needed < torch.cuda.mem_get_info(device)[0] / 2:
                self._kept = self._kept.to(device)

    def __len__(self) -> int:
        return len(self.cohort)

    def batches(self, rows: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Iterate over batches, shape (n, 1, X, Y, Z) each, given the rows of each."""
        if self._kept is not None:
            for batch in rows:
                yield self._kept[batch.to(self._kept.device)].to(self.device)
            return
        with ThreadPoolExecutor(1) as ahead:
            made = [ahead.submit(self._made, rows[0])] if len(rows) else []
            for number in range(len(rows)):
                batch = made.pop().result()
                if number + 1 < len(rows):
                    made.append(ahead.submit(self._made, rows[number + 1]))
                yield batch.to(self.device)

    def _made(self, batch: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(self.cohort.where(batch.numpy()).arrays(device=self._room))[:, None]
