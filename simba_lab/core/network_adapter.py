"""Any network as the verbs take it: out of its wrappers, copied, and its answer as one tensor."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from simba_lab.core.errors import SimbaError, Words

Module = TypeVar("Module", bound=nn.Module)

# Where classes live that do nothing but call the network that they hold, and how they call it.
WRAPPERS = (
    "torch.nn.parallel",
    "torch.distributed",
    "torch.optim.swa_utils",
    "torch._dynamo",
    "lightning_fabric",
    "lightning.fabric",
    "accelerate",
    "opacus",
)
HELD = ("_original_module", "module", "_orig_mod", "_module", "_forward_module")
# Fields under which networks that return several things return their logits.
LOGITS = ("logits", "logit")
# What autograd calls operations that squeeze into [0, 1], and those that such numbers pass.
SQUEEZING = ("Sigmoid", "Softmax", "Hardsigmoid", "LogSoftmax", "LogSigmoid", "Reciprocal")
ARITHMETIC = "Add Clamp Div Exp Mean Mul Rsub Sub Sum"
CHOICES = "Cat CopySlices Index IndexPut Select Slice Split Stack Unbind"
SHAPES = "Expand Permute Squeeze T Transpose Unsqueeze"
COPIES = "Alias Clone ReshapeAlias ToCopy UnsafeView View"
PASSING = f"{ARITHMETIC} {CHOICES} {SHAPES} {COPIES}".split()


class Adapter(nn.Module):
    """What the lab puts around a network of others, whose layers keep the names that they have.

    Attributes
    ----------
    network : torch.nn.Module
        The network of others.
    root : str
        The submodule of it whose layers are named; empty for the network itself.
    gives_numbers : bool
        Whether it gives numbers, such as ages, for which no rate of decisions is defined.
    """

    network: nn.Module
    root: str = ""
    gives_numbers: bool = False

    def as_seen(self, volumes: torch.Tensor, *, nearest: bool = False) -> torch.Tensor:
        """Return volumes (N, C, X, Y, Z) of the scans on the lattice that the network sees."""
        return volumes

    def as_scanned(self, maps: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        """Return maps (N, C, X, Y, Z) on the lattice of the network on that of the scans."""
        return maps


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the network within wrappers: DataParallel, DDP, torch.compile, Fabric, averages.

    Raises
    ------
    SimbaError
        If a lazy layer has no weights yet, or if the network is a program that runs in one way.
    """
    while (held := held_by(model)) is not None:
        model = held
    for module in model.modules():
        exported = "eval" in vars(module) and hasattr(module, "graph")
        frozen = not hasattr(module, "training")
        if exported or frozen:
            raise _is_program(module)
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(value):
            problem = f"The model has a layer {name.rpartition('.')[0]}, which has no weights yet."
            remedy = "Let the network see a volume first: model(torch.zeros(1, 1, X, Y, Z))."
            raise SimbaError.problem(problem, remedy)
    return model


def in_layers(model: Module) -> Module:
    """Return a network that can be copied and looked into: no program of TorchScript.

    Raises
    ------
    SimbaError
        If it is one, or holds one; such a network can still be asked for its logits.
    """
    for module in model.modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise _is_program(module)
    return model


def _is_program(module: nn.Module) -> SimbaError:
    script = isinstance(module, torch.jit.ScriptModule)
    value = f"a program that {'TorchScript' if script else 'torch.export'} made of one"
    remedy = "Give the network that it was made from."
    return SimbaError("model", Words(value), "a network whose layers are Python objects", remedy)


def held_by(model: nn.Module) -> nn.Module | None:
    """Return the network that a wrapper holds; None if the module is no wrapper."""
    if not type(model).__module__.startswith(WRAPPERS):
        return None
    held = dict(model.named_children())
    names = [name for name in HELD if name in held]
    return held[names[0]] if names and set(held) <= set(HELD) else None


