"""Scenarios as plain values, for YAML files and manifests, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np

from simba_lab.core.checks import built, known_fields, mapping
from simba_lab.core.errors import SimbaError
from simba_lab.synthesis.anatomy.template_files import TemplateFiles
from simba_lab.synthesis.anatomy.variability import (
    GaussianProcessSubjects,
    PCASubjects,
    Variability,
)
from simba_lab.synthesis.effects import CLASSES, Effect, Intensity, Morphology, Normal

# Fields that are left out of a file where they have these values.
OPTIONAL = {"low": -np.inf, "high": np.inf, "mode": None}


def plain(value: Any) -> Any:
    """Return a scenario, or anything in it, as dictionaries, lists and numbers."""
    if isinstance(value, PCASubjects):
        return value.to_dict()
    if is_dataclass(value):
        entries = {entry.name: plain(getattr(value, entry.name)) for entry in fields(value)}
        return {
            name: entry
            for name, entry in entries.items()
            if not (name in OPTIONAL and entry == OPTIONAL[name])
        }
    if isinstance(value, Mapping):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, tuple | list):
        return [plain(entry) for entry in value]
    return value


def scenario_fields(values: object, scenario_class: type) -> dict[str, Any]:
    """Return the arguments of a scenario, with effects and variability built from plain values."""
    arguments = dict(known_fields("scenario", values, _names(scenario_class)))
    builders = {
        "disease": _effect,
        "bias": _biases,
        "variability": _variability,
        "template": template_value,
    }
    for name, builder in builders.items():
        if arguments.get(name) is not None:
            arguments[name] = builder(arguments[name], f"scenario.{name}")
    return arguments


def template_value(value: Any, field: str) -> Any:
    """Return a template's name as it is; a mapping becomes the files that it names."""
    return built(TemplateFiles, value, field) if isinstance(value, Mapping) else value


def _names(cls: type) -> list[str]:
    return [entry.name for entry in fields(cls)]


def _effect(values: object, field: str) -> Effect:
    given = mapping(field, values)
    cls: type[Effect] = Intensity if "kind" in given else Morphology
    if cls is Intensity and (
        {"region", "amplitude_mm"} & set(given) or given["kind"] == "morphology"
    ):
        allowed = "left out of a morphology, which has region and amplitude_mm"
        raise SimbaError(f"{field}.kind", given["kind"], allowed, "Delete the kind.")
    arguments = dict(known_fields(field, given, _names(cls)))
    if isinstance(arguments.get("magnitude"), Mapping):
        arguments["magnitude"] = _magnitude(arguments["magnitude"], f"{field}.magnitude")
    return built(cls, arguments, field)


def _magnitude(values: Mapping[str, Any], field: str) -> Normal | dict[str, Normal]:
    if set(values) & set(_names(Normal)):
        return built(Normal, values, field)
    classes = known_fields(field, values, CLASSES, needed=CLASSES)
    return {name: built(Normal, entry, f"{field}[{name!r}]") for name, entry in classes.items()}


def _biases(values: object, field: str) -> Effect | dict[str, Effect]:
    """One effect, or effects by name: those are mappings of mappings."""
    if (
        isinstance(values, Mapping)
        and values
        and not {"region", "kind"} & set(values)
        and all(isinstance(entry, Mapping) for entry in values.values())
    ):
        return {name: _effect(entry, f"{field}.{name}") for name, entry in values.items()}
    return _effect(values, field)


def _variability(values: object, field: str) -> Variability:
    if isinstance(values, Mapping) and "file" in values:
        return PCASubjects.from_dict(values)
    return built(GaussianProcessSubjects, values, field)
