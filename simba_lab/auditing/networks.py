"""Somebody's network: built by code that was named, with weights from a file that runs nothing."""

from __future__ import annotations

import importlib
import pickle
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from simba_lab.core.errors import SimbaError, Words

# Where training scripts keep the weights in a file of more.
# What is raised of files that are empty, of text, cut off, or would run code.
UNREADABLE = (
    OSError,
    EOFError,
    LookupError,
    RuntimeError,
    ValueError,
    SafetensorError,
    pickle.UnpicklingError,
)
NESTED = ("state_dict", "model_state_dict", "model")
FIRST = 3


def built_network(code: str) -> nn.Module:
    """Return what a function of somebody's package builds: ``"my_package.networks:build"``.

    Importing that module and calling that function is the only code that runs, because it was
    named. Modules are looked for in the working folder too.

    Raises
    ------
    SimbaError
        If it cannot be imported or called, or builds no network.
    """
    module_name, _, name = code.partition(":")
    if not module_name or not name:
        raise SimbaError("network", code, "a module and a function: my_package.networks:build")
    sys.path.insert(0, str(Path.cwd()))
    try:
        build = getattr(importlib.import_module(module_name), name)
        network = build()
    except Exception as error:  # whatever somebody's code raises
        value = Words(f"{code}, which fails: {type(error).__name__}: {error}")
        allowed = "a function without arguments that builds a network"
        raise SimbaError("network", value, allowed) from error
    finally:
        sys.path.remove(str(Path.cwd()))
    if not isinstance(network, nn.Module):
        value = Words(f"{type(network).__name__} of {code}")
        raise SimbaError("network", value, "a torch.nn.Module")
    return network.eval()


def with_weights(network: nn.Module, path: str | Path) -> nn.Module:
    """Put the weights of a file into a network: safetensors, or a file of `torch.save`.

    The latter is read with ``weights_only=True``: nothing in it runs.

    Raises
    ------
    SimbaError
        If the file cannot be read, or does not fit the network; the first names are given.
    """
    weights, expected = _weights(Path(path)), network.state_dict()
    if weights and all(name.startswith("module.") for name in weights):  # of DataParallel
        weights = {name.removeprefix("module."): value for name, value in weights.items()}
    for problem, names in (
        ("lacks", [name for name in expected if name not in weights]),
        ("has besides", [name for name in weights if name not in expected]),
        (
            "has in another shape",
            [n for n in expected if n in weights and _differ(n, weights, expected)],
        ),
    ):
        if names:
            shown = ", ".join(names[:FIRST]) + (", ..." if len(names) > FIRST else "")
            value = Words(f"{str(path)!r}, which {problem} {len(names)} of them: {shown}")
            allowed = f"a file with the {len(expected)} weights of the network"
            raise SimbaError("weights", value, allowed)
    network.load_state_dict(weights)
    return network.eval()


def _differ(name: str, weights: Mapping[str, Any], expected: Mapping[str, Any]) -> bool:
    return bool(weights[name].shape != expected[name].shape)


def _weights(path: Path) -> dict[str, torch.Tensor]:
    allowed = "a file of weights: safetensors, or of torch.save(model.state_dict())"
    if not path.is_file():
        raise SimbaError("weights", str(path), "an existing file", "Check the path.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        problem = next(iter(str(error).splitlines()), "")
        remedy = f"It cannot be read safely ({problem[:200]})."
        raise SimbaError("weights", str(path), allowed, remedy) from error
    for name in NESTED:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    tensors = isinstance(content, Mapping) and all(
        isinstance(value, torch.Tensor) for value in content.values()
    )
    if not tensors:
        raise SimbaError("weights", str(path), allowed, f"It holds a {type(content).__name__}.")
    return dict(content)
