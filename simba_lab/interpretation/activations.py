"""Record the activations of any network; the only place where hooks are registered."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import nn

from simba_lab.errors import SimbaError, UnknownNameError
from simba_lab.training.arithmetic import deterministic

PIXELS = "pixels"
# Features multiplied at a time: large enough for a fast product, small enough for the processor's cache.
FEATURE_BLOCK = 32768


def layer_names(model: nn.Module, layers: Sequence[str] | None = None) -> list[str]:
    """Return the names of the layers to look at: those that match `layers`, or the network's blocks.

    Parameters
    ----------
    model : torch.nn.Module
    layers : sequence of str, optional
        Submodule names or patterns such as ``"block*"``. By default the attribute ``blocks`` of the network, or its
        direct children that have parameters.
    """
    known = [name for name, _ in model.named_modules() if name]
    if layers is None:
        default = getattr(model, "blocks", None)
        if isinstance(default, list | tuple) and all(isinstance(name, str) for name in default):
            return list(default)
        return [name for name, child in model.named_children() if any(True for _ in child.parameters())]
    chosen: list[str] = []
    for pattern in layers:
        matching = [name for name in known if fnmatchcase(name, pattern) and name not in chosen]
        if not matching and pattern not in chosen:
            raise UnknownNameError.among("layer", pattern, known)
        chosen += matching
    return chosen


@contextmanager
def listening(model: nn.Module, layers: Sequence[str], heard: Callable[[str, torch.Tensor], None]) -> Iterator[None]:
    """Call ``heard(layer, output)`` whenever a layer has run; hooks are removed on the way out, whatever happens."""
    modules = dict(model.named_modules())
    handles = []

    def hook(name: str) -> Callable:
        def call(_module: nn.Module, _inputs: tuple, output: object) -> None:
            if not isinstance(output, torch.Tensor):
                raise SimbaError(
                    f"output of layer {name}", type(output).__name__, "a tensor", "Name a layer inside or after it."
                )
            heard(name, output)

        return call

    try:
        handles += [modules[name].register_forward_hook(hook(name)) for name in layers]
        yield
    finally:
        for handle in handles:
            handle.remove()


def record(
    model: nn.Module, volumes: Iterable[np.ndarray], *, layers: Sequence[str] | None = None, pixels: bool = True,
    batch_size: int = 16, memory_gb: float = 2.0,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Return the Gram matrix of every layer's full, unpooled activations, from one pass over the volumes.

    Linear probes, CKA and principal components depend on the activations through their inner products alone, so n x n
    numbers per layer hold all that they need. Features that do not fit in memory are spooled to temporary files.

    Parameters
    ----------
    model : torch.nn.Module
        Any network that takes (N, 1, X, Y, Z).
    volumes : Cohort or sequence of ndarray
        Volumes of shape (X, Y, Z): anything with a length that iterates, or has a method ``volumes()`` that does.
    layers : sequence of str, optional
        Names or patterns; see `layer_names`.
    pixels : bool
        Whether to add the Gram matrix of the volumes themselves, under ``"pixels"``.
    batch_size : int
    memory_gb : float
        Features above this size go to temporary files.

    Returns
    -------
    dict of str to ndarray
        Layer name to float64 matrix of shape (n, n), in the order of the layers.
    """
    names = layer_names(model, layers)
    count = len(volumes)  # type: ignore[arg-type]
    if count < 2:
        raise SimbaError("volumes", f"{count} volumes", "at least 2 volumes")
    source = volumes.volumes() if hasattr(volumes, "volumes") else volumes
    training = model.training
    model.eval()
    try:
        with deterministic(), TemporaryDirectory(prefix="simba-lab-") as folder, torch.no_grad():
            spool = _Spool(count, Path(folder), memory_gb)
            with listening(model, names, spool.add):
                for batch in _batches(source, batch_size):
                    if pixels:
                        spool.add(PIXELS, batch)
                    model(batch)
            return {name: spool.gram(name) for name in ([PIXELS] if pixels else []) + names}
    finally:
        model.train(training)


def _batches(source: Iterable[np.ndarray], size: int) -> Iterator[torch.Tensor]:
    batch: list[np.ndarray] = []
    for volume in source:
        batch.append(np.asarray(volume, np.float32))
        if len(batch) == size:
            yield torch.from_numpy(np.stack(batch))[:, None]
            batch = []
    if batch:
        yield torch.from_numpy(np.stack(batch))[:, None]


class _Spool:
    """Features of each layer, one row per volume, in memory or in files."""

    def __init__(self, count: int, folder: Path, memory_gb: float) -> None:
        self.count, self.folder, self.left = count, folder, memory_gb * 1e9
        self.rows: dict[str, np.ndarray] = {}
        self.filled: dict[str, int] = {}

    def add(self, name: str, output: torch.Tensor) -> None:
        features = output.detach().reshape(len(output), -1).float().cpu().numpy()
        if not np.isfinite(features).all():
            raise SimbaError(f"activations of {name}", "NaN or infinity", "finite", "Check weights and input volumes.")
        if name not in self.rows:
            shape = (self.count, features.shape[1])
            if 4 * np.prod(shape) <= self.left:
                self.rows[name] = np.empty(shape, np.float32)
                self.left -= 4 * np.prod(shape)
            else:
                self.rows[name] = np.memmap(self.folder / f"{len(self.rows)}.f32", np.float32, "w+", shape=shape)
            self.filled[name] = 0
        start = self.filled[name]
        if start + len(features) > self.count:
            raise SimbaError(
                f"layer {name}", "called more than once per volume", "called once per volume",
                "Layers that the network uses repeatedly cannot be recorded under one name.",
            )  # fmt: skip
        self.rows[name][start : start + len(features)] = features
        self.filled[name] = start + len(features)

    def gram(self, name: str) -> np.ndarray:
        if self.filled.get(name, 0) != self.count:
            raise SimbaError(f"layer {name}", f"ran for {self.filled.get(name, 0)} volumes", f"run for all {self.count}")
        rows = self.rows[name]
        total = torch.zeros(self.count, self.count, dtype=torch.float64)
        for start in range(0, rows.shape[1], FEATURE_BLOCK):
            block = torch.from_numpy(np.ascontiguousarray(rows[:, start : start + FEATURE_BLOCK]))
            total += (block @ block.T).double()
        return total.numpy()
