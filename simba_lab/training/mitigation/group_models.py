"""Group models: a network of its own for each group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pandas as pd
import torch

from simba_lab.core.border import checks_arguments
from simba_lab.core.cohort import Cohort
from simba_lab.core.errors import SimbaError
from simba_lab.training.config import FitConfig
from simba_lab.training.group_routed import GroupRouted
from simba_lab.training.mitigation.objective import Mitigation, Objective, Train
from simba_lab.training.run import Fitted


@checks_arguments
@dataclass(frozen=True, kw_only=True)
class BiasGroupModels(Mitigation):
    """Fit one network per group; each subject is judged by the network of its group.

    The fitted network needs the group of every subject, also after training.

    References
    ----------
    Stanley et al. (2024), JAMIA 31:2613-2621 (protected group models); Puyol-Anton et al. (2021),
    MICCAI, 413-423.

    Examples
    --------
    >>> import simba_lab as sb
    >>> sb.training.BiasGroupModels()
    BiasGroupModels(by='bias')
    """

    name: ClassVar[str] = "group_models"

    def check(self, cohort: Cohort, config: FitConfig) -> None:
        """Raise an error if a group lacks a class, or if snapshots are asked for."""
        super().check(cohort, config)
        if config.snapshots:
            remedy = "Fit the cohort of each group by itself."
            raise SimbaError("config.snapshots", True, "False for group models", remedy)

    def objective(self, train: Cohort, validation: Cohort) -> Objective:
        """Return plain cross-entropy: the groups are fitted one by one."""
        return Objective(train, validation)

    def network(self, model: torch.nn.Module, cohort: Cohort) -> GroupRouted:
        """Return one copy of the network per group."""
        return GroupRouted.of_copies(model, self.by, self._groups(cohort))

    def fitted(self, cohort: Cohort, train: Train) -> Fitted:
        """Train on each group by itself."""
        groups = self._groups(cohort)
        fits = [
            train(cohort.where(cohort[self.by] == group), None, str(number))
            for number, group in enumerate(groups)
        ]
        weights = {
            f"networks.{number}.{name}": value
            for number, fit in enumerate(fits)
            for name, value in fit.weights.items()
        }
        histories = [
            fit.history.assign(group=group) for fit, group in zip(fits, groups, strict=True)
        ]
        return fits[0]._replace(weights=weights, history=pd.concat(histories))

    def _groups(self, cohort: Cohort) -> list[int | str]:
        return np.unique(cohort[self.by]).tolist()
