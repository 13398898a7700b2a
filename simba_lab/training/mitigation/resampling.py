"""Resampling: subjects of rare combinations of class and group are drawn more often."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from simba_lab.core.border import checks_arguments
from simba_lab.core.cohort import Cohort
from simba_lab.core.rng import stream
from simba_lab.training.mitigation.objective import Forward, Mitigation, Objective, Progress
from simba_lab.training.mitigation.reweighing import Reweighed


@checks_arguments
@dataclass(frozen=True, kw_only=True)
class Resampling(Mitigation):
    """Draw subjects so that class and group are independent: rare combinations come more often.

    References
    ----------
    Idrissi, Arjovsky, Pezeshki, Lopez-Paz (2022), "Simple data balancing achieves competitive
    worst-group-accuracy", CLeaR.

    Examples
    --------
    >>> import simba_lab as sb
    >>> sb.training.Resampling()
    Resampling(by='bias')
    """

    name: ClassVar[str] = "resampling"

    def objective(self, train: Cohort, validation: Cohort) -> Objective:
        """Return plain cross-entropy over rows drawn with replacement."""
        return Resampled(train, validation, self.by)


class Resampled(Reweighed):
    """Plain cross-entropy over rows drawn in proportion to the weights of their cells."""

    def order(self, seed: int, epoch: int) -> torch.Tensor:
        """Return as many rows as there are subjects, some of them several times."""
        generator = stream(seed, epoch, "batch order")
        rows = np.lexsort([generator.uniform(size=len(self.cells)), self.cells.numpy()])
        share = self.weights[self.cells[rows]].double().numpy()
        # Systematic sampling: each subject, and each cell, comes its expected number of times,
        # rounded up or down.
        ends = np.cumsum(share / share.sum()) * len(share)
        drawn = np.searchsorted(ends, np.arange(len(share)) + generator.uniform())
        return torch.from_numpy(generator.permutation(rows[np.minimum(drawn, len(share) - 1)]))

    def loss(
        self,
        network: Forward,
        volumes: torch.Tensor,
        rows: torch.Tensor,
        twins: torch.Tensor | None,
        progress: Progress,
    ) -> torch.Tensor:
        """Return the loss of a batch of rows, without weights."""
        return Objective.loss(self, network, volumes, rows, twins, progress)
