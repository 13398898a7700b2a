"""A site as the strategies see it: it says how many subjects it has, and trains weights that visit it."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from simba_lab.core.batches import Feed
from simba_lab.core.cohort import Cohort
from simba_lab.core.compute import THREADS, deterministic
from simba_lab.core.errors import SimbaError, UnknownNameError
from simba_lab.core.rng import stream
from simba_lab.federation.harmony import ScannerHead, Weights, divided
from simba_lab.federation.reading import check_names
from simba_lab.training.networks import logit

OPTIMISERS = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}


class SiteError(SimbaError):
    """A site that gave no usable answer; `field` is its name."""


@dataclass(frozen=True)
class VisitConfig:
    """How a site trains the weights that visit it.

    The optimiser starts afresh at each visit: a site sends weights and counts alone. AdamW loses
    its moments with that, and with one subject a site they are all that it has: its steps then keep
    only the signs of the gradient. Plain gradient descent has nothing to lose.

    Parameters
    ----------
    epochs : int
        Passes over the site's subjects in one visit.
    batch_size : int
    learning_rate : float
        Before the decay of the strategy.
    weight_decay : float
    optimiser : {"adamw", "sgd"}
    threads : int
        As in `simba_lab.FitConfig`.
    channels_last : bool
        False for networks that look at the memory of their activations.
    """

    epochs: int = 1
    batch_size: int = 8
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    optimiser: str = "adamw"
    threads: int = THREADS
    channels_last: bool = True

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "threads"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise SimbaError(f"config.{name}", value, "an integer of at least 1")
        if not isinstance(self.learning_rate, int | float) or not 0 < self.learning_rate < 1:
            raise SimbaError(
                "config.learning_rate",
                self.learning_rate,
                "above 0 and below 1",
                "1e-3 works for SimBANet.",
            )
        if self.optimiser not in OPTIMISERS:
            raise UnknownNameError.among("config.optimiser", self.optimiser, OPTIMISERS)
        if not isinstance(self.weight_decay, int | float) or not 0 <= self.weight_decay < math.inf:
            raise SimbaError("config.weight_decay", self.weight_decay, "finite and at least 0")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], name: str = "visit") -> VisitConfig:
        """Build settings from a mapping; unknown fields are errors."""
        check_names(values, name, [entry.name for entry in dataclasses.fields(cls)])
        return cls(**values)


class Client(Protocol):
    """What a strategy needs of a site, wherever that is."""

    name: str

    def info(self) -> dict[str, Any]:
        """Return ``subjects``, the number of training subjects."""

    def train(
        self,
        weights: Weights,
        *,
        seed: int,
        visit: int,
        rate: float = 1.0,
        proximal: float = 0.0,
        scanner: int = 0,
        confusion: float = 0.0,
    ) -> dict[str, Any]:
        """Return ``weights`` after training here, ``subjects`` and the mean ``loss``.

        Parameters
        ----------
        weights : dict of str to tensor
            Not changed. A scanner head among them (`simba_lab.federation.harmony`) is trained too.
        seed, visit : int
            Name the order in which subjects are seen: the same numbers give the same weights.
        rate : float
            Factor on the learning rate.
        proximal : float
            Weight of the squared distance from the weights that came in (FedProx's mu).
        scanner : int
            Which one is used here, for the head.
        confusion : float
            Weight with which features are learnt that the head cannot read.
        """


class LocalClient:
    """A site in this process.

    Parameters
    ----------
    name : str
    model : torch.nn.Module
        Its architecture; a copy is trained.
    cohort : Cohort
        The site's training subjects. Their volumes are brought when the first visit comes.
    config : VisitConfig, optional
    memory_gb : float
        Volumes beyond this size are not kept in memory.
    """

    def __init__(
        self,
        name: str,
        model: torch.nn.Module,
        cohort: Cohort,
        config: VisitConfig | None = None,
        *,
        memory_gb: float = 4.0,
    ) -> None:
        if len(cohort) == 0:
            raise SiteError(name, "no subjects", "a site with at least one")
        self.name, self.cohort, self.config, self.memory_gb = (
            name,
            cohort,
            config or VisitConfig(),
            memory_gb,
        )
        self._network = copy.deepcopy(model)
        self._feed: Feed | None = None

    def info(self) -> dict[str, Any]:
        """Return the number of training subjects."""
        return {"subjects": len(self.cohort)}

    def train(
        self,
        weights: Weights,
        *,
        seed: int,
        visit: int,
        rate: float = 1.0,
        proximal: float = 0.0,
        scanner: int = 0,
        confusion: float = 0.0,
    ) -> dict[str, Any]:
        """Train a copy of the weights on this site's subjects, see `Client.train`."""
        config, network = self.config, self._network
        own, of_head = divided(weights)
        network.load_state_dict(own)
        head = ScannerHead(of_head) if of_head else None
        layout = torch.channels_last_3d if config.channels_last else torch.contiguous_format
        network = network.to(memory_format=layout).train()
        parameters = [value for value in network.parameters() if value.requires_grad]
        start = [value.detach().clone() for value in parameters] if proximal else []
        draws, total = stream(seed, self.name, f"visit {visit}"), 0.0
        with deterministic(config.threads), torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(draws.integers(2**62)))  # dropout
            if self._feed is None:
                self._feed = Feed(self.cohort, torch.device("cpu"), memory_gb=self.memory_gb)
            labels = torch.from_numpy(self.cohort["label"].astype(np.float32))
            optimiser, teacher = (
                self._optimiser(parameters, rate),
                self._optimiser(head.parameters(), rate) if head else None,
            )
            for _ in range(config.epochs):
                batches = torch.from_numpy(draws.permutation(len(labels))).split(config.batch_size)
                for rows, volumes in zip(batches, self._feed.batches(batches), strict=True):
                    volumes = volumes.contiguous(memory_format=layout)
                    features = network.features(volumes) if head else None
                    scores = logit(network.readout(features) if head else network(volumes))
                    loss = binary_cross_entropy_with_logits(scores.float(), labels[rows])
                    total += loss.item() * len(rows)
                    if start:
                        pulls = zip(parameters, start, strict=True)
                        loss = loss + proximal / 2 * sum(
                            ((value - before) ** 2).sum() for value, before in pulls
                        )
                    if head:
                        _descend(teacher, head.mistakes(features, scanner))
                        loss = loss + confusion * head.confusion(features)
                    _descend(optimiser, loss)
        after = {
            name: value.detach().clone().contiguous()
            for name, value in network.state_dict().items()
        }
        after |= head.weights() if head else {}
        return {
            "weights": after,
            "subjects": len(labels),
            "loss": total / (len(labels) * config.epochs),
        }

    def _optimiser(
        self, parameters: Iterable[torch.nn.Parameter], rate: float
    ) -> torch.optim.Optimizer:
        config = self.config
        make = OPTIMISERS[config.optimiser]
        return make(parameters, lr=config.learning_rate * rate, weight_decay=config.weight_decay)


