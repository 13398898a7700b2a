"""Whether a map predicts what noise does to the output: Captum's infidelity and sensitivity."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from captum.metrics import infidelity, sensitivity_max

from simba_lab.core.checks import positive, whole_number
from simba_lab.core.cohort import Cohort
from simba_lab.core.compute import Compute
from simba_lab.core.errors import SimbaError, Words
from simba_lab.core.network_adapter import with_gradients
from simba_lab.interpretation.attribution.explained_network import seeded
from simba_lab.interpretation.attribution.methods.gradient_based import IntegratedGradients
from simba_lab.interpretation.attribution.methods.method import Batch, Method
from simba_lab.interpretation.attribution.methods.perturbation_based import Shapley
from simba_lab.interpretation.attribution.methods.registry import method_of
from simba_lab.interpretation.attribution.plan import Plan, plan_of

# Noisy maps of each subject, at most, for the sensitivity.
SENSITIVITY_DRAWS = 5


@with_gradients()
def faithfulness(
    model: torch.nn.Module,
    cohort: Cohort,
    method: str | Method = IntegratedGradients(steps=16),  # noqa: B008 (it is frozen)
    *,
    noise: float = 0.05,
    draws: int = 10,
    compute: Compute | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Return Captum's infidelity and sensitivity of a method, for each subject.

    Parameters
    ----------
    model : torch.nn.Module
    cohort : Cohort
    method : str or Method
        As for `attribute`, but not Shapley values, whose regions differ between subjects. Methods
        with a baseline start from a blank image.
    noise : float
        Standard deviation of the Gaussian noise added for the infidelity, and largest change of a
        voxel for the sensitivity, as a share of white matter.
    draws : int
        Noisy copies per subject.
    compute : Compute, optional
        Device and memory (4 GB by default).
    seed : int
        Of the noise.

    Returns
    -------
    pandas.DataFrame
        One row per subject: ``infidelity``, the mean squared error with which the map predicts what
        noise does to the output, as a share of the mean square of that change, after the map was
        scaled to fit best (0 is perfect, 1 is useless); and ``sensitivity``, the largest relative
        change of the map.

    References
    ----------
    Yeh et al. (2019), "On the (in)fidelity and sensitivity of explanations", NeurIPS, definitions
    2.1 (with the optimal scale of sec. 2.2) and 3.1.

    Examples
    --------
    >>> import simba_lab as sb
    >>> scenario = sb.Scenario(64, sb.Morphology("Insula_L", 2.5), spacing_mm=8)
    >>> test = sb.synthesise(scenario).test.where(range(2))
    >>> network = sb.SimBANet((4, 8), seed=0)
    >>> sb.attribution.faithfulness(network, test, "saliency", draws=2).columns.tolist()
    ['infidelity', 'sensitivity']
    """
    method = method_of(method)
    if isinstance(method, Shapley):
        remedy = "Its regions differ between subjects."
        raise SimbaError("method", method.name, "any but shapley", remedy)
    positive("noise", noise)
    whole_number("draws", draws)
    plan = plan_of(model, cohort, method, compute=compute)
    rows = [
        _measures(plan, cohort.where(np.array([index])), noise, draws, seed)
        for index in range(len(cohort))
    ]
    return pd.DataFrame(rows, index=cohort.table.index)


def _measures(plan: Plan, cohort: Cohort, noise: float, draws: int, seed: int) -> dict[str, float]:
    """Return infidelity and sensitivity of a cohort of one subject."""
    subject, explained = cohort.table.index[0], plan.explained
    volume = torch.from_numpy(cohort.array(0, keep=False))[None, None].to(plan.device)
    explain = _explaining(plan, cohort)
    if plan.method.has_baseline:
        _check_blank(explained, volume)
    with seeded(seed, subject, "faithfulness"):
        changes = torch.stack([_noisy_change(explained, volume, noise) for _ in range(draws)])
    with seeded(seed, subject, "faithfulness"):
        error = infidelity(
            explained,
            lambda x: (disturbance := noise * torch.randn_like(x), x - disturbance),
            volume,
            explain(volume),
            n_perturb_samples=draws,
            max_examples_per_batch=min(plan.chunk, draws),
            normalize=True,
        )
        sensitivity = sensitivity_max(
            explain,
            volume,
            perturb_radius=noise,
            n_perturb_samples=min(draws, SENSITIVITY_DRAWS),
            max_examples_per_batch=1,
        )
    return {"infidelity": float(error / changes.square().mean()), "sensitivity": float(sensitivity)}


def _check_blank(explained: torch.nn.Module, volume: torch.Tensor) -> None:
    """Refuse a network that cannot judge the blank image that a path would start from."""
    try:
        with torch.no_grad():
            judged = bool(torch.isfinite(explained(torch.zeros_like(volume))).all())
    except SimbaError:
        judged = False
    if not judged:
        value = "with a baseline, which is blank here, for a network that gives NaN for it"
        remedy = "Take saliency, or input_x_gradient."
        raise SimbaError("method", Words(value), "one without a baseline", remedy)


def _noisy_change(explained: torch.nn.Module, volume: torch.Tensor, noise: float) -> torch.Tensor:
    with torch.no_grad():
        return explained(volume) - explained(volume - noise * torch.randn_like(volume))


def _explaining(plan: Plan, cohort: Cohort) -> Callable:
    def explain(volumes: torch.Tensor | tuple[torch.Tensor, ...]) -> torch.Tensor:
        volumes = volumes[0] if isinstance(volumes, tuple) else volumes
        maps = []
        for volume in volumes:
            blank = torch.zeros_like(volume[None])
            batch = Batch(plan.network, volume[None], blank, cohort, plan.chunk)
            maps.append(plan.method.maps(batch))
        return torch.cat(maps).detach()

    return explain
