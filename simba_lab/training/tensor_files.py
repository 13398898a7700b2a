"""Files of tensors with facts about them: weights, snapshots and checkpoints of fits."""

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
