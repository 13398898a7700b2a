"""What to do against a shortcut while training: six ways, each given to ``fit(..., mitigation=...)``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from simba_lab.core.errors import SimbaError, UnknownNameError
from simba_lab.core.rng import stream
from simba_lab.training.mitigation.objective import Mitigation, Objective, Reweighed, check_positive
from simba_lab.training.mitigation.unlearning import AdversarialUnlearning
from simba_lab.training.networks import logit

if TYPE_CHECKING:
    from simba_lab.core.cohort import Cohort


@dataclass(frozen=True, kw_only=True)
class Reweighing(Mitigation):
    """Weigh subjects so that class and group are independent: rare combinations count more.

    References
    ----------
    Kamiran and Calders (2012), Knowl. Inf. Syst. 33:1-33.
    """

    name: ClassVar[str] = "reweighing"

    def objective(self, train: Cohort, validation: Cohort) -> Objective:
        """Return the weighted cross-entropy."""
        return Reweighed(train, validation, self.by)


@dataclass(frozen=True, kw_only=True)
class Resampling(Mitigation):
    """Draw subjects so that class and group are independent: rare combinations come more often.

    References
    ----------
    Idrissi, Arjovsky, Pezeshki, Lopez-Paz (2022), "Simple data balancing achieves competitive
    worst-group-accuracy", CLeaR.
    """

    name: ClassVar[str] = "resampling"

    def objective(self, train: Cohort, validation: Cohort) -> Objective:
        """Return plain cross-entropy over rows drawn with replacement."""
        return _Resampled(train, validation, self.by)


class _Resampled(Reweighed):
    def order(self, seed: int, epoch: int) -> torch.Tensor:
        generator = stream(seed, epoch, "batch order")
        rows = np.lexsort([generator.uniform(size=len(self.cells)), self.cells.numpy()])
        share = self.weights[self.cells[rows]].double().numpy()
        # Systematic sampling: each subject, and each cell, comes its expected number of times,
        # rounded up or down.
        ends = np.cumsum(share / share.sum()) * len(share)
        drawn = np.searchsorted(ends, np.arange(len(share)) + generator.uniform())
        return torch.from_numpy(generator.permutation(rows[np.minimum(drawn, len(share) - 1)]))

    def loss(self, network, volumes, rows, twins, progress) -> torch.Tensor:
        return Objective.loss(self, network, volumes, rows, twins, progress)


@dataclass(frozen=True, kw_only=True)
class GroupDRO(Mitigation):
    """Minimise the loss of the worst combination of class and group (distributionally robust optimisation).

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
    """

    name: ClassVar[str] = "group_dro"
    one_device: ClassVar[bool] = True
    step: float = 0.01

    def __post_init__(self) -> None:
        check_positive("mitigation.step", self.step)

    def objective(self, train: Cohort, validation: Cohort) -> Objective:
        """Return the loss whose weights follow the worst combination."""
        return _Robust(train, validation, self.by, self.step)


class _Robust(_Resampled):
    def __init__(self, train: Cohort, validation: Cohort, by: str, step: float) -> None:
        super().__init__(train, validation, by)
        self.step = step
        # Equal shares for all combinations, not only independence.
        sizes = torch.bincount(self.cells, minlength=self.count)
        self.weights = torch.where(
            sizes > 0, len(self.cells) / (sizes * (sizes > 0).sum()), 0.0
        ).float()
        self.shares = torch.full((self.count,), 1 / self.count)

    def loss(self, network, volumes, rows, twins, progress) -> torch.Tensor:
        losses, cells = self.per_subject(logit(network(volumes)), rows), self.cells[rows]
        means = [(cell, losses[cells == cell].mean()) for cell in cells.unique().tolist()]
        for cell, mean in means:
            self.shares[cell] *= np.exp(min(50.0, self.step * mean.item()))
        self.shares /= self.shares.sum()
        present = sum(self.shares[cell].item() for cell, _ in means)
        return sum(self.shares[cell].item() / present * mean for cell, mean in means)

    def validation_loss(self, scores, labels) -> float:
        losses = binary_cross_entropy_with_logits(scores, labels, reduction="none")
        return max(
            losses[self.validation_cells == cell].mean().item()
            for cell in self.validation_cells.unique()
        )

    def state(self) -> dict[str, torch.Tensor]:
        return {"shares": self.shares}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        self.shares = state["shares"].clone()


@dataclass(frozen=True, kw_only=True)
class TwinConsistency(Mitigation):
    """Punish different answers to twins: each subject is seen with its bias switched the other way as well.

    Needs twins, so only simulated cohorts can do it: the best that knowing the bias exactly can
    buy.

    Parameters
    ----------
    strength : float
        Weight of the squared difference of the twins' logits.

    References
    ----------
    The penalty is counterfactual logit pairing: Garg et al. (2019), "Counterfactual fairness in
    text classification through robustness", AIES, 219-226, section 4.3. Twins as images are of this
    lab.
    """

    name: ClassVar[str] = "twin_consistency"
    strength: float = 1.0

    def __post_init__(self) -> None:
        check_positive("mitigation.strength", self.strength)

    def objective(self, train: Cohort, validation: Cohort) -> Objective:
        """Return cross-entropy plus the squared difference of twins."""
        return _Consistent(train, validation, self)


class _Consistent(Reweighed):
    def __init__(self, train: Cohort, validation: Cohort, options: TwinConsistency) -> None:
        super().__init__(train, validation, options.by)
        if options.by not in train.biases:
            raise UnknownNameError.among("mitigation.by", options.by, train.biases)
        self.strength = options.strength
        self.twins = train.twin(flipped=options.by)

    def loss(self, network, volumes, rows, twins, progress) -> torch.Tensor:
        scores = logit(network(torch.cat([volumes, twins])))
        own, other = scores[: len(rows)], scores[len(rows) :]
        return (
            self.per_subject(own, rows).mean()
            + self.strength * (own - other).float().square().mean()
        )


@dataclass(frozen=True, kw_only=True)
class BiasGroupModels(Mitigation):
    """Fit one network per group; each subject is judged by the network of its own group.

    The result asks for the group of every subject, also after training.

    References
    ----------
    Stanley et al. (2024), JAMIA 31:2613-2621 (protected group models); Puyol-Anton et al. (2021),
    MICCAI, 413-423.
    """

    name: ClassVar[str] = "group_models"

    def objective(self, train: Cohort, validation: Cohort) -> Objective:
        """Return plain cross-entropy: the groups are fitted one by one."""
        return Objective(train, validation)


MITIGATIONS: dict[str, type[Mitigation]] = {
    kind.name: kind
    for kind in (
        Reweighing,
        Resampling,
        GroupDRO,
        AdversarialUnlearning,
        TwinConsistency,
        BiasGroupModels,
    )
}


def mitigation_from(value: Mitigation | Mapping[str, Any] | str | None) -> Mitigation | None:
    """Return a mitigation from its name, or from what `Mitigation.to_dict` returns; ``"none"`` and None stand for none."""
    if value is None or isinstance(value, Mitigation):
        return value
    if not isinstance(value, str | Mapping):
        raise SimbaError(
            "mitigation", value, "a name, a mapping, or an instance such as Reweighing()"
        )
    options = {"name": value} if isinstance(value, str) else dict(value)
    name = options.pop("name", None)
    if name == "none":
        return None
    if name not in MITIGATIONS:
        raise UnknownNameError.among("mitigation", name, ["none", *MITIGATIONS])
    fields = [entry.name for entry in dataclasses.fields(MITIGATIONS[name])]
    for option in options:
        if option not in fields:
            raise UnknownNameError.among(f"mitigation.{option}", option, fields)
    return MITIGATIONS[name](**options)
