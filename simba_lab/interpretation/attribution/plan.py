"""How a method runs in the memory that is allowed: how many volumes go at a time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from simba_lab.core.cohort import Cohort
from simba_lab.core.compute import Compute
from simba_lab.core.errors import SimbaError, Words
from simba_lab.core.network_adapter import Adapter, refuse_probabilities, responded
from simba_lab.interpretation.attribution.explained_network import (
    ExplainedNetwork,
    activation_bytes,
    check_differentiable,
)
from simba_lab.interpretation.attribution.methods.method import Method
from simba_lab.interpretation.attribution.split_network import SplitNetwork, split_network

MEMORY_GB = 4.0
# Most volumes in one pass through the network.
MOST_VOLUMES = 64
# Activations of one forward pass on a processor: more of them leave its caches, which costs more
# than calls do.
GRAIN_BYTES = 24e6
# Copies of a volume that a method holds besides the activations: image, baseline, difference,
# gradient, map, noise.
COPIES = 8
# With the first layer split off: its outputs at both ends, their difference, the sum over the path
# and the input of the next chunk.
HIDDEN_COPIES = 5
# Gradients and reordered copies that a layer needs beside what is saved, in units of the largest
# saved activation.
WORKSPACE = 4
# Volumes this small, as a share of the memory, may be rendered ahead and kept.
SMALL = 1 / 64


@dataclass(frozen=True, eq=False)
class Plan:
    """A method ready to run: the private copy of the network, and how much goes at a time.

    Parameters
    ----------
    method : Method
    network : SplitNetwork
    device : torch.device
    volume : tensor, shape (1, 1, X, Y, Z)
        The first subject.
    chunk : int
        Volumes in one pass through the network.
    group : int
        Subjects that are held at a time.
    keep : bool
        Whether volumes are small enough to be rendered ahead.
    in_memory : bool
        Whether the maps of all subjects fit into the memory.
    """

    method: Method
    network: SplitNetwork
    device: torch.device
    volume: torch.Tensor
    chunk: int
    group: int
    keep: bool
    in_memory: bool

    @property
    def explained(self) -> ExplainedNetwork:
        """The network that is explained."""
        return self.network.explained


def plan_of(
    model: torch.nn.Module,
    cohort: Cohort,
    method: Method,
    *,
    target: int | None = None,
    compute: Compute | None = None,
) -> Plan:
    """Check a network for a method, and plan how much fits into the memory.

    Raises
    ------
    SimbaError
        If the network does not go with the method, or not even one volume fits.
    """
    compute = compute or Compute()
    device, memory_gb = compute.torch_device(), compute.memory(MEMORY_GB)
    explained = ExplainedNetwork(model, target).to(device)
    volume = torch.zeros((1, 1, *cohort.lattice.shape), device=device)
    saved, largest = activation_bytes(explained, volume)
    allowed, image = memory_gb * 1e9, float(volume.nbytes)
    if method.differentiates:
        volume_bytes = method.activations * saved + WORKSPACE * largest
    else:
        volume_bytes = 2 * WORKSPACE * largest + 4 * image
    least = volume_bytes + COPIES * image
    if least > allowed:
        needed = f"at least {least / 1e9:.2g}, which one volume needs"
        remedy = "Use larger voxels or a smaller network."
        raise SimbaError("memory_gb", memory_gb, needed, remedy)
    volume += torch.from_numpy(np.asarray(cohort.array(0, keep=False), np.float32)).to(device)
    with torch.no_grad():
        answer = responded(explained.network, volume)
    if not torch.isfinite(answer).all():
        remedy = "Check the weights of the network, and its input volumes."
        raise SimbaError("logits", Words("NaN or infinite"), "finite", remedy)
    if target is None:
        refuse_probabilities(explained.network, volume, answer)
    method.check(explained, volume)
    if method.differentiates:
        check_differentiable(explained, volume)
    fits = least + HIDDEN_COPIES * largest <= allowed
    # An adapter changes volumes before the first layer sees them, by more than an affine step.
    whole = isinstance(explained.network, Adapter)
    network = split_network(explained, volume, split=method.splits and fits and not whole)
    held_bytes = COPIES * image + (HIDDEN_COPIES * largest if network.stand_in is not None else 0)
    free_bytes = allowed - len(cohort) * image
    in_memory = len(cohort) * image <= allowed / 2 and volume_bytes + held_bytes <= free_bytes
    free_bytes = free_bytes if in_memory else allowed
    grain = max(1, int(GRAIN_BYTES // max(saved, 1))) if device.type == "cpu" else MOST_VOLUMES
    chunk = int(max(1, min(MOST_VOLUMES, grain, (free_bytes - held_bytes) // volume_bytes)))
    group = max(1, chunk // method.passes) if method.differentiates else 1
    while group > 1 and chunk * volume_bytes + group * held_bytes > free_bytes:
        group -= 1
    return Plan(method, network, device, volume, chunk, group, image <= SMALL * allowed, in_memory)