def _descend(optimiser: torch.optim.Optimizer, loss: torch.Tensor) -> None:
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()


def checked(reply: object, weights: Weights, site: str) -> dict[str, Any]:
    """Return the reply of a site if it can be used.

    Raises
    ------
    SiteError
        If it lacks a part, if weights have other names or shapes than those that were sent, or are
        not finite.
    """
    if not isinstance(reply, dict) or not {"weights", "subjects", "loss"} <= set(reply):
        raise SiteError(site, type(reply).__name__, "a reply with weights, subjects and loss")
    if not isinstance(reply["subjects"], int) or reply["subjects"] < 1:
        raise SiteError(site, reply["subjects"], "a reply with a number of subjects above 0")
    found = reply["weights"]
    if set(found) != set(weights):
        strange = sorted(set(found) ^ set(weights))[0]
        raise SiteError(
            site, strange, "a reply with the weights that were sent", "It runs another network."
        )
    for name, value in weights.items():
        if found[name].shape != value.shape or found[name].dtype != value.dtype:
            shape = f"{name}: {tuple(found[name].shape)}, {found[name].dtype}"
            raise SiteError(
                site, shape, f"a reply of shape {tuple(value.shape)} and type {value.dtype}"
            )
        if not torch.isfinite(found[name]).all():
            raise SiteError(
                site,
                f"{name}: not finite",
                "a reply of finite weights",
                "Look at its data and learning rate.",
            )
    return reply
