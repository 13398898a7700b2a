"""The network that an attribution explains: a private copy with one number per volume."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import torch
from torch import nn

from simba_lab.core.errors import SimbaError
from simba_lab.core.network_adapter import Adapter, copied, responded, unwrapped
from simba_lab.core.rng import stream
from simba_lab.interpretation.hooks import hooked
from simba_lab.training.networks import logit


class ExplainedNetwork(nn.Module):
    """A private copy of a network that gives one number per volume and needs no weight gradients.

    Parameters
    ----------
    model : torch.nn.Module
        Any network that takes (N, 1, X, Y, Z). The copy is in evaluation mode; the network itself
        is not changed.
    target : int, optional
        The output to explain; by default the logit of the disease, see
        `simba_lab.training.networks.logit`.
    """

    def __init__(self, model: nn.Module, target: int | None = None) -> None:
        super().__init__()
        self.network, self.target = copied(unwrapped(model)).float(), target
        self.eval().requires_grad_(False)
        self.repeated: list[InTurn] = []
        _simplify_norms(self)
        for layer in self.modules():
            if isinstance(layer, nn.Conv3d):  # a third faster
                # The stubs of PyTorch know the memory format of tensors only.
                layer.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]

    def layer(self, name: str) -> str:
        """Return the name of a submodule of the network as users know it."""
        return name.removeprefix("network.") if isinstance(self.network, Adapter) else name

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the output for each volume, shape (N,)."""
        for layer in self.repeated:
            layer.next = 0
        output = responded(self.network, x)
        if self.target is None:
            return logit(output)
        columns = output.shape[1] if output.ndim == 2 else 1
        if not 0 <= self.target < columns:
            allowed = f"an integer from 0 to {columns - 1}, an output of the network"
            raise SimbaError("target", self.target, allowed)
        return output[:, self.target] if output.ndim == 2 else output


class InTurn(nn.Module):
    """Stands for a layer that the network calls several times: each call has a module of its own.

    The hooks of DeepLIFT keep one input for each module. `ExplainedNetwork` starts with the first
    again.
    """

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers, self.next = nn.ModuleList(layers), 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return what the module of this call makes of its input."""
        self.next += 1
        return self.layers[self.next - 1](x)


class _Affine(nn.Module):
    """Batch normalisation with fixed statistics; its derivative needs no activations."""

    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(self, norm: nn.BatchNorm3d, mean: torch.Tensor, variance: torch.Tensor) -> None:
        super().__init__()
        scale = torch.rsqrt(variance + norm.eps)
        shift = -mean * scale
        if norm.affine:
            scale, shift = scale * norm.weight, shift * norm.weight + norm.bias
        self.register_buffer("scale", scale.detach().view(-1, 1, 1, 1))
        self.register_buffer("shift", shift.detach().view(-1, 1, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.addcmul(self.shift, x, self.scale)


def _simplify_norms(parent: nn.Module) -> None:
    for name, child in parent.named_children():
        watched = child._forward_hooks or child._forward_pre_hooks
        if type(child) is nn.BatchNorm3d and not watched:
            mean, variance = child.running_mean, child.running_var
            if mean is not None and variance is not None:
                parent._modules[name] = _Affine(child, mean, variance)
        else:
            _simplify_norms(child)


def activation_bytes(explained: ExplainedNetwork, volume: torch.Tensor) -> tuple[float, float]:
    """Return the bytes of all activations that a gradient of one volume keeps, and of the largest.

    The shapes are worked out without numbers (on PyTorch's device ``meta``), so that nothing large
    is ever allocated; a network whose flow depends on numbers is run.
    """
    try:
        return _saved_bytes(copied(explained).to("meta"), volume.to("meta"))
    except (RuntimeError, SimbaError):
        # No blank volume: a network that scales its input cannot take one.
        ramp = torch.linspace(0, 1, volume.numel(), device=volume.device)
        return _saved_bytes(explained, ramp.reshape(volume.shape))


def _saved_bytes(explained: ExplainedNetwork, volume: torch.Tensor) -> tuple[float, float]:
    saved: dict[int, torch.UntypedStorage] = {}
    weights = {
        tensor.untyped_storage()._cdata
        for tensor in (*explained.parameters(), *explained.buffers())
    }

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            saved[storage._cdata] = storage
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        explained(volume.detach().requires_grad_())
    sizes = [storage.nbytes() for storage in saved.values()]
    return float(sum(sizes)), float(max([*sizes, volume.nbytes]))


def check_differentiable(explained: ExplainedNetwork, volume: torch.Tensor) -> None:
    """Refuse a network through which no derivative reaches the voxels; the error names the layer.

    Raises
    ------
    SimbaError
        If a layer gives a result without a derivative, or one of zero although its result changes.
    """
    outputs: list[tuple[str, torch.Tensor]] = []
    leaves = [
        name for name, module in explained.named_modules() if name and not [*module.children()]
    ]

    def note(name: str, _inputs: tuple, output: object) -> None:
        if isinstance(output, torch.Tensor):
            if output.requires_grad:
                output.retain_grad()
            outputs.append((explained.layer(name.removeprefix("network.")), output))

    x = volume.detach().requires_grad_()
    with torch.enable_grad(), hooked(explained, leaves, note):
        answer = explained(x.clone())
    if not answer.requires_grad:
        constants = (name for name, output in outputs if not output.requires_grad)
        _refuse(next(constants, "after the last layer"))
    answer.sum().backward()
    if x.grad is not None and x.grad.abs().max() > 0:
        return
    with torch.no_grad():
        if torch.equal(explained(2 * volume + 1), answer):
            return  # the network is a constant
    # The derivative is lost in the layer after the last one whose output no longer matters.
    silent = [
        position
        for position, (_, output) in enumerate(outputs)
        if output.grad is None or not output.grad.any()
    ]
    lost = min(max(silent, default=-1) + 1, len(outputs) - 1)
    _refuse(outputs[lost][0] if outputs else "forward")


def _refuse(layer: str) -> NoReturn:
    remedy = (
        "Use a smooth layer (a sigmoid, say), or occlusion or shapley, which need no derivative."
    )
    problem = f"The output has no derivative by the voxels: it is lost at layer {layer}."
    raise SimbaError.problem(problem, remedy)


@contextmanager
def seeded(seed: int, subject: int | str, purpose: str) -> Iterator[None]:
    """Give Captum, which draws from the global generator, a stream of its own for a while."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(stream(seed, subject, purpose).integers(0, 2**62)))
        yield
