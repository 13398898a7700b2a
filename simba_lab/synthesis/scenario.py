"""Scenario: the frozen description of a cohort, from which everything else follows."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from simba_lab.core.border import checks_arguments
from simba_lab.core.checks import (
    Source,
    built,
    choice,
    keep_plain,
    known_fields,
    share,
    whole_number,
)
from simba_lab.core.errors import SimbaError
from simba_lab.core.files import write_new
from simba_lab.core.yaml_files import read_yaml, to_yaml
from simba_lab.synthesis.anatomy.template import TEMPLATES, check_spacing
from simba_lab.synthesis.anatomy.template_files import TemplateFiles
from simba_lab.synthesis.anatomy.variability import GaussianProcessSubjects, Variability
from simba_lab.synthesis.ceiling import best_accuracy, leakage_floor
from simba_lab.synthesis.effects import CLASSES, EXAMPLE, Effect, Normal, prevalence_in
from simba_lab.synthesis.scenario_values import plain, scenario_fields

SPLITS = ("train", "validation", "test")
MEMBERSHIPS = ("independent", "joint")
# Columns of the design table: no bias may have one of these names.
RESERVED = ("disease", "label", "split", "fold", "subject", "all", "anatomy")


@checks_arguments
@dataclass(frozen=True)
class Scenario:
    """A cohort in words: how many subjects, what the disease does, and who carries which bias.

    Parameters
    ----------
    subjects : int
        Number of subjects; half of them have the disease.
    disease : Morphology or Intensity
        The effect that defines the label.
    bias : Morphology or Intensity, or mapping of name to effect, optional
        Effects that are correlated with the label but are not the disease: one effect, called
        ``bias`` in tables, or several by name.
    membership : {"independent", "joint"}
        How the groups of several biases are drawn within a class: independently of each other, or
        jointly, so that members of a smaller group are in all larger groups too.
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
    template : str or TemplateFiles
        Name of a template of the lab (see `load_template`), or the files of another.

    Raises
    ------
    SimbaError
        If a field is out of range; the message names it.

    Examples
    --------
    >>> import simba_lab as sb
    >>> bias = sb.Morphology("Putamen_L", 2.5, prevalence={"disease": 0.8, "control": 0.2})
    >>> scenario = sb.Scenario(64, sb.Morphology("Insula_L", 2.5), bias, spacing_mm=8)
    >>> round(scenario.ceiling(), 3), round(scenario.ceiling(shortcut=True), 3)
    (0.841, 0.888)
    >>> sb.Scenario.from_yaml(scenario.to_yaml()) == scenario
    True
    """

    subjects: int
    disease: Effect
    bias: Effect | Mapping[str, Effect] | None = None
    membership: str = "independent"
    spacing_mm: float = 4.0
    variability: Variability = field(default_factory=GaussianProcessSubjects)
    noise: float = 0.03
    bias_field: float = 0.05
    split: tuple[float, float, float] = (0.5, 0.25, 0.25)
    template: str | TemplateFiles = "icbm2009c"

    def __post_init__(self) -> None:
        keep_plain(self)
        remedy = "400 train a small network."
        whole_number("scenario.subjects", self.subjects, least=16, remedy=remedy)
        check_spacing(self.spacing_mm, "scenario.spacing_mm")
        share("scenario.noise", self.noise, remedy="0.03 looks like a good scanner.")
        share("scenario.bias_field", self.bias_field, remedy="0.05 is what correction leaves.")
        if not isinstance(self.template, TemplateFiles):
            choice("scenario.template", self.template, TEMPLATES)
        choice("scenario.membership", self.membership, MEMBERSHIPS)
        object.__setattr__(self, "split", _shares(self.split))
        self._complete_disease()
        self._complete_biases()

    def _complete_disease(self) -> None:
        if not isinstance(self.disease, Effect):
            raise SimbaError("scenario.disease", self.disease, EXAMPLE)
        if self.disease.prevalence is not None:
            field, value = "scenario.disease.prevalence", self.disease.prevalence
            raise SimbaError(field, value, "left out", "Only a bias has a prevalence.")
        magnitude = {"disease": Normal(1.0, 1.0), "control": Normal(-1.0, 1.0)}
        object.__setattr__(self, "disease", _completed(self.disease, magnitude=magnitude))

    def _complete_biases(self) -> None:
        for name, effect in self.biases.items():
            if not isinstance(effect, Effect):
                raise SimbaError(f"scenario.{name}", effect, EXAMPLE)
            column = name.startswith("anatomy_") or name.endswith("_magnitude")
            if column or name in RESERVED or not str(name).isidentifier():
                allowed = f"named by letters, digits and _, and not {', '.join(RESERVED)}"
                raise SimbaError("scenario.bias", name, allowed)
        completed = {
            name: _completed(effect, magnitude=Normal(2.0, 1.0), prevalence=0.5)
            for name, effect in self.biases.items()
        }
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
        """The effects by name, in the order in which they are applied: the disease first."""
        return {"disease": self.disease} | self.biases

    def replace(self, **changes: Any) -> Scenario:
        """Return the scenario with some fields changed, validated anew."""
        known_fields("scenario", changes, [entry.name for entry in dataclasses.fields(self)])
        return dataclasses.replace(self, **changes)

    def unbiased(self) -> Scenario:
        """Return the control scenario: the same effects, as common in one class as in the other."""
        fair = {
            name: dataclasses.replace(
                effect,
                prevalence=float(np.mean([prevalence_in(effect, label) for label in CLASSES])),
            )
            for name, effect in self.biases.items()
        }
        return self.replace(bias=fair if isinstance(self.bias, Mapping) else fair.get("bias"))

    def memberships(self, class_name: str) -> dict[tuple[int, ...], float]:
        """Return the probability of each combination of bias groups in a class.

        A combination is one 0 or 1 per bias, in the order of `biases`.
        """
        rates = np.array([prevalence_in(effect, class_name) for effect in self.biases.values()])
        patterns = np.array(list(product((1, 0), repeat=len(rates))))
        if self.membership == "joint":
            # One uniform number decides on all groups: a subject below a rate is below all larger
            # rates.
            lowest = [min(rates[pattern == 1], default=1.0) for pattern in patterns]
            highest = [max(rates[pattern == 0], default=0.0) for pattern in patterns]
            shares = np.maximum(0.0, np.subtract(lowest, highest))
        else:
            products = [np.prod(np.where(pattern, rates, 1 - rates)) for pattern in patterns]
            shares = np.array(products)
        return {
            tuple(pattern.tolist()): float(share)
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
            Whether the classifier may use the bias groups as well as the disease.
        """
        return best_accuracy(self, shortcut=shortcut)

    def leakage_floor(self, accuracy: float, bias: str | None = None) -> float:
        """Return how well a probe that knows only the disease predicts a bias group.

        With prevalence p in the disease class and 1 - p among controls, accuracy a gives ``a p + (1
        - a)(1 - p)``.

        Parameters
        ----------
        accuracy : float
            Accuracy of the probe for the disease.
        bias : str, optional
            Name of the bias; not needed if there is only one.

        Raises
        ------
        SimbaError
            If there are several biases and none is named, or no bias has this name.
        """
        return leakage_floor(self, accuracy, bias)

    def to_dict(self) -> dict[str, Any]:
        """Return the scenario as plain dictionaries, lists and numbers."""
        return plain(self)

    def to_yaml(self, path: str | Path | None = None) -> str:
        """Return the scenario as YAML, and write it to `path`, where nothing else is, if given."""
        text = to_yaml(self.to_dict())
        if path is not None:
            write_new(path, text)
        return text

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Scenario:
        """Build a scenario from what `to_dict` returns; unknown fields are errors."""
        return built(cls, scenario_fields(values, cls), "scenario")

    @classmethod
    def from_yaml(cls, source: Source | Path) -> Scenario:
        """Read a scenario from a YAML file, or from YAML text with more than one line.

        Raises
        ------
        SimbaError
            If there is no such file, it is not valid YAML, or a field is wrong.
        """
        return read_yaml(source, "scenario", cls.from_dict, examples="data/scenarios/")


def _shares(split: Any) -> tuple[float, float, float]:
    try:
        train, validation, test = (float(share) for share in split)
        valid = min(train, validation, test) > 0 and abs(train + validation + test - 1) <= 1e-6
    except (TypeError, ValueError):
        valid = False
    if not valid:
        raise SimbaError("scenario.split", split, "three positive shares that add up to 1")
    return train, validation, test


def _completed(effect: Effect, **defaults: Any) -> Effect:
    missing = {name: value for name, value in defaults.items() if getattr(effect, name) is None}
    return dataclasses.replace(effect, **missing)
