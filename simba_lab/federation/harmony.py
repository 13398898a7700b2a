"""Harmonisation on the way: a small head that travels with the model, guesses the scanner, and is to be kept guessing."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn
from torch.nn.functional import cross_entropy, log_softmax

from simba_lab.core.errors import SimbaError

Weights = dict[str, torch.Tensor]
PREFIX = "scanner_head."  # its weights travel among those of the network


def initial_head(weights: Weights, scanners: int, *, width: int, seed: int) -> Weights:
    """Return the first weights of a head that tells `scanners` scanners from what the read-out of a network sees.

    Raises
    ------
    SimbaError
        If the network has no linear read-out named ``readout``.
    """
    if "readout.weight" not in weights:
        hint = "Networks need `features` and a linear layer `readout`, as SimBANet has."
        raise SimbaError(
            "weights", sorted(weights)[:3], "of a network with a layer `readout`", hint
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = _layers(weights["readout.weight"].shape[1], width, scanners)
    return {PREFIX + name: value.detach().clone() for name, value in head.state_dict().items()}


def divided(weights: Mapping[str, torch.Tensor]) -> tuple[Weights, Weights]:
    """Return the weights of the network, and those of the head, which are none unless it is on its way."""
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
        (width, features), scanners = weights["0.weight"].shape, len(weights["2.bias"])
        self.layers = _layers(features, width, scanners)
        self.layers.load_state_dict(weights)

    def mistakes(self, features: torch.Tensor, scanner: int) -> torch.Tensor:
        """Return the mean log loss of its guesses for subjects of one scanner; the network does not learn from it."""
        guesses = self.layers(features.detach())
        return cross_entropy(guesses, torch.full((len(guesses),), scanner, device=guesses.device))

    def confusion(self, features: torch.Tensor) -> torch.Tensor:
        """Return how far its guesses are from "any of them" in nats: the cross-entropy from even guesses, less its least.

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


def _layers(features: int, width: int, scanners: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(features, width), nn.ReLU(), nn.Linear(width, scanners))
