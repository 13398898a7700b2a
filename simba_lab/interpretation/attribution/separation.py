"""What hooks on layers need: each call of an activation a module of its own, nothing in place."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from captum.attr._core.deep_lift import SUPPORTED_NON_LINEAR
from torch import nn
from torch.nn.modules.pooling import _MaxPoolNd

from simba_lab.core.errors import SimbaError
from simba_lab.core.network_adapter import copied, with_gradients
from simba_lab.interpretation.attribution.explained_network import ExplainedNetwork, InTurn
from simba_lab.interpretation.hooks import hooked

# What autograd calls operations that are not linear, when they are no layers.
NON_LINEAR = (
    *("Relu", "LeakyRelu", "Elu", "Gelu", "Silu", "Mish", "Sigmoid", "Tanh", "Softplus", "Softmax"),
    *("Hardtanh", "Pow", "Exp", "Abs", "Sqrt", "Clamp", "Maximum", "MaxPool3DWithIndices"),
)


class _Copy(nn.Module):
    """Keeps the hooks of two layers apart, which would else read the same tensor."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.clone()


def without_in_place(explained: ExplainedNetwork, volume: torch.Tensor) -> None:
    """Let no layer of a private copy write over its input.

    Raises
    ------
    SimbaError
        If the output changes with that: the network counts on what a layer wrote.
    """
    named = explained.network.named_modules()
    working = [name for name, layer in named if getattr(layer, "inplace", False) is True]
    if not working:
        return
    with torch.no_grad():
        before = explained(volume)
        for name in working:
            explained.network.get_submodule(name).inplace = False  # type: ignore[assignment]
        same = torch.allclose(before, explained(volume), rtol=1e-4, atol=1e-5)
    if not same:
        problem = f"Layer {explained.layer(working[0])} works in place on what others read."
        remedy = "Write the network without inplace=True, or take another method."
        raise SimbaError.problem(problem, remedy)


def separate(explained: ExplainedNetwork, volume: torch.Tensor) -> None:
    """Give each call of an activation a module of its own, and each max pooling its own input."""
    calls: Counter[str] = Counter()
    places: dict[str, list[tuple[nn.Module, str]]] = {}
    names = {layer: name for name, layer in explained.network.named_modules()}
    for parent in explained.modules():
        for key, child in parent._modules.items():
            if child is not None and type(child) in SUPPORTED_NON_LINEAR:
                places.setdefault(names.get(child, ""), []).append((parent, key))
    with torch.no_grad(), hooked(explained.network, places, lambda name, *_: calls.update([name])):
        explained(volume)
    for name, parents in places.items():
        layer = explained.network.get_submodule(name)
        replaced: nn.Module = layer
        if isinstance(layer, _MaxPoolNd):
            replaced = nn.Sequential(_Copy(), layer)
        if calls[name] > 1:
            replaced = InTurn([copied(replaced) for _ in range(calls[name])])
            explained.repeated.append(replaced)
        for parent, key in parents:
            parent._modules[key] = replaced


def graph_of(explained: ExplainedNetwork, volume: torch.Tensor) -> tuple[dict[Any, str], list[Any]]:
    """Return the operation that ends each layer with its name, and all operations of the output."""
    ends: dict[Any, str] = {}
    layers = [name for name, layer in explained.network.named_modules() if not [*layer.children()]]

    def note(name: str, _inputs: tuple, output: object) -> None:
        if isinstance(output, torch.Tensor) and output.grad_fn is not None:
            ends[output.grad_fn] = explained.layer(name)

    with with_gradients(), hooked(explained.network, filter(None, layers), note):
        answer = explained(volume.detach().clone().requires_grad_())
    waiting, seen = [answer.grad_fn], set[Any]()
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [parent for parent, _ in node.next_functions]
    return ends, list(seen)


def operation(node: Any) -> str:
    """Return what autograd calls an operation, such as ``Relu``."""
    return node.name().rstrip("0123456789").removesuffix("Backward")


def layer_before(node: Any, ends: dict[Any, str]) -> str:
    """Return the layer whose output reaches an operation first."""
    waiting = [node]
    for node in waiting:
        for parent, _ in node.next_functions:
            if parent in ends:
                return f"after layer {ends[parent]}"
            if parent is not None:
                waiting.append(parent)
    return "before the first layer"


def without_rule(explained: ExplainedNetwork, volume: torch.Tensor) -> str:
    """Return a layer, or an operation between layers, for which DeepLIFT has no rule here."""
    for name, layer in explained.network.named_modules():
        if isinstance(layer, _MaxPoolNd) and layer.kernel_size != layer.stride:
            name = explained.layer(name.removesuffix(".1"))
            return f"layer {name} ({type(layer).__name__} whose windows overlap)"
    inputs: dict[str, torch.Tensor] = {}
    leaves = [name for name, layer in explained.network.named_modules() if not [*layer.children()]]

    def note(name: str, given: tuple, _output: object) -> None:
        inputs.setdefault(name, *given[:1])

    with torch.no_grad(), hooked(explained.network, filter(None, leaves), note):
        explained(volume)
    for name, value in inputs.items():
        layer = explained.network.get_submodule(name)
        if type(layer) not in SUPPORTED_NON_LINEAR and not _is_affine(layer, value):
            return f"layer {explained.layer(name)} ({type(layer).__name__})"
    ends, operations = graph_of(explained, volume)
    for node in operations:
        if operation(node) in NON_LINEAR and node not in ends:
            return f"{operation(node).lower()} as a function, {layer_before(node, ends)}"
    return "an operation between the layers"


def _is_affine(layer: nn.Module, value: torch.Tensor) -> bool:
    with torch.no_grad():
        other = -0.7 * value.flip(-1) + 0.1
        sums = layer(value) + layer(other), layer(value + other) + layer(torch.zeros_like(value))
    if not all(isinstance(entry, torch.Tensor) for entry in sums):
        return True
    return torch.allclose(*sums, rtol=1e-3, atol=1e-4 * float(sums[0].abs().max()))
