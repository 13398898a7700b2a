"""Attribution maps of a cohort: what each voxel contributes to the logit of the disease."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryFile

import nibabel as nib
import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from simba_lab.core.border import checks_arguments
from simba_lab.core.checks import whole_number
from simba_lab.core.cohort import Cohort, with_twins
from simba_lab.core.compute import Compute, deterministic
from simba_lab.core.errors import SimbaError, Words
from simba_lab.core.files import atomic_write, new_folder
from simba_lab.core.lattice import Lattice
from simba_lab.core.network_adapter import with_gradients
from simba_lab.core.tables import table_text
from simba_lab.interpretation.attribution.baselines import (
    Baselines,
    baselines_of,
    refused_baseline,
    score_of_baseline,
)
from simba_lab.interpretation.attribution.localisation import localisation
from simba_lab.interpretation.attribution.methods.gradient_based import (
    IntegratedGradients,
    midpoints,
)
from simba_lab.interpretation.attribution.methods.method import Batch, Method
from simba_lab.interpretation.attribution.methods.registry import method_of
from simba_lab.interpretation.attribution.plan import Plan, plan_of

# Integrated gradients are refined at most so often; each time takes three times the steps, a third
# of which are known.
REFINEMENTS = 3


@checks_arguments
@dataclass(frozen=True, eq=False)
class Attribution:
    """Attribution maps of a cohort, and what they say.

    Parameters
    ----------
    maps : ndarray of float32, shape (n, X, Y, Z)
        In a temporary file (a memory map) if they take more than half of the allowed memory.
    sums : pandas.DataFrame
        One row per subject: ``total`` (sum of the map); of methods that compare with a baseline
        ``logit_change`` (output less that of the baseline); of those that are complete
        ``completeness_error`` (difference of the two, as a share of the mean size of the change);
        of integrated gradients ``steps``.
    cohort : Cohort
        The subjects.
    regions : pandas.DataFrame or None
        Shapley values: one row per subject, one column per region, ``elsewhere`` for voxels in
        none.

    Examples
    --------
    >>> import simba_lab as sb
    >>> scenario = sb.Scenario(64, sb.Morphology("Insula_L", 2.5), spacing_mm=8)
    >>> test = sb.synthesise(scenario).test.where(range(2))
    >>> maps = sb.attribute(sb.SimBANet((4, 8), seed=0), test, "saliency")
    >>> maps.image(0).shape
    (20, 24, 20)
    """

    maps: np.ndarray
    sums: pd.DataFrame
    cohort: Cohort
    regions: pd.DataFrame | None = field(default=None)

    @cached_property
    def table(self) -> pd.DataFrame:
        """The columns of `sums`, then the scores of each map on each known effect.

        ``mass_<effect>``, ``enrichment_<effect>`` and so on: see `localisation`. They are computed
        when this table is first asked for, which renders each subject twice per effect.
        """
        if not self.cohort.effects:
            return self.sums
        twins = with_twins(self.cohort)
        scores = [localisation(values, twins, index) for index, values in enumerate(self.maps)]
        return pd.concat([self.sums, pd.DataFrame(scores, index=self.sums.index)], axis=1)

    @property
    def lattice(self) -> Lattice:
        """Where the voxels are."""
        return self.cohort.lattice

    def image(self, index: int) -> nib.Nifti1Image:
        """Return the map of one subject as a NIfTI image."""
        return nib.Nifti1Image(np.asarray(self.maps[index]), self.lattice.affine)

    def save(self, folder: str | Path) -> None:
        """Write the map of each subject and ``attribution.csv`` to a new folder.

        Maps are called ``sub-<number>_attribution.nii.gz``; values of regions are in
        ``regions.csv``.

        Raises
        ------
        SimbaError
            If the folder exists or cannot be made.
        """
        with new_folder(folder) as unfinished:
            for index, subject in enumerate(self.sums.index):
                nib.save(self.image(index), unfinished / f"sub-{subject}_attribution.nii.gz")
            atomic_write(unfinished / "attribution.csv", table_text(self.table))
            if self.regions is not None:
                atomic_write(unfinished / "regions.csv", table_text(self.regions))


@with_gradients()
def attribute(
    model: torch.nn.Module,
    cohort: Cohort,
    method: str | Method = "integrated_gradients",
    *,
    baseline: Cohort | np.ndarray | float | str = 0.0,
    effect: str | None = None,
    target: int | None = None,
    compute: Compute | None = None,
    progress: bool = False,
) -> Attribution:
    """Return what each voxel contributes to the logit of the disease.

    Parameters
    ----------
    model : torch.nn.Module
        It is copied; the copy is in evaluation mode and the network itself is not changed.
    cohort : Cohort
    method : str or Method
        A name, for default settings, or a method with settings, such as
        ``sb.attribution.SmoothGrad(samples=8)``. The names are ``integrated_gradients``,
        ``saliency``, ``input_x_gradient``, ``smooth_grad``, ``deep_lift``, ``guided_backprop``,
        ``grad_cam``, ``guided_grad_cam``, ``occlusion`` and ``shapley``.
    baseline : Cohort, ndarray of shape (X, Y, Z), float, "zero" or "mean"
        What integrated gradients and DeepLIFT start from, and what occlusion and Shapley values put
        in the place of voxels. With twins as baseline, ``cohort.twin(without="bias")``, the path
        changes nothing but the bias, and each map adds up to the twin effect of its subject.
        ``"mean"`` is the mean volume of the cohort.
    effect : str, optional
        The only effect in which twins given as baseline may differ.
    target : int, optional
        Output of the network to explain; by default the logit of the disease.
    compute : Compute, optional
        Device and memory: by default 4 GB beyond what the process has already, maps included.
    progress : bool
        Show a progress bar.

    Returns
    -------
    Attribution

    Raises
    ------
    UnknownNameError
        If there is no such method, layer or effect.
    SimbaError
        If no derivative reaches the voxels, a layer works in place where hooks read it, the layer
        of Grad-CAM has no spatial extent, the network has no such target, the baseline is of
        another shape or differs in more than one effect, or one volume does not fit in the memory.

    References
    ----------
    Kokhlikyan et al. (2020), "Captum: a unified and generic model interpretability library for
    PyTorch". Each method cites its source.

    Examples
    --------
    >>> import simba_lab as sb
    >>> scenario = sb.Scenario(64, sb.Morphology("Insula_L", 2.5), spacing_mm=8)
    >>> test = sb.synthesise(scenario).test.where(range(2))
    >>> sb.attribute(sb.SimBANet((4, 8), seed=0), test).sums.columns.tolist()
    ['total', 'logit_change', 'completeness_error', 'steps']
    """
    method, compute = method_of(method), compute or Compute()
    if target is not None:
        whole_number("target", target, least=0, remedy="It is the position of an output.")
    if not len(cohort):
        raise SimbaError("cohort", Words("0 subjects"), "not empty")
    baselines = baselines_of(baseline, cohort, effect=effect)
    with deterministic(compute.threads):
        plan = plan_of(model, cohort, method, target=target, compute=compute)
        mapping = _Mapping(plan, cohort, baselines)
        with tqdm(total=len(cohort), disable=not progress, desc=method.name, unit="volume") as bar:
            mapping.add(np.arange(len(cohort)), bar=bar)
        if isinstance(method, IntegratedGradients):
            mapping.refine(method)
    return mapping.finished()


class _Mapping:
    """The maps of a cohort while they are made, a group of subjects at a time."""

    def __init__(self, plan: Plan, cohort: Cohort, baselines: Baselines) -> None:
        self.plan, self.cohort, self.baselines = plan, cohort, baselines
        self.maps = _empty_maps((len(cohort), *cohort.lattice.shape), plan.in_memory)
        self.sums: list[dict[str, float]] = [{} for _ in range(len(cohort))]
        self.regions: list[dict[str, float]] = []

    def add(
        self,
        subjects: np.ndarray,
        *,
        points: np.ndarray | None = None,
        weight: float = 1.0,
        bar: tqdm | None = None,
    ) -> None:
        """Explain some subjects; `weight` is that of the new map against the one that is known."""
        plan = self.plan
        chosen = self.cohort.where(subjects) if len(subjects) < len(self.cohort) else self.cohort
        images, baselines = _volumes(chosen, plan.keep), self.baselines.volumes(subjects, plan.keep)
        for start in range(0, len(subjects), plan.group):
            group = subjects[start : start + plan.group]
            batch = Batch(
                plan.network,
                self._stacked(images, len(group)),
                self._stacked(baselines, len(group)) if plan.method.has_baseline else None,
                chosen.where(np.arange(start, start + len(group))),
                plan.chunk,
                points,
            )
            changes = _score_changes(batch)
            maps = plan.method.maps(batch).detach()[:, 0].cpu().numpy()
            _check_finite(maps, changes, batch)
            for subject, values, change in zip(group, maps, changes, strict=True):
                if weight < 1:
                    values = weight * values + (1 - weight) * self.maps[subject]
                self.maps[subject] = values
                self.sums[subject] = {"total": float(values.sum(dtype=np.float64))} | change
            self.regions += batch.regions
            if bar is not None:
                bar.update(len(group))

    def _stacked(self, volumes: Iterator[np.ndarray], count: int) -> torch.Tensor:
        stacked = np.stack([next(volumes) for _ in range(count)])
        return torch.from_numpy(stacked)[:, None].to(self.plan.device)

    def refine(self, method: IntegratedGradients) -> None:
        """Take more steps for the subjects whose maps do not add up."""
        step_counts = np.full(len(self.cohort), method.steps)
        for _ in range(REFINEMENTS if method.tolerance is not None else 0):
            change = np.array([row["logit_change"] for row in self.sums])
            total = np.array([row["total"] for row in self.sums])
            wrong = np.abs(total - change) > method.tolerance * np.abs(change).mean()
            if not wrong.any():
                break
            finer = midpoints(3 * step_counts.max())
            # Every third point is the midpoint of an interval of the coarser path.
            unknown = finer[np.arange(len(finer)) % 3 != 1]
            self.add(np.flatnonzero(wrong), points=unknown, weight=2 / 3)
            step_counts[wrong] = len(finer)
        for row, steps in zip(self.sums, step_counts, strict=True):
            row["steps"] = steps

    def finished(self) -> Attribution:
        """Return the maps with their tables."""
        index = self.cohort.table.index
        sums = pd.DataFrame(self.sums, index=index)
        if self.plan.method.complete:
            scale = sums["logit_change"].abs().mean()
            error = (sums["total"] - sums["logit_change"]) / (scale or 1.0)
            sums.insert(2, "completeness_error", error)
            self.plan.method.check_sums(error.to_numpy(), self.plan.explained, self.plan.volume)
        regions = pd.DataFrame(self.regions, index=index).fillna(0.0) if self.regions else None
        return Attribution(self.maps, sums, self.cohort, regions)


def _score_changes(batch: Batch) -> list[dict[str, float]]:
    """Return the output for each volume less that of its baseline, if the method has one."""
    if batch.baselines is None:
        return [{} for _ in batch.images]
    changes = []
    with torch.no_grad():
        for image, baseline in zip(batch.images, batch.baselines, strict=True):
            output = batch.explained(image[None])
            start = score_of_baseline(batch.explained, baseline)
            changes.append({"logit_change": (output.double() - start.double()).item()})
    return changes


def _check_finite(maps: np.ndarray, changes: list[dict[str, float]], batch: Batch) -> None:
    """Refuse maps of NaN, and say whether the baseline or the volumes make them."""
    logit_changes = [row.get("logit_change", 0.0) for row in changes]
    if np.isfinite(maps).all() and np.isfinite(logit_changes).all():
        return
    with torch.no_grad():
        explainable = torch.isfinite(batch.explained(batch.images)).all()
    if explainable and batch.baselines is not None:
        raise refused_baseline("one for which the network, or its derivative, is NaN or infinite")
    remedy = "Check the weights of the network, and its input volumes."
    raise SimbaError("maps", Words("NaN or infinity"), "finite", remedy)


def _volumes(cohort: Cohort, keep: bool) -> Iterator[np.ndarray]:
    """Iterate over volumes: rendered ahead and kept if they are small, else one at a time."""
    if keep:
        yield from cohort.volumes()
    else:
        for index in range(len(cohort)):
            yield cohort.array(index, keep=False)


def _empty_maps(shape: tuple[int, ...], in_memory: bool) -> np.ndarray:
    """Return an array for the maps: in memory, or in a temporary file that is deleted with it."""
    if in_memory:
        return np.empty(shape, np.float32)
    with TemporaryFile(prefix="simba-lab-") as file:
        return np.memmap(file, np.float32, "w+", shape=shape)
