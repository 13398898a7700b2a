"""Twins side by side: the same subjects without an effect and with it, batch by batch, with their activations."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from simba_lab.core.cohort import effect_of, with_twins
from simba_lab.core.compute import deterministic, evaluating
from simba_lab.core.errors import SimbaError
from simba_lab.interpretation.hooks import edit, largest_call, layer_names
from simba_lab.training.networks import GroupRouted

if TYPE_CHECKING:
    from simba_lab.core.cohort import Cohort

# Copies of the activations that are alive at a time: those of both twins, a mixture, and what
# autograd or a copy needs.
COPIES = 4


def twins_of(cohort: Cohort | Sequence[Cohort], without: str) -> tuple[Cohort, Cohort]:
    """Return the subjects without an effect and with it; twins that were given must differ in nothing else.

    Parameters
    ----------
    cohort : Cohort, or two of them
        Subjects, whose twins are made; or twins that somebody made: without the effect, and with
        it.
    without : str
        The effect to switch.

    Raises
    ------
    SimbaError
        If the twins are not of the same subjects in the same order, or differ in another effect
        too; it names the first subject and the effect.
    """
    if not isinstance(cohort, list | tuple):
        if len(cohort) < 2:
            raise SimbaError("cohort", f"{len(cohort)} subjects", "at least 2 subjects")
        cohort = effect_of(cohort, without)
        return cohort.twin(without=without), cohort.twin(carrying=without)
    if len(cohort) != 2:
        raise SimbaError("twins", f"{len(cohort)} cohorts", "two: without the effect, and with it")
    off, on = cohort
    remedy = f"Pass one cohort; its twins are cohort.twin(without={without!r}) and cohort.twin(carrying={without!r})."
    with_twins(on, "twins")
    effect_of(with_twins(off, "twins"), without)
    if len(off) < 2:
        raise SimbaError("twins", f"{len(off)} subjects", "at least 2 subjects")
    if off.identity != on.identity or not off.table.equals(on.table):
        raise SimbaError(
            "twins", "different subjects", "the same subjects in the same order", remedy
        )
    for index in range(len(off)):
        before, after = off.magnitudes(index), on.magnitudes(index)
        who = f"subject {off.table.index[index]}"
        if before[without] != 0 or after[without] == 0:
            shown = f"{who} with {without} at {before[without]:.3g} and at {after[without]:.3g}"
            raise SimbaError(
                "twins",
                shown,
                f"without {without} in the first cohort and with it in the second",
                remedy,
            )
        others = [name for name in before if name != without and before[name] != after[name]]
        if others:
            shown = f"{who} that differs in {', '.join(others)} too"
            raise SimbaError("twins", shown, f"different in {without} only", remedy)
    return off, on


@contextmanager
def noting(model: nn.Module, layers: Sequence[str]) -> Iterator[dict[str, torch.Tensor]]:
    """Fill a dictionary with copies of the activations of each layer, while the network runs once, within a ``with``.

    They are copies, since a later layer that works in place would write over what was noted.
    """
    found: dict[str, torch.Tensor] = {}

    def note(name: str):
        def call(output: torch.Tensor) -> torch.Tensor:
            if name in found:
                raise SimbaError(
                    f"layer {name}",
                    "called more than once per volume",
                    "called once per volume",
                    "What the network uses repeatedly cannot be replaced under one name: name a layer inside or after it.",
                )
            found[name] = output.detach().clone()
            return output

        return call

    with edit(model, {name: note(name) for name in layers}):
        yield found
    missing = [name for name in layers if name not in found]
    if missing:
        raise SimbaError(
            f"layer {missing[0]}",
            "never run",
            "run for each volume",
            "The network does not use it.",
        )


@contextmanager
def ready(model: nn.Module, device: str) -> Iterator[tuple[nn.Module, torch.device, torch.dtype]]:
    """Yield the network in evaluation mode where it is to run, that device, and the precision of the network."""
    if isinstance(model, GroupRouted):
        raise SimbaError(
            "model",
            "GroupRouted",
            "one network for everybody",
            f"Twins that differ in {model.by} go through different networks: look at model.networks one by one.",
        )
    where = torch.device(
        ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    )
    there = model if where.type == "cpu" else copy.deepcopy(model).to(where)
    kind = next(
        (value.dtype for value in there.parameters() if value.is_floating_point()), torch.float32
    )
    with ExitStack() as stack:
        for context in (evaluating(there), deterministic(), torch.no_grad()):
            stack.enter_context(context)
        yield there, where, kind


def batch_that_fits(
    model: nn.Module, volume: torch.Tensor, layers: Sequence[str], batch_size: int, memory_gb: float
) -> tuple[int, dict[str, tuple[int, ...]]]:
    """Return how many subjects fit in memory at a time, at most `batch_size`, and the shape of each layer's activations.

    Parameters
    ----------
    model : torch.nn.Module
    volume : tensor, shape (1, 1, X, Y, Z)
    layers : sequence of str
    batch_size : int
    memory_gb : float

    Raises
    ------
    SimbaError
        If not even one subject fits; it says how much one needs.
    """
    if (
        isinstance(batch_size, bool)
        or not isinstance(batch_size, int | np.integer)
        or batch_size < 1
    ):
        raise SimbaError("batch_size", batch_size, "an integer of at least 1")
    with noting(model, layers) as found:
        largest = largest_call(model, volume)
    need = 2 * volume.nbytes + largest + COPIES * sum(value.nbytes for value in found.values())
    if need > memory_gb * 1e9:
        raise SimbaError(
            "memory_gb",
            memory_gb,
            f"at least {float(f'{1.01 * need / 1e9:.3g}')}: one subject and its activations need it",
            "Raise it, or name fewer layers.",
        )
    return int(min(batch_size, memory_gb * 1e9 // need)), {
        name: tuple(value.shape[1:]) for name, value in found.items()
    }


def chosen_layers(model: nn.Module, layers: Sequence[str] | None) -> list[str]:
    """Return the layers to look at; at least one."""
    names = layer_names(model, layers)
    if not names:
        raise SimbaError(
            "layers", layers, "at least one layer", "The network has no blocks: name its layers."
        )
    return names


def batches(*cohorts: Cohort, size: int) -> Iterator[tuple[slice, tuple[torch.Tensor, ...]]]:
    """Iterate over subjects: which, and a tensor (N, 1, X, Y, Z) of each cohort's volumes."""
    sources, count = [cohort.volumes() for cohort in cohorts], len(cohorts[0])
    for start in range(0, count, size):
        rows = slice(start, min(start + size, count))
        stacked = (
            np.stack([next(source) for _ in range(rows.start, rows.stop)]) for source in sources
        )
        yield rows, tuple(torch.from_numpy(volumes)[:, None] for volumes in stacked)


