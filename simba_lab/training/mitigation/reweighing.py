"""Reweighing: subjects of rare combinations of class and group count more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from simba_lab.core.border import checks_arguments
from simba_lab.core.cohort import Cohort
from simba_lab.training.mitigation.objective import Forward, Mitigation, Objective, Progress
from simba_lab.training.networks import logit


@checks_arguments
@dataclass(frozen=True, kw_only=True)
class Reweighing(Mitigation):
    """Weigh subjects so that class and group are independent: rare combinations count more.

    References
    ----------
    Kamiran and Calders (2012), Knowl. Inf. Syst. 33:1-33.

    Examples
    --------
    >>> import simba_lab as sb
    >>> sb.training.Reweighing()
    Reweighing(by='bias')
    """

    name: ClassVar[str] = "reweighing"

    def objective(self, train: Cohort, validation: Cohort) -> Objective:
        """Return the weighted cross-entropy."""
        return Reweighed(train, validation, self.by)


class Reweighed(Objective):
    """Cross-entropy with the weights of `cell_weights`, in training and in validation."""

    def __init__(self, train: Cohort, validation: Cohort, by: str) -> None:
        super().__init__(train, validation, by)
        self.weights = cell_weights(self.cells, self.count)
        weights = cell_weights(self.validation_cells, self.count)
        self.validation_weights = weights[self.validation_cells]

    def loss(
        self,
        network: Forward,
        volumes: torch.Tensor,
        rows: torch.Tensor,
        twins: torch.Tensor | None,
        progress: Progress,
    ) -> torch.Tensor:
        """Return the weighted loss of a batch of rows."""
        losses = self.per_subject(logit(network(volumes)), rows)
        return (losses * self.weights[self.cells[rows]].to(losses.device)).mean()

    def validation_loss(self, logits: torch.Tensor, labels: torch.Tensor) -> float:
        """Return the weighted loss on the validation subjects."""
        weights = self.validation_weights
        return binary_cross_entropy_with_logits(logits, labels, weight=weights).item()


def cell_weights(cells: torch.Tensor, count: int) -> torch.Tensor:
    """Return the weight of each cell of class x group, shape (count,), that makes them independent.

    ``P(y) P(g) / P(y, g)``: Kamiran and Calders (2012), "Data preprocessing techniques for
    classification without discrimination", Knowl. Inf. Syst. 33:1-33, section 4.2.
    """
    joint = torch.bincount(cells, minlength=count).double().reshape(-1, 2)
    joint /= joint.sum()
    expected = joint.sum(0, keepdim=True) * joint.sum(1, keepdim=True)
    return torch.where(joint > 0, expected / joint, 0.0).reshape(-1).float()
