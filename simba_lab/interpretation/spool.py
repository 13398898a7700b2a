"""Features of many volumes, in memory or in files, and their inner products."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from simba_lab.core.errors import SimbaError

# Features multiplied at a time: large enough for a fast product, small enough for the memory.
BLOCK_FEATURES, BLOCK_BYTES = 32768, 128 * 2**20


class Spool:
    """Features of each layer, one row per volume, in memory or in files; of `memory_gb` some may be `taken` already."""

    def __init__(
        self, count: int, folder: Path, memory_gb: float, device: torch.device, taken: float = 0.0
    ) -> None:
        self.count, self.folder, self.left, self.device = (
            count,
            folder,
            (memory_gb - taken) * 1e9,
            device,
        )
        self.memory_gb = memory_gb
        self.stores: dict[str, Rows] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}

    def add(self, name: str, output: torch.Tensor) -> None:
        """Keep a batch of activations of a layer, shape (N, ...)."""
        features = output.detach().reshape(len(output), -1).float().cpu().numpy()
        # NaN and infinity show in the extremes, which take no memory to find.
        if not (np.isfinite(features.min()) and np.isfinite(features.max())):
            raise SimbaError(
                f"activations of {name}",
                "NaN or infinity",
                "finite",
                "Check weights and input volumes.",
            )
        if name not in self.stores:
            needed = 4 * self.count * features.shape[1]
            self.shapes[name] = tuple(output.shape[1:])
            if needed <= self.left:
                self.left -= needed
                self.stores[name] = Rows(self.count, features.shape[1], None)
            else:
                free = shutil.disk_usage(self.folder).free
                if needed > free:
                    raise SimbaError(
                        f"features of {name}",
                        f"{needed / 1e9:.1f} GB",
                        f"within the {free / 1e9:.1f} GB that are free",
                        "Record fewer volumes or layers, or point TMPDIR to a larger disk.",
                    )
                self.stores[name] = Rows(
                    self.count, features.shape[1], self.folder / f"{len(self.stores)}.f32"
                )
        rows = self.stores[name]
        if rows.filled + len(features) > self.count:
            raise SimbaError(
                f"layer {name}",
                "called more than once per volume",
                "called once per volume",
                "Layers that the network uses repeatedly cannot be recorded under one name.",
            )
        rows.add(features)

    def _full(self, name: str) -> Rows:
        filled = self.stores[name].filled if name in self.stores else 0
        if filled != self.count:
            raise SimbaError(
                f"layer {name}", f"ran for {filled} volumes", f"run for all {self.count}"
            )
        return self.stores[name]

    def kept(self, name: str) -> np.ndarray:
        """Return the activations of a layer as it has them, shape (count, ...)."""
        rows = self._full(name)
        if 4 * rows.count * rows.size > self.memory_gb * 1e9:
            raise SimbaError(
                f"features of {name}",
                f"{4 * rows.count * rows.size / 1e9:.1f} GB",
                f"at most memory_gb={self.memory_gb}",
                "Ask for later layers or fewer volumes, or raise memory_gb.",
            )
        return np.concatenate(list(rows.blocks()), axis=1).reshape(self.count, *self.shapes[name])

    def gram(self, name: str) -> np.ndarray:
        """Return the inner products of all volumes in a layer, float64, shape (count, count)."""
        total = torch.zeros(self.count, self.count, dtype=torch.float64, device=self.device)
        for rows in self._full(name).blocks():
            block = torch.from_numpy(rows).to(self.device)
            # Single precision is enough for differences from the mean, not for features with a
            # large mean.
            mean = block.mean(dim=0)
            block = block - mean
            along = (block @ mean).double()
            total += (
                (block @ block.T).double() + along[:, None] + along + mean.double() @ mean.double()
            )
        return total.cpu().numpy()


class Rows:
    """A matrix that is written row by row and read in blocks of columns, in memory or in a file.

    Each block lies in one piece: a file is then read from front to end, and only a block of it is
    ever in memory.
    """

    def __init__(self, count: int, size: int, path: Path | None) -> None:
        self.count, self.size, self.path, self.filled = count, size, path, 0
        self.width = max(1, min(size, BLOCK_FEATURES, BLOCK_BYTES // (4 * count)))
        self.values = np.empty(count * size, np.float32) if path is None else None
        if path is not None:
            path.touch()

    def add(self, rows: np.ndarray) -> None:
        """Write the next rows, shape (N, size)."""
        for start in range(0, self.size, self.width):
            part = np.ascontiguousarray(rows[:, start : start + self.width])
            place = start * self.count + self.filled * part.shape[1]
            if self.values is not None:
                self.values[place : place + part.size] = part.ravel()
            else:
                with self.path.open("r+b") as file:
                    file.seek(4 * place)
                    file.write(part.data)
        self.filled += len(rows)

    def blocks(self) -> Iterator[np.ndarray]:
        """Iterate over the blocks, shape (count, width) each."""
        for start in range(0, self.size, self.width):
            width = min(self.width, self.size - start)
            if self.values is not None:
                found = self.values[start * self.count : (start + width) * self.count]
            else:
                found = np.fromfile(
                    self.path, np.float32, self.count * width, offset=4 * start * self.count
                )
            yield found.reshape(self.count, width)
