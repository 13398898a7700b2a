"""Group DRO: the loss of the worst combination of class and group."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from simba_lab.core.border import checks_arguments
from simba_lab.core.checks import Positive
from simba_lab.core.cohort import Cohort
from simba_lab.training.mitigation.objective import Forward, Mitigation, Objective, Progress
from simba_lab.training.mitigation.resampling import Resampled
from simba_lab.training.networks import logit


@checks_arguments
@dataclass(frozen=True, kw_only=True)
class GroupDRO(Mitigation):
    """Minimise the loss of the worst combination of class and group.

    DRO is distributionally robust optimisation.

    Parameters
    ----------
    step : float
        How fast the weights of the combinations follow their losses (eta_q of the paper).

    Notes
    -----
    Combinations are drawn equally often, as in the paper's code. The weights of those that are in a
    batch are scaled to sum to one, so that a batch without the worst one is not a smaller step.

    References
    ----------
    Sagawa, Koh, Hashimoto, Liang (2020), "Distributionally robust neural networks for group
    shifts", ICLR, Algorithm 1.

    Examples
    --------
    >>> import simba_lab as sb
    >>> sb.training.GroupDRO(step=0.1)
    GroupDRO(by='bias', step=0.1)
    """

    name: ClassVar[str] = "group_dro"
    one_device: ClassVar[bool] = True
    step: Positive = 0.01

    def objective(self, train: Cohort, validation: Cohort) -> Objective:
        """Return the loss whose weights follow the worst combination."""
        return _Robust(train, validation, self.by, self.step)


class _Robust(Resampled):
    def __init__(self, train: Cohort, validation: Cohort, by: str, step: float) -> None:
        super().__init__(train, validation, by)
        self.step = step
        # Equal shares for all combinations, not only independence.
        sizes = torch.bincount(self.cells, minlength=self.count)
        even = len(self.cells) / (sizes * (sizes > 0).sum())
        self.weights = torch.where(sizes > 0, even, 0.0).float()
        self.shares = torch.full((self.count,), 1 / self.count)

    def loss(
        self,
        network: Forward,
        volumes: torch.Tensor,
        rows: torch.Tensor,
        twins: torch.Tensor | None,
        progress: Progress,
    ) -> torch.Tensor:
        losses, cells = self.per_subject(logit(network(volumes)), rows), self.cells[rows]
        means = [(cell, losses[cells == cell].mean()) for cell in cells.unique().tolist()]
        for cell, mean in means:
            self.shares[cell] *= np.exp(min(50.0, self.step * mean.item()))
        self.shares /= self.shares.sum()
        present = sum(self.shares[cell].item() for cell, _ in means)
        terms = (self.shares[cell].item() / present * mean for cell, mean in means)
        return sum(terms, start=losses.new_zeros(()))

    def validation_loss(self, logits: torch.Tensor, labels: torch.Tensor) -> float:
        losses = binary_cross_entropy_with_logits(logits, labels, reduction="none")
        cells = self.validation_cells
        return max(losses[cells == cell].mean().item() for cell in cells.unique())

    def state(self) -> dict[str, torch.Tensor]:
        return {"shares": self.shares}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        self.shares = state["shares"].clone()
