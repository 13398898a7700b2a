"""Fit a network on a cohort: deterministic, chosen on validation data, resumed after a kill, remembered by content."""

from __future__ import annotations

import copy
import hashlib
import platform
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from filelock import FileLock
from torch.optim.lr_scheduler import ConstantLR, OneCycleLR
from tqdm.auto import tqdm

from simba_lab.core.batches import Feed
from simba_lab.core.compute import deterministic
from simba_lab.core.errors import SimbaError
from simba_lab.training import checkpoints
from simba_lab.training.config import FitConfig
from simba_lab.training.identity import cache_folder, code_version, content_key, identity_of
from simba_lab.training.mitigation.methods import BiasGroupModels, mitigation_from
from simba_lab.training.mitigation.objective import Mitigation, Objective, Progress
from simba_lab.training.networks import logit
from simba_lab.training.run import Run, routed_by

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from simba_lab.core.cohort import Cohort

# A long epoch is not lost as a whole: progress is written at the end of each, and when so much time
# has passed.
CHECKPOINT_SECONDS = 60.0


def fit(
    model: torch.nn.Module,
    cohort: Cohort,
    config: FitConfig | None = None,
    *,
    mitigation: Mitigation | Mapping[str, Any] | str | None = None,
    cache: str | Path | bool = True,
    checkpoint: str | Path | None = None,
    memory_gb: float = 4.0,
    progress: bool = False,
) -> Run:
    """Train a copy of a network to tell disease from control on a cohort.

    The same model, cohort, config and mitigation give the same weights, bit for bit, on one
    machine; so a run that was made before is read back instead of being trained again, and one that
    was interrupted goes on where it was.

    Parameters
    ----------
    model : torch.nn.Module
        Takes (N, 1, X, Y, Z) and returns logits of shape (N,), (N, 1) or (N, 2). It is not changed.
    cohort : Cohort
        Its train part is fitted, its validation part chooses the epoch; its test part is not looked
        at.
    config : FitConfig, optional
    mitigation : Mitigation, str or mapping, optional
        What to do against a shortcut, such as ``Reweighing()`` or ``"reweighing"``.
    cache : bool or path
        Where runs are kept: True for the user's cache folder (or ``$SIMBA_LAB_CACHE``), False for
        nowhere.
    checkpoint : path, optional
        File that progress is written to, and taken up from if it exists; removed in the end. With a
        cache it lies there by default.
    memory_gb : float
        Volumes beyond this size are not kept in memory but rendered, or read from a store, for each
        batch.
    progress : bool
        Whether to show a progress bar.

    Returns
    -------
    Run

    Raises
    ------
    SimbaError
        If a split is empty or lacks a class, if a group lacks a class and a mitigation needs it, if
        the checkpoint is of another fit or damaged, or if the loss stops being a number.
    """
    config, mitigation = config or FitConfig(), mitigation_from(mitigation)
    for split in ("train", "validation"):
        labels = cohort["label"][cohort["split"] == split]
        if len(set(labels.tolist())) < 2:
            raise SimbaError(
                f"cohort.{split}",
                f"{len(labels)} subjects of classes {sorted(set(labels.tolist()))}",
                "of both classes",
                "Pass a whole cohort, with its train and validation parts.",
            )
    if mitigation is not None:
        mitigation.check(cohort)
        if config.snapshots and isinstance(mitigation, BiasGroupModels):
            raise SimbaError(
                "config.snapshots",
                True,
                "False for group models",
                "Fit each group's cohort by itself.",
            )
        if config.devices > 1 and mitigation.one_device:
            raise SimbaError(
                "config.devices",
                config.devices,
                f"1 for {mitigation.name}",
                "What it learns about the groups is not shared between devices.",
            )
    train = partial(_fit, model, cohort, config, mitigation, memory_gb=memory_gb, progress=progress)
    if cache is False:
        return train(checkpoint=checkpoint)
    root = Path(cache) if not isinstance(cache, bool) else cache_folder()
    folder = root / "runs" / content_key(identity_of(model, cohort, config, mitigation))
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):  # a second process that wants the same run waits for it
        if not folder.exists():
            train(checkpoint=checkpoint or folder.with_suffix(".checkpoint")).save(folder)
        return Run.load(folder, model)


