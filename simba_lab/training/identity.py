"""What the result of a fit follows from: digests of network, cohort, settings and software."""

from __future__ import annotations

import dataclasses

import torch

from simba_lab.core.cohort import Cohort
from simba_lab.core.fingerprint import fingerprint, network_fingerprint
from simba_lab.core.source_code import NotFingerprintable, code_fingerprint
from simba_lab.training.config import FitConfig
from simba_lab.training.mitigation.objective import Mitigation

# The module from which all code of a fit is reached.
FITTING = "simba_lab.training.fitting"


def identity_of(
    model: torch.nn.Module, cohort: Cohort, config: FitConfig, mitigation: Mitigation | None
) -> dict[str, str]:
    """Return what the result of a fit follows from, as a digest of each.

    Raises
    ------
    NotFingerprintable
        If the network, or a mitigation of your own, has an attribute whose content cannot be read.
    """
    switches = sorted(getattr(cohort, "switches", {}).items())
    return {
        "network": network_fingerprint(model),
        "cohort": fingerprint(type(cohort), cohort.identity, cohort.table, switches),
        "config": fingerprint(dataclasses.asdict(config)),
        "mitigation": fingerprint(mitigation),
        "software": fingerprint(code_fingerprint(FITTING), torch.__version__),
    }


def code_of(cohort: Cohort) -> str | None:
    """Return a digest of the code of a fit on such a cohort; None if it cannot be told."""
    try:
        return fingerprint(code_fingerprint(FITTING), type(cohort))
    except NotFingerprintable:
        return None
