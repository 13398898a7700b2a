"""Scenario: the frozen description of an experiment, from which everything else follows."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from scipy.integrate import quad

from simba_lab.core.errors import SimbaError, UnknownNameError
from simba_lab.core.files import atomic_write, read_yaml, to_yaml
from simba_lab.synthesis.anatomy.subjects import GaussianProcessSubjects, PCASubjects, Subjects
from simba_lab.synthesis.anatomy.template import TEMPLATES, check_spacing
from simba_lab.synthesis.effects import CLASSES, EXAMPLE, Effect, Intensity, Morphology, Normal

SPLITS = ("train", "validation", "test")
MEMBERSHIPS = ("independent", "joint")
# Columns of the design table that no bias may be called.
RESERVED = ("disease", "label", "split", "fold", "subject", "all", "anatomy")


@dataclass(frozen=True)
class Scenario:
    """A cohort in words: how many subjects, what the disease does, what the bias does and to whom.

    Parameters
    ----------
    subjects : int
        Number of subjects; half of them have the disease.
    disease : Morphology or Intensity
        The effect that defines the label.
    bias : Morphology or Intensity, or mapping of name to effect, optional
        What is correlated with the label but is not the disease: one effect, called ``bias`` in
        tables, or several by name.
    membership : {"independent", "joint"}
        How the groups of several biases go together within a class: drawn independently of each
        other, or jointly, so that who is in a smaller group is in all larger ones too.
    spacing_mm : float
        Voxel size of the volumes.
    variability : GaussianProcessSubjects or PCASubjects
        Model of healthy anatomy.
    noise : float
        Standard deviation of the Rician noise, as a share of the intensity of white matter.
    bias_field : float
        Standard deviation, over the brain, of the log of a subject's own smooth receive field.
    split : tuple of float
        Shares of train, validation and test.
    template : str
        Name of the template.

    Raises
    ------
    SimbaError
        If a field is out of range; the message names it.
    """

    subjects: int
    disease: Effect
    bias: Effect | Mapping[str, Effect] | None = None
    membership: str = "independent"
    spacing_mm: float = 4.0
    variability: Subjects = field(default_factory=GaussianProcessSubjects)
    noise: float = 0.03
    bias_field: float = 0.05
    split: tuple[float, float, float] = (0.5, 0.25, 0.25)
    template: str = "icbm2009c"

    def __post_init__(self) -> None:
        if (
            not isinstance(self.subjects, int)
            or isinstance(self.subjects, bool)
            or self.subjects < 16
        ):
            raise SimbaError(
                "scenario.subjects",
                self.subjects,
                "an integer of at least 16",
                "400 train a small network.",
            )
        check_spacing(self.spacing_mm, "scenario.spacing_mm")
        if not isinstance(self.noise, int | float) or not 0 <= self.noise <= 1:
            raise SimbaError(
                "scenario.noise", self.noise, "in [0, 1]", "0.03 looks like a good scanner."
            )
        object.__setattr__(self, "split", tuple(float(share) for share in self.split))
        if len(self.split) != 3 or min(self.split) <= 0 or abs(sum(self.split) - 1) > 1e-6:
            raise SimbaError("scenario.split", self.split, "three positive shares that add up to 1")
        if self.template not in TEMPLATES:
            raise UnknownNameError.among("scenario.template", self.template, TEMPLATES)
        if not isinstance(self.bias_field, int | float) or not 0 <= self.bias_field <= 1:
            raise SimbaError(
                "scenario.bias_field",
                self.bias_field,
                "in [0, 1]",
                "0.05 is what correction leaves.",
            )
        if self.membership not in MEMBERSHIPS:
            raise SimbaError(
                "scenario.membership", self.membership, f"one of {', '.join(MEMBERSHIPS)}"
            )
        if not isinstance(self.disease, Effect):
            raise SimbaError("scenario.disease", self.disease, EXAMPLE)
        if self.disease.prevalence is not None:
            raise SimbaError(
                "scenario.disease.prevalence",
                dict(self.disease.prevalence),
                "left out",
                "Only a bias has a prevalence.",
            )
        defaults = {"magnitude": {"disease": Normal(1.0, 1.0), "control": Normal(-1.0, 1.0)}}
        object.__setattr__(self, "disease", _completed(self.disease, defaults))
        defaults = {"magnitude": Normal(2.0, 1.0), "prevalence": 0.5}
        for name, effect in self.biases.items():
            if not isinstance(effect, Effect):
                raise SimbaError(f"scenario.{name}", effect, EXAMPLE)
            if (
                not str(name).isidentifier()
                or name in RESERVED
                or name.startswith("anatomy_")
                or name.endswith("_magnitude")
            ):
                raise SimbaError(
                    "scenario.bias",
                    name,
                    f"named by letters, digits and _, and not {', '.join(RESERVED)}",
                )
        completed = {name: _completed(effect, defaults) for name, effect in self.biases.items()}
        if isinstance(self.bias, Mapping):
            object.__setattr__(self, "bias", completed or None)
        elif completed:
            object.__setattr__(self, "bias", completed["bias"])

    def __hash__(self) -> int:
        return hash(repr(self))

    @property
    def biases(self) -> dict[str, Effect]:
        """The biases by name; a single one that was given without a name is called ``bias``."""
        if isinstance(self.bias, Mapping):
            return dict(self.bias)
        return {} if self.bias is None else {"bias": self.bias}

    @property
    def effects(self) -> dict[str, Effect]:
        """The effects by name, in the order in which they are applied to the template: the disease first."""
        return {"disease": self.disease} | self.biases

    def replace(self, **changes: Any) -> Scenario:
        """Return the scenario with some fields changed, validated anew."""
        unknown = set(changes) - {entry.name for entry in dataclasses.fields(self)}
        if unknown:
            name = sorted(unknown)[0]
            raise UnknownNameError.among(
                f"scenario.{name}", name, [entry.name for entry in dataclasses.fields(self)]
            )
        return dataclasses.replace(self, **changes)

    def unbiased(self) -> Scenario:
        """Return the control scenario: the same bias effects, as common in one class as in the other."""
        fair = {
            name: dataclasses.replace(
                effect, prevalence=float(np.mean([*effect.prevalence.values()]))
            )
            for name, effect in self.biases.items()
        }
        return self.replace(bias=fair if isinstance(self.bias, Mapping) else fair.get("bias"))

    def memberships(self, class_name: str) -> dict[tuple[int, ...], float]:
        """Return the probability of each combination of bias groups in a class; one 0 or 1 per bias, in their order."""
        rates = np.array([effect.prevalence[class_name] for effect in self.biases.values()])
        patterns = list(product((1, 0), repeat=len(rates)))
        if self.membership == "joint":
            # One uniform number decides on all groups: whoever is below a rate is below all larger
            # ones.
            inside = [
                min(rates[np.array(pattern) == 1], default=1.0)
                - max(rates[np.array(pattern) == 0], default=0.0)
                for pattern in patterns
            ]
            shares = np.maximum(0.0, inside)
        else:
            shares = [np.prod(np.where(pattern, rates, 1 - rates)) for pattern in patterns]
        return {
            pattern: float(share)
            for pattern, share in zip(patterns, shares, strict=True)
            if share > 1e-12
        }

    def ceiling(self, *, shortcut: bool = False) -> float:
        """Return the best accuracy that any classifier can reach on this scenario.

        Classes overlap by design, so even an ideal reader of the disease errs. With N(+1, 1)
        against N(-1, 1) the ceiling is Phi(1), 84.1 %.

        Parameters
        ----------
        shortcut : bool
            Whether the classifier may use membership of the bias groups as well as the disease.
        """
        weights = [dict.fromkeys(CLASSES, 1.0)]
        if shortcut and self.biases:
            shares = {name: self.memberships(name) for name in CLASSES}
            patterns = dict.fromkeys(pattern for name in CLASSES for pattern in shares[name])
            weights = [
                {name: shares[name].get(pattern, 0.0) for name in CLASSES} for pattern in patterns
            ]
        control, disease = (self.disease.magnitude[name] for name in CLASSES)
        return float(
            sum(
                _bayes(control, disease, *(0.5 * weight[name] for name in CLASSES))
                for weight in weights
            )
        )

    def leakage_floor(self, accuracy: float, bias: str | None = None) -> float:
        """Return how well a probe that knows only the disease, with some accuracy, already predicts a bias group.

        With prevalence p in the disease class and 1 - p among controls, accuracy a gives ``a p + (1
        - a)(1 - p)``.

        Parameters
        ----------
        accuracy : float
            Of the disease.
        bias : str, optional
            Which bias; not needed if there is but one.
        """
        if not self.biases:
            return 0.5
        if bias is None and len(self.biases) > 1:
            raise SimbaError("bias", None, f"one of {', '.join(self.biases)}", "There are several.")
        name = bias or next(iter(self.biases))
        if name not in self.biases:
            raise UnknownNameError.among("bias", name, self.biases)
        control, disease = (self.biases[name].prevalence[class_name] for class_name in CLASSES)
        agree = (disease + 1 - control) / 2
        return float(accuracy * agree + (1 - accuracy) * (1 - agree))

    def to_dict(self) -> dict[str, Any]:
        """Return the scenario as plain dictionaries, lists and numbers."""
        return _plain(self)

    def to_yaml(self, path: str | Path | None = None) -> str:
        """Return the scenario as YAML, and write it to `path` if one is given."""
        text = to_yaml(self.to_dict())
        if path is not None:
            atomic_write(path, text)
        return text

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Scenario:
        """Build a scenario from what `to_dict` returns; unknown fields are errors."""
        return _built(cls, values, "scenario")

    @classmethod
    def from_yaml(cls, source: str | Path) -> Scenario:
        """Read a scenario from a YAML file, or from YAML text with more than one line."""
        return cls.from_dict(read_yaml(source, "scenario", examples="data/scenarios/"))


def _completed(effect: Effect, defaults: dict[str, Any]) -> Effect:
    return dataclasses.replace(
        effect, **{name: value for name, value in defaults.items() if getattr(effect, name) is None}
    )


@cache  # every evaluation asks for it
def _bayes(control: Normal, disease: Normal, weight_control: float, weight_disease: float) -> float:
    """Accuracy contributed by one group: the integral of the larger of the two weighted densities."""
    spread = 10 * max(control.sd, disease.sd)
    if spread == 0:  # two points: they are told apart unless they coincide
        separable = control.mean != disease.mean
        return weight_control + weight_disease if separable else max(weight_control, weight_disease)
    low, high = min(control.mean, disease.mean) - spread, max(control.mean, disease.mean) + spread

    def larger(x: float) -> float:
        return max(weight_control * control.pdf(x), weight_disease * disease.pdf(x))

    return quad(larger, low, high, limit=400, points=[control.mean, disease.mean])[0]


def _plain(value: Any) -> Any:
    if isinstance(value, PCASubjects):
        return value.to_dict()
    if dataclasses.is_dataclass(value):
        entries = {
            entry.name: _plain(getattr(value, entry.name)) for entry in dataclasses.fields(value)
        }
        # What is left out is what a reader of the file need not know.
        return {
            name: entry
            for name, entry in entries.items()
            if not (name in OPTIONAL and entry == OPTIONAL[name])
        }
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(entry) for entry in value]
    return value


OPTIONAL = {"low": -np.inf, "high": np.inf, "mode": None}


def _built(kind: type, values: object, where: str) -> Any:
    if not isinstance(values, Mapping):
        raise SimbaError(where, values, "a mapping of field names to values")
    names = [entry.name for entry in dataclasses.fields(kind)]
    for name in values:
        if name not in names:
            raise UnknownNameError.among(f"{where}.{name}", name, names)
    arguments = dict(values)
    if kind is Scenario:
        for name in ("disease", "bias", "variability"):
            if values.get(name) is not None:
                arguments[name] = _PARTS[name](values[name], f"{where}.{name}")
    elif isinstance(values.get("magnitude"), Mapping):
        arguments["magnitude"] = _magnitude(values["magnitude"], f"{where}.magnitude")
    try:
        return kind(**arguments)
    except TypeError as error:
        required = [
            entry.name
            for entry in dataclasses.fields(kind)
            if entry.default is entry.default_factory
        ]
        raise SimbaError(
            where, dict(values), f"complete (it needs at least {', '.join(required)})", str(error)
        ) from error


def _magnitude(values: Mapping, where: str) -> Normal | dict[str, Normal]:
    if set(values) <= {entry.name for entry in dataclasses.fields(Normal)}:
        return _built(Normal, values, where)
    return {key: _built(Normal, entry, f"{where}[{key!r}]") for key, entry in values.items()}


def _effect(values: object, where: str) -> Effect:
    kind = Intensity if isinstance(values, Mapping) and "kind" in values else Morphology
    return _built(kind, values, where)


def _biases(values: object, where: str) -> Effect | dict[str, Effect]:
    """One effect, or effects by name: those are mappings of mappings."""
    named = isinstance(values, Mapping) and values and not {"region", "kind"} & set(values)
    if named and all(isinstance(entry, Mapping) for entry in values.values()):
        return {name: _effect(entry, f"{where}.{name}") for name, entry in values.items()}
    return _effect(values, where)


def _variability(values: object, where: str) -> Subjects:
    if isinstance(values, Mapping) and "file" in values:
        return PCASubjects.from_dict(values)
    return _built(GaussianProcessSubjects, values, where)


_PARTS = {"disease": _effect, "bias": _biases, "variability": _variability}
