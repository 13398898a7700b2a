"""Record and edit the activations of any network; the only place where hooks are registered."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import torch
from torch import nn

from simba_lab.core.compute import deterministic, evaluating
from simba_lab.core.errors import SimbaError, UnknownNameError
from simba_lab.interpretation.spool import Spool

PIXELS = "pixels"
# Batches above this size are cut to what the activations of the network leave room for.
LARGE_BATCH = 16 * 2**20


@dataclass(frozen=True, eq=False)
class Recording(Mapping[str, np.ndarray]):
    """What a network did with some volumes: a mapping of layer to Gram matrix, float64, shape (n, n).

    Parameters
    ----------
    grams : dict of str to ndarray
        In the order of the layers.
    features : dict of str to ndarray
        Activations of the layers that were asked for, float32, shape (n, ...) as the layer has
        them.
    subjects : ndarray, shape (n,), or None
        Whose volumes these are, if they came from cohorts: twins (of one seed) have the same
        subject.
    table : pandas.DataFrame or None
        The table of those cohorts, in the order of the rows; of several cohorts (or twins) the
        union, with a column ``cohort`` that counts them from 0. None for bare arrays.
    """

    grams: dict[str, np.ndarray]
    features: dict[str, np.ndarray] = field(default_factory=dict)
    subjects: np.ndarray | None = None
    table: pd.DataFrame | None = None

    def __getitem__(self, layer: str) -> np.ndarray:
        """Return the Gram matrix of a layer."""
        if layer not in self.grams:
            raise UnknownNameError.among("layer", layer, self.grams)
        return self.grams[layer]

    # A mapping would find these two by a KeyError, which the error above is not.
    def __contains__(self, layer: object) -> bool:
        return layer in self.grams

    def get(self, layer: str, default: object = None) -> object:
        """Return the Gram matrix of a layer, or `default` if it was not recorded."""
        return self.grams.get(layer, default)

    def __iter__(self) -> Iterator[str]:
        return iter(self.grams)

    def __len__(self) -> int:
        return len(self.grams)


def layer_names(model: nn.Module, layers: Sequence[str] | None = None) -> list[str]:
    """Return the names of the layers to look at: those that match `layers`, or the network's blocks.

    Parameters
    ----------
    model : torch.nn.Module
    layers : sequence of str, optional
        Submodule names or patterns such as ``"block*"``. By default the attribute ``blocks`` of the
        network, or its direct children that have parameters.
    """
    known = [name for name, _ in model.named_modules() if name]
    if layers is None:
        default = getattr(model, "blocks", None)
        if isinstance(default, list | tuple) and all(isinstance(name, str) for name in default):
            return list(default)
        return [
            name for name, child in model.named_children() if any(True for _ in child.parameters())
        ]
    chosen: list[str] = []
    for pattern in layers:
        matching = [name for name in known if fnmatchcase(name, pattern) and name not in chosen]
        if not matching and pattern not in chosen:
            raise UnknownNameError.among("layer", pattern, known)
        chosen += matching
    return chosen


# What a hook is given, and what it may put in the place of the output.
Call = Callable[[str, tuple, object], torch.Tensor | None]


@contextmanager
def hooked(model: nn.Module, layers: Iterable[str], call: Call) -> Iterator[None]:
    """Pass inputs and output of each layer to ``call(layer, inputs, output)``; what that returns, if anything, goes on.

    Hooks are removed on the way out, whatever happens.
    """
    modules = dict(model.named_modules())
    handles = []

    def hook(name: str) -> Callable:
        return lambda _module, inputs, output: call(name, inputs, output)

    try:
        handles += [modules[name].register_forward_hook(hook(name)) for name in layers]
        yield
    finally:
        for handle in handles:
            handle.remove()


def _of_tensors(call: Callable[[str, torch.Tensor], torch.Tensor | None]) -> Call:
    """Return a hook that passes on the output alone, and refuses anything but a tensor."""

    def called(name: str, _inputs: tuple, output: object) -> torch.Tensor | None:
        if not isinstance(output, torch.Tensor):
            raise SimbaError(
                f"output of layer {name}",
                type(output).__name__,
                "a tensor",
                "Name a layer inside or after it.",
            )
        return call(name, output)

    return called


@contextmanager
def edit(
    model: nn.Module, edits: Mapping[str, Callable[[torch.Tensor], torch.Tensor]]
) -> Iterator[nn.Module]:
    """Change activations while the network runs, within a ``with``.

    Parameters
    ----------
    model : torch.nn.Module
    edits : mapping of layer to callable
        Takes the activations of the layer, shape (N, ...), and returns what the network goes on
        with, of the same shape. `replacing`, `adding` and `projecting_out` make such functions.

    Yields
    ------
    torch.nn.Module
        The same network.

    Examples
    --------
    >>> with edit(model, {"block2": projecting_out(direction)}):  # doctest: +SKIP
    ...     logits(model, cohort)
    """
    known = [name for name, _ in model.named_modules() if name]
    for name in edits:
        if name not in known:
            raise UnknownNameError.among("layer", name, known)

    def call(name: str, output: torch.Tensor) -> torch.Tensor:
        edited = edits[name](output)
        if not isinstance(edited, torch.Tensor) or edited.shape != output.shape:
            given = (
                tuple(edited.shape) if isinstance(edited, torch.Tensor) else type(edited).__name__
            )
            raise SimbaError(
                f"edited activations of {name}", given, f"a tensor of shape {tuple(output.shape)}"
            )
        return edited

    with hooked(model, list(edits), _of_tensors(call)):
        yield model


def record(
    model: nn.Module,
    volumes: Iterable[np.ndarray],
    *,
    layers: Sequence[str] | None = None,
    pixels: bool = True,
    features: Sequence[str] = (),
    batch_size: int = 16,
    memory_gb: float = 1.0,
    device: str = "auto",
) -> Recording:
    """Return the Gram matrix of every layer's full, unpooled activations, from one pass over the volumes.

    Linear probes, CKA and principal components depend on the activations through their inner
    products alone, so n x n numbers per layer hold all that they need. Features that do not fit in
    memory are spooled to temporary files.

    Parameters
    ----------
    model : torch.nn.Module
        Any network that takes (N, 1, X, Y, Z), in any precision.
    volumes : Cohort, sequence of ndarray, or sequence of Cohort
        Volumes of shape (X, Y, Z): anything with a length that iterates, or has a method
        ``volumes()`` that does; or several such cohorts, one after the other (twins, say).
    layers : sequence of str, optional
        Names or patterns; see `layer_names`.
    pixels : bool
        Whether to add the Gram matrix of the volumes themselves, under ``"pixels"``.
    features : sequence of str
        Layers (names or patterns, or ``"pixels"``) whose activations are returned as well.
    batch_size : int
        Most volumes at a time; fewer where the activations of so many would take more than half of
        `memory_gb`.
    memory_gb : float
        For features of all volumes, less what a batch of large ones takes on its way; the rest go
        to temporary files.
    device : str
        Where the network runs and matrices are multiplied; ``"auto"`` for a GPU if there is one.

    Returns
    -------
    Recording
        A mapping of layer to matrix of shape (n, n), with ``features`` and ``subjects``.

    Raises
    ------
    UnknownNameError
        If there is no such layer.
    SimbaError
        If a layer gives no tensor, runs twice or never, or gives NaN; if files or features do not
        fit.
    """
    names = layer_names(model, layers)
    wanted = [
        name
        for pattern in features
        for name in ([PIXELS] if pattern == PIXELS else layer_names(model, [pattern]))
    ]
    names += [name for name in wanted if name not in names and name != PIXELS]
    parts = _parts(volumes)
    if not all(hasattr(part, "__len__") for part in parts):
        raise SimbaError(
            "volumes",
            type(volumes).__name__,
            "of a known length",
            "Make a list of them, or pass a cohort.",
        )
    count = sum(len(part) for part in parts)  # type: ignore[arg-type]
    if count < 2:
        raise SimbaError("volumes", f"{count} volumes", "at least 2 volumes")
    source = chain.from_iterable(
        part.volumes() if hasattr(part, "volumes") else part for part in parts
    )
    if (
        isinstance(batch_size, bool)
        or not isinstance(batch_size, int | np.integer)
        or batch_size < 1
    ):
        raise SimbaError("batch_size", batch_size, "an integer of at least 1")
    where = torch.device(
        ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    )
    there = model if where.type == "cpu" else copy.deepcopy(model).to(where)
    kind = next(
        (value.dtype for value in there.parameters() if value.is_floating_point()), torch.float32
    )
    with (
        evaluating(there),
        deterministic(),
        TemporaryDirectory(prefix="simba-lab-") as folder,
        torch.no_grad(),
    ):
        first, taken = np.asarray(next(source), np.float32), 0.0
        if batch_size > 1 and batch_size * first.nbytes > LARGE_BATCH:
            volume = torch.from_numpy(first)[None, None].to(where, kind)
            needed = largest_call(there, volume)
            batch_size = max(1, min(batch_size, int(memory_gb * 1e9 / 2 // needed)))
            taken = batch_size * needed / 1e9
        spool = Spool(count, Path(folder), memory_gb, where, taken)
        with hooked(there, names, _of_tensors(spool.add)):
            for batch in _batches(chain([first], source), batch_size):
                if pixels or PIXELS in wanted:
                    spool.add(PIXELS, batch)
                there(batch.to(where, kind))
        kept = {name: spool.kept(name) for name in wanted}
        return Recording(
            {name: spool.gram(name) for name in ([PIXELS] if pixels else []) + names},
            kept,
            _subjects(parts),
            _table(parts),
        )


def _parts(volumes: Iterable) -> list:
    """Return the cohorts of a sequence of cohorts, or what was given as the only part."""
    if hasattr(volumes, "volumes") or not isinstance(volumes, list | tuple):
        return [volumes]
    return (
        list(volumes)
        if volumes and all(hasattr(part, "volumes") for part in volumes)
        else [volumes]
    )


def _subjects(parts: list) -> np.ndarray | None:
    if not all(hasattr(part, "table") for part in parts):
        return None
    numbers = [part.table.index.to_numpy() for part in parts]
    seeds = [getattr(part, "seed", 0) for part in parts]
    if len(set(seeds)) > 1:  # the first subject of one seed is not the first of another
        numbers = [
            [f"{seed}/{number}" for number in own] for seed, own in zip(seeds, numbers, strict=True)
        ]
    return np.concatenate(numbers)


def _table(cohorts: list) -> pd.DataFrame | None:
    """Return the table of the rows: that of the only cohort, or the union of several."""
    if not all(hasattr(cohort, "table") for cohort in cohorts):
        return None
    if len(cohorts) == 1:
        return cohorts[0].table
    tables = [cohort.table.assign(cohort=number) for number, cohort in enumerate(cohorts)]
    return pd.concat(tables)


def largest_call(model: nn.Module, volume: torch.Tensor) -> int:
    """Return the bytes of input and output of the largest layer for one volume, shape (1, 1, X, Y, Z)."""
    leaves = [
        name
        for name, module in model.named_modules()
        if name and not any(True for _ in module.children())
    ]
    largest = 1

    def size(value: object) -> int:
        return value.nbytes if isinstance(value, torch.Tensor) else 0

    def call(_name: str, inputs: tuple, output: object) -> None:
        nonlocal largest
        largest = max(largest, sum(map(size, inputs)) + size(output))

    with hooked(model, leaves, call):
        model(volume)
    return largest


def _batches(source: Iterable[np.ndarray], size: int) -> Iterator[torch.Tensor]:
    batch: list[np.ndarray] = []
    for volume in source:
        batch.append(np.asarray(volume, np.float32))
        if len(batch) == size:
            yield torch.from_numpy(np.stack(batch))[:, None]
            batch = []
    if batch:
        yield torch.from_numpy(np.stack(batch))[:, None]
