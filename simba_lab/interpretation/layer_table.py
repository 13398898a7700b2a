"""The layers of anybody's network in the order in which they run, and which are looked at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch
from torch import nn

from simba_lab.core.cohort import Cohort
from simba_lab.core.compute import deterministic, evaluating
from simba_lab.core.errors import SimbaError, Words
from simba_lab.core.layer_naming import core_of, has_blocks, names_of_layers
from simba_lab.core.network_adapter import held_by, outcome_of, unwrapped
from simba_lab.interpretation.hooks import hooked, layer_names

# Most layers that are looked at by default.
MOST = 12
# Containers, which are never called themselves.
NEVER_CALLED = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)


@dataclass(eq=False)
class Calls:
    """What one run of a network on two equal volumes showed of each of its layers, by name."""

    names: dict[nn.Module, str]
    counts: Counter[str] = field(default_factory=Counter)
    first_ends: dict[str, int] = field(default_factory=dict)
    outputs: dict[str, torch.Tensor] = field(default_factory=dict)

    def note(self, name: str, _inputs: tuple, output: object) -> None:
        """Note that a layer has run."""
        self.counts[name] += 1
        self.first_ends.setdefault(name, len(self.first_ends))
        if isinstance(output, torch.Tensor):
            self.outputs[name] = output.detach().to("meta")

    def started(self, module: nn.Module) -> int:
        """Return a number that grows in the order in which layers start."""
        known = (self.names.get(child, "") for child in module.modules())
        ends = [self.first_ends[name] for name in known if name in self.first_ends]
        return min(ends, default=len(self.first_ends))

    def shape(self, module: nn.Module) -> tuple[int, ...] | None:
        """Return the shape of a layer's output for one volume; None if it is no such tensor."""
        output = self.outputs.get(self.names.get(module, ""))
        if output is None or output.ndim == 0 or len(output) != 2:
            return None
        return tuple(output.shape[1:])

    def can_be_read(self, module: nn.Module) -> bool:
        """Return whether a layer has weights, ran once and gave a row of numbers per volume."""
        name = self.names.get(module, "")
        weighs = any(True for _ in module.parameters())
        if not weighs or self.counts[name] != 1 or self.shape(module) is None:
            return False
        return self.outputs[name].is_floating_point()


def layers(model: nn.Module, cohort: Cohort) -> pd.DataFrame:
    """Return the layers of a network in the order in which they run on a volume.

    Parameters
    ----------
    model : torch.nn.Module
    cohort : Cohort
        Its first volume is run.

    Returns
    -------
    pandas.DataFrame
        Indexed by layer, under the names that all verbs take: ``kind`` (the class), ``shape`` (of
        the output for one volume; None if it is no tensor with a row for each volume),
        ``parameters`` (with those of the layers within), ``calls`` (in one run) and ``default``
        (whether verbs look at it if no layers are named). A layer comes before those within it, and
        layers that never run come last.

    Raises
    ------
    SimbaError
        If the network fails on the volume.

    Notes
    -----
    The default is the attribute ``blocks`` of a network, a list of names. Without one it is the
    deepest level of the network at which at most twelve layers have weights, run exactly once and
    give a tensor with a row for each volume; of levels with equally many of them the outermost; and
    the first level if each has more.

    Examples
    --------
    >>> import simba_lab as sb
    >>> scenario = sb.Scenario(64, sb.Morphology("Insula_L", 2.5), spacing_mm=8)
    >>> table = sb.layers(sb.SimBANet((4, 8)), sb.synthesise(scenario).test)
    >>> table[table["default"]].drop(columns="default").to_dict("index")["block2"]
    {'kind': 'Sequential', 'shape': (8, 5, 6, 5), 'parameters': 880, 'calls': 1}
    """
    calls = _calls(model, first_volume(cohort))
    chosen = _chosen(model, calls)
    _, core = core_of(model)
    passed = {module for module in calls.names if any(child is core for child in module.modules())}
    modules = [
        (module, name)
        for module, name in calls.names.items()
        if module not in passed and not isinstance(module, NEVER_CALLED)
    ]
    modules.sort(key=lambda entry: (calls.started(entry[0]), entry[1].count(".")))
    rows = [
        {
            "kind": type(module).__name__,
            "shape": calls.shape(module),
            "parameters": sum(value.numel() for value in module.parameters()),
            "calls": calls.counts[name],
            "default": name in chosen,
        }
        for module, name in modules
    ]
    index = pd.Index([name for _, name in modules], name="layer", dtype=object)
    columns = ["kind", "shape", "parameters", "calls", "default"]
    return pd.DataFrame(rows, index=index, columns=columns)


