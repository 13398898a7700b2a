"""Identity of a run: what it follows from, as digests, and the folder where it is kept under them."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import os
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import torch
from platformdirs import user_cache_path

from simba_lab.training import checkpoints

if TYPE_CHECKING:
    from simba_lab.core.cohort import Cohort
    from simba_lab.training.config import FitConfig
    from simba_lab.training.mitigation.objective import Mitigation

# The modules of this folder that what a fit gives does not depend on.
NOT_FITTING = ("metrics.py", "twins.py", "speed.py", "__init__.py")


def cache_folder() -> Path:
    """Return the folder where runs are kept: ``$SIMBA_LAB_CACHE`` or the user's cache folder."""
    chosen = os.environ.get("SIMBA_LAB_CACHE")
    return Path(chosen) if chosen else user_cache_path("simba-lab")


@cache
def code_version() -> str:
    """Return a digest of the code that a run depends on: the sources of synthesis and of fitting."""
    package = Path(__file__).parents[1]
    core, synthesis, training = (
        sorted((package / folder).rglob("*.py")) for folder in ("core", "synthesis", "training")
    )
    fitting = [path for path in training if path.name not in NOT_FITTING]
    return sources_digest([*core, *synthesis, *fitting])


def sources_digest(paths: Iterable[Path]) -> str:
    """Return a digest of the text of source files, in the order given."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def identity_of(
    model: torch.nn.Module, cohort: Cohort, config: FitConfig, mitigation: Mitigation | None
) -> dict[str, str]:
    """Return what the result of a fit follows from, part by part, as digests."""
    rows = (
        pd.util.hash_pandas_object(cohort.table).tolist(),
        list(cohort.table.columns),
        sorted(cohort.switches.items()),
    )
    parts = {
        "network": repr(model)
        + checkpoints.digest(model.state_dict())
        + _own_code(list(model.modules())),
        "cohort": repr([cohort.identity, rows]),
        "config": repr(dataclasses.asdict(config)),
        "mitigation": repr(mitigation and mitigation.to_dict())
        + _own_code([mitigation] if mitigation else []),
        "code": code_version() + torch.__version__,
    }
    return {
        name: hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
        for name, text in parts.items()
    }


def _own_code(parts: list[object]) -> str:
    """Return what `repr` and weights do not say of somebody's own classes: their code, and their plain attributes."""
    classes = {kind for part in parts for kind in type(part).__mro__}
    foreign = [
        kind
        for kind in classes
        if kind.__module__.split(".")[0] not in ("simba_lab", "torch", "builtins")
    ]
    texts = []
    for kind in sorted(foreign, key=lambda kind: (kind.__module__, kind.__qualname__)):
        try:
            texts.append(inspect.getsource(kind))
        except (OSError, TypeError):  # typed into an interpreter
            codes = [value.__code__ for value in vars(kind).values() if inspect.isfunction(value)]
            texts.append(repr([(code.co_code, code.co_names, code.co_consts) for code in codes]))
    plain = (bool, int, float, str, tuple)
    own = [part for part in parts if type(part) in foreign]
    texts += [
        repr(
            sorted((name, value) for name, value in vars(part).items() if isinstance(value, plain))
        )
        for part in own
    ]
    return "".join(texts)


def content_key(identity: Mapping[str, str]) -> str:
    """Return the name under which a run of this identity is kept."""
    return hashlib.blake2b(repr(sorted(identity.items())).encode(), digest_size=16).hexdigest()
