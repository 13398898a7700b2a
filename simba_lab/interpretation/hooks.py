"""Hooks on the layers of any network: to look at activations, and to edit them on their way.

This is the only module that registers hooks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase

import torch
from torch import nn

from simba_lab.core.errors import SimbaError, UnknownNameError

# A hook takes layer, inputs and output, and returns what replaces the output, or None.
Hook = Callable[[str, tuple, object], torch.Tensor | None]


def layer_names(model: nn.Module, layers: Sequence[str] | None = None) -> list[str]:
    """Return the names of the layers that match `layers`, or of the network's blocks.

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
        return [name for name, child in model.named_children() if list(child.parameters())]
    chosen: list[str] = []
    for pattern in layers:
        matching = [name for name in known if fnmatchcase(name, pattern) and name not in chosen]
        if not matching and pattern not in chosen:
            raise UnknownNameError.among("layer", pattern, known)
        chosen += matching
    return chosen


@contextmanager
def hooked(model: nn.Module, layers: Iterable[str], hook: Hook) -> Iterator[None]:
    """Call ``hook(layer, inputs, output)`` when a layer has run; a tensor it returns goes on.

    Hooks are removed on the way out, whatever happens.
    """
    modules = dict(model.named_modules())
    handles = []

    def of_layer(name: str) -> Callable:
        return lambda _module, inputs, output: hook(name, inputs, output)

    try:
        handles += [modules[name].register_forward_hook(of_layer(name)) for name in layers]
        yield
    finally:
        for handle in handles:
            handle.remove()


def of_tensors(call: Callable[[str, torch.Tensor], torch.Tensor | None]) -> Hook:
    """Return a hook that passes on the output alone, and refuses anything but a tensor."""

    def hook(layer: str, _inputs: tuple, output: object) -> torch.Tensor | None:
        if not isinstance(output, torch.Tensor):
            remedy = "Name a layer inside or after it."
            raise SimbaError(f"output of layer {layer}", type(output).__name__, "a tensor", remedy)
        return call(layer, output)

    return hook


@contextmanager
def edit(
    model: nn.Module, edits: Mapping[str, Callable[[torch.Tensor], torch.Tensor]]
) -> Iterator[nn.Module]:
    """Change activations while the network runs, within a ``with``.

    Parameters
    ----------
    model : torch.nn.Module
    edits : mapping of layer to callable
        Takes the activations of the layer, shape (N, ...), and returns those with which the network
        goes on, of the same shape. `replacing`, `adding` and `projecting_out` make such functions.

    Yields
    ------
    torch.nn.Module
        The same network.

    Raises
    ------
    UnknownNameError
        If there is no such layer.
    SimbaError
        If a layer gives no tensor, or an edit changes its shape.

    Examples
    --------
    >>> import simba_lab as sb
    >>> import torch
    >>> model, volumes = sb.SimBANet((4, 8), seed=0), torch.rand(2, 1, 16, 16, 16)
    >>> with torch.no_grad(), sb.edit(model.eval(), {"block2": torch.zeros_like}):
    ...     bool(model(volumes)[0] == model(volumes)[1])
    True
    """
    known = [name for name, _ in model.named_modules() if name]
    for layer in edits:
        if layer not in known:
            raise UnknownNameError.among("layer", layer, known)

    def edited(layer: str, output: torch.Tensor) -> torch.Tensor:
        activations = edits[layer](output)
        if not isinstance(activations, torch.Tensor) or activations.shape != output.shape:
            is_tensor = isinstance(activations, torch.Tensor)
            value = tuple(activations.shape) if is_tensor else type(activations).__name__
            allowed = f"a tensor of shape {tuple(output.shape)}"
            raise SimbaError(f"edited activations of {layer}", value, allowed)
        return activations

    with hooked(model, list(edits), of_tensors(edited)):
        yield model


def largest_call(model: nn.Module, volume: torch.Tensor) -> int:
    """Return the bytes of input and output of the largest layer for a volume (1, 1, X, Y, Z)."""
    leaves = [
        name for name, module in model.named_modules() if name and not list(module.children())
    ]
    largest = 1

    def measure(_layer: str, inputs: tuple, output: object) -> None:
        nonlocal largest
        tensors = [value for value in (*inputs, output) if isinstance(value, torch.Tensor)]
        largest = max(largest, sum(tensor.nbytes for tensor in tensors))

    with hooked(model, leaves, measure):
        model(volume)
    return largest
