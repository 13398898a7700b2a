"""Features of many volumes, in memory or in files, and their inner products."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from simba_lab.core.errors import SimbaError, Words

# Features multiplied at a time: large enough for a fast product, small enough for the memory.
BLOCK_FEATURES, BLOCK_BYTES = 32768, 128 * 2**20


class Spool:
    """Features of each layer, one row per volume, in memory or in files.

    Of the memory, `reserved_gb` is in use already.
    """

    def __init__(
        self,
        count: int,
        folder: Path,
        memory_gb: float,
        device: torch.device,
        reserved_gb: float = 0.0,
    ) -> None:
        self.count, self.folder, self.device = count, folder, device
        self.memory_gb, self.free_bytes = memory_gb, (memory_gb - reserved_gb) * 1e9
        self.stores: dict[str, FeatureMatrix] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}

    def add(self, name: str, output: torch.Tensor) -> None:
        """Keep a batch of activations of a layer, shape (N, ...)."""
        activations = output.detach().reshape(len(output), -1).float().cpu().numpy()
        # NaN and infinity show in the extremes, which take no memory to find.
        if not (np.isfinite(activations.min()) and np.isfinite(activations.max())):
            remedy = "Check weights and input volumes."
            raise SimbaError(f"activations of {name}", Words("NaN or infinity"), "finite", remedy)
        if name not in self.stores:
            self.shapes[name] = tuple(output.shape[1:])
            self.stores[name] = self._new(name, activations.shape[1])
        rows = self.stores[name]
        if rows.filled + len(activations) > self.count:
            raise SimbaError.problem(
                f"Layer {name} runs more than once per volume; it must run once per volume.",
                "Layers that the network uses repeatedly cannot be recorded under one name.",
            )
        rows.add(activations)

    def _new(self, name: str, size: int) -> FeatureMatrix:
        needed = 4 * self.count * size
        if needed <= self.free_bytes:
            self.free_bytes -= needed
            return FeatureMatrix(self.count, size, None)
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            allowed = f"within the {free / 1e9:.1f} GB that are free"
            remedy = "Record fewer volumes or layers, or point TMPDIR to a larger disk."
            raise SimbaError(
                f"activations of {name}", Words(f"{needed / 1e9:.1f} GB"), allowed, remedy
            )
        return FeatureMatrix(self.count, size, self.folder / f"{len(self.stores)}.f32")

    def _full(self, name: str) -> FeatureMatrix:
        filled = self.stores[name].filled if name in self.stores else 0
        if filled != self.count:
            raise SimbaError.problem(
                f"Layer {name} ran for {filled} volumes of {self.count}.",
                "Name a layer that every forward pass uses.",
            )
        return self.stores[name]

    def kept(self, name: str) -> np.ndarray:
        """Return the activations of a layer in its own shape, (count, ...)."""
        rows = self._full(name)
        needed = 4 * rows.count * rows.size
        if needed > self.memory_gb * 1e9:
            allowed = f"at most memory_gb={self.memory_gb}"
            remedy = "Ask for later layers or fewer volumes, or raise memory_gb."
            raise SimbaError(
                f"activations of {name}", Words(f"{needed / 1e9:.1f} GB"), allowed, remedy
            )
        return np.concatenate(list(rows.blocks()), axis=1).reshape(self.count, *self.shapes[name])

    def gram(self, name: str) -> np.ndarray:
        """Return the inner products (not centred) of all volumes in a layer, (count, count)."""
        total = torch.zeros(self.count, self.count, dtype=torch.float64, device=self.device)
        for columns in self._full(name).blocks():
            block = torch.from_numpy(columns).to(self.device)
            # Single precision is enough for differences from the mean, not for activations with a
            # large mean.
            mean = block.mean(dim=0)
            block = block - mean
            projection = (block @ mean).double()
            total += (
                (block @ block.T).double()
                + projection[:, None]
                + projection
                + mean.double() @ mean.double()
            )
        return total.cpu().numpy()


class FeatureMatrix:
    """A matrix that is written row by row and read in blocks of columns, in memory or in a file.

    Each block lies in one piece: a file is then read from front to end, and only a block of it is
    ever in memory.
    """

    def __init__(self, count: int, size: int, path: Path | None) -> None:
        self.count, self.size, self.path, self.filled = count, size, path, 0
        self.width = max(1, min(size, BLOCK_FEATURES, BLOCK_BYTES // (4 * count)))
        self.values = np.empty(count * size if path is None else 0, np.float32)
        if path is not None:
            path.touch()

    def add(self, rows: np.ndarray) -> None:
        """Write the next rows, shape (N, size)."""
        for start in range(0, self.size, self.width):
            block = np.ascontiguousarray(rows[:, start : start + self.width])
            offset = start * self.count + self.filled * block.shape[1]
            if self.path is None:
                self.values[offset : offset + block.size] = block.ravel()
            else:
                with self.path.open("r+b") as file:
                    file.seek(4 * offset)
                    file.write(block.data)
        self.filled += len(rows)

    def blocks(self) -> Iterator[np.ndarray]:
        """Iterate over the blocks, shape (count, width) each."""
        for start in range(0, self.size, self.width):
            width = min(self.width, self.size - start)
            if self.path is None:
                block = self.values[start * self.count : (start + width) * self.count]
            else:
                block = np.fromfile(
                    self.path, np.float32, self.count * width, offset=4 * start * self.count
                )
            yield block.reshape(self.count, width)