def first_volume(cohort: Cohort) -> np.ndarray:
    """Return the first volume of a cohort that is not empty."""
    if not len(cohort):
        raise SimbaError("cohort", Words("0 subjects"), "not empty")
    return cohort.array(0)


def default_layers(model: nn.Module, volume: np.ndarray | torch.Tensor) -> list[str]:
    """Return the layers that are looked at if none are named; see `layers`.

    Parameters
    ----------
    model : torch.nn.Module
    volume : ndarray or tensor, (X, Y, Z) the last axes
        A network without ``blocks`` runs on it.
    """
    if has_blocks(core_of(model)[1]):
        return layer_names(model)
    return _chosen(model, _calls(model, volume))


def _chosen(model: nn.Module, calls: Calls) -> list[str]:
    """Return the layers that are looked at by default, given what a run showed."""
    _, core = core_of(model)
    if has_blocks(core):
        return layer_names(model)
    levels = list(_levels(core, calls))
    fitting = [level for level in levels if 0 < len(level) <= MOST]
    level = max(fitting, key=len) if fitting else next(filter(None, levels), [])
    if not level:
        return layer_names(model)  # the error that follows says what is wrong with its layers
    return [calls.names[module] for module in sorted(level, key=calls.started)]


@dataclass(frozen=True)
class Activations:
    """What a layer gives for a volume.

    Attributes
    ----------
    shape : tuple of int
        Channels first.
    channels_last : bool
        Whether they come last in what the layer gives, as in transformers.
    """

    shape: tuple[int, ...]
    channels_last: bool = False

    @classmethod
    def of(cls, layer: nn.Module, shape: tuple[int, ...]) -> Activations:
        """Return the activations of a layer: channels are what transformers normalise and map."""
        sizes = set()
        for part in layer.modules():
            if isinstance(part, nn.LayerNorm):
                sizes.add(part.normalized_shape[-1])
            elif isinstance(part, nn.Linear):
                sizes.add(part.out_features)
        if len(shape) < 2 or shape[-1] not in sizes or shape[0] in sizes:
            return cls(shape)
        return cls((shape[-1], *shape[:-1]), channels_last=True)


def last_maps(model: nn.Module, volume: torch.Tensor) -> str | None:
    """Return the last layer looked at by default that gives maps, channels first, if any."""
    calls = _calls(model, volume)
    modules = {name: module for module, name in calls.names.items()}
    shapes = {name: calls.shape(modules[name]) for name in _chosen(model, calls)}
    spatial = [
        name
        for name, shape in shapes.items()
        if shape
        and len(shape) == 4
        and np.prod(shape[1:]) > 1
        and not Activations.of(modules[name], shape).channels_last
    ]
    return spatial[-1] if spatial else None


def _levels(core: nn.Module, calls: Calls) -> Iterator[list[nn.Module]]:
    """Iterate over the levels of a network, from its children down: what can be read of each."""
    level = list(_below(core, calls))
    while True:
        yield [module for module in dict.fromkeys(level) if calls.can_be_read(module)]
        deeper = [below for module in level for below in (list(_below(module, calls)) or [module])]
        if deeper == level:
            return
        level = deeper


def _below(module: nn.Module, calls: Calls) -> Iterator[nn.Module]:
    """Iterate over the layers directly within one; what is never called is passed through."""
    for child in module.children():
        while (held := held_by(child)) is not None:
            child = held
        if calls.counts[calls.names.get(child, "")]:
            yield child
        else:
            yield from _below(child, calls)


def _calls(model: nn.Module, volume: np.ndarray | torch.Tensor) -> Calls:
    """Run a network on two copies of a volume, and note what its layers do.

    Two, since the rows of a layer's output are then told from other axes.
    """
    network = unwrapped(model)
    weights = (value for value in network.parameters() if value.is_floating_point())
    first = next(weights, torch.zeros(()))
    calls = Calls(names_of_layers(network))
    pair = torch.as_tensor(np.array(volume) if isinstance(volume, np.ndarray) else volume)
    pair = pair.to(first.device, first.dtype)
    pair = pair.reshape(1, 1, *pair.shape[-3:]).expand(2, -1, -1, -1, -1)
    hooks = hooked(network, calls.names.values(), calls.note)
    with evaluating(network), deterministic(), torch.no_grad(), hooks:
        outcome_of(network, pair.contiguous())
    return calls
