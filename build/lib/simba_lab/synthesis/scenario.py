"""Scenario: the frozen description of an experiment, from which everything else follows."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from scipy.integrate import quad
from scipy.stats import norm

from simba_lab.errors import SimbaError, UnknownNameError
from simba_lab.synthesis.anatomy import TEMPLATES, check_spacing
from simba_lab.synthesis.effects import CLASSES, Morphology, Normal
from simba_lab.synthesis.subjects import GaussianProcessSubjects

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Scenario:
    """A cohort in words: how many subjects, what the disease does, what the bias does and to whom.

    Parameters
    ----------
    subjects : int
        Number of subjects; half of them have the disease.
    disease : Morphology
        The effect that defines the label.
    bias : Morphology, optional
        The effect that is correlated with the label but is not the disease.
    spacing_mm : float
        Voxel size of the volumes.
    variability : GaussianProcessSubjects
        Model of healthy anatomy.
    noise : float
        Standard deviation of the Rician noise, as a share of the intensity of white matter.
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
    disease: Morphology
    bias: Morphology | None = None
    spacing_mm: float = 4.0
    variability: GaussianProcessSubjects = field(default_factory=GaussianProcessSubjects)
    noise: float = 0.03
    split: tuple[float, float, float] = (0.5, 0.25, 0.25)
    template: str = "icbm2009c"

    def __post_init__(self) -> None:
        if not isinstance(self.subjects, int) or isinstance(self.subjects, bool) or self.subjects < 16:
            raise SimbaError("scenario.subjects", self.subjects, "an integer of at least 16", "400 train a small network.")
        check_spacing(self.spacing_mm, "scenario.spacing_mm")
        if not isinstance(self.noise, int | float) or not 0 <= self.noise <= 1:
            raise SimbaError("scenario.noise", self.noise, "in [0, 1]", "0.03 looks like a good scanner.")
        object.__setattr__(self, "split", tuple(float(share) for share in self.split))
        if len(self.split) != 3 or min(self.split) <= 0 or abs(sum(self.split) - 1) > 1e-6:
            raise SimbaError("scenario.split", self.split, "three positive shares that add up to 1")
        if self.template not in TEMPLATES:
            raise UnknownNameError.among("scenario.template", self.template, TEMPLATES)
        for name, effect in (("disease", self.disease), ("bias", self.bias)):
            if not isinstance(effect, Morphology) and not (name == "bias" and effect is None):
                raise SimbaError(f"scenario.{name}", effect, "an effect such as Morphology('Insula_L', amplitude_mm=2.5)")
        defaults = {"magnitude": {"disease": Normal(1.0, 1.0), "control": Normal(-1.0, 1.0)}}
        if self.disease.prevalence is not None:
            raise SimbaError(
                "scenario.disease.prevalence", dict(self.disease.prevalence), "left out", "Only a bias has a prevalence."
            )
        object.__setattr__(self, "disease", _completed(self.disease, defaults))
        if self.bias is not None:
            object.__setattr__(self, "bias", _completed(self.bias, {"magnitude": Normal(2.0, 1.0), "prevalence": 0.5}))

    @property
    def effects(self) -> dict[str, Morphology]:
        """The effects by name, in the order in which they are applied to the template: the disease first."""
        return {name: effect for name in ("disease", "bias") if (effect := getattr(self, name)) is not None}

    def replace(self, **changes: Any) -> Scenario:
        """Return the scenario with some fields changed, validated anew."""
        unknown = set(changes) - {entry.name for entry in dataclasses.fields(self)}
        if unknown:
            name = sorted(unknown)[0]
            raise UnknownNameError.among(f"scenario.{name}", name, [entry.name for entry in dataclasses.fields(self)])
        return dataclasses.replace(self, **changes)

    def unbiased(self) -> Scenario:
        """Return the control scenario: the same bias effect, as common in one class as in the other."""
        if self.bias is None:
            return self
        return self.replace(
            bias=dataclasses.replace(self.bias, prevalence=float(np.mean([*self.bias.prevalence.values()])))
        )

    def ceiling(self, *, shortcut: bool = False) -> float:
        """Return the best accuracy that any classifier can reach on this scenario.

        Classes overlap by design, so even an ideal reader of the disease errs. With N(+1, 1) against N(-1, 1) the
        ceiling is Phi(1), 84.1 %.

        Parameters
        ----------
        shortcut : bool
            Whether the classifier may use membership of the bias group as well as the disease.
        """
        groups = {"any": dict.fromkeys(CLASSES, 1.0)}
        if shortcut and self.bias is not None:
            rates = self.bias.prevalence
            groups = {"B": dict(rates), "NB": {name: 1 - rate for name, rate in rates.items()}}
        control, disease = (self.disease.magnitude[name] for name in CLASSES)
        return float(sum(_bayes(control, disease, *(0.5 * share[name] for name in CLASSES)) for share in groups.values()))

    def leakage_floor(self, accuracy: float) -> float:
        """Return how well a probe that knows only the disease, with some accuracy, already predicts the bias group.

        With prevalence p in the disease class and 1 - p among controls, accuracy a gives ``a p + (1 - a)(1 - p)``.
        """
        if self.bias is None:
            return 0.5
        control, disease = (self.bias.prevalence[name] for name in CLASSES)
        agree = (disease + 1 - control) / 2
        return float(accuracy * agree + (1 - accuracy) * (1 - agree))

    def to_dict(self) -> dict[str, Any]:
        """Return the scenario as plain dictionaries, lists and numbers."""
        return _plain(self)

    def to_yaml(self, path: str | Path | None = None) -> str:
        """Return the scenario as YAML, and write it to `path` if one is given."""
        text = yaml.safe_dump(self.to_dict(), sort_keys=False)
        if path is not None:
            Path(path).write_text(text, encoding="utf-8")
        return text

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Scenario:
        """Build a scenario from what `to_dict` returns; unknown fields are errors."""
        return _built(cls, values, "scenario")

    @classmethod
    def from_yaml(cls, source: str | Path) -> Scenario:
        """Read a scenario from a YAML file, or from YAML text with more than one line."""
        text = source if isinstance(source, str) and "\n" in source else None
        if text is None:
            path = Path(source)
            if not path.is_file():
                raise SimbaError("scenario", str(source), "an existing YAML file", "Examples are in data/scenarios/.")
            text = path.read_text(encoding="utf-8")
        try:
            values = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise SimbaError("scenario", str(source)[:80], "valid YAML", str(error)) from error
        return cls.from_dict(values)