class Pair(NamedTuple):
    """Two runs that differ in one thing: whether the bias was correlated with the disease."""

    biased: Run
    control: Run


def fit_pair(
    model: torch.nn.Module, cohort: Cohort, config: FitConfig | None = None, **options: Any
) -> Pair:
    """Fit a network on a cohort and on its unbiased control: same first weights, same batch order, same noise.

    Parameters
    ----------
    model, cohort, config
        As for `fit`.
    **options
        Further arguments of `fit`, for both.

    Returns
    -------
    Pair
        ``biased`` and ``control``. In the control cohort (`Cohort.unbiased`) the same effects are
        as common in one class as in the other.
    """
    return Pair(
        fit(model, cohort, config, **options), fit(model, cohort.unbiased(), config, **options)
    )


def _fit(
    model: torch.nn.Module,
    cohort: Cohort,
    config: FitConfig,
    mitigation: Mitigation | None,
    *,
    checkpoint: str | Path | None,
    memory_gb: float,
    progress: bool,
) -> Run:
    start = time.perf_counter()
    options = {"memory_gb": memory_gb, "progress": progress}
    groups, by = [], mitigation.by if mitigation else "bias"
    if isinstance(mitigation, BiasGroupModels):
        groups = np.unique(cohort[by]).tolist()
    fits = []
    for part in [cohort.where(cohort[by] == group) for group in groups] or [cohort]:
        own = mitigation if not groups else None
        path = checkpoint and Path(checkpoint).with_name(
            Path(checkpoint).name + (str(len(fits)) if groups else "")
        )
        fits.append(_launched(model, part, config, own, checkpoint=path, **options))
    histories = [pd.DataFrame(rows).set_index("epoch") for _, rows, _, _ in fits]
    for history in histories:
        history["kept"] = history.index == history["validation_loss"].idxmin()
    if groups:
        fitted = routed_by(model, by, groups)
        for network, (weights, *_) in zip(fitted.networks, fits, strict=True):
            network.load_state_dict(weights)
        history = pd.concat(
            [one.assign(group=group) for one, group in zip(histories, groups, strict=True)]
        )
    else:
        fitted, history = copy.deepcopy(model), histories[0]
        fitted.load_state_dict(fits[0][0])
    provenance = {
        "cohort": cohort.identity,
        "mitigation": mitigation and mitigation.to_dict(),
        "routed": {"by": by, "groups": groups} if groups else None,
        "code": code_version(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        **fits[0][3],
        "seconds": round(time.perf_counter() - start, 2),
    }
    fitted = fitted.cpu().to(memory_format=torch.contiguous_format).eval()
    return Run(fitted, history, config, provenance, tuple(fits[0][2]))


Weights = dict[str, torch.Tensor]
# Weights of the best epoch, history, weights of every epoch, and facts.
Fitted = tuple[Weights, list[dict[str, float]], list[Weights], dict[str, Any]]


def _launched(model, cohort, config: FitConfig, mitigation, **options: Any) -> Fitted:
    """Train on one device here, or on several in a process each."""
    from lightning_fabric import (
        Fabric,
    )  # it takes as long to import as torch: not for those who only read results

    strategy = "auto" if config.devices == 1 else "ddp_spawn"
    try:
        fabric = Fabric(
            accelerator=config.accelerator,
            devices=config.devices,
            precision=config.precision,
            strategy=strategy,
        )
    except (
        Exception
    ) as error:  # Fabric's own errors for hardware that is not there are of many types
        settings = f"{config.accelerator}, {config.devices} x, {config.precision}"
        remedy = f"Fabric says: {str(error).splitlines()[0]}"
        raise SimbaError(
            "config", settings, "an accelerator and precision that exist here", remedy
        ) from error
    if config.devices == 1:
        return _train(fabric, model, cohort, config, mitigation, **options)
    # As one function: Fabric would look into arguments, and frozen dataclasses do not let it.
    call = partial(
        _train_remotely, model=model, cohort=cohort, config=config, mitigation=mitigation, **options
    )
    arrays, rows, snapshots, facts = fabric.launch(call)

    def tensors(values: dict[str, np.ndarray]) -> Weights:
        return {name: torch.from_numpy(np.array(value)) for name, value in values.items()}

    return tensors(arrays), rows, [tensors(one) for one in snapshots], facts


def _train_remotely(fabric: Fabric, **options: Any) -> tuple:
    # Tensors would be handed over by reference to a process that ends.
    best, rows, snapshots, facts = _train(fabric, **options)
    best, *snapshots = (
        {name: value.numpy() for name, value in one.items()} for one in (best, *snapshots)
    )
    return best, rows, snapshots, facts


class _Body(torch.nn.Module):
    """A network that gives the features of its read-out as well, where a mitigation asks for them."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(
        self, x: torch.Tensor, *, features: bool = False
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        if not features:
            return self.network(x)
        if not (hasattr(self.network, "features") and hasattr(self.network, "readout")):
            raise SimbaError(
                "model",
                type(self.network).__name__,
                "a network with methods features(x) and readout(features)",
                "Unlearning works on what the read-out sees; SimBANet and ResNet3D have both.",
            )
        found = self.network.features(x)
        return self.network.readout(found), found


def _train(
    fabric: Fabric,
    model: torch.nn.Module,
    cohort: Cohort,
    config: FitConfig,
    mitigation: Mitigation | None,
    *,
    checkpoint: Path | None,
    memory_gb: float,
    progress: bool,
) -> Fitted:
    identity = identity_of(model, cohort, config, mitigation)
    with deterministic(config.threads), torch.random.fork_rng():
        train, validation = cohort.train, cohort.validation
        objective = (mitigation.objective if mitigation else Objective)(train, validation)
        objective.to(fabric.device)
        feed = Feed(train, fabric.device, memory_gb=memory_gb)
        twins = (
            Feed(objective.twins, fabric.device, memory_gb=memory_gb)
            if objective.twins is not None
            else None
        )
        held_out = Feed(validation, fabric.device, memory_gb=memory_gb)
        body = _Body(copy.deepcopy(model).to(fabric.device))
        layout = _layout(body, feed, config)
        body = body.to(memory_format=layout)
        # The fused step rounds differently: it is for those who chose speed over full precision.
        optimiser = torch.optim.AdamW(
            body.parameters(),
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            fused=config.precision != "32-true",
        )
        network, optimiser = fabric.setup(body, optimiser)
        steps = len(objective.order(config.seed, 0)) // config.batch_size
        steps += len(objective.order(config.seed, 0)) % config.batch_size >= config.devices
        if config.schedule == "one_cycle":
            schedule = OneCycleLR(
                optimiser, config.learning_rate, total_steps=steps * config.epochs
            )
        else:
            schedule = ConstantLR(optimiser, factor=1.0, total_iters=0)
        state = _State(body, optimiser, schedule, objective, config.snapshots)
        if checkpoint is not None and Path(checkpoint).exists():
            state.restore(Path(checkpoint), identity)
        labels, saved = torch.from_numpy(validation["label"].astype(np.float32)), time.monotonic()
        shown = tqdm(
            total=steps * config.epochs,
            initial=state.epoch * steps + state.step,
            unit="step",
            desc="fit",
            disable=not progress or fabric.global_rank > 0,
        )
        with shown:
            while state.epoch < config.epochs and not state.patience_lost(config.patience):
                network.train()
                began = time.perf_counter()
                batches = objective.order(config.seed, state.epoch).split(config.batch_size)[
                    state.step : steps
                ]
                # Devices share a batch evenly, so that the mean over devices is the mean over the
                # batch.
                mine = [batch[: len(batch) // config.devices * config.devices] for batch in batches]
                mine = [batch[fabric.global_rank :: config.devices] for batch in mine]
                fed = zip(
                    mine,
                    feed.batches(mine),
                    twins.batches(mine) if twins else [None] * len(mine),
                    strict=True,
                )
                for rows, volumes, others in fed:
                    _reseed(config.seed, state.epoch, state.step, fabric.global_rank)
                    done = Progress(
                        config.seed,
                        state.epoch,
                        (state.epoch * steps + state.step) / (steps * config.epochs),
                    )
                    others = None if others is None else others.contiguous(memory_format=layout)
                    loss = objective.loss(
                        network, volumes.contiguous(memory_format=layout), rows, others, done
                    )
                    optimiser.zero_grad()
                    fabric.backward(loss)
                    optimiser.step()
                    schedule.step()
                    state.total += loss.item() * len(rows)
                    state.seen += len(rows)
                    if not np.isfinite(state.total):
                        raise SimbaError(
                            "loss",
                            state.total,
                            "finite",
                            f"It broke at epoch {state.epoch}, step {state.step}, with learning rate "
                            f"{config.learning_rate}; lower it, and look for NaN in the volumes.",
                        )
                    state.step += 1
                    shown.update()
                    if (
                        checkpoint is not None
                        and time.monotonic() - saved > CHECKPOINT_SECONDS
                        and fabric.global_rank == 0
                    ):
                        state.save(Path(checkpoint), identity)
                        saved = time.monotonic()
                found = _validate(
                    network, held_out, labels, objective, 4 * config.batch_size, layout
                )
                found = fabric.broadcast(found)
                state.end_epoch(found | {"seconds": round(time.perf_counter() - began, 3)})
                if (
                    checkpoint is not None
                    and fabric.global_rank == 0
                    and state.epoch < config.epochs
                ):
                    state.save(Path(checkpoint), identity)
                    saved = time.monotonic()
        if checkpoint is not None and fabric.global_rank == 0:
            Path(checkpoint).unlink(missing_ok=True)
    facts = {
        "device": str(fabric.device),
        "devices": config.devices,
        "memory_layout": "channels_last" if layout == torch.channels_last_3d else "contiguous",
    }
    return state.best, state.rows, state.snapshots, facts


class _State:
    """All that a fit has changed since it began."""

    def __init__(
        self, body: _Body, optimiser, schedule, objective: Objective, snapshots: bool
    ) -> None:
        self.body, self.optimiser, self.schedule, self.objective = (
            body,
            optimiser,
            schedule,
            objective,
        )
        self.epoch = self.step = self.seen = 0
        self.total = 0.0
        self.rows: list[dict[str, float]] = []
        self.best: Weights = {}
        self.snapshots: list[Weights] = [self._weights()] if snapshots else []

    def _weights(self) -> Weights:
        return {
            name: value.detach().cpu().clone()
            for name, value in self.body.network.state_dict().items()
        }

    def end_epoch(self, found: dict[str, float]) -> None:
        """Note what an epoch gave, and keep the weights if no epoch was better."""
        rate = self.schedule.get_last_lr()[0]
        row = (
            {"epoch": self.epoch, "train_loss": self.total / self.seen}
            | found
            | {"learning_rate": rate}
        )
        if not self.rows or row["validation_loss"] < min(
            one["validation_loss"] for one in self.rows
        ):
            self.best = self._weights()
        if self.snapshots:
            self.snapshots.append(self._weights())
        self.rows.append(row)
        self.epoch, self.step, self.seen, self.total = self.epoch + 1, 0, 0, 0.0

    def patience_lost(self, patience: int | None) -> bool:
        """Return whether the last `patience` epochs were all no better than what was before."""
        losses = [row["validation_loss"] for row in self.rows]
        return (
            patience is not None
            and len(losses) > patience
            and len(losses) - 1 - int(np.argmin(losses)) >= patience
        )

    def save(self, path: Path, identity: Mapping[str, str]) -> None:
        """Write everything that the next step depends on."""
        moments, groups = checkpoints.optimiser_state(self.optimiser)
        parts = {"network": self.body.network.state_dict(), "best": self.best, "optimiser": moments}
        parts["objective"] = self.objective.state()
        parts |= {f"snapshot {number}": weights for number, weights in enumerate(self.snapshots)}
        tensors = {
            f"{part}/{name}": value
            for part, entries in parts.items()
            for name, value in entries.items()
        }
        place = {name: getattr(self, name) for name in ("epoch", "step", "seen", "total", "rows")}
        facts = {
            "identity": dict(identity),
            "groups": groups,
            "schedule": self.schedule.state_dict(),
            "place": place,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        checkpoints.write(path, tensors, facts)

    def restore(self, path: Path, identity: Mapping[str, str]) -> None:
        """Take up what `save` wrote, if it is of the same fit."""
        tensors, facts = checkpoints.read(path)
        other = [
            name for name, value in identity.items() if facts.get("identity", {}).get(name) != value
        ]
        if other:
            raise SimbaError(
                "checkpoint",
                str(path),
                "of this very fit",
                f"Another {' and another '.join(other)} was being fitted. Delete it to start again.",
            )
        parts: dict[str, dict[str, torch.Tensor]] = {
            "network": {},
            "best": {},
            "optimiser": {},
            "objective": {},
        }
        for name, value in tensors.items():
            part, _, rest = name.partition("/")
            parts.setdefault(part, {})[rest] = value
        self.snapshots = [parts[f"snapshot {number}"] for number in range(len(parts) - 4)]
        self.body.network.load_state_dict(parts["network"])
        self.best = parts["best"]
        checkpoints.restore_optimiser(self.optimiser, parts["optimiser"], facts["groups"])
        self.schedule.load_state_dict(facts["schedule"])
        self.objective.restore(parts["objective"])
        for name, value in facts["place"].items():
            setattr(self, name, value)


def _reseed(seed: int, epoch: int, step: int, rank: int) -> None:
    """Give each step a random stream of its own, so that a fit that goes on draws what it would have drawn."""
    word = hashlib.blake2b(repr((seed, epoch, step, rank)).encode(), digest_size=8).digest()
    torch.manual_seed(int.from_bytes(word, "little") >> 1)


def _layout(body: _Body, feed: Feed, config: FitConfig) -> torch.memory_format:
    """Return channels-last if it is wanted and the network can: 1.4 times faster for SimBANet on a CPU."""
    if not config.channels_last:
        return torch.contiguous_format
    probe, training = (
        copy.deepcopy(body).to(memory_format=torch.channels_last_3d).eval(),
        body.training,
    )
    volumes = next(feed.batches([torch.arange(min(2, len(feed)))])).contiguous(
        memory_format=torch.channels_last_3d
    )
    try:
        logit(probe(volumes)).sum().backward()
    except RuntimeError as error:
        if "view" not in str(error) and "memory format" not in str(error):
            raise
        return torch.contiguous_format  # a network that reshapes its features with view()
    finally:
        body.train(training)
    return torch.channels_last_3d


@torch.no_grad()
def _validate(
    network,
    feed: Feed,
    labels: torch.Tensor,
    objective: Objective,
    size: int,
    layout: torch.memory_format,
) -> dict[str, float]:
    network.eval()
    rows = torch.arange(len(labels)).split(size)
    batches: Iterator[torch.Tensor] = feed.batches(rows)
    scores = torch.cat(
        [logit(network(part.contiguous(memory_format=layout))).float().cpu() for part in batches]
    )
    accuracy = ((scores > 0) == (labels > 0)).float().mean().item()
    return {
        "validation_loss": objective.validation_loss(scores, labels),
        "validation_accuracy": accuracy,
    }
