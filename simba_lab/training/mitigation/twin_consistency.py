"""Twin consistency: a network is to answer the same to a subject and to its twin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from simba_lab.core.border import checks_arguments
from simba_lab.core.checks import Positive
from simba_lab.core.cohort import Cohort, with_twins
from simba_lab.core.errors import UnknownNameError
from simba_lab.training.mitigation.objective import Forward, Mitigation, Objective, Progress
from simba_lab.training.mitigation.reweighing import Reweighed
from simba_lab.training.networks import logit


@checks_arguments
@dataclass(frozen=True, kw_only=True)
class TwinConsistency(Mitigation):
    """Punish different answers to twins: each subject is also seen with its bias switched.

    It needs a cohort with twins: this is the best that exact knowledge of the bias can buy.

    Parameters
    ----------
    strength : float
        Weight of the squared difference of the twins' logits.

    References
    ----------
    The penalty is counterfactual logit pairing: Garg et al. (2019), "Counterfactual fairness in
    text classification through robustness", AIES, 219-226, section 4.3. Its use on images of twins
    is new here.

    Examples
    --------
    >>> import simba_lab as sb
    >>> sb.training.TwinConsistency(strength=10.0)
    TwinConsistency(by='bias', strength=10.0)
    """

    name: ClassVar[str] = "twin_consistency"
    strength: Positive = 1.0

    def objective(self, train: Cohort, validation: Cohort) -> Objective:
        """Return cross-entropy plus the squared difference of twins."""
        return _Consistent(train, validation, self.by, self.strength)


class _Consistent(Reweighed):
    def __init__(self, train: Cohort, validation: Cohort, by: str, strength: float) -> None:
        super().__init__(train, validation, by)
        if by not in with_twins(train).biases:
            raise UnknownNameError.among("mitigation.by", by, train.biases)
        self.strength = strength
        self.twins = with_twins(train).twin(flipped=by)

    def loss(
        self,
        network: Forward,
        volumes: torch.Tensor,
        rows: torch.Tensor,
        twins: torch.Tensor | None,
        progress: Progress,
    ) -> torch.Tensor:
        assert twins is not None, "the objective has twins"
        logits = logit(network(torch.cat([volumes, twins])))
        factual, counterfactual = logits[: len(rows)], logits[len(rows) :]
        difference = (factual - counterfactual).float().square().mean()
        return self.per_subject(factual, rows).mean() + self.strength * difference
