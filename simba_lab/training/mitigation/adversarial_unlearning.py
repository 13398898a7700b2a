"""Adversarial unlearning: features from which a small network cannot read the group."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

from simba_lab.core.border import checks_arguments
from simba_lab.core.checks import Count, Positive
from simba_lab.core.cohort import Cohort
from simba_lab.core.errors import SimbaError, Words
from simba_lab.training.mitigation.objective import Forward, Mitigation, Objective, Progress
from simba_lab.training.mitigation.reweighing import Reweighed
from simba_lab.training.networks import logit


@checks_arguments
@dataclass(frozen=True, kw_only=True)
class AdversarialUnlearning(Mitigation):
    """Make features useless to an adversary, a small network that reads the group from them.

    In each step the adversary learns to read the group from the features. Then the network learns
    the disease and, with a weight that grows from 0 to `strength` over the fit, features on which
    the adversary answers one half.

    Parameters
    ----------
    strength : float
        Weight of the confusion.
    width : int
        Hidden units of the adversary.
    learning_rate : float
        Of the adversary.
    conditional : bool
        Whether the adversary judges each class by itself. A group that is correlated with the class
        can be guessed from the class: unlearning that would unlearn the disease.

    References
    ----------
    Dinsdale, Jenkinson, Namburete (2021), "Deep learning-based unlearning of dataset bias for MRI
    harmonisation and confound removal", NeuroImage 228:117689, eq. 2-4 (confusion); Ganin et al.
    (2016), JMLR 17(59):1-35, section 5.2.2 (the growing weight); Zhang, Lemoine, Mitchell (2018),
    AIES (equality of odds by conditioning on the class).

    Examples
    --------
    >>> import simba_lab as sb
    >>> sb.training.AdversarialUnlearning(strength=2.0).width
    32
    """

    name: ClassVar[str] = "unlearning"
    one_device: ClassVar[bool] = True
    strength: Positive = 1.0
    width: Count = 32
    learning_rate: Positive = 3e-3
    conditional: bool = True

    def objective(self, train: Cohort, validation: Cohort) -> Objective:
        """Return cross-entropy plus confusion of an adversary."""
        return _Unlearning(train, validation, self)


class _Unlearning(Reweighed):
    def __init__(self, train: Cohort, validation: Cohort, options: AdversarialUnlearning) -> None:
        super().__init__(train, validation, options.by)
        if len(self.values) != 2:
            field, value = f"cohort[{options.by!r}]", f"{len(self.values)} groups"
            raise SimbaError(field, Words(value), "of two groups for unlearning")
        self.options = options
        # Both groups count the same within each class (or overall): otherwise the larger group is
        # always a good guess.
        cells = self.cells if options.conditional else self.groups * 2
        sizes = torch.bincount(cells, minlength=4).float()
        even = len(cells) / (sizes.clamp(min=1) * (sizes > 0).sum())
        self.even = torch.where(sizes > 0, even, 0.0)[cells]
        self.adversary: nn.Module | None = None
        self._restored: Mapping[str, torch.Tensor] = {}
        self.device = torch.device("cpu")

    def to(self, device: torch.device) -> None:
        self.device = device

    def _start(self, inputs: int, seed: int) -> nn.Module:
        """Make the adversary, when the number of features is known."""
        options = self.options
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            layers = (
                nn.Linear(inputs, options.width),
                nn.ReLU(),
                nn.Linear(options.width, 2 if options.conditional else 1),
            )
        adversary = nn.Sequential(*layers).to(self.device)
        self.optimiser = torch.optim.Adam(adversary.parameters(), lr=options.learning_rate)
        if self._restored:
            _load(self._restored, adversary, self.optimiser)
        return adversary

    def _guess(self, outputs: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Return the adversary's logit of the group of each row."""
        if not self.options.conditional:
            return outputs[:, 0]
        return outputs.gather(1, self.labels[rows].long().to(outputs.device)[:, None])[:, 0]

    def loss(
        self,
        network: Forward,
        volumes: torch.Tensor,
        rows: torch.Tensor,
        twins: torch.Tensor | None,
        progress: Progress,
    ) -> torch.Tensor:
        output, features = network(volumes, features=True)
        features = features.float()
        if self.adversary is None:
            self.adversary = self._start(features.shape[1], progress.seed)
        groups = self.groups[rows].float().to(features.device)
        weights = self.even[rows].to(features.device)
        with torch.enable_grad():
            guess = self._guess(self.adversary(features.detach()), rows)
            losses = binary_cross_entropy_with_logits(guess, groups, reduction="none")
            self.optimiser.zero_grad()
            (weights * losses).mean().backward()
            self.optimiser.step()
        frozen = {name: value.detach() for name, value in self.adversary.named_parameters()}
        guess = self._guess(functional_call(self.adversary, frozen, (features,)), rows)
        # Cross-entropy with one half, less its least value.
        confusion = (weights * ((softplus(guess) + softplus(-guess)) / 2 - np.log(2))).mean()
        ramp = 2 / (1 + np.exp(-10 * progress.share)) - 1
        plain = self.per_subject(logit(output), rows).mean()
        return plain + self.options.strength * ramp * confusion

    def state(self) -> dict[str, torch.Tensor]:
        if self.adversary is None:
            return dict(self._restored)
        weights = self.adversary.state_dict()
        state = {f"adversary.{name}": value for name, value in weights.items()}
        for number, moments in self.optimiser.state_dict()["state"].items():
            state |= {f"optimiser.{number}.{name}": value for name, value in moments.items()}
        return state

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        self._restored = {name: value.clone() for name, value in state.items()}


def _load(
    state: Mapping[str, torch.Tensor], adversary: nn.Module, optimiser: torch.optim.Optimizer
) -> None:
    """Load what `_Unlearning.state` returned."""
    weights: dict[str, torch.Tensor] = {}
    moments: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in state.items():
        owner, _, key = name.partition(".")
        if owner == "adversary":
            weights[key] = value
        else:
            number, _, moment = key.partition(".")
            moments.setdefault(int(number), {})[moment] = value
    adversary.load_state_dict(weights)
    optimiser.load_state_dict(optimiser.state_dict() | {"state": moments})