def copied(model: Module) -> Module:
    """Return a copy of a network, also of one that keeps tensors of its last run.

    Raises
    ------
    SimbaError
        If an attribute cannot be copied; it names it.
    """
    memo: dict[int, Any] = {}
    for module in in_layers(model).modules():
        _detach(vars(module), memo)
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:  # what classes of others raise when they are copied
        attributes = _attributes(model)
        name = next((name for name, value in attributes if not _copies(value, memo)), "")
        remedy = "The lab works on a copy. Keep it outside of the network, or define __deepcopy__."
        attribute = f"attribute {name}" if name else type(model).__name__
        problem = f"The model cannot be copied; {attribute}: {_first_line(error)}."
        raise SimbaError.problem(problem, remedy) from error


def _detach(values: object, memo: dict[int, Any], depth: int = 3) -> None:
    """Note copies of all tensors that are results: PyTorch copies no others."""
    if isinstance(values, torch.Tensor):
        if not values.is_leaf:
            memo[id(values)] = values.detach().clone()
    elif depth and isinstance(values, Mapping):
        for value in values.values():
            _detach(value, memo, depth - 1)
    elif depth and isinstance(values, list | tuple | set):
        for value in values:
            _detach(value, memo, depth - 1)


def _attributes(model: nn.Module) -> Iterator[tuple[str, object]]:
    for prefix, module in model.named_modules():
        for name, value in vars(module).items():
            if not name.startswith("_") or not isinstance(value, dict):
                yield f"{prefix}.{name}".lstrip("."), value


def _copies(value: object, memo: dict[int, Any]) -> bool:
    try:
        copy.deepcopy(value, dict(memo))
    except Exception:
        return False
    return True


def bare_copy(model: nn.Module, device: str | torch.device) -> nn.Module:
    """Return a copy without hooks on outputs, in evaluation mode, for a trial of its own."""
    trial = copied(model).eval().to(device)
    for module in trial.modules():
        module._forward_hooks.clear()
    return trial


def trainable(model: nn.Module) -> nn.Module:
    """Return a network out of its wrappers, in single precision: a copy if it has another."""
    network = in_layers(unwrapped(model))
    floating = [value for value in network.parameters() if value.is_floating_point()]
    compiled = any(module._compiled_call_impl is not None for module in network.modules())
    other = any(value.dtype != torch.float32 or value.is_inference() for value in floating)
    return copied(network).float() if compiled or other else network


