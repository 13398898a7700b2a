"""Objective and Mitigation: what a fit minimises, and what all ways to change that share."""

from __future__ import annotations

import dataclasses
from abc import ABCMeta, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any, ClassVar

import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from simba_lab.core.border import checks_arguments
from simba_lab.core.cohort import Cohort
from simba_lab.core.errors import SimbaError, Words
from simba_lab.core.network_adapter import copied
from simba_lab.core.rng import stream
from simba_lab.training.config import FitConfig
from simba_lab.training.networks import logit
from simba_lab.training.run import Fitted

# A network as the loss calls it. Called with ``features=True`` it also returns what its read-out
# sees.
Forward = Callable[..., Any]


@dataclass(frozen=True)
class Progress:
    """Where a fit stands: ``share`` of its steps done, from 0 to 1."""

    seed: int
    epoch: int
    share: float


class Objective:
    """What one fit minimises: plain training, parts of which mitigations change.

    It decides on the order of subjects, the loss of a batch and the loss that chooses the epoch.
    This one takes subjects in random order and their mean cross-entropy.

    Parameters
    ----------
    train, validation : Cohort
    by : str, optional
        Column of the groups; mitigations need it.
    """

    # Twins of the training subjects, if the loss needs them too.
    twins: Cohort | None = None

    def __init__(self, train: Cohort, validation: Cohort, by: str | None = None) -> None:
        self.labels = torch.from_numpy(train["label"].astype(np.float32))
        if by is not None:
            self.values, groups = np.unique(train[by], return_inverse=True)
            self.groups = torch.from_numpy(groups)
            # Cells of class x group: where the correlation is.
            self.cells = self.groups * 2 + self.labels.long()
            self.count = 2 * len(self.values)
            validation_groups = np.searchsorted(self.values, validation[by])
            self.validation_cells = torch.from_numpy(validation_groups * 2 + validation["label"])

    def order(self, seed: int, epoch: int) -> torch.Tensor:
        """Return the rows of an epoch in the order in which they are seen."""
        return torch.from_numpy(stream(seed, epoch, "batch order").permutation(len(self.labels)))

    def loss(
        self,
        network: Forward,
        volumes: torch.Tensor,
        rows: torch.Tensor,
        twins: torch.Tensor | None,
        progress: Progress,
    ) -> torch.Tensor:
        """Return the loss of a batch of rows.

        Parameters
        ----------
        network : callable
        volumes, twins : tensor, shape (n, 1, X, Y, Z)
            Twins only if the objective has some.
        rows : tensor of int, shape (n,)
            Which training subjects these are.
        progress : Progress
        """
        return self.per_subject(logit(network(volumes)), rows).mean()

    def per_subject(self, logits: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Return the cross-entropy of each row."""
        labels = self.labels[rows].to(logits.device)
        return binary_cross_entropy_with_logits(logits.float(), labels, reduction="none")

    def validation_loss(self, logits: torch.Tensor, labels: torch.Tensor) -> float:
        """Return the loss on the validation subjects that chooses the epoch."""
        return binary_cross_entropy_with_logits(logits, labels).item()

    def to(self, device: torch.device) -> None:
        """Move what the objective itself has learnt to a device."""

    def state(self) -> dict[str, torch.Tensor]:
        """Return what the objective itself has learnt, for a checkpoint."""
        return {}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Go on from what `state` returned."""


# Trains on a cohort, with a mitigation or none; the word sets its checkpoint apart from others.
Train = Callable[[Cohort, "Mitigation | None", str], Fitted]


# Not from ABC: as a base it would count as somebody's own code in the identity of a run.
@checks_arguments
@dataclass(frozen=True, kw_only=True)
class Mitigation(metaclass=ABCMeta):
    """What all mitigations share. A new one is a frozen dataclass that returns an `Objective`.

    Parameters
    ----------
    by : str
        Column of the table that names the groups: a bias, or any other column.

    Examples
    --------
    >>> import simba_lab as sb
    >>> sb.training.Reweighing(by="scanner").to_dict()
    {'name': 'reweighing', 'by': 'scanner'}
    """

    name: ClassVar[str] = ""
    # Whether it learns something itself during the fit, which devices would not share.
    one_device: ClassVar[bool] = False
    by: str = "bias"

    @abstractmethod
    def objective(self, train: Cohort, validation: Cohort) -> Objective:
        """Return what a fit with this mitigation minimises."""

    def check(self, cohort: Cohort, config: FitConfig) -> None:
        """Raise an error if a group lacks a class: nothing then tells group from disease."""
        if self.by in ("label", "split"):
            raise SimbaError("mitigation.by", self.by, "a column of groups, such as a bias")
        groups, allowed = np.unique(cohort[self.by]), "of at least two groups with both classes"
        remedy = "Raise the number of subjects, or choose a prevalence between 0 and 1."
        if len(groups) < 2:
            raise SimbaError(f"cohort[{self.by!r}]", Words(f"{len(groups)} group"), allowed, remedy)
        for split, group, label in product(("train", "validation"), groups.tolist(), (0, 1)):
            members = (cohort["split"] == split) & (cohort[self.by] == group)
            if not (members & (cohort["label"] == label)).any():
                field = f"cohort.{split}[{self.by!r}], group {group}"
                raise SimbaError(field, Words(f"no members of class {label}"), allowed, remedy)
        if config.devices > 1 and self.one_device:
            remedy = "Devices do not share what it learns about the groups."
            raise SimbaError("config.devices", config.devices, f"1 for {self.name}", remedy)

    def network(self, model: torch.nn.Module, cohort: Cohort) -> torch.nn.Module:
        """Return the network that takes the fitted weights: a copy of the user's."""
        return copied(model)

    def fitted(self, cohort: Cohort, train: Train) -> Fitted:
        """Train, once or several times, and return what became of it."""
        return train(cohort, self, "")

    def to_dict(self) -> dict[str, Any]:
        """Return the mitigation as a plain dictionary, with its name."""
        return {"name": self.name, **dataclasses.asdict(self)}
