"""Adversarial unlearning: features that do not tell a small network, the adversary, what group a subject is of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

from simba_lab.core.errors import SimbaError
from simba_lab.training.mitigation.objective import (
    Mitigation,
    Objective,
    Progress,
    Reweighed,
    check_positive,
)
from simba_lab.training.networks import logit

if TYPE_CHECKING:
    from simba_lab.core.cohort import Cohort


@dataclass(frozen=True, kw_only=True)
class AdversarialUnlearning(Mitigation):
    """Teach the features to keep a small network, the adversary, guessing about the group.

    In each step the adversary learns to read the group from the features; then the network learns
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
    """

    name: ClassVar[str] = "unlearning"
    one_device: ClassVar[bool] = True
    strength: float = 1.0
    width: int = 32
    learning_rate: float = 3e-3
    conditional: bool = True

    def __post_init__(self) -> None:
        for field in ("strength", "width", "learning_rate"):
            check_positive(f"mitigation.{field}", getattr(self, field))
        if not isinstance(self.width, int):
            raise SimbaError("mitigation.width", self.width, "an integer")
        if not isinstance(self.conditional, bool):
            raise SimbaError("mitigation.conditional", self.conditional, "True or False")

    def objective(self, train: Cohort, validation: Cohort) -> Objective:
        """Return cross-entropy plus confusion of an adversary."""
        return _Unlearning(train, validation, self)


class _Unlearning(Reweighed):
    def __init__(self, train: Cohort, validation: Cohort, options: AdversarialUnlearning) -> None:
        super().__init__(train, validation, options.by)
        if len(self.values) != 2:
            raise SimbaError(
                f"cohort[{options.by!r}]",
                f"{len(self.values)} groups",
                "of two groups for unlearning",
            )
        self.options = options
        # Within each class (or overall) both groups count the same: otherwise "everybody in the
        # larger" is a good guess.
        class_cells = self.cells if options.conditional else self.groups * 2
        sizes = torch.bincount(class_cells, minlength=4).float()
        even = torch.where(
            sizes > 0, len(class_cells) / (sizes.clamp(min=1) * (sizes > 0).sum()), 0.0
        )
        self.even = even[class_cells]
        self.adversary: nn.Module | None = None
        self._waiting: Mapping[str, torch.Tensor] | None = None
        self.device = torch.device("cpu")

    def to(self, device: torch.device) -> None:
        self.device = device

    def _made(self, inputs: int, seed: int) -> None:
        """Make the adversary when the number of features is known."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            heads = 2 if self.options.conditional else 1
            layers = (
                nn.Linear(inputs, self.options.width),
                nn.ReLU(),
                nn.Linear(self.options.width, heads),
            )
        self.adversary = nn.Sequential(*layers).to(self.device)
        self.optimiser = torch.optim.Adam(
            self.adversary.parameters(), lr=self.options.learning_rate
        )
        if self._waiting is not None:
            self._load(self._waiting)

    def _guess(
        self, features: torch.Tensor, rows: torch.Tensor, parameters: Mapping | None = None
    ) -> torch.Tensor:
        out = (
            self.adversary(features)
            if parameters is None
            else functional_call(self.adversary, parameters, (features,))
        )
        if not self.options.conditional:
            return out[:, 0]
        return out.gather(1, self.labels[rows].long().to(out.device)[:, None])[:, 0]

    def loss(self, network, volumes, rows, twins, progress: Progress) -> torch.Tensor:
        scores, features = network(volumes, features=True)
        features = features.float()
        if self.adversary is None:
            self._made(features.shape[1], progress.seed)
        groups, weights = (
            self.groups[rows].float().to(features.device),
            self.even[rows].to(features.device),
        )
        with torch.enable_grad():
            guess = self._guess(features.detach(), rows)
            wrong = (
                weights * binary_cross_entropy_with_logits(guess, groups, reduction="none")
            ).mean()
            self.optimiser.zero_grad()
            wrong.backward()
            self.optimiser.step()
        frozen = {name: value.detach() for name, value in self.adversary.named_parameters()}
        guess = self._guess(features, rows, frozen)
        # Cross-entropy with one half, less its least value.
        confusion = (weights * ((softplus(guess) + softplus(-guess)) / 2 - np.log(2))).mean()
        ramp = 2 / (1 + np.exp(-10 * progress.share)) - 1
        return (
            self.per_subject(logit(scores), rows).mean() + self.options.strength * ramp * confusion
        )

    def state(self) -> dict[str, torch.Tensor]:
        if self.adversary is None:
            return dict(self._waiting or {})
        found = {f"adversary.{name}": value for name, value in self.adversary.state_dict().items()}
        for number, entry in self.optimiser.state_dict()["state"].items():
            found |= {f"optimiser.{number}.{name}": value for name, value in entry.items()}
        return found

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        self._waiting = {name: value.clone() for name, value in state.items()} or None

    def _load(self, state: Mapping[str, torch.Tensor]) -> None:
        weights = {
            name.removeprefix("adversary."): value
            for name, value in state.items()
            if name.startswith("adversary.")
        }
        self.adversary.load_state_dict(weights)
        entries: dict[int, dict[str, torch.Tensor]] = {}
        for name, value in state.items():
            if name.startswith("optimiser."):
                _, number, key = name.split(".")
                entries.setdefault(int(number), {})[key] = value
        self.optimiser.load_state_dict(self.optimiser.state_dict() | {"state": entries})
