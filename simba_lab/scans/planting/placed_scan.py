"""PlacedScan: a scan with its place in the template and the brightness of its brain."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from nibabel.affines import apply_affine, voxel_sizes
from scipy.ndimage import map_coordinates
from scipy.spatial import cKDTree

from simba_lab.core.errors import SimbaError, Words
from simba_lab.core.lattice import Lattice
from simba_lab.scans.planting.placement import Placement, Registration, placement_of
from simba_lab.scans.planting.scan import Scan
from simba_lab.synthesis.anatomy.template import Template

# Distance of the voxels that are sampled to find brain and regions in a scan, in mm.
SURVEY_MM = 4.0
# Correlation of scan and template over the brain. Measured: 0.45 to 0.86 where anatomy fits, below
# 0.2 where a scan is off by 20 mm, or by 30 degrees, or upside down, or front to back.
LEAST_LIKENESS = 0.2
# Share of a region that has to lie in the field of view.
LEAST_SEEN = 0.95
REGISTER = "Register the scan to the template and give the transform as to_template."


@dataclass(frozen=True, eq=False)
class Survey:
    """Evenly spread voxels of a scan.

    Parameters
    ----------
    voxels : ndarray of int, shape (3, N)
    points_mm : ndarray, shape (3, N)
        Where they lie in the template.
    strides : ndarray of int, shape (3,)
        Steps between them along each axis, in voxels.
    """

    voxels: np.ndarray
    points_mm: np.ndarray
    strides: np.ndarray

    def within(self, box: Lattice) -> np.ndarray:
        """Tell which of the voxels are in a box, bool, shape (N,)."""
        low = np.reshape(box.origin_mm, (3, 1))
        high = low + box.spacing_mm * (np.reshape(box.shape, (3, 1)) - 1)
        return np.all((self.points_mm > low) & (self.points_mm < high), axis=0)


@dataclass(frozen=True, eq=False)
class PlacedScan:
    """A scan, its place in a template, and its levels of intensity. Made by `place`.

    Parameters
    ----------
    scan : Scan
    template : Template
    placement : Placement
        From voxels of the scan to template millimetres.
    survey : Survey
    white : float
        Intensity of white matter: the 99th percentile over the template's brain.
    brain_mean : float
        Mean intensity over the template's brain, as a share of white matter.
    """

    scan: Scan
    template: Template
    placement: Placement
    survey: Survey
    white: float
    brain_mean: float

    def check_region(self, region: str, box: Lattice) -> None:
        """Raise if a region is not in the field of view, or if the transform does not cover it.

        Parameters
        ----------
        region : str
        box : Lattice
            What an effect on this region moves.
        """
        share = self._visible_share(region, box)
        if share < LEAST_SEEN:
            problem = f"The scan's field of view holds {share:.0%} of the region {region!r}."
            remedy = "Choose a region that the scan covers, or check to_template."
            raise SimbaError.problem(problem, remedy)

    def _visible_share(self, region: str, box: Lattice) -> float:
        near = self.survey.within(box)
        if not near.any():
            return 0.0
        region_voxels = np.argwhere(self.template.region(region))
        sample = region_voxels[:: max(1, len(region_voxels) // 1000)]
        points = apply_affine(self.template.lattice.affine, sample).T
        _, nearest = cKDTree(self.survey.points_mm[:, near].T).query(points.T)
        voxels = self.placement.voxels(points, self.survey.voxels[:, near][:, nearest])
        self.placement.check_invertible(voxels)
        shape = np.reshape(self.scan.stored.shape, (3, 1))
        visible = ((voxels > -0.5) & (voxels < shape - 0.5)).all(axis=0)
        if not self.placement.covers(voxels[:, visible]).all():
            problem = f"to_template does not cover the region {region!r} of the scan."
            raise SimbaError.problem(problem, "Register over a larger field of view.")
        return float(visible.mean())


def place(scan: Scan, to_template: Registration, template: Template) -> PlacedScan:
    """Find a scan in the template.

    Raises
    ------
    SimbaError
        If the registration cannot be used, or if the scan shows no brain where the template has it.
    """
    placement = placement_of(scan.image.affine, to_template)
    strides = np.maximum(1, (SURVEY_MM / voxel_sizes(placement.affine)).astype(int))
    axes = [np.arange(0, n, step) for n, step in zip(scan.stored.shape, strides, strict=True)]
    voxels = np.stack(np.meshgrid(*axes, indexing="ij")).reshape(3, -1)
    survey = Survey(voxels, placement.template_mm(voxels), strides)
    white, brain_mean = _levels(scan, survey, template)
    return PlacedScan(scan, template, placement, survey, white, brain_mean)


def _levels(scan: Scan, survey: Survey, template: Template) -> tuple[float, float]:
    """Return the level of white matter, and the mean of the brain relative to it."""
    origin = np.reshape(template.lattice.origin_mm, (3, 1))
    template_voxels = (survey.points_mm - origin) / template.lattice.spacing_mm
    expected = map_coordinates(template.t1, template_voxels, order=0, mode="constant")
    brain = expected > 0
    intensities = scan.stored[tuple(survey.voxels[:, brain])].astype(np.float64)
    if len(intensities) < 3:
        raise SimbaError.problem("No part of the scan overlaps the template's brain.", REGISTER)
    intensities = intensities * scan.slope + scan.inter
    white = float(np.percentile(intensities, 99))
    if white <= 0 or intensities.min() == intensities.max():
        allowed = "an image with signal in the template's brain"
        raise SimbaError("scan", Words(f"a white level of {white:g}"), allowed, REGISTER)
    likeness = float(np.corrcoef(intensities / white, expected[brain])[0, 1])
    if abs(likeness) < LEAST_LIKENESS:
        value = f"an image with a correlation of {likeness:.2f}"
        allowed = f"like the template in its brain (a correlation of at least {LEAST_LIKENESS})"
        remedy = f"Its orientation or position is wrong. {REGISTER}"
        raise SimbaError("scan", Words(value), allowed, remedy)
    return white, float(np.mean(intensities / white))
