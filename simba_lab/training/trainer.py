"""Trainer: the loop of a fit, on one device or several."""

from __future__ import annotations

import hashlib
import time
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch.optim.lr_scheduler import ConstantLR, LRScheduler, OneCycleLR
from tqdm.auto import tqdm

from simba_lab.core.batches import Feed
from simba_lab.core.cohort import Cohort
from simba_lab.core.compute import deterministic, laid_out
from simba_lab.core.errors import SimbaError, Words
from simba_lab.core.network_adapter import copied
from simba_lab.training.config import FitConfig
from simba_lab.training.identity import identity_of
from simba_lab.training.mitigation.objective import Mitigation, Objective, Progress
from simba_lab.training.network_checks import check_alone, check_answers
from simba_lab.training.networks import logit
from simba_lab.training.predictions import refuse_numbers
from simba_lab.training.run import Fitted
from simba_lab.training.state import FitState

if TYPE_CHECKING:
    from lightning_fabric import Fabric

# Progress is written at the end of each epoch, and within an epoch after so much time.
CHECKPOINT_SECONDS = 60.0


@dataclass(frozen=True)
class Conditions:
    """What a fit runs under and its result does not depend on; as for `fit`.

    `in_cache` says that the checkpoint is nobody's file: a damaged one is made anew.
    """

    checkpoint: Path | None = None
    in_cache: bool = False
    memory_gb: float = 4.0
    progress: bool = False


def train(
    model: torch.nn.Module,
    cohort: Cohort,
    config: FitConfig,
    mitigation: Mitigation | None,
    conditions: Conditions,
) -> Fitted:
    """Train a copy of a network, on one device here or on several in a process each."""
    from lightning_fabric import Fabric  # as slow to import as torch: not for mere readers of runs

    strategy = "auto" if config.devices == 1 else "ddp_spawn"
    try:
        fabric = Fabric(
            accelerator=config.accelerator,
            devices=config.devices,
            precision=config.precision,
            strategy=strategy,
        )
    except Exception as error:  # Fabric has many types of error for hardware that is not there
        settings = f"{config.accelerator}, {config.devices} x, {config.precision}"
        allowed = "an accelerator and precision that exist here"
        remedy = f"Fabric says: {str(error).splitlines()[0]}"
        raise SimbaError("config", Words(settings), allowed, remedy) from error
    # As one function: Fabric looks into arguments, and frozen dataclasses do not let it.
    call = partial(
        _trained,
        model=model,
        cohort=cohort,
        config=config,
        mitigation=mitigation,
        conditions=conditions,
    )
    if config.devices == 1:
        return call(fabric)
    fitted = fabric.launch(partial(_as_arrays, call=call))
    return _converted(fitted, lambda array: torch.from_numpy(np.array(array)))


def _trained(
    fabric: Fabric,
    *,
    model: torch.nn.Module,
    cohort: Cohort,
    config: FitConfig,
    mitigation: Mitigation | None,
    conditions: Conditions,
) -> Fitted:
    with deterministic(config.threads), torch.random.fork_rng():
        return Trainer(fabric, model, cohort, config, mitigation, conditions).run()


def _as_arrays(fabric: Fabric, call: Any) -> Fitted:
    # Tensors would be handed over by reference to a process that ends.
    return _converted(call(fabric), lambda tensor: tensor.numpy())


def _converted(fitted: Fitted, convert: Any) -> Fitted:
    weights, *snapshots = (
        {name: convert(value) for name, value in weights.items()}
        for weights in (fitted.weights, *fitted.snapshots)
    )
    return fitted._replace(weights=weights, snapshots=tuple(snapshots))


