"""Clients: a site says how many subjects it has, and trains the weights that visit it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any, Protocol

import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from simba_lab.core.batches import Feed
from simba_lab.core.border import checks_arguments
from simba_lab.core.checks import MOST_WORKERS, below_one, built, choice, not_negative, whole_number
from simba_lab.core.cohort import Cohort
from simba_lab.core.compute import THREADS, deterministic
from simba_lab.core.errors import SimbaError, Words
from simba_lab.core.network_adapter import copied, trainable
from simba_lab.core.rng import stream
from simba_lab.federation.harmony import ScannerHead, Weights, divided
from simba_lab.training.networks import logit

OPTIMISERS = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}


class SiteError(SimbaError):
    """A site gave no usable answer; the message names the site.

    Examples
    --------
    >>> import simba_lab as sb
    >>> str(sb.federation.SiteError.problem("north could not train.", "Is its process running?"))
    'north could not train. Is its process running?'
    """


@checks_arguments
@dataclass(frozen=True)
class VisitConfig:
    """How a site trains the weights that visit it.

    The optimiser starts afresh at each visit, because a site sends nothing but weights and counts.
    AdamW loses its moments that way: with one subject per site its steps keep only the signs of
    the gradient. Plain gradient descent has no moments to lose.

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
        False for networks that depend on the memory layout of their activations.

    Examples
    --------
    >>> import simba_lab as sb
    >>> sb.federation.VisitConfig(optimiser="sgd", learning_rate=0.1).epochs
    1
    """

    epochs: int = 1
    batch_size: int = 8
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    optimiser: str = "adamw"
    threads: int = THREADS
    channels_last: bool = True

    def __post_init__(self) -> None:
        checked = {
            name: whole_number(f"config.{name}", getattr(self, name))
            for name in ("epochs", "batch_size")
        }
        checked["threads"] = whole_number("config.threads", self.threads, most=MOST_WORKERS)
        remedy = "1e-3 works for SimBANet."
        rate = below_one("config.learning_rate", self.learning_rate, remedy=remedy)
        decay = not_negative("config.weight_decay", self.weight_decay)
        choice("config.optimiser", self.optimiser, OPTIMISERS)
        if not isinstance(self.channels_last, bool):
            raise SimbaError("config.channels_last", self.channels_last, "true or false")
        for name, value in {**checked, "learning_rate": rate, "weight_decay": decay}.items():
            object.__setattr__(self, name, value)  # plain numbers: they are sent and hashed

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], name: str = "visit") -> VisitConfig:
        """Build settings from a mapping; unknown fields are errors."""
        return built(cls, values, name)


class Client(Protocol):
    """A site as the strategies see it, in this process or on another machine."""

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
            They decide the order of subjects: the same numbers give the same weights.
        rate : float
            Factor on the learning rate.
        proximal : float
            Weight of the squared distance from the weights that came in (FedProx's mu).
        scanner : int
            Number of the scanner at this site, which the head learns.
        confusion : float
            Weight of the head's confusion in the loss of the features.
        """


