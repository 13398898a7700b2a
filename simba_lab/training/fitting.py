"""Fit a network on a cohort: deterministic, chosen on validation data, remembered by content."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from filelock import FileLock
from lightning_fabric import Fabric
from platformdirs import user_cache_path
from safetensors.torch import load_file, save_file
from torch.nn.functional import binary_cross_entropy_with_logits
from tqdm.auto import tqdm

from simba_lab.errors import SimbaError
from simba_lab.rng import stream
from simba_lab.training.networks import logit

if TYPE_CHECKING:
    from simba_lab.synthesis import Cohort

# Sums in a different order round differently: the number of threads is part of the arithmetic, so it is fixed.
THREADS = 2


@contextmanager
def deterministic(threads: int = THREADS) -> Iterator[None]:
    """Run torch with a fixed number of threads and deterministic kernels, whatever the machine's settings are."""
    before = torch.get_num_threads(), torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    torch.set_num_threads(threads)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = before[1:]


@dataclass(frozen=True)
class FitConfig:
    """How to train.

    Parameters
    ----------
    epochs : int
        Passes over the training cohort. The weights of the epoch with the least validation loss are kept.
    batch_size : int
    learning_rate : float
        Peak of a one-cycle schedule.
    weight_decay : float
    seed : int
        Seed of the batch order and of dropout. Runs with the same seed see subjects in the same order.
    accelerator : str
        As Lightning Fabric names it: ``"auto"``, ``"cpu"``, ``"cuda"``.
    precision : str
        As Lightning Fabric names it: ``"32-true"``, ``"bf16-mixed"``.
    """

    epochs: int = 12
    batch_size: int = 8
    learning_rate: float = 3e-3
    weight_decay: float = 1e-2
    seed: int = 0
    accelerator: str = "auto"
    precision: str = "32-true"

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise SimbaError(f"config.{name}", value, "an integer of at least 1")
        if not 0 < self.learning_rate < 1:
            raise SimbaError("config.learning_rate", self.learning_rate, "above 0 and below 1", "3e-3 works for SimBANet.")
        if self.weight_decay < 0:
            raise SimbaError("config.weight_decay", self.weight_decay, "at least 0")


@dataclass(frozen=True, eq=False)
class Run:
    """A fitted network and how it came about.

    Parameters
    ----------
    model : torch.nn.Module
        In evaluation mode, on the CPU, with the weights of the best epoch.
    history : pandas.DataFrame
        One row per epoch: ``train_loss``, ``validation_loss``, ``validation_accuracy``, ``kept``.
    config : FitConfig
    provenance : dict
        Scenario, seeds, code and library versions, seconds.
    """

    model: torch.nn.Module
    history: pd.DataFrame
    config: FitConfig
    provenance: dict

    def save(self, folder: str | Path) -> None:
        """Write weights (safetensors), history (CSV) and provenance (JSON) to a folder, all of it or nothing."""
        folder = Path(folder)
        part = folder.with_name(f"{folder.name}.part{os.getpid()}")
        part.mkdir(parents=True, exist_ok=True)
        weights = {name: value.contiguous() for name, value in self.model.state_dict().items()}
        save_file(weights, part / "weights.safetensors")
        self.history.to_csv(part / "history.csv")
        record = {"config": dataclasses.asdict(self.config), "provenance": self.provenance}
        (part / "run.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
        part.rename(folder)

    @classmethod
    def load(cls, folder: str | Path, model: torch.nn.Module) -> Run:
        """Read a run back into a network of the same architecture (`model` is copied)."""
        folder = Path(folder)
        try:
            record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
            history = pd.read_csv(folder / "history.csv", index_col="epoch")
            weights = load_file(folder / "weights.safetensors")
        except Exception as error:  # safetensors, pandas and json raise types of their own for a damaged file
            raise SimbaError("run", str(folder), "a folder written by Run.save", f"It cannot be read: {error}") from error
        model = copy.deepcopy(model)
        try:
            model.load_state_dict(weights)
        except RuntimeError as error:
            raise SimbaError(
                "model", type(model).__name__, "of the architecture that was saved", str(error).splitlines()[-1].strip()
            ) from error
        return cls(model.eval(), history, FitConfig(**record["config"]), record["provenance"])


def fit(
    model: torch.nn.Module, cohort: Cohort, config: FitConfig | None = None, *,
    cache: str | Path | bool = True, progress: bool = False,
) -> Run:  # fmt: skip
    """Train a copy of a network to tell disease from control on a cohort.

    The same model, cohort and config give the same weights, bit for bit, on one machine; so a run that was made before
    is read back instead of being trained again.

    Parameters
    ----------
    model : torch.nn.Module
        Takes (N, 1, X, Y, Z) and returns logits of shape (N,), (N, 1) or (N, 2). It is not changed.
    cohort : Cohort
        Its train part is fitted, its validation part chooses the epoch; its test part is not looked at.
    config : FitConfig, optional
    cache : bool or path
        Where runs are kept: True for the user's cache folder (or ``$SIMBA_LAB_CACHE``), False for nowhere.
    progress : bool
        Whether to show a progress bar.

    Returns
    -------
    Run

    Raises
    ------
    SimbaError
        If a split is empty or lacks a class, or if the loss stops being a number.
    """
    config = config or FitConfig()
    for split in ("train", "validation"):
        labels = cohort["label"][cohort["split"] == split]
        if len(set(labels.tolist())) < 2:
            raise SimbaError(
                f"cohort.{split}", f"{len(labels)} subjects of classes {sorted(set(labels.tolist()))}", "of both classes",
                "Pass a whole cohort, with its train and validation parts.",
            )  # fmt: skip
    if cache is False:
        return _fit(model, cohort, config, progress)
    root = Path(cache) if not isinstance(cache, bool) else cache_folder()
    folder = root / "runs" / _content_key(model, cohort, config)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):  # a second process that wants the same run waits for it
        if not folder.exists():
            _fit(model, cohort, config, progress).save(folder)
        return Run.load(folder, model)