def share_with_interval(
    values: np.ndarray, total: np.ndarray, draws: np.ndarray
) -> dict[str, float]:
    """Return mean(values) / mean(total) with its 95 % bootstrap interval over subjects; NaN where there is no total.

    A ratio whose denominator may be zero has no bounded interval (Fieller 1954, J. R. Stat. Soc. B
    16:175-185): where the interval of the total contains zero, the ends are NaN.

    Parameters
    ----------
    values, total : ndarray, shape (n,)
    draws : ndarray of int, shape (b, n)
        Rows of each bootstrap sample.
    """
    nothing = {"share": np.nan, "share_low": np.nan, "share_high": np.nan}
    if abs(total.mean()) <= 1e-6:
        return nothing
    below = total[draws].mean(axis=1)
    low, high = np.quantile(below, [0.025, 0.975])
    row = nothing | {"share": float(values.mean() / total.mean())}
    if low * high > 0:
        row["share_low"], row["share_high"] = np.quantile(
            values[draws].mean(axis=1) / below, [0.025, 0.975]
        )
    return row


def mean_with_interval(name: str, values: np.ndarray, draws: np.ndarray) -> Mapping[str, float]:
    """Return the mean of some values with its 95 % bootstrap interval over subjects, as three columns."""
    low, high = np.quantile(values[draws].mean(axis=1), [0.025, 0.975])
    return {name: float(values.mean()), f"{name}_low": low, f"{name}_high": high}
