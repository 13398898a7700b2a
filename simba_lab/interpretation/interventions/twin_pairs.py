"""Twins side by side: the same subjects without an effect and with it, and their activations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from simba_lab.core.cohort import Cohort, TwinCohort, effect_of, with_twins
from simba_lab.core.compute import Compute, deterministic, evaluating
from simba_lab.core.errors import SimbaError, Words
from simba_lab.core.network_adapter import Adapter, refuse_probabilities, responded, unwrapped
from simba_lab.interpretation.hooks import check_heeded, editing, largest_call, layer_names
from simba_lab.interpretation.layer_table import default_layers, first_volume
from simba_lab.training.group_routed import GroupRouted
from simba_lab.training.networks import logit
from simba_lab.training.predictions import finite

MEMORY_GB = 1.0
# Most subjects that go through a network at a time.
BATCH_SIZE = 16
# Copies of the activations that are alive at a time: those of both twins, a mixture, and what
# autograd or a copy needs.
COPIES = 4


def twins_of(cohort: Cohort | Sequence[Cohort], effect: str) -> tuple[TwinCohort, TwinCohort]:
    """Return the subjects without an effect and with it.

    Parameters
    ----------
    cohort : Cohort, or two of them
        Subjects, whose twins are made; or twins: without the effect, and with it.
    effect : str
        The effect to switch.

    Raises
    ------
    SimbaError
        If the twins are not of the same subjects in the same order, or differ in another effect
        too; it names the first subject and the effect.
    """
    if not isinstance(cohort, Cohort):
        if len(cohort) != 2:
            allowed = "two: without the effect, and with it"
            raise SimbaError("twins", Words(f"{len(cohort)} cohorts"), allowed)
        off, on = (with_twins(twins, "twins") for twins in cohort)
        _check_twins(off, on, effect)
        return off, on
    if len(cohort) < 2:
        raise SimbaError("cohort", Words(f"{len(cohort)} subjects"), "at least 2 subjects")
    twins = effect_of(cohort, effect)
    return twins.twin(without=effect), twins.twin(carrying=effect)


def _check_twins(off: TwinCohort, on: TwinCohort, effect: str) -> None:
    remedy = (
        "Pass one cohort, or its twins: "
        f"cohort.twin(without={effect!r}) and cohort.twin(carrying={effect!r})."
    )
    effect_of(off, effect)
    if len(off) < 2:
        raise SimbaError("twins", Words(f"{len(off)} subjects"), "at least 2 subjects")
    if off.identity != on.identity or not off.table.equals(on.table):
        allowed = "the same subjects in the same order"
        raise SimbaError("twins", Words("different subjects"), allowed, remedy)
    for index, subject in enumerate(off.table.index):
        before, after = off.magnitudes(index), on.magnitudes(index)
        if before[effect] != 0 or after[effect] == 0:
            magnitudes = f"{before[effect]:.3g} and at {after[effect]:.3g}"
            value = f"subject {subject} with {effect} at {magnitudes}"
            allowed = f"without {effect} in the first cohort and with it in the second"
            raise SimbaError("twins", Words(value), allowed, remedy)
        differing = [name for name in before if name != effect and before[name] != after[name]]
        if differing:
            value = f"subject {subject}, which differs in {', '.join(differing)} too"
            raise SimbaError("twins", Words(value), f"different in {effect} only", remedy)


def check_disjoint(train: Cohort, test: Cohort, field: str = "test") -> None:
    """Refuse two cohorts that share a subject; `field` names the second in the message."""
    shared = train.shared_subjects(test)
    if len(shared):
        remedy = "Take another split, or make subjects with another seed: synthesise(..., seed=1)."
        problem = f"The cohort {field} has subject {shared[0]}, which is in both cohorts."
        raise SimbaError.problem(problem, remedy)


def chosen_layers(model: nn.Module, layers: Sequence[str] | None, cohort: Cohort) -> list[str]:
    """Return the layers to look at; at least one. By default the cohort's first volume is run."""
    _refuse_routed(unwrapped(model))
    names = [] if layers is None else layer_names(model, layers)
    if layers is None:
        names = default_layers(model, first_volume(cohort))
    if not names:
        remedy = "The network has no blocks: name its layers."
        raise SimbaError("layers", layers, "at least one layer", remedy)
    return names


