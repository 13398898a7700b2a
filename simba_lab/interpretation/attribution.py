"""What the network looks at: Captum's attributions beside the voxels that are known to matter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from captum.attr import InputXGradient, IntegratedGradients, Saliency

from simba_lab.errors import SimbaError, UnknownNameError
from simba_lab.training.arithmetic import deterministic, evaluating
from simba_lab.training.networks import logit

if TYPE_CHECKING:
    from simba_lab.synthesis import Cohort

METHODS = ("integrated_gradients", "saliency", "input_x_gradient")


@dataclass(frozen=True, eq=False)
class Attribution:
    """Attribution maps and their scores.

    Parameters
    ----------
    maps : ndarray of float32, shape (n, X, Y, Z)
    table : pandas.DataFrame
        One row per subject: ``total`` (sum of the map), ``logit_change`` (logit less that of the baseline; integrated
        gradients only) and ``completeness_error`` (difference of the two, as a share of the mean size of the change); and
        for each effect ``mass_<effect>``, the share of the absolute attribution that lies on voxels which the effect
        changes, and ``enrichment_<effect>``, that share over the share of the brain that those voxels are.
    """

    maps: np.ndarray
    table: pd.DataFrame


def attribute(
    model: torch.nn.Module, cohort: Cohort, *, method: str = "integrated_gradients",
    baseline: Cohort | np.ndarray | float = 0.0, steps: int = 32, batch_size: int = 64,
) -> Attribution:  # fmt: skip
    """Return what each voxel contributes to the logit of the disease, and how much of it lies on the known effects.

    Parameters
    ----------
    model : torch.nn.Module
    cohort : Cohort
    method : {"integrated_gradients", "saliency", "input_x_gradient"}
    baseline : Cohort, ndarray of shape (X, Y, Z), or float
        What integrated gradients starts from. With twins as baseline, ``cohort.twin(without="bias")``, the path changes
        nothing but the bias, and each map adds up to the twin effect of its subject.
    steps : int
        Gauss-Legendre points along the path of integrated gradients.
    batch_size : int
        Volumes evaluated at once; bounds the memory.

    Returns
    -------
    Attribution

    References
    ----------
    Sundararajan et al. (2017), "Axiomatic attribution for deep networks", eq. 1 and proposition 1 (completeness).
    """
    if method not in METHODS:
        raise UnknownNameError.among("method", method, METHODS)
    if not len(cohort):
        raise SimbaError("cohort", "0 subjects", "not empty")
    if not isinstance(steps, int) or steps < 1:
        raise SimbaError("steps", steps, "an integer of at least 1")
    shape = cohort.lattice.shape
    starts = _baselines(baseline, len(cohort), shape)

    def score(x: torch.Tensor) -> torch.Tensor:
        return logit(model(x))

    maps = np.empty((len(cohort), *shape), np.float32)
    rows = []
    with evaluating(model), deterministic():
        for index, volume in enumerate(cohort.volumes()):
            image = torch.from_numpy(volume)[None, None]
            start = torch.from_numpy(np.ascontiguousarray(next(starts), np.float32))[None, None]
            maps[index], row = _attribute_one(score, image, start, method, steps, batch_size)
            rows.append(row | _scores(maps[index], cohort, index))
    table = pd.DataFrame(rows, index=cohort.table.index)
    if method == "integrated_gradients":
        scale = table["logit_change"].abs().mean()
        table.insert(2, "completeness_error", (table["total"] - table["logit_change"]) / scale if scale else 0.0)
    return Attribution(maps, table)


def _baselines(baseline: Cohort | np.ndarray | float, count: int, shape: tuple[int, ...]):
    if hasattr(baseline, "volumes"):
        if len(baseline) != count or baseline.lattice.shape != shape:
            raise SimbaError(
                "baseline",
                f"{len(baseline)} volumes of shape {baseline.lattice.shape}",
                f"{count} volumes of shape {shape}",
            )
        return iter(baseline.volumes())
    values = np.asarray(baseline, np.float32)
    if values.shape not in ((), shape):
        raise SimbaError("baseline", values.shape, f"a number, a cohort, or of shape {shape}")
    return iter([np.broadcast_to(values, shape)] * count)


def _attribute_one(score, image, start, method: str, steps: int, batch_size: int) -> tuple[np.ndarray, dict[str, float]]:
    if method == "integrated_gradients":
        values = IntegratedGradients(score).attribute(
            image, start, n_steps=steps, method="gausslegendre", internal_batch_size=batch_size
        )
        with torch.no_grad():
            change = (score(image) - score(start)).item()
        return values[0, 0].detach().numpy(), {"total": values.double().sum().item(), "logit_change": change}
    if method == "saliency":
        values = Saliency(score).attribute(image.requires_grad_(), abs=False)
    else:
        values = InputXGradient(score).attribute(image.requires_grad_())
    return values[0, 0].detach().numpy(), {"total": values.double().sum().item()}


def _scores(values: np.ndarray, cohort: Cohort, index: int) -> dict[str, float]:
    """Mass and enrichment of one map on the voxels that each effect changes in this subject."""
    size = np.abs(values, dtype=np.float64)
    total = size.sum()
    brain = cohort.brain(index)
    row = {}
    for name in cohort.effects:
        changed = cohort.changed(index, name)
        share = size[changed].sum() / total if total else np.nan
        row[f"mass_{name}"] = share
        row[f"enrichment_{name}"] = share / (changed.sum() / brain.sum()) if changed.any() else np.nan
    return row
