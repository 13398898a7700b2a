"""What a network did with some volumes: a Gram matrix per layer, and the table of the subjects."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar, overload

import numpy as np
import pandas as pd
import torch
from torch import nn

from simba_lab.core.batches import batches
from simba_lab.core.border import checks_arguments
from simba_lab.core.checks import Count, whole_number
from simba_lab.core.cohort import Cohort
from simba_lab.core.compute import Compute, deterministic, evaluating
from simba_lab.core.errors import SimbaError, UnknownNameError, Words
from simba_lab.core.network_adapter import outcome_of
from simba_lab.interpretation.hooks import hooked, largest_call, layer_names, of_tensors
from simba_lab.interpretation.layer_table import default_layers
from simba_lab.interpretation.spool import Spool

Default = TypeVar("Default")

PIXELS = "pixels"
# Batches of more bytes are made smaller until their activations fit into the memory.
LARGE_BATCH = 16 * 2**20


@checks_arguments
@dataclass(frozen=True, eq=False)
class Recording(Mapping[str, np.ndarray]):
    """What a network did with some volumes: layer to Gram matrix, float64, shape (n, n).

    Parameters
    ----------
    grams : dict of str to ndarray
        In the order of the layers.
    activations : dict of str to ndarray
        Activations of the layers that were asked for, float32, shape (n, ...) as in the layer.
    subjects : ndarray, shape (n,), or None
        Whose volumes these are, if they came from cohorts: twins (of one seed) have the same
        subject.
    table : pandas.DataFrame or None
        The table of those cohorts, in the order of the rows; of several cohorts (or twins) the
        union, with a column ``cohort`` that counts them from 0. None for bare arrays.

    Examples
    --------
    >>> import numpy as np
    >>> import simba_lab as sb
    >>> activations = np.random.default_rng(0).standard_normal((6, 20))
    >>> recording = sb.interpretation.Recording({"mine": activations @ activations.T})
    >>> recording["mine"].shape
    (6, 6)
    """

    grams: dict[str, np.ndarray]
    activations: dict[str, np.ndarray] = field(default_factory=dict)
    subjects: np.ndarray | None = None
    table: pd.DataFrame | None = None

    def __getitem__(self, layer: str) -> np.ndarray:
        """Return the Gram matrix of a layer."""
        if layer not in self.grams:
            raise UnknownNameError.among("layer", layer, self.grams)
        return self.grams[layer]

    # A mapping would answer these two by catching KeyError, which the error above is not.
    def __contains__(self, layer: object) -> bool:
        return layer in self.grams

    @overload
    def get(self, layer: str, /) -> np.ndarray | None: ...

    @overload
    def get(self, layer: str, default: np.ndarray | Default, /) -> np.ndarray | Default: ...

    def get(self, layer: str, default: object = None, /) -> object:
        """Return the Gram matrix of a layer, or `default` if it was not recorded."""
        return self.grams.get(layer, default)

    def select(self, *layers: str) -> Recording:
        """Return the recording of some of the layers, with the same subjects and table."""
        activations = {
            layer: self.activations[layer] for layer in layers if layer in self.activations
        }
        return replace(
            self, grams={layer: self[layer] for layer in layers}, activations=activations
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self.grams)

    def __len__(self) -> int:
        return len(self.grams)


def record(
    model: nn.Module,
    volumes: Cohort | Sequence[Cohort] | Iterable[np.ndarray],
    *,
    layers: Sequence[str] | None = None,
    pixels: bool = True,
    activations: Sequence[str] = (),
    batch_size: Count = 16,
    compute: Compute | None = None,
) -> Recording:
    """Return the Gram matrix of every layer's full, unpooled activations, from one pass.

    Linear probes, CKA and principal components depend on the activations through their inner
    products alone, so n x n numbers per layer hold all that they need. Features that do not fit in
    memory are spooled to temporary files.

    Parameters
    ----------
    model : torch.nn.Module
        Any network that takes (N, 1, X, Y, Z), in any precision.
    volumes : Cohort, sequence of Cohort, or sequence of ndarray
        A cohort, or several one after the other (twins, say), whose table is kept; or volumes of
        shape (X, Y, Z) with a known length.
    layers : sequence of str, optional
        Names or patterns such as ``"block*"``; by default the network's blocks, or a level of the
        network with at most twelve layers: see `layers`.
    pixels : bool
        Whether to add the Gram matrix of the volumes themselves, under ``"pixels"``.
    activations : sequence of str
        Layers (names or patterns, or ``"pixels"``) whose activations are returned as well.
    batch_size : int
        Largest number of volumes at a time; fewer where their activations would take more than
        half of the memory.
    compute : Compute, optional
        Where the network runs and matrices are multiplied; and the memory for the activations of
        all layers (by default 1 GB), minus what one batch needs. Further activations go to files.

    Returns
    -------
    Recording
        A mapping of layer to matrix of shape (n, n), with ``activations``, ``subjects`` and
        ``table``.

    Raises
    ------
    UnknownNameError
        If there is no such layer.
    SimbaError
        If a layer gives no tensor, runs twice or never, or gives NaN; if files or activations do
        not fit.

    Examples
    --------
    >>> import simba_lab as sb
    >>> disease, bias = (sb.Morphology(region, 2.5) for region in ("Insula_L", "Putamen_L"))
    >>> cohort = sb.synthesise(sb.Scenario(64, disease, bias, spacing_mm=8))
    >>> recording = sb.record(sb.SimBANet((4, 8), seed=0), cohort.test)
    >>> {layer: gram.shape for layer, gram in recording.items()}
    {'pixels': (16, 16), 'block1': (16, 16), 'block2': (16, 16)}
    """
    compute = compute or Compute()
    memory_gb = compute.memory(1.0)
    whole_number("batch_size", batch_size)
    kept_layers = []
    for pattern in activations:
        kept_layers += [PIXELS] if pattern == PIXELS else layer_names(model, [pattern])
    names = [] if layers is None else layer_names(model, layers)
    sources = _sources(volumes)
    count = _count(sources)
    network, device, precision = compute.placed(model)
    with (
        evaluating(network),
        deterministic(),
        TemporaryDirectory(prefix="simba-lab-") as folder,
        torch.no_grad(),
    ):
        arrays = _arrays(sources, device)
        first_volume, reserved_gb = np.asarray(next(arrays), np.float32), 0.0
        names = default_layers(network, first_volume) if layers is None else names
        names += [name for name in kept_layers if name not in names and name != PIXELS]
        if batch_size > 1 and batch_size * first_volume.nbytes > LARGE_BATCH:
            volume = torch.from_numpy(first_volume)[None, None].to(device, precision)
            needed = largest_call(network, volume)
            batch_size = max(1, min(batch_size, int(memory_gb * 1e9 / 2 // needed)))
            reserved_gb = batch_size * needed / 1e9
        spool = Spool(count, Path(folder), memory_gb, device, reserved_gb)
        with hooked(network, names, of_tensors(spool.add)):
            for batch in batches(chain([first_volume], arrays), batch_size):
                if pixels or PIXELS in kept_layers:
                    spool.add(PIXELS, batch)
                outcome_of(network, batch.to(device, precision))  # the hooks see it all
        kept = {name: spool.kept(name) for name in kept_layers}
        grams = {name: spool.gram(name) for name in ([PIXELS] if pixels else []) + names}
    return Recording(grams, kept, _subjects(sources), _table(sources))


def _sources(volumes: Cohort | Sequence[Cohort] | Iterable[np.ndarray]) -> list:
    """Return the cohorts, or the only cohort or sequence of arrays."""
    if isinstance(volumes, list | tuple) and volumes and all(map(_is_cohort, volumes)):
        return list(volumes)
    return [volumes]


def _is_cohort(source: object) -> bool:
    return hasattr(source, "volumes")


def _count(sources: list) -> int:
    """Return the number of volumes, at least two."""
    if not all(hasattr(source, "__len__") for source in sources):
        remedy = "Make a list of them, or pass a cohort."
        raise SimbaError("volumes", type(sources[0]).__name__, "of a known length", remedy)
    count = sum(map(len, sources))
    if count < 2:
        raise SimbaError("volumes", Words(f"{count} volumes"), "at least 2 volumes")
    return count


def _arrays(sources: list, device: torch.device) -> Iterator[np.ndarray]:
    """Iterate over all volumes; those of a cohort are rendered where the network runs."""
    for source in sources:
        yield from source.volumes(device=str(device)) if _is_cohort(source) else source


def _subjects(sources: list) -> np.ndarray | None:
    """Return whose volumes these are: a number, or seed and number for several populations."""
    if not all(hasattr(source, "table") for source in sources):
        return None
    numbers = [source.table.index.to_numpy() for source in sources]
    seeds = [getattr(source, "seed", 0) for source in sources]
    if len(set(seeds)) > 1:  # the first subject of one seed is not the first of another
        numbers = [
            [f"{seed}/{number}" for number in index]
            for seed, index in zip(seeds, numbers, strict=True)
        ]
    return np.concatenate(numbers)


def _table(sources: list) -> pd.DataFrame | None:
    """Return the table of the rows: that of the only cohort, or the union of several."""
    if not all(hasattr(source, "table") for source in sources):
        return None
    if len(sources) == 1:
        return sources[0].table
    return pd.concat([source.table.assign(cohort=k) for k, source in enumerate(sources)])
