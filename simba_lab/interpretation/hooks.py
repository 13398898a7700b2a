"""Hooks on the layers of any network: to look at activations, and to edit them on their way.

This is the only module that registers hooks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase

import torch
from torch import nn

from simba_lab.core.errors import SimbaError, UnknownNameError
from simba_lab.core.layer_naming import core_of, layers_by_name
from simba_lab.core.network_adapter import answer_of, bare_copy, eager, unwrapped, with_gradients

# A hook takes layer, inputs and output, and returns what replaces the output, or None.
Hook = Callable[[str, tuple, object], torch.Tensor | None]


def layer_names(model: nn.Module, layers: Sequence[str] | None = None) -> list[str]:
    """Return the names of the layers that match `layers`, or of the network's blocks.

    Parameters
    ----------
    model : torch.nn.Module
        Layers have the names that they have in the network itself, without those of wrappers.
    layers : sequence of str, optional
        Submodule names or patterns such as ``"block*"``. By default the attribute ``blocks`` of the
        network, or its direct children that have parameters.
    """
    known = layers_by_name(model)
    if layers is None:
        prefix, core = core_of(model)
        default = getattr(core, "blocks", None)
        if not (isinstance(default, list | tuple) and all(isinstance(n, str) for n in default)):
            default = [name for name, child in core.named_children() if list(child.parameters())]
        modules = dict(core.named_modules())
        return [n if known.get(n) is modules.get(n) else f"{prefix}{n}" for n in default]
    modules_of_names: dict[int, str] = {}
    for pattern in [layers] if isinstance(layers, str) else layers:
        matching = [name for name in known if fnmatchcase(name, pattern)]
        if not matching:
            raise UnknownNameError.among("layer", pattern, known)
        for name in matching:  # a layer within a wrapper has several names
            modules_of_names.setdefault(id(known[name]), name)
    return list(modules_of_names.values())


@contextmanager
def hooked(model: nn.Module, layers: Iterable[str], hook: Hook) -> Iterator[None]:
    """Call ``hook(layer, inputs, output)`` when a layer has run; a tensor it returns goes on.

    Hooks are removed on the way out, whatever happens.
    """
    modules = layers_by_name(model)
    handles = []

    def of_layer(name: str) -> Callable:
        return lambda _module, inputs, output: hook(name, inputs, output)

    try:
        handles += [modules[name].register_forward_hook(of_layer(name)) for name in layers]
        with eager():
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
        If a layer gives no tensor, or an edit changes its shape; and when the network runs, if a
        layer does not run exactly once, or the network reads its activations past the edit.

    Examples
    --------
    >>> import simba_lab as sb
    >>> import torch
    >>> model, volumes = sb.SimBANet((4, 8), seed=0), torch.rand(2, 1, 16, 16, 16)
    >>> with torch.no_grad(), sb.edit(model.eval(), {"block2": torch.zeros_like}):
    ...     bool(model(volumes)[0] == model(volumes)[1])
    True
    """
    names = layers_by_name(model)
    for layer in edits:
        if layer not in names:
            raise UnknownNameError.among("layer", layer, names)
    with editing(model, edits, check=True):
        yield model


@contextmanager
def editing(
    model: nn.Module,
    edits: Mapping[str, Callable[[torch.Tensor], torch.Tensor]],
    *,
    check: bool = False,
) -> Iterator[None]:
    """Do what `edit` does; `check` is whether the first run shows that the network heeds edits."""
    network, calls, checked = unwrapped(model), Counter[str](), not check

    def begin(_module: nn.Module, inputs: tuple, options: dict) -> None:
        nonlocal checked
        calls.clear()
        if not checked:
            checked = True
            check_heeded(network, list(edits), inputs, options)

    def edited(layer: str, output: torch.Tensor) -> torch.Tensor:
        calls[layer] += 1
        if calls[layer] > 1:
            raise _not_once(layer, "called more than once")
        activations = edits[layer](output)
        if not isinstance(activations, torch.Tensor) or activations.shape != output.shape:
            is_tensor = isinstance(activations, torch.Tensor)
            value = tuple(activations.shape) if is_tensor else type(activations).__name__
            allowed = f"a tensor of shape {tuple(output.shape)}"
            raise SimbaError(f"edited activations of {layer}", value, allowed)
        return activations

    def end(_module: nn.Module, _inputs: tuple, _output: object) -> None:
        for layer in edits:
            if not calls[layer]:
                raise _not_once(layer, "never called")
        calls.clear()

    handles = [
        network.register_forward_pre_hook(begin, with_kwargs=True),
        network.register_forward_hook(end),
    ]
    try:
        with hooked(network, list(edits), of_tensors(edited)):
            yield
    finally:
        for handle in handles:
            handle.remove()


def _not_once(layer: str, problem: str) -> SimbaError:
    remedy = "Name a layer inside or after it, which each run of the network calls once."
    return SimbaError(f"layer {layer}", problem, "called once per volume", remedy)


def check_heeded(
    model: nn.Module, layers: Sequence[str], inputs: tuple, options: Mapping[str, object]
) -> None:
    """Refuse layers whose output the network does not use, or reads past an edit too.

    A trial run of one volume puts a copy in the place of each output. The answer must depend on the
    copy, and not on what it replaced. It runs without numbers (on PyTorch's device ``meta``) where
    the network can.
    """
    devices = dict.fromkeys(["meta", *(str(x.device) for x in inputs if hasattr(x, "device"))])
    for device in devices:
        try:
            _check_heeded(bare_copy(unwrapped(model), device), layers, inputs, options, device)
        except SimbaError:
            raise
        except Exception:
            continue
        return


def _check_heeded(
    trial: nn.Module, layers: Sequence[str], inputs: tuple, options: Mapping, device: str
) -> None:
    originals: dict[str, torch.Tensor] = {}
    copies: dict[str, torch.Tensor] = {}
    calls = Counter[str]()

    def replaced(layer: str, given: tuple, output: object) -> torch.Tensor | None:
        calls[layer] += 1
        if not isinstance(output, torch.Tensor) or layer in copies:
            return None
        if not any(output is value for value in given):  # else it is the input of others too
            originals[layer] = output if output.requires_grad else output.requires_grad_()
        copies[layer] = output.detach().clone().requires_grad_()
        return copies[layer].clone()  # layers that work in place may not write to a leaf

    def one(value: object) -> object:
        if not isinstance(value, torch.Tensor):
            return value
        first = value.detach()[:1].clone().to(device)
        return first.requires_grad_() if first.is_floating_point() else first

    def depends(answer: torch.Tensor, value: torch.Tensor) -> bool:
        gradients = torch.autograd.grad(answer, value, retain_graph=True, allow_unused=True)
        return gradients[0] is not None

    with with_gradients(), torch.random.fork_rng(devices=[]):
        for layer in layers:
            originals.clear()
            copies.clear()
            with hooked(trial, [layer], replaced):
                output = trial(*map(one, inputs), **{n: one(v) for n, v in options.items()})
            answer = answer_of(output).sum()
            if calls[layer] != 1 or layer not in copies or not answer.requires_grad:
                continue  # the run itself says what is wrong, or nobody can
            problem = ""
            if not depends(answer, copies[layer]):
                problem = f"The output of layer {layer} changes nothing."
            elif layer in originals and depends(answer, originals[layer]):
                problem = f"The network also reads the output of layer {layer} by another path."
            if problem:
                remedy = "An edit would be lost on the way; name a layer after it."
                raise SimbaError.problem(problem, remedy)


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
