"""The names of the layers of any network: those that they have in the network itself."""

from __future__ import annotations

from torch import nn

from simba_lab.core.network_adapter import Adapter, held_by, in_layers, unwrapped


def layers_by_name(model: nn.Module) -> dict[str, nn.Module]:
    """Return all layers by their names, those within wrappers by their names in there too."""
    layers: dict[str, nn.Module] = {}

    def visit(parent: nn.Module, prefix: str) -> None:
        for name, child in parent.named_children():
            module = child
            while (held := held_by(module)) is not None:
                module = held
            if all(module is not known for known in layers.values()):
                layers[prefix + name] = module
                visit(module, f"{prefix}{name}.")

    network = _named(model)
    visit(network, "")
    _, core = core_of(network)
    for root in (network, model, core):
        for name, module in root.named_modules():
            if name:
                layers.setdefault(name, module)
    return layers


def core_of(model: nn.Module) -> tuple[str, nn.Module]:
    """Return the module that has the layers worth naming, and what precedes their names.

    A module that holds all weights in one child, as Lightning modules and networks with a
    preparation of their own do, is passed by.
    """
    prefix, core = "", _named(model)
    while not has_blocks(core) and not list(core.parameters(recurse=False)):
        heavy = [(name, child) for name, child in core.named_children() if _weighs(child)]
        if len(heavy) != 1 or not any(map(_weighs, heavy[0][1].children())):
            break
        prefix, core = f"{prefix}{heavy[0][0]}.", heavy[0][1]
        while (held := held_by(core)) is not None:
            core = held
    return prefix, core


def names_of_layers(model: nn.Module) -> dict[nn.Module, str]:
    """Return each layer with the one of its names that is used: that in the core, if it has one."""
    known, names = layers_by_name(model), dict[nn.Module, str]()
    _, core = core_of(model)
    for name, module in core.named_modules():
        if name in known and known[name] is module:
            names[module] = name
    for name, module in known.items():
        names.setdefault(module, name)
    return names


def _named(model: nn.Module) -> nn.Module:
    """Return the module whose layers have the names that are used: that within an adapter."""
    network = in_layers(unwrapped(model))
    while isinstance(network, Adapter):
        network = unwrapped(network.network.get_submodule(network.root))
    return network


def has_blocks(module: nn.Module) -> bool:
    """Return whether a network names its blocks itself."""
    names = getattr(module, "blocks", None)
    return isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)


def _weighs(module: nn.Module) -> bool:
    return any(True for _ in module.parameters())
