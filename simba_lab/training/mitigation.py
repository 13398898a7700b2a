"""What to do against a shortcut while training: six ways, each given to ``fit(..., mitigation=...)``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

from simba_lab.errors import SimbaError, UnknownNameError
from simba_lab.rng import stream
from simba_lab.training.networks import logit

if TYPE_CHECKING:
    from simba_lab.synthesis import Cohort

# What a network returns for volumes, and, for mitigations that ask for it, the features that its read-out sees.
Forward = Callable[..., Any]


@dataclass(frozen=True)
class Progress:
    """Where a fit stands: ``share`` of its steps done, from 0 to 1."""

    seed: int
    epoch: int
    share: float


class Objective:
    """What one fit minimises: the order of subjects, the loss of a batch and the loss that chooses the epoch.

    This one is plain training: subjects in random order, mean cross-entropy. Mitigations change parts of it.

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
        self, network: Forward, volumes: torch.Tensor, rows: torch.Tensor, twins: torch.Tensor | None, progress: Progress
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


@dataclass(frozen=True, kw_only=True)
class Mitigation:
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

    def objective(self, train: Cohort, validation: Cohort) -> Objective:
        """Return what a fit with this mitigation minimises."""
        raise NotImplementedError

    def check(self, cohort: Cohort) -> None:
        """Refuse cohorts in which a group lacks a class: nothing in them tells group and disease apart."""
        if self.by in ("label", "split"):
            raise SimbaError("mitigation.by", self.by, "a column of groups, such as a bias")
        groups = np.unique(cohort[self.by])
        for part in ("train", "validation"):
            table = cohort.table[cohort["split"] == part]
            cells = table.groupby([self.by, "label"]).size()
            empty = [(group, label) for group in groups for label in (0, 1) if cells.get((group, label), 0) == 0]
            if len(groups) < 2 or empty:
                found = f"{len(groups)} group" if len(groups) < 2 else f"no members of class {empty[0][1]}"
                where = f"cohort.{part}[{self.by!r}]" + (f", group {empty[0][0]}" if empty else "")
                raise SimbaError(
                    where, found, "of at least two groups with members of both classes",
                    "Raise the number of subjects, or choose a prevalence below 1 and above 0.",
                )  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """Return the mitigation as a plain dictionary, with its name."""
        return {"name": self.name, **dataclasses.asdict(self)}


def cell_weights(cells: torch.Tensor, count: int) -> torch.Tensor:
    """Return the weight of each cell of class x group that makes class and group independent, shape (count,).

    ``P(y) P(g) / P(y, g)``: Kamiran and Calders (2012), "Data preprocessing techniques for classification without
    discrimination", Knowl. Inf. Syst. 33:1-33, section 4.2.
    """
    joint = torch.bincount(cells, minlength=count).double().reshape(-1, 2)
    joint /= joint.sum()
    expected = joint.sum(0, keepdim=True) * joint.sum(1, keepdim=True)
    return torch.where(joint > 0, expected / joint, 0.0).reshape(-1).float()


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
        return _Reweighed(train, validation, self.by)


class _Reweighed(Objective):
    def __init__(self, train: Cohort, validation: Cohort, by: str) -> None:
        super().__init__(train, validation, by)
        self.weights = cell_weights(self.cells, self.count)
        self.validation_weights = cell_weights(self.validation_cells, self.count)[self.validation_cells]

    def loss(self, network, volumes, rows, twins, progress) -> torch.Tensor:
        losses = self.per_subject(logit(network(volumes)), rows)
        return (losses * self.weights[self.cells[rows]].to(losses.device)).mean()

    def validation_loss(self, scores, labels) -> float:
        return binary_cross_entropy_with_logits(scores, labels, weight=self.validation_weights).item()


@dataclass(frozen=True, kw_only=True)
class Resampling(Mitigation):
    """Draw subjects so that class and group are independent: rare combinations come more often.

    References
    ----------
    Idrissi, Arjovsky, Pezeshki, Lopez-Paz (2022), "Simple data balancing achieves competitive worst-group-accuracy", CLeaR.
    """

    name: ClassVar[str] = "resampling"

    def objective(self, train: Cohort, validation: Cohort) -> Objective:
        """Return plain cross-entropy over rows drawn with replacement."""
        return _Resampled(train, validation, self.by)


