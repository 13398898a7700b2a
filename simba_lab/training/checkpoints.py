"""Where a fit stands, on disk: enough to go on with the same bits after a kill."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from simba_lab.core.errors import SimbaError
from simba_lab.core.files import atomic_write


def digest(tensors: Mapping[str, torch.Tensor], facts: str = "") -> str:
    """Return a digest of the names, types, shapes and values of tensors, and of facts, if any."""
    state = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        state.update(f"{name} {value.dtype} {tuple(value.shape)};".encode())
        state.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    state.update(facts.encode())
    return state.hexdigest()


def write(path: Path, tensors: Mapping[str, torch.Tensor], facts: Mapping[str, Any]) -> None:
    """Write tensors and facts to one safetensors file, all of it or nothing."""
    plain = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    text = json.dumps(facts)
    # As bytes: a library that writes files by itself leaves its own hidden ones after a kill.
    atomic_write(path, save(plain, metadata={"facts": text, "digest": digest(plain, text)}))


def read(
    path: Path, *, field: str = "checkpoint"
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read tensors and facts back, and hold them against the digest that was written with them.

    Raises
    ------
    SimbaError
        If the file is truncated, was changed since, or is something else.
    """
    allowed = "a file as `fit` wrote it"
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        facts, expected = json.loads(metadata["facts"]), metadata["digest"]
        present = digest(tensors, metadata["facts"])
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        remedy = f"It cannot be read ({error}). Delete it to start again."
        raise SimbaError(field, str(path), allowed, remedy) from error
    if present != expected:
        remedy = "Its numbers were changed since. Delete it to start again."
        raise SimbaError(field, str(path), allowed, remedy)
    return tensors, facts


def optimiser_state(
    optimiser: torch.optim.Optimizer,
) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    """Return the tensors of an optimiser by name, and its settings as plain values."""
    state = optimiser.state_dict()
    tensors = {
        f"{number}.{name}": torch.as_tensor(value)
        for number, entries in state["state"].items()
        for name, value in entries.items()
    }
    return tensors, state["param_groups"]


def restore_optimiser(
    optimiser: torch.optim.Optimizer,
    tensors: Mapping[str, torch.Tensor],
    groups: list[dict[str, Any]],
) -> None:
    """Put back what `optimiser_state` returned."""
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in tensors.items():
        number, key = name.split(".")
        # Laid out in memory as the parameter is: channels-last, maybe.
        parameter = parameters[int(number)]
        value = (
            torch.empty_like(parameter).copy_(value)
            if value.shape == parameter.shape and value.dim()
            else value.clone()
        )
        state.setdefault(int(number), {})[key] = value
    groups = [
        group | ({"betas": tuple(group["betas"])} if "betas" in group else {}) for group in groups
    ]
    optimiser.load_state_dict({"state": state, "param_groups": groups})
