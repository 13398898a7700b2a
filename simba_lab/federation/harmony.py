"""Harmonisation: a head travels with the model and guesses the scanner; features confuse it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import cross_entropy, log_softmax

from simba_lab.core.border import checks_arguments
from simba_lab.core.checks import is_number, whole_number
from simba_lab.core.errors import SimbaError

Weights = dict[str, torch.Tensor]
PREFIX = "scanner_head."  # its weights travel among those of the network


@checks_arguments
@dataclass(frozen=True)
class Harmonisation:
    """Settings of `harmonised`.

    Parameters
    ----------
    scanners : mapping of site to scanner, optional
        By default every site has its own.
    strength : float
        Weight of the head's confusion. It grows from 0 over the cycles: at first the head has not
        learnt anything, so its confusion means nothing.
    width : int
        Hidden units of the head.

    Examples
    --------
    >>> import simba_lab as sb
    >>> sb.federation.Harmonisation(strength=0.5).width
    32
    """

    scanners: Mapping[str, str] | None = None
    strength: float = 1.0
    width: int = 32

    def __post_init__(self) -> None:
        if not is_number(self.strength) or not 0 <= self.strength < math.inf:
            remedy = "At 0 it is travelling."
            raise SimbaError("strength", self.strength, "a finite number of at least 0", remedy)
        whole_number("width", self.width)

    def scanner_numbers(self, sites: Sequence[str]) -> dict[str, int]:
        """Return for each site the number of its scanner, from 0 in alphabetical order."""
        scanners = {name: name for name in sites} if self.scanners is None else self.scanners
        missing = [name for name in sites if name not in scanners]
        if missing:
            allowed, remedy = "a scanner for every site", f"{missing[0]} has none."
            raise SimbaError("scanners", sorted(scanners), allowed, remedy)
        names = sorted({scanners[name] for name in sites})
        if len(names) < 2:
            remedy = "With one there is nothing to harmonise."
            raise SimbaError("scanners", names, "at least two different ones", remedy)
        return {site: names.index(scanners[site]) for site in sites}


def initial_head(weights: Weights, scanners: int, *, width: int, seed: int) -> Weights:
    """Return the first weights of a head that guesses the scanner from a network's features.

    Raises
    ------
    SimbaError
        If the network has no linear read-out named ``readout``.
    """
    if "readout.weight" not in weights:
        remedy = "Networks need `features` and a linear layer `readout`, as SimBANet has."
        allowed = "of a network with a layer `readout`"
        raise SimbaError("weights", sorted(weights)[:3], allowed, remedy)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = _layers(weights["readout.weight"].shape[1], width, scanners)
    return {PREFIX + name: value.detach().clone() for name, value in head.state_dict().items()}


def divided(weights: Mapping[str, torch.Tensor]) -> tuple[Weights, Weights]:
    """Return the weights of the network and those of the head, which may be none."""
    head = {name: value for name, value in weights.items() if name.startswith(PREFIX)}
    return {name: value for name, value in weights.items() if name not in head}, head


class ScannerHead(nn.Module):
    """The head as a site trains it.

    Parameters
    ----------
    weights : dict of str to tensor
        From `initial_head` or from the last site.
    """

    def __init__(self, weights: Weights) -> None:
        super().__init__()
        weights = {name.removeprefix(PREFIX): value for name, value in weights.items()}
        (width, inputs), scanners = weights["0.weight"].shape, len(weights["2.bias"])
        self.layers = _layers(inputs, width, scanners)
        self.layers.load_state_dict(weights)

    def mistakes(self, features: torch.Tensor, scanner: int) -> torch.Tensor:
        """Return the mean log loss of its guesses for one scanner; no gradient for the network."""
        guesses = self.layers(features.detach())
        return cross_entropy(guesses, torch.full((len(guesses),), scanner, device=guesses.device))

    def confusion(self, features: torch.Tensor) -> torch.Tensor:
        """Return how far its guesses are from even, in nats: 0 if all scanners are equally likely.

        References
        ----------
        Dinsdale, Jenkinson, Namburete (2021), NeuroImage 228:117689, eq. 4.
        """
        frozen = {name: value.detach() for name, value in self.layers.named_parameters()}
        guesses = torch.func.functional_call(self.layers, frozen, (features,))
        return -log_softmax(guesses, dim=1).mean() - math.log(guesses.shape[1])

    def weights(self) -> Weights:
        """Return its weights under the names with which they travel."""
        return {
            PREFIX + name: value.detach().clone()
            for name, value in self.layers.state_dict().items()
        }


def _layers(inputs: int, width: int, scanners: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, scanners))