def _completed(effect: Morphology, defaults: dict[str, Any]) -> Morphology:
    return dataclasses.replace(effect, **{name: value for name, value in defaults.items() if getattr(effect, name) is None})


def _bayes(control: Normal, disease: Normal, weight_control: float, weight_disease: float) -> float:
    """Accuracy contributed by one group: the integral of the larger of the two weighted densities."""
    spread = 10 * max(control.sd, disease.sd)
    if spread == 0:  # two points: they are told apart unless they coincide
        separable = control.mean != disease.mean
        return weight_control + weight_disease if separable else max(weight_control, weight_disease)
    low, high = min(control.mean, disease.mean) - spread, max(control.mean, disease.mean) + spread

    def larger(x: float) -> float:
        return max(
            weight_control * norm.pdf(x, control.mean, control.sd), weight_disease * norm.pdf(x, disease.mean, disease.sd)
        )

    return quad(larger, low, high, limit=400, points=[control.mean, disease.mean])[0]


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {entry.name: _plain(getattr(value, entry.name)) for entry in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(entry) for entry in value]
    return value


NESTED = {"disease": Morphology, "bias": Morphology, "variability": GaussianProcessSubjects}


def _built(kind: type, values: object, where: str) -> Any:
    if not isinstance(values, Mapping):
        raise SimbaError(where, values, "a mapping of field names to values")
    names = [entry.name for entry in dataclasses.fields(kind)]
    for name in values:
        if name not in names:
            raise UnknownNameError.among(f"{where}.{name}", name, names)
    arguments = dict(values)
    for name, value in values.items():
        if kind is Scenario and name in NESTED and value is not None:
            arguments[name] = _built(NESTED[name], value, f"{where}.{name}")
        elif name == "magnitude" and isinstance(value, Mapping):
            simple = set(value) <= {"mean", "sd"}
            arguments[name] = (
                _built(Normal, value, f"{where}.magnitude")
                if simple
                else {key: _built(Normal, entry, f"{where}.magnitude[{key!r}]") for key, entry in value.items()}
            )
    try:
        return kind(**arguments)
    except TypeError as error:
        required = [entry.name for entry in dataclasses.fields(kind) if entry.default is entry.default_factory]
        raise SimbaError(where, dict(values), f"complete (it needs at least {', '.join(required)})", str(error)) from error
