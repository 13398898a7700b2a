"""What the network looks at: attributions of any of Captum's kinds beside the voxels that are known to matter."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING

import nibabel as nib
import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from simba_lab.core.compute import deterministic
from simba_lab.core.errors import SimbaError, UnknownNameError
from simba_lab.interpretation.attribution.baselines import Starts, starts_of
from simba_lab.interpretation.attribution.methods import METHODS, Plan, Settings, middles, plan_of
from simba_lab.interpretation.attribution.scores import scores, truths

if TYPE_CHECKING:
    from simba_lab.core.cohort import Cohort
    from simba_lab.core.lattice import Lattice

# Integrated gradients are refined at most so often; each time takes three times the steps, a third
# of them known.
REFINEMENTS = 3
# Methods whose maps add up to the change of the score.
COMPLETE = ("integrated_gradients", "deep_lift", "shapley")


@dataclass(frozen=True, eq=False)
class Attribution:
    """Attribution maps and their scores.

    Parameters
    ----------
    maps : ndarray of float32, shape (n, X, Y, Z)
        In a temporary file (a memory map) if they take more than half of the memory that was
        allowed.
    table : pandas.DataFrame
        One row per subject: ``total`` (sum of the map); of methods that compare with a baseline
        ``logit_change`` (score less that of the baseline), and of those that are complete
        ``completeness_error`` (difference of the two, as a share of the mean size of the change);
        of integrated gradients ``steps``; and for each effect the columns of
        `simba_lab.interpretation.attribution_scores.scores`: ``mass_<effect>``,
        ``enrichment_<effect>`` and so on.
    lattice : Lattice
        Where the voxels are.
    regions : pandas.DataFrame or None
        Shapley values: one row per subject, one column per region, ``elsewhere`` for voxels in
        none.
    """

    maps: np.ndarray
    table: pd.DataFrame
    lattice: Lattice
    regions: pd.DataFrame | None = field(default=None)

    def image(self, index: int) -> nib.Nifti1Image:
        """Return the map of one subject as a NIfTI image."""
        return nib.Nifti1Image(np.asarray(self.maps[index]), self.lattice.affine)

    def save(self, folder: str | Path) -> None:
        """Write ``sub-<number>_attribution.nii.gz`` for each subject and ``attribution.csv`` to a new folder.

        Raises
        ------
        SimbaError
            If the folder exists or cannot be made.
        """
        folder = Path(folder)
        if folder.exists() or not folder.absolute().parent.is_dir():
            raise SimbaError(
                "folder", str(folder), "a folder that does not exist yet, inside one that does"
            )
        folder.mkdir()
        for index, subject in enumerate(self.table.index):
            nib.save(self.image(index), folder / f"sub-{subject}_attribution.nii.gz")
        self.table.to_csv(folder / "attribution.csv")
        if self.regions is not None:
            self.regions.to_csv(folder / "regions.csv")


def attribute(
    model: torch.nn.Module,
    cohort: Cohort,
    *,
    method: str = "integrated_gradients",
    baseline: Cohort | np.ndarray | float | str = 0.0,
    effect: str | None = None,
    target: int | None = None,
    steps: int = 32,
    tolerance: float | None = 0.01,
    samples: int = 20,
    noise: float = 0.2,
    layer: str | None = None,
    window_mm: float = 32.0,
    seed: int = 0,
    batch_size: int = 64,
    memory_gb: float = 4.0,
    device: str = "cpu",
    scored: bool = True,
    progress: bool = False,
) -> Attribution:
    """Return what each voxel contributes to the logit of the disease, and how much of it lies on the known effects.

    Parameters
    ----------
    model : torch.nn.Module
        It is copied; the copy is in evaluation mode and the network itself is left alone.
    cohort : Cohort
    method : str
        ``saliency`` (signed gradient), ``input_x_gradient``, ``smooth_grad``,
        ``integrated_gradients``, ``deep_lift``, ``guided_backprop``, ``grad_cam``,
        ``guided_grad_cam``, ``occlusion`` or ``shapley`` (of the template's regions).
    baseline : Cohort, ndarray of shape (X, Y, Z), float, "zero" or "mean"
        What integrated gradients and DeepLift start from, and what occlusion and Shapley values put
        in the place of voxels. With twins as baseline, ``cohort.twin(without="bias")``, the path
        changes nothing but the bias, and each map adds up to the twin effect of its subject.
        ``"mean"`` is the mean volume of the cohort.
    effect : str, optional
        The one effect in which twins given as baseline have to differ.
    target : int, optional
        Output of the network to explain; by default the logit of the disease.
    steps : int
        Points along the path of integrated gradients (midpoint rule), to begin with.
    tolerance : float, optional
        Subjects whose completeness error is larger get three times the steps, up to three times.
        None: nobody does.
    samples : int
        Noisy copies of SmoothGrad; orders in which regions are added for Shapley values.
    noise : float
        Standard deviation of SmoothGrad's noise, as a share of white matter.
    layer : str, optional
        What Grad-CAM looks at: a submodule. By default the last block.
    window_mm : float
        Edge of the cubes that occlusion hides; they overlap by half.
    seed : int
        Of SmoothGrad's noise and the orders of Shapley values, drawn for each subject by itself.
    batch_size : int
        Most volumes evaluated at once.
    memory_gb : float
        What the call may use beyond what the process has already, maps included.
    device : str
        Where the network runs; ``"auto"`` for a GPU if there is one.
    scored : bool
        Whether to score the maps on the effects of the scenario, which takes two noise-free
        renderings per effect.
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
    Sundararajan et al. (2017), "Axiomatic attribution for deep networks", eq. 1 and proposition 1
    (completeness). Kokhlikyan et al. (2020), "Captum: a unified and generic model interpretability
    library for PyTorch". The functions of `attribution_gradients` and `attribution_captum` cite the
    source of each method.
    """
    if method not in METHODS:
        raise UnknownNameError.among("method", method, METHODS)
    if not len(cohort):
        raise SimbaError("cohort", "0 subjects", "not empty")
    settings = Settings(
        method,
        target,
        steps,
        tolerance,
        samples,
        noise,
        layer,
        window_mm,
        seed,
        batch_size,
        memory_gb,
        device,
    )
    starts = starts_of(baseline, cohort, effect=effect)
    with deterministic():
        plan = plan_of(model, cohort, settings, constant=starts.constant is not None)
        maps = _room_for(len(cohort), cohort.lattice.shape, plan.in_memory)
        rows: list[dict[str, float]] = [{} for _ in range(len(cohort))]
        everybody = np.arange(len(cohort))
        with tqdm(total=len(cohort), disable=not progress, desc=method, unit="volume") as bar:
            _run(plan, cohort, starts, everybody, middles(steps), maps, rows, bar)
            if method == "integrated_gradients":
                taken = np.full(len(cohort), steps)
                for _ in range(REFINEMENTS if tolerance is not None else 0):
                    change = np.array([row["logit_change"] for row in rows])
                    wrong = (
                        np.abs(np.array([row["total"] for row in rows]) - change)
                        > tolerance * np.abs(change).mean()
                    )
                    if not wrong.any():
                        break
                    finer = middles(3 * taken.max())
                    new = finer[
                        np.arange(len(finer)) % 3 != 1
                    ]  # every third is the middle of a larger part
                    _run(
                        plan,
                        cohort,
                        starts,
                        np.flatnonzero(wrong),
                        new,
                        maps,
                        rows,
                        None,
                        share=2 / 3,
                    )
                    taken[wrong] = len(finer)
                for row, count in zip(rows, taken, strict=True):
                    row["steps"] = count
            if scored and cohort.effects:
                bar.set_description("scores")
                for index in everybody:
                    rows[index] |= scores(maps[index], *truths(cohort, int(index)))
    regions = [row.pop("regions") for row in rows if "regions" in row]
    table = pd.DataFrame(rows, index=cohort.table.index)
    if method in COMPLETE:
        scale = table["logit_change"].abs().mean()
        table.insert(
            2,
            "completeness_error",
            (table["total"] - table["logit_change"]) / scale if scale else 0.0,
        )
    found = pd.DataFrame(regions, index=table.index).fillna(0.0) if regions else None
    return Attribution(maps, table, cohort.lattice, found)


def _run(
    plan: Plan,
    cohort: Cohort,
    starts: Starts,
    who: np.ndarray,
    points: np.ndarray,
    maps: np.ndarray,
    rows: list[dict],
    bar: tqdm | None,
    share: float = 1.0,
) -> None:
    """Attribute some subjects, a group at a time, and write their maps and rows; `share` is that of the new map."""
    chosen = cohort.where(who) if len(who) < len(cohort) else cohort
    volumes, others = _volumes(chosen, plan.keep), starts.volumes(who, plan.keep)
    for begin in range(0, len(who), plan.group):
        places = who[begin : begin + plan.group]
        images = torch.from_numpy(np.stack([next(volumes) for _ in places]))[:, None].to(
            plan.device
        )
        low = None
        if plan.compares:
            low = torch.from_numpy(np.stack([next(others) for _ in places]))[:, None].to(
                plan.device
            )
        values, found = plan.attribute(images, low, cohort, places, points)
        for place, value, row in zip(places, values[:, 0].cpu().numpy(), found, strict=True):
            if share < 1:
                value = share * value + (1 - share) * maps[place]
            maps[place] = value
            rows[place] |= {"total": float(value.sum(dtype=np.float64))} | row
        if bar is not None:
            bar.update(len(places))


def _volumes(cohort: Cohort, keep: bool) -> Iterator[np.ndarray]:
    """Iterate over volumes: some rendered ahead and kept if they are small, one at a time if they are not."""
    if keep:
        yield from cohort.volumes()
    else:
        for index in range(len(cohort)):
            yield cohort.array(index, keep=False)


def _room_for(count: int, shape: tuple[int, ...], in_memory: bool) -> np.ndarray:
    """Return an array for the maps; in a file that nobody sees, gone with the array, if they are large."""
    if in_memory:
        return np.empty((count, *shape), np.float32)
    with TemporaryFile(prefix="simba-lab-") as file:
        return np.memmap(file, np.float32, "w+", shape=(count, *shape))