class Trainer:
    """One fit on the device of this process.

    Parameters
    ----------
    fabric : lightning_fabric.Fabric
        The device, and how it shares work with others.
    model, cohort, config, mitigation
        As for `fit`.
    conditions : Conditions
    """

    def __init__(
        self,
        fabric: Fabric,
        model: torch.nn.Module,
        cohort: Cohort,
        config: FitConfig,
        mitigation: Mitigation | None,
        conditions: Conditions,
    ) -> None:
        self.fabric, self.config, self.conditions = fabric, config, conditions
        # Only a checkpoint has to say of which fit it is.
        kept = conditions.checkpoint is not None
        self.identity = identity_of(model, cohort, config, mitigation) if kept else {}
        self.objective = (mitigation.objective if mitigation else Objective)(
            cohort.train, cohort.validation
        )
        self.objective.to(fabric.device)
        self.volumes, self.validation = self._feed(cohort.train), self._feed(cohort.validation)
        self.twins = None if self.objective.twins is None else self._feed(self.objective.twins)
        self.labels = torch.from_numpy(cohort.validation["label"].astype(np.float32))
        refuse_numbers(model, "training to tell two classes")
        body = _Body(copied(model).to(fabric.device))
        check_answers(body, self.volumes)
        self.layout = _memory_layout(body, self.volumes, config)
        body = laid_out(body, self.layout)
        # The fused step rounds differently: it is for those who chose speed over full precision.
        optimiser = torch.optim.AdamW(
            body.parameters(),
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            fused=config.precision != "32-true",
        )
        self.network, self.optimiser = fabric.setup(body, optimiser)
        rows = len(self.objective.order(config.seed, 0))
        batches, remainder = divmod(rows, config.batch_size)
        self.steps = batches + (remainder >= config.devices)
        least = min(config.batch_size, remainder if remainder >= config.devices else rows)
        if least // config.devices == 1:
            check_alone(body, self.volumes, config.batch_size, rows)
        self.schedule = self._schedule()
        self.state = FitState(
            body.network, self.optimiser, self.schedule, self.objective, snapshots=config.snapshots
        )
        self.saved, self.warned = time.monotonic(), False

    def _feed(self, cohort: Cohort) -> Feed:
        return Feed(cohort, self.fabric.device, memory_gb=self.conditions.memory_gb)

    def _schedule(self) -> LRScheduler:
        if self.config.schedule == "constant":
            return ConstantLR(self.optimiser, factor=1.0, total_iters=0)
        total = self.steps * self.config.epochs
        return OneCycleLR(self.optimiser, self.config.learning_rate, total_steps=total)

    def run(self) -> Fitted:
        """Train to the end, from a checkpoint if there is one."""
        config, state = self.config, self.state
        self.resume()
        done, total = state.epoch * self.steps + state.step, self.steps * config.epochs
        hidden = not self.conditions.progress or self.fabric.global_rank > 0
        with tqdm(total=total, initial=done, unit="step", desc="fit", disable=hidden) as bar:
            while not state.is_over(config.epochs, config.patience):
                self.epoch(bar)
        history = pd.DataFrame(state.rows).set_index("epoch")
        history["kept"] = history.index == history["validation_loss"].idxmin()
        channels_last = self.layout == torch.channels_last_3d
        facts = {
            "device": str(self.fabric.device),
            "devices": config.devices,
            "memory_layout": "channels_last" if channels_last else "contiguous",
        }
        return Fitted(state.best, history, tuple(state.snapshots), facts)

    def resume(self) -> None:
        """Go on from the checkpoint, if there is one."""
        checkpoint = self.conditions.checkpoint
        if checkpoint is None or not checkpoint.exists():
            return
        try:
            self.state.restore(checkpoint, self.identity)
        except SimbaError as error:
            if not self.conditions.in_cache:
                raise
            warnings.warn(f"The fit begins anew. {error}", stacklevel=2)

    def epoch(self, bar: tqdm) -> None:
        """Take the steps that are left of an epoch, validate, and write a checkpoint."""
        start = time.perf_counter()
        self.network.train()
        batches = self.row_batches()
        twins = self.twins.batches(batches) if self.twins else [None] * len(batches)
        for rows, volumes, twin in zip(batches, self.volumes.batches(batches), twins, strict=True):
            self.step(rows, volumes, twin)
            bar.update()
            if time.monotonic() - self.saved > CHECKPOINT_SECONDS:
                self.save()
        validation = self.fabric.broadcast(self.validate())
        self.state.end_epoch(validation, round(time.perf_counter() - start, 3))
        if self.state.epoch < self.config.epochs:
            self.save()

    def row_batches(self) -> list[torch.Tensor]:
        """Return the rows of each batch that is left of the epoch, as this device sees them.

        Devices share a batch evenly, so that the mean over devices is the mean over the batch.
        """
        devices, size = self.config.devices, self.config.batch_size
        order = self.objective.order(self.config.seed, self.state.epoch).split(size)
        return [
            rows[: len(rows) // devices * devices][self.fabric.global_rank :: devices]
            for rows in order[self.state.step : self.steps]
        ]

    def step(self, rows: torch.Tensor, volumes: torch.Tensor, twins: torch.Tensor | None) -> None:
        """Take one step of the optimiser."""
        seed, state = self.config.seed, self.state
        _reseed(seed, state.epoch, state.step, self.fabric.global_rank)
        done = state.epoch * self.steps + state.step
        progress = Progress(seed, state.epoch, done / (self.steps * self.config.epochs))
        volumes = volumes.contiguous(memory_format=self.layout)
        twins = None if twins is None else twins.contiguous(memory_format=self.layout)
        loss = self.objective.loss(self.network, volumes, rows, twins, progress)
        self.optimiser.zero_grad()
        self.fabric.backward(loss)
        self.optimiser.step()
        self.schedule.step()
        state.total += loss.item() * len(rows)
        state.seen += len(rows)
        if not np.isfinite(state.total):
            remedy = (
                f"It broke at epoch {state.epoch}, step {state.step}, with learning rate "
                f"{self.config.learning_rate}; lower it, and look for NaN in the volumes."
            )
            raise SimbaError("loss", state.total, "finite", remedy)
        state.step += 1

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Return loss and accuracy on the validation subjects."""
        self.network.eval()
        rows = torch.arange(len(self.labels)).split(4 * self.config.batch_size)
        logits = torch.cat(
            [
                logit(self.network(volumes.contiguous(memory_format=self.layout))).float().cpu()
                for volumes in self.validation.batches(rows)
            ]
        )
        if not torch.isfinite(logits).all():
            remedy = "Look for NaN in the validation volumes, and lower the learning rate."
            raise SimbaError("validation logits", Words("NaN or infinite"), "finite", remedy)
        correct = ((logits > 0) == (self.labels > 0)).float()
        loss = self.objective.validation_loss(logits, self.labels)
        return {"validation_loss": loss, "validation_accuracy": correct.mean().item()}

    def save(self) -> None:
        """Write a checkpoint, if one is wanted; a disk that fails does not end the fit."""
        if self.conditions.checkpoint is None or self.fabric.global_rank > 0:
            return
        try:
            self.state.save(self.conditions.checkpoint, self.identity)
        except (OSError, SimbaError) as error:
            if not self.warned:
                warnings.warn(f"The fit goes on without a checkpoint. {error}", stacklevel=2)
            self.warned = True
        self.saved = time.monotonic()


class _Body(torch.nn.Module):
    """A network that also gives the features of its read-out, if a mitigation asks for them."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(
        self, x: torch.Tensor, *, features: bool = False
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        if not features:
            return self.network(x)
        read_features = getattr(self.network, "features", None)
        readout = getattr(self.network, "readout", None)
        if read_features is None or readout is None:
            allowed = "a network with methods features(x) and readout(features)"
            remedy = "Unlearning works on what the read-out sees; SimBANet and ResNet3D have both."
            raise SimbaError("model", type(self.network).__name__, allowed, remedy)
        values = read_features(x)
        return readout(values), values


def _reseed(seed: int, epoch: int, step: int, rank: int) -> None:
    """Give each step a random stream of its own: a resumed fit draws what it would have drawn."""
    word = hashlib.blake2b(repr((seed, epoch, step, rank)).encode(), digest_size=8).digest()
    torch.manual_seed(int.from_bytes(word, "little") >> 1)


def _memory_layout(body: _Body, feed: Feed, config: FitConfig) -> torch.memory_format:
    """Return channels-last if it is wanted and the network can: 1.4 times faster on a processor."""
    if not config.channels_last:
        return torch.contiguous_format
    layout = torch.channels_last_3d
    trial, training = laid_out(copied(body), layout).eval(), body.training
    volumes = next(feed.batches([torch.arange(min(2, len(feed)))]))
    try:
        logit(trial(volumes.contiguous(memory_format=layout))).sum().backward()
    except RuntimeError as error:
        if "view" not in str(error) and "memory format" not in str(error):
            raise
        return torch.contiguous_format  # a network that reshapes its features with view()
    finally:
        body.train(training)
    return layout
