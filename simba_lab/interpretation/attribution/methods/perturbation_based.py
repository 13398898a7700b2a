"""Methods that hide parts of a volume and watch the output; they need no derivative."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from captum import attr

from simba_lab.core.border import checks_arguments
from simba_lab.core.checks import Count, Positive, Seed
from simba_lab.core.cohort import with_twins
from simba_lab.interpretation.attribution.explained_network import seeded
from simba_lab.interpretation.attribution.methods.method import Batch, Method


@checks_arguments
@dataclass(frozen=True)
class Occlusion(Method):
    """By how much the output falls when a cube shows the baseline; mean over the cubes of a voxel.

    Parameters
    ----------
    window_mm : float
        Edge of the cubes; they overlap by half.

    References
    ----------
    Zeiler and Fergus (2014), "Visualizing and understanding convolutional networks", sec. 4.2.

    Examples
    --------
    >>> import simba_lab as sb
    >>> sb.attribution.Occlusion(window_mm=48)
    Occlusion(window_mm=48)
    """

    name = "occlusion"
    has_baseline = True
    differentiates = False
    window_mm: Positive = 32.0

    def maps(self, batch: Batch) -> torch.Tensor:
        """Return the falls of the output, shape (N, 1, X, Y, Z)."""
        images = batch.images
        window = max(1, round(self.window_mm / batch.cohort.lattice.spacing_mm))
        window = min(window, *images.shape[2:])
        with torch.no_grad():
            return attr.Occlusion(batch.explained).attribute(
                images,
                (1, window, window, window),
                strides=(1, *(max(1, window // 2),) * 3),
                baselines=batch.baselines,
                perturbations_per_eval=max(1, batch.chunk // len(images)),
            )


@checks_arguments
@dataclass(frozen=True)
class Shapley(Method):
    """Shapley values of the template's regions, spread evenly over their voxels.

    The players are the regions, and what lies in none; an absent player shows the baseline. Values
    add up to the change of the output.

    Parameters
    ----------
    samples : int
        Orders in which the regions are added.
    seed : int
        Of the orders; each subject has a stream of its own.

    References
    ----------
    Castro et al. (2009), "Polynomial calculation of the Shapley value based on sampling", algorithm
    1.

    Examples
    --------
    >>> import simba_lab as sb
    >>> sb.attribution.Shapley(samples=2)
    Shapley(samples=2, seed=0)
    """

    name = "shapley"
    has_baseline = complete = True
    differentiates = False
    samples: Count = 20
    seed: Seed = 0

    def maps(self, batch: Batch) -> torch.Tensor:
        """Return what each voxel contributes, shape (N, 1, X, Y, Z), and note that of regions."""
        cohort = with_twins(batch.cohort)
        maps = torch.empty_like(batch.images)
        for index, subject in enumerate(batch.subjects):
            labels, names = cohort.parcellation(index)
            numbers, first_voxels, players, counts = np.unique(
                labels, return_index=True, return_inverse=True, return_counts=True
            )
            mask = torch.from_numpy(players.reshape(labels.shape)).to(maps.device)[None, None]
            with seeded(self.seed, subject, "shapley"), torch.no_grad():
                values = attr.ShapleyValueSampling(batch.explained).attribute(
                    batch.images[index : index + 1],
                    batch.starts[index : index + 1],
                    feature_mask=mask,
                    n_samples=self.samples,
                    perturbations_per_eval=batch.chunk,
                )
            regional = values.flatten().cpu().numpy()[first_voxels]
            maps[index] = (values / torch.from_numpy(counts).to(values)[mask])[0]
            batch.regions.append(
                {
                    names.get(int(number), "elsewhere"): float(value)
                    for number, value in zip(numbers, regional, strict=True)
                }
            )
        return maps
