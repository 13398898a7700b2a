"""Objective and Mitigation: what a fit minimises, and what all ways to change that share."""

from __future__ import annotations

import dataclasses
from abc import ABCMeta, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from simba_lab.core.errors import SimbaError
from simba_lab.core.rng import stream
from simba_lab.training.networks import logit

if TYPE_CHECKING:
    from simba_lab.core.cohort import Cohort

# What a network returns for volumes, and, for mitigations that ask for it, the features that its
# read-out sees.
Forward = Callable[..., Any]


@dataclass(frozen=True)
class Progress:
    """Where a fit stands: ``share`` of its steps done, from 0 to 1."""

    seed: int
    epoch: int
    share: float


class Objective:
    """What one fit minimises: the order of subjects, the loss of a batch and the loss that chooses the epoch.

    This one is plain training: subjects in random order, mean cross-entropy. Mitigations change
    parts of it.

    Parameters
    ----------
    train, validation : Cohort
    by : str, optional
        Column of the groups; needed by mitigations.
    """

    # Twins of the training subjects that the loss wants beside them, if any.
    twins: Cohort | None = None

    def __init__(self, train: Cohort, validation: Cohort, by: str | None = None) -> None:
        self.labels = torch.from_numpy(train["label"].astype(np.float32))
        if by is not None:
            self.values, groups = np.unique(train[by], return_inverse=True)
            self.groups = torch.from_numpy(groups)
            # Cells of class x group: where the correlation is.
            self.cells = self.groups * 2 + self.labels.long()
            self.count = 2 * len(self.values)
            held_out = np.searchsorted(self.values, validation[by]) * 2 + validation["label"]
            self.validation_cells = torch.from_numpy(held_out)

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
        """Return the loss of a batch of rows."""
        return self.per_subject(logit(network(volumes)), rows).mean()

    def per_subject(self, scores: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Return the cross-entropy of each row."""
        labels = self.labels[rows].to(scores.device)
        return binary_cross_entropy_with_logits(scores.float(), labels, reduction="none")

    def validation_loss(self, scores: torch.Tensor, labels: torch.Tensor) -> float:
        """Return the loss on the validation subjects that chooses the epoch."""
        return binary_cross_entropy_with_logits(scores, labels).item()

    def to(self, device: torch.device) -> None:
        """Move what the objective has learnt itself to a device."""

    def state(self) -> dict[str, torch.Tensor]:
        """Return what the objective has learnt itself, for a checkpoint."""
        return {}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take up a state of `state`."""


def cell_weights(cells: torch.Tensor, count: int) -> torch.Tensor:
    """Return the weight of each cell of class x group that makes class and group independent, shape (count,).

    ``P(y) P(g) / P(y, g)``: Kamiran and Calders (2012), "Data preprocessing techniques for
    classification without discrimination", Knowl. Inf. Syst. 33:1-33, section 4.2.
    """
    joint = torch.bincount(cells, minlength=count).double().reshape(-1, 2)
    joint /= joint.sum()
    expected = joint.sum(0, keepdim=True) * joint.sum(1, keepdim=True)
    return torch.where(joint > 0, expected / joint, 0.0).reshape(-1).float()


class Reweighed(Objective):
    """Cross-entropy with the weights of `cell_weights`, in training and in the choice of the epoch."""

    def __init__(self, train: Cohort, validation: Cohort, by: str) -> None:
        super().__init__(train, validation, by)
        self.weights = cell_weights(self.cells, self.count)
        self.validation_weights = cell_weights(self.validation_cells, self.count)[
            self.validation_cells
        ]

    def loss(self, network, volumes, rows, twins, progress) -> torch.Tensor:
        """Return the weighted loss of a batch of rows."""
        losses = self.per_subject(logit(network(volumes)), rows)
        return (losses * self.weights[self.cells[rows]].to(losses.device)).mean()

    def validation_loss(self, scores, labels) -> float:
        """Return the weighted loss on the validation subjects."""
        return binary_cross_entropy_with_logits(
            scores, labels, weight=self.validation_weights
        ).item()


# Not from ABC: as a base it would count as somebody's own code in the identity of a run.
@dataclass(frozen=True, kw_only=True)
class Mitigation(metaclass=ABCMeta):
    """What all mitigations share.

    Parameters
    ----------
    by : str
        Column of the design table that names the groups: a bias, or any other column.
    """

    name: ClassVar[str] = ""
    # Whether it keeps a state of its own during the fit, which devices would not share.
    one_device: ClassVar[bool] = False
    by: str = "bias"

    @abstractmethod
    def objective(self, train: Cohort, validation: Cohort) -> Objective:
        """Return what a fit with this mitigation minimises."""

    def check(self, cohort: Cohort) -> None:
        """Refuse cohorts in which a group lacks a class: nothing in them tells group and disease apart."""
        if self.by in ("label", "split"):
            raise SimbaError("mitigation.by", self.by, "a column of groups, such as a bias")
        groups = np.unique(cohort[self.by])
        for part in ("train", "validation"):
            table = cohort.table[cohort["split"] == part]
            cells = table.groupby([self.by, "label"]).size()
            empty = [
                (group, label)
                for group in groups
                for label in (0, 1)
                if cells.get((group, label), 0) == 0
            ]
            if len(groups) < 2 or empty:
                found = (
                    f"{len(groups)} group"
                    if len(groups) < 2
                    else f"no members of class {empty[0][1]}"
                )
                where = f"cohort.{part}[{self.by!r}]" + (f", group {empty[0][0]}" if empty else "")
                raise SimbaError(
                    where,
                    found,
                    "of at least two groups with members of both classes",
                    "Raise the number of subjects, or choose a prevalence below 1 and above 0.",
                )

    def to_dict(self) -> dict[str, Any]:
        """Return the mitigation as a plain dictionary, with its name."""
        return {"name": self.name, **dataclasses.asdict(self)}


def check_positive(field: str, value: float) -> None:
    """Refuse options that are not finite numbers above 0."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < np.inf:
        raise SimbaError(field, value, "a finite number above 0")