@contextmanager
def with_gradients() -> Iterator[None]:
    """Let autograd work, also within `torch.no_grad` or `torch.inference_mode`."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


@contextmanager
def eager() -> Iterator[None]:
    """Run networks without what `torch.compile` made of them: compiled code passes hooks by."""
    compiled = "torch._dynamo" in sys.modules
    with torch.compiler.set_stance("force_eager") if compiled else nullcontext():
        yield


def answer_of(output: object) -> torch.Tensor:
    """Return the tensor of logits in what a network returned: a tensor, tuple, dict or object.

    Raises
    ------
    SimbaError
        If no tensor, or more than one, may be the logits.
    """
    for name in () if isinstance(output, torch.Tensor) else LOGITS:
        if isinstance(output, Mapping) and isinstance(output.get(name), torch.Tensor):
            output = output[name]
        elif isinstance(getattr(output, name, None), torch.Tensor):
            output = getattr(output, name)
    if isinstance(output, Mapping | list | tuple):
        values = output.values() if isinstance(output, Mapping) else output
        tensors = [value for value in values if isinstance(value, torch.Tensor)]
        fitting = [value for value in tensors if value.ndim == 1 or value.shape[1:] in ((1,), (2,))]
        if len(tensors) == 1 or len(fitting) == 1:
            output = (fitting or tensors)[0]
    if not isinstance(output, torch.Tensor) or not output.is_floating_point():
        remedy = (
            "Name one, sb.adapt(model, output=...), or wrap the network in one that returns its "
            "logits alone."
        )
        allowed = "a tensor of logits, or a tuple or mapping with one ('logits')"
        raise SimbaError("output of the network", _shown(output), allowed, remedy)
    return output


def _shown(output: object) -> str:
    if isinstance(output, torch.Tensor):
        return f"{output.dtype} numbers".removeprefix("torch.")
    if isinstance(output, Mapping):
        return f"{type(output).__name__} with {', '.join(map(str, output))}"
    if isinstance(output, list | tuple):
        return f"{type(output).__name__} of {len(output)}"
    return type(output).__name__


def outcome_of(network: nn.Module, volumes: torch.Tensor, *routes: torch.Tensor) -> object:
    """Return what a network in evaluation mode returns; an error of its own becomes the lab's.

    Raises
    ------
    SimbaError
        If it fails on such volumes, or draws random numbers.
    """
    before = torch.get_rng_state()
    try:
        output = network(volumes, *routes)
    except (SimbaError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever a network of others raises
        shape = tuple(volumes.shape)
        problem = f"The model fails on volumes of shape {shape}: {_first_line(error)}."
        raise SimbaError.problem(problem) from error
    if not torch.equal(before, torch.get_rng_state()):
        remedy = "Leave out what stays random, such as dropout with training=True."
        raise SimbaError.problem("The model draws random numbers in evaluation mode.", remedy)
    return output


def responded(network: nn.Module, volumes: torch.Tensor, *routes: torch.Tensor) -> torch.Tensor:
    """Return the answer of a network in evaluation mode, a row for each volume.

    Raises
    ------
    SimbaError
        As `outcome_of`, or if there are more or fewer rows.
    """
    answer = answer_of(outcome_of(network, volumes, *routes))
    if len(volumes) == 1 and (answer.ndim == 0 or answer.shape == (2,)):
        answer = answer[None]  # the network dropped the axis of a batch of one
    if answer.ndim == 0 or len(answer) != len(volumes):
        allowed = f"one row for each of {len(volumes)} volumes"
        raise SimbaError("output of the network", Words(f"shape {tuple(answer.shape)}"), allowed)
    return answer


def refuse_probabilities(
    network: nn.Module, volumes: torch.Tensor, answer: torch.Tensor, *routes: torch.Tensor
) -> None:
    """Refuse a network whose answers are probabilities; `answer` is what it said to the volumes.

    Numbers in [0, 1] may be logits. So the last operation decides, as autograd saw it in a run of
    one volume.
    """
    if isinstance(network, Adapter) and network.gives_numbers:
        return
    if not len(answer) or not (answer.min() >= 0 and answer.max() <= 1):
        return
    with eager(), with_gradients(), torch.random.fork_rng(devices=[]):
        hooked = any(module._forward_hooks for module in network.modules())
        trial = bare_copy(network, volumes.device) if hooked else network
        routes = tuple(route[:1].clone() for route in routes)
        last = answer_of(trial(volumes[:1].detach().clone().requires_grad_(), *routes)).grad_fn
    sums = answer.sum(dim=1) if answer.ndim == 2 and answer.shape[1] == 2 else None
    shares = sums is not None and torch.allclose(sums.float(), torch.ones(()), atol=1e-3)
    if shares or (last is not None and _squeezed(last)):
        raise SimbaError(
            "output of the network",
            Words("probabilities"),
            "logits, on both sides of 0",
            "Leave out the sigmoid or softmax at its end, or say so: sb.adapt(model, "
            "target='probability') makes logits of them.",
        )


def _squeezed(last: Any) -> bool:
    """Return whether all that an output was made of went through an operation onto [0, 1]."""
    waiting, seen, squeezed = [last], set(), False
    while waiting:
        node = waiting.pop()
        name = node.name().rstrip("0123456789").removesuffix("Backward")
        if name in SQUEEZING or (name == "Clamp" and (node._saved_min, node._saved_max) == (0, 1)):
            squeezed = True
        elif name in PASSING:
            waiting += [n for n, _ in node.next_functions if n is not None and n not in seen]
        elif name != "AccumulateGrad":
            return False
        seen.add(node)
    return squeezed


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
