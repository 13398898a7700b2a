"""What effects change in a scan: tissue that moves, and intensities of another scanner."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from nibabel.affines import voxel_sizes
from scipy.ndimage import gaussian_filter, map_coordinates, maximum_filter, minimum_filter

from simba_lab.core.errors import SimbaError
from simba_lab.core.lattice import FWHM_PER_SIGMA, Lattice
from simba_lab.core.rng import stream
from simba_lab.scans.planting.placed_scan import PlacedScan
from simba_lab.synthesis.rendering.flows import LocalFlow
from simba_lab.synthesis.rendering.scanner import Scanner

# Order of the interpolating spline. Where tissue moves by more than half a voxel, white noise keeps
# 54 % of its standard deviation with order 1, 81 % with 3 and 86 % with 5: a region that is
# smoother than its surroundings gives itself away.
ORDER = 5
# The poles of that spline fade by 0.43 for each voxel: after so many nothing is left of a voxel
# outside the crop.
MARGIN = 24
# Voxels that move less keep their bytes, in mm.
LEAST_MOVE_MM = 1e-3
# Voxels that are treated at a time.
BATCH = 2**19


def deformed(placed: PlacedScan, flows: Sequence[tuple[LocalFlow, float]]) -> np.ndarray:
    """Return the stored numbers of a scan after deformations of the template.

    Parameters
    ----------
    placed : PlacedScan
    flows : sequence of (LocalFlow, float)
        Deformations with their magnitudes, in the order in which they are applied.

    Returns
    -------
    ndarray, shape (X, Y, Z)
        Of the scan's type. Voxels that do not move keep their bytes.
    """
    voxels, sources = _moved(placed, flows)
    stored = placed.scan.stored.copy()
    if sources.size:
        stored[tuple(voxels)] = placed.scan.cast(_interpolated(placed.scan.stored, sources))
    return stored


def exposed(placed: PlacedScan, stored: np.ndarray, scanner: Scanner, seed: int) -> np.ndarray:
    """Return stored numbers as a scanner with other settings would have recorded them.

    Parameters
    ----------
    placed : PlacedScan
    stored : ndarray, shape (X, Y, Z)
        The numbers of the scan, deformed or not.
    scanner : Scanner
    seed : int
        Of the noise.
    """
    scan, white = placed.scan, placed.white
    before = stored * (scan.slope / white) + scan.inter / white
    blurred = before
    if scanner.blur_mm:
        sigma = scanner.blur_mm / FWHM_PER_SIGMA / voxel_sizes(placed.placement.affine)
        blurred = gaussian_filter(before, sigma, truncate=3.0, mode="nearest")
    after, generator = np.empty_like(blurred), stream(seed, "injection", "noise")
    low, high = (np.reshape(corner, (3, 1)) for corner in placed.template.box_mm)
    for voxels in _slabs(np.zeros(3, int), np.array(stored.shape)):
        # Beyond the template's field of view the polynomial of a bias field would run away.
        points = np.clip(placed.placement.template_mm(voxels), low, high)
        index = tuple(voxels)
        with np.errstate(over="ignore"):  # `Scan.cast` brings what overflows back into range
            after[index] = scanner.signal_at(blurred[index], points, generator)
    differs = after != before
    result = stored.copy()
    result[differs] = scan.cast((after[differs] * white - scan.inter) / scan.slope)
    return result


def _moved(
    placed: PlacedScan, flows: Sequence[tuple[LocalFlow, float]]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the voxels that move, and the positions of their new values, both (3, N)."""
    survey, placement = placed.survey, placed.placement
    boxes = [survey.within(flow.lattice) for flow, _ in flows]
    near = survey.voxels[:, np.any(boxes, axis=0)]
    reach = 2 * survey.strides
    low = np.maximum(near.min(axis=1) - reach, 0)
    high = np.minimum(near.max(axis=1) + reach + 1, placed.scan.stored.shape)
    displacements = displacements_of(flows)
    moving, sources = [], []
    for voxels in _slabs(low, high):
        points = placement.template_mm(voxels)
        moved = followed(points, displacements)
        far = np.linalg.norm(moved - points, axis=0) > LEAST_MOVE_MM
        moving.append(voxels[:, far])
        sources.append(placement.voxels(moved[:, far], voxels[:, far]))
    voxels, positions = np.concatenate(moving, axis=1), np.concatenate(sources, axis=1)
    if not placement.covers(voxels).all():
        problem = "to_template does not cover the surroundings of the effects' regions."
        raise SimbaError.problem(problem, "Register over a larger field of view.")
    placement.check_invertible(np.concatenate([voxels, positions], axis=1))
    return voxels, positions


def displacements_of(flows: Sequence[tuple[LocalFlow, float]]) -> list[tuple[np.ndarray, Lattice]]:
    """Return the displacements of deformations, (3, A, B, C) in mm, in the order of sampling."""
    # Sampling undoes first the effect that was applied last.
    return [
        (np.moveaxis(flow.at(magnitude), -1, 0), flow.lattice)
        for flow, magnitude in reversed(flows)
    ]


def followed(
    points_mm: np.ndarray, displacements: Sequence[tuple[np.ndarray, Lattice]]
) -> np.ndarray:
    """Return where the tissue at points of the template, (3, N), comes from, (3, N), in mm."""
    moved = points_mm.copy()
    for displacement, lattice in displacements:
        index = (moved - np.reshape(lattice.origin_mm, (3, 1))) / lattice.spacing_mm
        moved += [
            map_coordinates(component, index, order=1, mode="constant")
            for component in displacement
        ]
    return moved


def _slabs(low: np.ndarray, high: np.ndarray) -> Iterator[np.ndarray]:
    """Iterate over the voxels of a box, some planes at a time: indices of shape (3, N)."""
    planes = max(1, BATCH // int(np.prod(high[1:] - low[1:])))
    columns = [np.arange(low[axis], high[axis]) for axis in (1, 2)]
    for start in range(low[0], high[0], planes):
        axes = [np.arange(start, min(start + planes, high[0])), *columns]
        yield np.stack(np.meshgrid(*axes, indexing="ij")).reshape(3, -1)


def _interpolated(stored: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Return the stored numbers at positions in voxels, shape (3, N), by a spline within bounds."""
    positions = np.clip(positions, 0, np.reshape(stored.shape, (3, 1)) - 1)
    low = np.maximum(np.floor(positions.min(axis=1)).astype(int) - MARGIN, 0)
    high = np.ceil(positions.max(axis=1)).astype(int) + MARGIN + 1
    crop = stored[tuple(slice(start, stop) for start, stop in zip(low, high, strict=True))]
    positions = positions - low[:, None]
    # Sums of the largest floats would overflow.
    scale = float(np.abs(crop.astype(np.float64)).max()) or 1.0
    with np.errstate(over="ignore"):
        values = map_coordinates(crop / scale, positions, order=ORDER, mode="nearest") * scale
    nearest = tuple(np.rint(positions).astype(int))
    least, most = minimum_filter(crop, 3, mode="nearest"), maximum_filter(crop, 3, mode="nearest")
    return np.clip(values, least[nearest], most[nearest])