class _Resampled(_Reweighed):
    def order(self, seed: int, epoch: int) -> torch.Tensor:
        generator = stream(seed, epoch, "batch order")
        rows = np.lexsort([generator.uniform(size=len(self.cells)), self.cells.numpy()])
        share = self.weights[self.cells[rows]].double().numpy()
        # Systematic sampling: each subject, and each cell, comes its expected number of times, rounded up or down.
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
    Combinations are drawn equally often, as in the paper's code. The weights of those that are in a batch are scaled to sum
    to one, so that a batch without the worst one is not a smaller step.

    References
    ----------
    Sagawa, Koh, Hashimoto, Liang (2020), "Distributionally robust neural networks for group shifts", ICLR, Algorithm 1.
    """

    name: ClassVar[str] = "group_dro"
    one_device: ClassVar[bool] = True
    step: float = 0.01

    def __post_init__(self) -> None:
        _check_positive("mitigation.step", self.step)

    def objective(self, train: Cohort, validation: Cohort) -> Objective:
        """Return the loss whose weights follow the worst combination."""
        return _Robust(train, validation, self.by, self.step)


class _Robust(_Resampled):
    def __init__(self, train: Cohort, validation: Cohort, by: str, step: float) -> None:
        super().__init__(train, validation, by)
        self.step = step
        # Equal shares for all combinations, not only independence.
        sizes = torch.bincount(self.cells, minlength=self.count)
        self.weights = torch.where(sizes > 0, len(self.cells) / (sizes * (sizes > 0).sum()), 0.0).float()
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
        return max(losses[self.validation_cells == cell].mean().item() for cell in self.validation_cells.unique())

    def state(self) -> dict[str, torch.Tensor]:
        return {"shares": self.shares}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        self.shares = state["shares"].clone()


@dataclass(frozen=True, kw_only=True)
class AdversarialUnlearning(Mitigation):
    """Teach the features to keep a small network, the adversary, guessing about the group.

    In each step the adversary learns to read the group from the features; then the network learns the disease and, with a
    weight that grows from 0 to `strength` over the fit, features on which the adversary answers one half.

    Parameters
    ----------
    strength : float
        Weight of the confusion.
    width : int
        Hidden units of the adversary.
    learning_rate : float
        Of the adversary.
    conditional : bool
        Whether the adversary judges each class by itself. A group that is correlated with the class can be guessed from
        the class: unlearning that would unlearn the disease.

    References
    ----------
    Dinsdale, Jenkinson, Namburete (2021), "Deep learning-based unlearning of dataset bias for MRI harmonisation and
    confound removal", NeuroImage 228:117689, eq. 2-4 (confusion); Ganin et al. (2016), JMLR 17(59):1-35, section 5.2.2 (the
    growing weight); Zhang, Lemoine, Mitchell (2018), AIES (equality of odds by conditioning on the class).
    """

    name: ClassVar[str] = "unlearning"
    one_device: ClassVar[bool] = True
    strength: float = 1.0
    width: int = 32
    learning_rate: float = 3e-3
    conditional: bool = True

    def __post_init__(self) -> None:
        for field in ("strength", "width", "learning_rate"):
            _check_positive(f"mitigation.{field}", getattr(self, field))
        if not isinstance(self.width, int):
            raise SimbaError("mitigation.width", self.width, "an integer")
        if not isinstance(self.conditional, bool):
            raise SimbaError("mitigation.conditional", self.conditional, "True or False")

    def objective(self, train: Cohort, validation: Cohort) -> Objective:
        """Return cross-entropy plus confusion of an adversary."""
        return _Unlearning(train, validation, self)


class _Unlearning(_Reweighed):
    def __init__(self, train: Cohort, validation: Cohort, options: AdversarialUnlearning) -> None:
        super().__init__(train, validation, options.by)
        if len(self.values) != 2:
            raise SimbaError(f"cohort[{options.by!r}]", f"{len(self.values)} groups", "of two groups for unlearning")
        self.options = options
        # Within each class (or overall) both groups count the same: otherwise "everybody in the larger" is a good guess.
        class_cells = self.cells if options.conditional else self.groups * 2
        sizes = torch.bincount(class_cells, minlength=4).float()
        even = torch.where(sizes > 0, len(class_cells) / (sizes.clamp(min=1) * (sizes > 0).sum()), 0.0)
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
            layers = nn.Linear(inputs, self.options.width), nn.ReLU(), nn.Linear(self.options.width, heads)
        self.adversary = nn.Sequential(*layers).to(self.device)
        self.optimiser = torch.optim.Adam(self.adversary.parameters(), lr=self.options.learning_rate)
        if self._waiting is not None:
            self._load(self._waiting)

    def _guess(self, features: torch.Tensor, rows: torch.Tensor, parameters: Mapping | None = None) -> torch.Tensor:
        out = self.adversary(features) if parameters is None else functional_call(self.adversary, parameters, (features,))
        if not self.options.conditional:
            return out[:, 0]
        return out.gather(1, self.labels[rows].long().to(out.device)[:, None])[:, 0]

    def loss(self, network, volumes, rows, twins, progress: Progress) -> torch.Tensor:
        scores, features = network(volumes, features=True)
        features = features.float()
        if self.adversary is None:
            self._made(features.shape[1], progress.seed)
        groups, weights = self.groups[rows].float().to(features.device), self.even[rows].to(features.device)
        with torch.enable_grad():
            guess = self._guess(features.detach(), rows)
            wrong = (weights * binary_cross_entropy_with_logits(guess, groups, reduction="none")).mean()
            self.optimiser.zero_grad()
            wrong.backward()
            self.optimiser.step()
        frozen = {name: value.detach() for name, value in self.adversary.named_parameters()}
        guess = self._guess(features, rows, frozen)
        # Cross-entropy with one half, less its least value.
        confusion = (weights * ((softplus(guess) + softplus(-guess)) / 2 - np.log(2))).mean()
        ramp = 2 / (1 + np.exp(-10 * progress.share)) - 1
        return self.per_subject(logit(scores), rows).mean() + self.options.strength * ramp * confusion

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
        weights = {name.removeprefix("adversary."): value for name, value in state.items() if name.startswith("adversary.")}
        self.adversary.load_state_dict(weights)
        entries: dict[int, dict[str, torch.Tensor]] = {}
        for name, value in state.items():
            if name.startswith("optimiser."):
                _, number, key = name.split(".")
                entries.setdefault(int(number), {})[key] = value
        self.optimiser.load_state_dict(self.optimiser.state_dict() | {"state": entries})


@dataclass(frozen=True, kw_only=True)
class TwinConsistency(Mitigation):
    """Punish different answers to twins: each subject is seen with its bias switched the other way as well.

    Needs twins, so only simulated cohorts can do it: the best that knowing the bias exactly can buy.

    Parameters
    ----------
    strength : float
        Weight of the squared difference of the twins' logits.

    References
    ----------
    The penalty is counterfactual logit pairing: Garg et al. (2019), "Counterfactual fairness in text classification through
    robustness", AIES, 219-226, section 4.3. Twins as images are of this lab.
    """

    name: ClassVar[str] = "twin_consistency"
    strength: float = 1.0

    def __post_init__(self) -> None:
        _check_positive("mitigation.strength", self.strength)

    def objective(self, train: Cohort, validation: Cohort) -> Objective:
        """Return cross-entropy plus the squared difference of twins."""
        return _Consistent(train, validation, self)


class _Consistent(_Reweighed):
    def __init__(self, train: Cohort, validation: Cohort, options: TwinConsistency) -> None:
        super().__init__(train, validation, options.by)
        if options.by not in train.biases:
            raise UnknownNameError.among("mitigation.by", options.by, train.biases)
        self.strength = options.strength
        self.twins = train.twin(flipped=options.by)

    def loss(self, network, volumes, rows, twins, progress) -> torch.Tensor:
        scores = logit(network(torch.cat([volumes, twins])))
        own, other = scores[: len(rows)], scores[len(rows) :]
        return self.per_subject(own, rows).mean() + self.strength * (own - other).float().square().mean()


@dataclass(frozen=True, kw_only=True)
class BiasGroupModels(Mitigation):
    """Fit one network per group; each subject is judged by the network of its own group.

    The result asks for the group of every subject, also after training.

    References
    ----------
    Stanley et al. (2024), JAMIA 31:2613-2621 (protected group models); Puyol-Anton et al. (2021), MICCAI, 413-423.
    """

    name: ClassVar[str] = "group_models"

    def objective(self, train: Cohort, validation: Cohort) -> Objective:
        """Return plain cross-entropy: the groups are fitted one by one."""
        return Objective(train, validation)


MITIGATIONS: dict[str, type[Mitigation]] = {
    kind.name: kind for kind in (Reweighing, Resampling, GroupDRO, AdversarialUnlearning, TwinConsistency, BiasGroupModels)
}


def mitigation_from(value: Mitigation | Mapping[str, Any] | str | None) -> Mitigation | None:
    """Return a mitigation from its name, or from what `Mitigation.to_dict` returns; ``"none"`` and None stand for none."""
    if value is None or isinstance(value, Mitigation):
        return value
    if not isinstance(value, str | Mapping):
        raise SimbaError("mitigation", value, "a name, a mapping, or an instance such as Reweighing()")
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


def _check_positive(field: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < np.inf:
        raise SimbaError(field, value, "a finite number above 0")
