"""Somebody's network: built by code that was named, with weights from a file that runs nothing."""

from __future__ import annotations

import importlib
import pickle
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from simba_lab.auditing.answers import LEAST_SCANS, answer_table
from simba_lab.auditing.black_boxes import NOTES
from simba_lab.auditing.marks import mark_in_words
from simba_lab.auditing.results import Audit
from simba_lab.core.errors import SimbaError, Words
from simba_lab.scans.bids_description import software_version
from simba_lab.scans.planting.planted_cohort import PlantedCohort
from simba_lab.training.predictions import logits

# Where training scripts keep the weights in a file of more.
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
    except (OSError, SafetensorError, pickle.UnpicklingError, RuntimeError, ValueError) as error:
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


def network_answers(
    network: nn.Module,
    marked: PlantedCohort,
    *,
    controls: Sequence[nn.Module] = (),
    bound: float = 0.5,
) -> pd.DataFrame:
    """Return `Audit.marks` of a network: each mark alone in each scan, against the untouched scan.

    Raises
    ------
    SimbaError
        If there are fewer than 16 scans, the network cannot judge them, or says the same to all.
    """
    if len(marked) < LEAST_SCANS:
        raise SimbaError("scans", Words(f"{len(marked)} scans"), f"at least {LEAST_SCANS} scans")
    marks = list(marked.effects)
    untouched = marked.twin(without=marks)
    networks = [network, *controls]
    off = [logits(each, untouched) for each in networks]
    for values in off:
        if np.ptp(values) == 0:
            value = Words(f"{values[0]:g} for all {len(values)} untouched scans")
            raise SimbaError("answers", value, "different for different people")
    on = [
        np.stack([logits(each, untouched.twin(carrying=mark)) for mark in marks], axis=1)
        for each in networks
    ]
    pairs = list(zip(off, on, strict=True))[1:]
    spread = float(np.std(off[0], ddof=1))
    return answer_table(off[0], on[0], spread, marks=marks, controls=pairs, bound=bound)


def audit_network(
    network: nn.Module,
    marked: PlantedCohort,
    *,
    controls: Sequence[nn.Module] = (),
    bound: float = 0.5,
) -> Audit:
    """Return question A of an audit of a network, with what it cannot show."""
    marks = network_answers(network, marked, controls=controls, bound=bound)
    return Audit(
        marks=marks,
        settings={
            "subtitle": f"{len(marked)} scans, {len(marks)} planted marks",
            "described": {name: mark_in_words(effect) for name, effect in marked.effects.items()},
            "scans": len(marked),
            "bound": bound,
            "controls": len(controls),
        },
        provenance={"software": f"simba-lab {software_version()}"},
        notes=[*NOTES[:2], "Layers, maps and real groups were not looked at.", NOTES[-1]],
    )
