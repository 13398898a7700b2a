"""From volumes to tensors: in order, or by row, from memory or made a batch ahead."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Dataset

from simba_lab.core.errors import SimbaError, Words

if TYPE_CHECKING:
    from simba_lab.core.cohort import Cohort


def batches(
    volumes: Cohort | Iterable[np.ndarray], size: int, device: str | torch.device = "cpu"
) -> Iterator[torch.Tensor]:
    """Iterate over tensors (N, 1, X, Y, Z), float32, of a cohort or of volumes by hand.

    Volumes by hand are arrays, tensors or NIfTI images, (X, Y, Z) with or without a channel axis;
    or a dataset of PyTorch whose items are volumes, or dictionaries with an ``image``, or tuples
    that begin with a volume.

    Raises
    ------
    SimbaError
        If an item is no volume of finite numbers, or has another shape than the first.
    """
    device = torch.device(device)
    if hasattr(volumes, "volumes"):
        arrays = volumes.volumes(device=str(device) if device.type != "cpu" else "cpu")
    else:
        arrays = _by_hand(volumes)
    while chunk := list(islice(arrays, size)):
        yield torch.from_numpy(np.stack(chunk))[:, None].to(device)


def _by_hand(volumes: Any) -> Iterator[np.ndarray]:
    """Iterate over somebody's volumes as float32 arrays of one shape (X, Y, Z)."""
    mapped = isinstance(volumes, Dataset) and not hasattr(volumes, "__iter__")
    if not mapped and not isinstance(volumes, Iterable):
        allowed = "a cohort, or volumes by hand: arrays, tensors, images or a dataset"
        raise SimbaError("volumes", type(volumes).__name__, allowed)
    shape = None
    items = (volumes[number] for number in range(len(volumes))) if mapped else volumes
    for number, item in enumerate(items):
        volume = _volume(item, f"volumes[{number}]")
        shape = shape or volume.shape
        if volume.shape != shape:
            remedy = "Bring all volumes to one lattice first."
            raise SimbaError(f"volumes[{number}]", volume.shape, f"of shape {shape}", remedy)
        yield volume


def _volume(item: Any, field: str) -> np.ndarray:
    allowed = "a volume of numbers of shape (X, Y, Z), or (1, X, Y, Z)"
    if isinstance(item, Mapping):
        if "image" not in item:
            raise SimbaError(field, list(item), "a dictionary with the key image")
        item = item["image"]
    elif isinstance(item, tuple | list) and item and np.ndim(item[0]) > 1:
        item = item[0]
    if isinstance(item, torch.Tensor):
        item = item.detach().to("cpu", torch.float32).numpy()
    try:
        values = np.asarray(getattr(item, "dataobj", item))
    except (ValueError, TypeError, OSError) as error:
        raise SimbaError(field, type(item).__name__, allowed, f"{error}.") from error
    if values.dtype.kind not in "biuf":
        raise SimbaError(field, Words(f"an array of {values.dtype}"), allowed)
    if values.ndim == 4 and 1 in (values.shape[0], values.shape[-1]):
        values = values[0] if values.shape[0] == 1 else values[..., 0]
    if values.ndim != 3:
        remedy = "Put a single volume into a list."
        raise SimbaError(field, Words(f"an array of shape {values.shape}"), allowed, remedy)
    volume = values.astype(np.float32, copy=False)
    if not np.isfinite(volume).all():
        raise SimbaError(
            field, Words("NaN or infinity"), "a volume of finite numbers", "Repair it first."
        )
    return volume


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
        volumes = self.cohort.at(rows.numpy()).arrays(device=self._render_device)
        return torch.from_numpy(volumes)[:, None]