@checks_arguments
class LocalClient:
    """A site in this process.

    It has no least number of subjects, as deployed sites have: nothing leaves this process, and
    what sites of one or two subjects can learn is among the questions (`Comparison`).

    Parameters
    ----------
    name : str
    model : torch.nn.Module
        Its architecture; a copy is trained.
    cohort : Cohort
        The site's training subjects. Their volumes are made at the first visit.
    config : VisitConfig, optional
    memory_gb : float
        Cohorts larger than this are not kept in memory.

    Raises
    ------
    SiteError
        If the cohort has no subjects.

    Examples
    --------
    >>> import simba_lab as sb
    >>> scenario = sb.Scenario(64, sb.Morphology("Insula_L", 2.5), spacing_mm=8)
    >>> cohort, model = sb.synthesise(scenario), sb.SimBANet((2, 2), norm="group", seed=0)
    >>> client = sb.federation.LocalClient("north", model, cohort.where(range(4)))
    >>> sorted(client.train(model.state_dict(), seed=0, visit=1))
    ['loss', 'subjects', 'weights']
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
            raise SiteError.problem(
                f"{name} has no training subjects.", "A site needs at least one."
            )
        self.name, self.cohort = name, cohort
        self.config, self.memory_gb = config or VisitConfig(), memory_gb
        self._network = copied(trainable(model))
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
        for name, value in (("rate", rate), ("proximal", proximal), ("confusion", confusion)):
            not_negative(name, value)
        config, network = self.config, self._network
        network_weights, head_weights = divided(weights)
        network.load_state_dict(network_weights)
        head = ScannerHead(head_weights) if head_weights else None
        layout = torch.channels_last_3d if config.channels_last else torch.contiguous_format
        network = network.to(memory_format=layout).train()  # type: ignore[call-overload]
        parameters = [value for value in network.parameters() if value.requires_grad]
        start = [value.detach().clone() for value in parameters] if proximal else []
        draws, total = stream(seed, self.name, f"visit {visit}"), 0.0
        with deterministic(config.threads), torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(draws.integers(2**62)))  # dropout
            if self._feed is None:
                self._feed = Feed(self.cohort, torch.device("cpu"), memory_gb=self.memory_gb)
            labels = torch.from_numpy(self.cohort["label"].astype(np.float32))
            optimiser = self._optimiser(parameters, rate)
            head_optimiser = self._optimiser(head.parameters(), rate) if head else None
            for _ in range(config.epochs):
                batches = torch.from_numpy(draws.permutation(len(labels))).split(config.batch_size)
                for rows, volumes in zip(batches, self._feed.batches(batches), strict=True):
                    volumes = volumes.contiguous(memory_format=layout)
                    features = network.features(volumes) if head else volumes
                    logits = logit(network.readout(features) if head else network(volumes))
                    loss = binary_cross_entropy_with_logits(logits.float(), labels[rows])
                    total += loss.item() * len(rows)
                    if start:
                        loss = loss + proximal / 2 * _squared_distance(parameters, start)
                    if head and head_optimiser:
                        _descend(head_optimiser, head.mistakes(features, scanner))
                        loss = loss + confusion * head.confusion(features)
                    _descend(optimiser, loss)
        trained = {
            name: value.detach().clone().contiguous()
            for name, value in network.state_dict().items()
        }
        return {
            "weights": trained | (head.weights() if head else {}),
            "subjects": len(labels),
            "loss": total / (len(labels) * config.epochs),
        }

    def _optimiser(
        self, parameters: Iterable[torch.nn.Parameter], rate: float
    ) -> torch.optim.Optimizer:
        config = self.config
        make = OPTIMISERS[config.optimiser]
        return make(parameters, lr=config.learning_rate * rate, weight_decay=config.weight_decay)


def _squared_distance(
    parameters: Iterable[torch.Tensor], start: Iterable[torch.Tensor]
) -> torch.Tensor:
    pairs = zip(parameters, start, strict=True)
    return reduce(torch.add, [((value - before) ** 2).sum() for value, before in pairs])


def _descend(optimiser: torch.optim.Optimizer, loss: torch.Tensor) -> None:
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()


def checked(reply: object, weights: Weights, site: str) -> dict[str, Any]:
    """Return the reply of a site if it can be used.

    Raises
    ------
    SiteError
        If it lacks a field, if its weights have other names or shapes than those that were sent,
        or if they are not finite.
    """
    if not isinstance(reply, dict) or not {"weights", "subjects", "loss"} <= set(reply):
        problem = f"{site} did not reply with weights, subjects and loss."
        raise SiteError.problem(problem, "Does it run the same version of the lab?")
    subjects, replied = reply["subjects"], reply["weights"]
    if not isinstance(subjects, int) or subjects < 1:
        raise SiteError(f"{site}: subjects", subjects, "an integer of at least 1")
    if set(replied) != set(weights):
        name = sorted(set(replied) ^ set(weights))[0]
        problem = f"{site} replied with other weights than it was sent, such as {name}."
        raise SiteError.problem(problem, "It runs another network.")
    for name, sent in weights.items():
        weight = replied[name]
        if weight.shape != sent.shape or weight.dtype != sent.dtype:
            allowed = f"of shape {tuple(sent.shape)} and type {sent.dtype}"
            value = f"{tuple(weight.shape)}, {weight.dtype}"
            raise SiteError(f"{site}: {name}", Words(value), allowed)
        if not torch.isfinite(weight).all():
            problem = f"{site} replied with weights that are not finite: {name}."
            raise SiteError.problem(problem, "Look at its data and learning rate.")
    return reply
