"""Mitigations by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from simba_lab.core.checks import built
from simba_lab.core.errors import SimbaError, UnknownNameError
from simba_lab.training.mitigation.adversarial_unlearning import AdversarialUnlearning
from simba_lab.training.mitigation.group_dro import GroupDRO
from simba_lab.training.mitigation.group_models import BiasGroupModels
from simba_lab.training.mitigation.objective import Mitigation
from simba_lab.training.mitigation.resampling import Resampling
from simba_lab.training.mitigation.reweighing import Reweighing
from simba_lab.training.mitigation.twin_consistency import TwinConsistency

MITIGATIONS: dict[str, type[Mitigation]] = {
    mitigation.name: mitigation
    for mitigation in (
        Reweighing,
        Resampling,
        GroupDRO,
        AdversarialUnlearning,
        TwinConsistency,
        BiasGroupModels,
    )
}


def mitigation_from(value: Mitigation | Mapping[str, Any] | str | None) -> Mitigation | None:
    """Return a mitigation from its name, or from what `Mitigation.to_dict` returns.

    ``"none"`` and None stand for no mitigation.
    """
    if value is None or isinstance(value, Mitigation):
        return value
    if not isinstance(value, str | Mapping):
        allowed = "a name, a mapping, or an instance such as Reweighing()"
        raise SimbaError("mitigation", value, allowed)
    options = {"name": value} if isinstance(value, str) else dict(value)
    name = options.pop("name", None)
    if name == "none":
        return None
    if name not in MITIGATIONS:
        raise UnknownNameError.among("mitigation", name, ["none", *MITIGATIONS])
    return built(MITIGATIONS[name], options, "mitigation")