def cache_folder() -> Path:
    """Return the folder where runs are kept: ``$SIMBA_LAB_CACHE`` or the user's cache folder."""
    chosen = os.environ.get("SIMBA_LAB_CACHE")
    return Path(chosen) if chosen else user_cache_path("simba-lab")


@cache
def code_version() -> str:
    """Return a digest of the code that a run depends on: the sources of synthesis and training."""
    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for folder in ("synthesis", "training"):
        for path in sorted((package / folder).glob("*.py")):
            digest.update(path.read_bytes())
    digest.update((package / "rng.py").read_bytes())
    return digest.hexdigest()[:16]


def _content_key(model: torch.nn.Module, cohort: Cohort, config: FitConfig) -> str:
    digest = hashlib.sha256()
    parts = [cohort.identity, sorted(cohort.switches.items()), dataclasses.asdict(config)]
    parts += [cohort.table.index.tolist(), cohort["split"].tolist(), repr(model), code_version(), torch.__version__]
    digest.update(repr(parts).encode())
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]


def _tensors(part: Cohort) -> tuple[torch.Tensor, torch.Tensor]:
    volumes = torch.from_numpy(part.arrays())[:, None]
    return volumes, torch.from_numpy(part["label"].astype(np.float32))


def _fit(model: torch.nn.Module, cohort: Cohort, config: FitConfig, progress: bool) -> Run:
    start = time.perf_counter()
    fabric = Fabric(accelerator=config.accelerator, devices=1, precision=config.precision)
    with deterministic(), torch.random.fork_rng():
        torch.manual_seed(config.seed)
        volumes, labels = _tensors(cohort.train)
        held_out = _tensors(cohort.validation)
        # Channels-last lets oneDNN and cuDNN convolve without reordering: 1.4 times faster for SimBANet on a CPU.
        fitted = copy.deepcopy(model).to(memory_format=torch.channels_last_3d)
        optimiser = torch.optim.AdamW(fitted.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
        wrapped, optimiser = fabric.setup(fitted, optimiser)
        per_epoch = -(-len(labels) // config.batch_size)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimiser, config.learning_rate, total_steps=per_epoch * config.epochs
        )
        best, kept, rows = np.inf, None, []
        for epoch in tqdm(range(config.epochs), disable=not progress, desc="epochs", unit="epoch"):
            wrapped.train()
            order = torch.from_numpy(stream(config.seed, epoch, "batch order").permutation(len(labels)))
            total = 0.0
            for step, batch in enumerate(order.split(config.batch_size)):
                loss = _loss(wrapped, fabric.to_device(volumes[batch]), fabric.to_device(labels[batch]))
                optimiser.zero_grad()
                fabric.backward(loss)
                optimiser.step()
                schedule.step()
                total += loss.item() * len(batch)
                if not np.isfinite(total):
                    raise SimbaError(
                        "loss", total, "finite",
                        f"It broke at epoch {epoch}, step {step}, with learning rate {config.learning_rate}; lower it.",
                    )  # fmt: skip
            validation = _validate(wrapped, fabric, *held_out, config.batch_size)
            rows.append({"epoch": epoch, "train_loss": total / len(labels)} | validation)
            if validation["validation_loss"] < best:
                best, kept = validation["validation_loss"], epoch
                weights = copy.deepcopy(fitted.state_dict())
        fitted.load_state_dict(weights)
        fitted = fitted.cpu().to(memory_format=torch.contiguous_format).eval()
    history = pd.DataFrame(rows).set_index("epoch")
    history["kept"] = history.index == kept
    provenance = {
        "cohort": cohort.identity, "code": code_version(),
        "torch": torch.__version__, "python": platform.python_version(), "device": str(fabric.device),
        "seconds": round(time.perf_counter() - start, 2),
    }  # fmt: skip
    return Run(fitted, history, config, provenance)


def _loss(model: torch.nn.Module, volumes: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    volumes = volumes.contiguous(memory_format=torch.channels_last_3d)
    return binary_cross_entropy_with_logits(logit(model(volumes)).float(), labels)


@torch.no_grad()
def _validate(model, fabric: Fabric, volumes: torch.Tensor, labels: torch.Tensor, batch_size: int) -> dict[str, float]:
    model.eval()
    batches = [logit(model(fabric.to_device(part))).float().cpu() for part in volumes.split(4 * batch_size)]
    scores = torch.cat(batches)
    accuracy = ((scores > 0) == (labels > 0)).float().mean().item()
    return {"validation_loss": binary_cross_entropy_with_logits(scores, labels).item(), "validation_accuracy": accuracy}