def _refuse_routed(model: nn.Module) -> None:
    if isinstance(model, GroupRouted):
        raise SimbaError(
            "model",
            "GroupRouted",
            "one network for all subjects",
            f"It has one for each value of {model.by}: look at model.networks one by one.",
        )


@dataclass(frozen=True, eq=False)
class Network:
    """A network in evaluation mode on its device.

    Parameters
    ----------
    model : torch.nn.Module
    device : torch.device
    dtype : torch.dtype
        The precision of its weights.
    memory_gb : float
    """

    model: nn.Module
    device: torch.device
    dtype: torch.dtype
    memory_gb: float

    def logits(self, volumes: torch.Tensor) -> np.ndarray:
        """Return the logit of each volume, float64, shape (N,)."""
        answer = responded(self.model, volumes)
        return finite(logit(answer).double().cpu().numpy())

    def placed(self, volumes: torch.Tensor) -> torch.Tensor:
        """Return volumes on the device, in the precision of the network."""
        return volumes.to(self.device, self.dtype)

    def as_seen(self, masks: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return masks of the scans, bool (N, X, Y, Z), on the lattice that the network sees."""
        if not isinstance(self.model, Adapter):
            return masks
        return {
            name: self.model.as_seen(mask[:, None].float(), nearest=True)[:, 0] > 0.5
            for name, mask in masks.items()
        }

    def batch_size(
        self, cohort: Cohort, layers: Sequence[str]
    ) -> tuple[int, dict[str, tuple[int, ...]]]:
        """Return how many subjects fit in memory at a time, and each layer's shape of activations.

        Raises
        ------
        SimbaError
            If not even one subject fits; it says how much one needs.
        """
        volume = self.placed(torch.from_numpy(cohort.array(0))[None, None])
        refuse_probabilities(self.model, volume, responded(self.model, volume))
        check_heeded(self.model, layers, (volume,), {})
        with noting(self.model, layers) as activations:
            largest = largest_call(self.model, volume)
        noted = sum(output.nbytes for output in activations.values())
        needed = 2 * volume.nbytes + largest + COPIES * noted
        if needed > self.memory_gb * 1e9:
            least = float(f"{1.01 * needed / 1e9:.3g}")
            allowed = f"at least {least}, which one subject and its activations need"
            remedy = "Raise it, or name fewer layers."
            raise SimbaError("memory_gb", self.memory_gb, allowed, remedy)
        shapes = {layer: tuple(output.shape[1:]) for layer, output in activations.items()}
        return int(min(BATCH_SIZE, self.memory_gb * 1e9 // needed)), shapes


@contextmanager
def running(model: nn.Module, compute: Compute | None) -> Iterator[Network]:
    """Yield a network ready to run, without gradients and with fixed threads, within a ``with``."""
    _refuse_routed(model := unwrapped(model))
    compute = compute or Compute()
    placed, device, dtype = compute.placed(model)
    with ExitStack() as stack:
        for context in (evaluating(placed), deterministic(compute.threads), torch.no_grad()):
            stack.enter_context(context)
        yield Network(placed, device, dtype, compute.memory(MEMORY_GB))


@contextmanager
def noting(model: nn.Module, layers: Sequence[str]) -> Iterator[dict[str, torch.Tensor]]:
    """Fill a dictionary with the activations of layers while the network runs once.

    They are copies, since a later layer that works in place would overwrite them.
    """
    activations: dict[str, torch.Tensor] = {}

    def note(layer: str) -> Callable[[torch.Tensor], torch.Tensor]:
        def call(output: torch.Tensor) -> torch.Tensor:
            activations[layer] = output.detach().clone()
            return output

        return call

    with editing(model, {layer: note(layer) for layer in layers}):
        yield activations
