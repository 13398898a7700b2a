"""Deformations as the exponentials of stationary velocity fields.

Fields and displacements are arrays of shape (3, X, Y, Z) in mm on a `Lattice`. A displacement ``u``
stands for the map ``x -> x + u(x)``. Images are pulled back: warping by ``u`` gives ``I(x +
u(x))``, so to move anatomy *along* a velocity ``v`` an image is sampled at ``exp(-v)``.

The functions that rendering calls per volume (`flow`, `series_flow`, `chord_corrected`,
`warp_once`) take interleaved arrays instead: float32 of shape (X, Y, Z, 3).
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import distance_transform_edt

from simba_lab.core.checks import of_shape
from simba_lab.core.errors import SimbaError, Words
from simba_lab.core.lattice import Lattice
from simba_lab.synthesis.kernels import differences, interpolation

# A midpoint step errs by about |v| |grad v|^2 / 24 times its length squared: in steps in which the
# gradient turns the field no further than this, by 0.01 mm for displacements of a centimetre.
STEEPEST_STEP = 0.15
# Up to this gradient, `ORDER` terms of the Lie series are as exact as steps; the gradient of
# healthy anatomy is about 0.4.
LARGEST_GRADIENT, ORDER = 0.7, 4
# Two points, 4 mm apart before the deformation, see everything between them from this
# distance; a nearest node is up to 3.5 mm off.
SIGHT_MM = 10.0


def exponential(velocity: np.ndarray, lattice: Lattice) -> np.ndarray:
    """Return the displacement at time 1 of the flow of a stationary velocity field.

    Every point is carried along the velocity itself by the midpoint rule, in as many steps as the
    gradient of the field asks for; smooth fields need few. Scaling and squaring would interpolate
    displacements that have been interpolated before; here only the velocity is interpolated, and
    with its curvature.

    Parameters
    ----------
    velocity : ndarray, shape (3, X, Y, Z)
        Velocity in mm.
    lattice : Lattice
        Of the velocity.

    Returns
    -------
    ndarray of float32, shape (3, X, Y, Z)
        Displacement in mm. The inverse map is ``exponential(-velocity, lattice)``.

    References
    ----------
    Arsigny, Commowick, Pennec, Ayache (2006), "A log-Euclidean framework for statistics on
    diffeomorphisms", MICCAI. Hairer, Norsett, Wanner (1993), "Solving ordinary differential
    equations I", sec. II.1, eq. 1.4 (midpoint rule).

    Examples
    --------
    >>> import numpy as np
    >>> import simba_lab as sb
    >>> lattice = sb.core.Lattice((4, 4, 4), 4.0, (0.0, 0.0, 0.0))
    >>> shift = np.full((3, 4, 4, 4), 2.0)
    >>> sb.synthesis.deformation.exponential(shift, lattice)[:, 1, 1, 1]
    array([2., 2., 2.], dtype=float32)
    """
    return np.moveaxis(flow(_checked(velocity, lattice, "velocity"), lattice.spacing_mm), -1, 0)


def compose(outer: np.ndarray, inner: np.ndarray, lattice: Lattice) -> np.ndarray:
    """Return the displacement of ``outer o inner``: ``inner(x) + outer(x + inner(x))``, in mm."""
    inner_field = _checked(inner, lattice, "inner")
    outer_field = _checked(outer, lattice, "outer")
    displacement = np.empty_like(inner_field)
    interpolation.compose(
        inner_field, outer_field, np.float32(1 / lattice.spacing_mm), displacement
    )
    return np.moveaxis(displacement, -1, 0)


def invert(displacement: np.ndarray, lattice: Lattice, *, iterations: int = 50) -> np.ndarray:
    """Return the inverse of any displacement, by fixed-point iteration.

    References
    ----------
    Chen et al. (2008), "A simple fixed-point approach to invert a deformation field", Medical
    Physics 35(1), eq. 4.
    """
    forward = _checked(displacement, lattice, "displacement")
    inverse, residual = -forward, np.empty_like(forward)
    for _ in range(iterations):
        # The composition inverse(x) + forward(x + inverse(x)) is zero at the solution.
        interpolation.compose(inverse, forward, np.float32(1 / lattice.spacing_mm), residual)
        inverse = inverse - residual
    return np.moveaxis(inverse, -1, 0)


def jacobian_determinant(displacement: np.ndarray, lattice: Lattice) -> np.ndarray:
    """Return the local volume change of ``x + u(x)`` by central differences; below 0 it folds.

    Returns
    -------
    ndarray of float32, shape (X, Y, Z)
    """
    _checked(displacement, lattice, "displacement")
    slopes = [
        np.stack(np.gradient(component, lattice.spacing_mm), axis=-1) for component in displacement
    ]
    return np.linalg.det(np.stack(slopes, axis=-2) + np.eye(3)).astype(np.float32)


def least_jacobian(displacement: np.ndarray, lattice: Lattice) -> float:
    """Return the least Jacobian determinant over all cells; at most 0, the map folds."""
    vectors = _checked(displacement, lattice, "displacement")
    return float(differences.least_jacobian(vectors, np.float32(1 / lattice.spacing_mm)))


def warp(
    image: np.ndarray,
    image_lattice: Lattice,
    displacement: np.ndarray,
    lattice: Lattice,
    *,
    onto: Lattice | None = None,
) -> np.ndarray:
    """Return ``image(x + u(x))`` at the points of `onto`, by trilinear interpolation.

    Parameters
    ----------
    image : ndarray, shape (X, Y, Z), on `image_lattice`
    displacement : ndarray, shape (3, A, B, C), in mm on `lattice`
    onto : Lattice, optional
        Points at which the result is wanted; `image_lattice` by default.

    Returns
    -------
    ndarray of float32 on `onto`
    """
    vectors = _checked(displacement, lattice, "displacement")
    of_shape("image", image, image_lattice.shape)
    image = np.ascontiguousarray(image, dtype=np.float32)
    return warp_once(image, image_lattice, vectors, lattice, [], onto or image_lattice)


def _checked(vectors: np.ndarray, lattice: Lattice, name: str) -> np.ndarray:
    """Return a field of shape (3, X, Y, Z) interleaved."""
    of_shape(name, vectors, (3, *lattice.shape), "Axes are (component, x, y, z).")
    if not np.isfinite(vectors).all():
        raise SimbaError(name, Words("NaN or infinity"), "finite")
    return interleaved(np.asarray(vectors))


# -- interleaved fields --


def interleaved(vectors: np.ndarray) -> np.ndarray:
    """Return a field of shape (3, X, Y, Z) as (X, Y, Z, 3) float32, as the kernels read it."""
    return np.ascontiguousarray(np.moveaxis(vectors, 0, -1), dtype=np.float32)


def flow(
    velocity: np.ndarray, spacing_mm: float, time: float = 1.0, *, start: np.ndarray | None = None
) -> np.ndarray:
    """Return the displacement after any time along a velocity, from any displacement."""
    inverse = np.float32(1 / spacing_mm)
    curvature = np.empty((*velocity.shape[:3], 9), np.float32)
    differences.curvature(velocity, curvature)
    gradient = float(differences.largest_gradient(velocity, inverse))
    steps = max(1, int(np.ceil(abs(time) * gradient / STEEPEST_STEP)))
    step = np.float32(time / steps)
    if start is not None:
        displacement = start.copy()
        interpolation.flow(velocity, curvature, inverse, step, steps, displacement)
        return displacement
    displacement = np.empty_like(velocity)
    interpolation.first_step(velocity, curvature, inverse, step, displacement)
    if steps > 1:
        interpolation.flow(velocity, curvature, inverse, step, steps - 1, displacement)
    return displacement


def series_flow(velocity: np.ndarray, spacing_mm: float) -> np.ndarray:
    """Return the flow at time 1 by the Lie series ``v + (v . grad) v / 2 + ...``.

    The terms are differences between neighbours: nothing is interpolated, which is several times
    faster than steps are. Steep fields are integrated by `flow`.

    References
    ----------
    Hairer, Lubich, Wanner (2006), "Geometric numerical integration", sec. III.5.1.
    """
    inverse = np.float32(1 / spacing_mm)
    if differences.largest_gradient(velocity, inverse) > LARGEST_GRADIENT:
        return flow(velocity, spacing_mm)
    total, term, next_term = velocity.copy(), velocity, np.empty_like(velocity)
    for order in range(2, ORDER + 1):
        differences.advected(velocity, term, inverse / np.float32(order), next_term)
        total += next_term
        buffer = np.empty_like(velocity) if term is velocity else term
        term, next_term = next_term, buffer
    return total


def chord_corrected(vectors: np.ndarray) -> np.ndarray:
    """Return nodal values whose trilinear interpolant is right on average over a cell.

    A chord lies inside its curve by ``h^2 v'' / 12`` on average; subtracting that from the nodes
    leaves 2.4 times less error. Interleaved float32, shape (X, Y, Z, 3); for smooth fields that are
    read once, anywhere. Steep fields would overshoot.
    """
    corrected = np.empty_like(vectors)
    differences.chord_corrected(vectors, corrected)
    return corrected


def near_image(
    image: np.ndarray, lattice: Lattice, boxes: list[Lattice], on: Lattice
) -> np.ndarray:
    """Return the deformed positions from which the image (above 0) can be reached, bool on `on`.

    They are within `SIGHT_MM` of the image or of the box of a local displacement, which may carry a
    position further.
    """
    empty = np.ones(lattice.shape, bool)
    empty[image > 0] = False
    origin = np.asarray(lattice.origin_mm)
    for box in boxes:
        corners = [np.asarray(box.origin_mm), [box.axis_mm(axis)[-1] for axis in range(3)]]
        low, high = (
            np.round((corner - origin) / lattice.spacing_mm).astype(int) for corner in corners
        )
        ranges = zip(np.maximum(0, low), np.maximum(0, high + 1), strict=True)
        empty[tuple(slice(start, stop) for start, stop in ranges)] = False
    distance = distance_transform_edt(empty, sampling=lattice.spacing_mm).astype(np.float32)
    nearest = [
        np.round((on.axis_mm(axis) - origin[axis]) / lattice.spacing_mm).astype(int)
        for axis in range(3)
    ]
    voxels = [
        np.clip(index, 0, count - 1) for index, count in zip(nearest, lattice.shape, strict=True)
    ]
    return distance[np.ix_(*voxels)] <= SIGHT_MM


def warp_once(
    image: np.ndarray,
    image_lattice: Lattice,
    displacement: np.ndarray,
    displacement_lattice: Lattice,
    local: list[tuple[np.ndarray, Lattice]],
    onto: Lattice,
    *,
    near: tuple[np.ndarray, Lattice] | None = None,
) -> np.ndarray:
    """Sample an image once, at positions moved by one displacement and then by local ones.

    Parameters
    ----------
    image : ndarray of float32, shape (X, Y, Z)
    displacement : ndarray of float32, shape (A, B, C, 3), interleaved
    local : list of (displacement, lattice)
        Interleaved displacements of the effects, each on the lattice of its own box; zero outside
        it. All boxes have the same spacing.
    onto : Lattice
        Points at which the result is wanted.
    near : (ndarray of bool, Lattice), optional
        Positions from which the image can be reached, from `near_image`: other voxels are 0.

    Returns
    -------
    ndarray of float32 on `onto`
    """
    volume = np.zeros(onto.shape, np.float32)
    boxed = [vectors.ravel() for vectors, _ in local] or [np.zeros(0, np.float32)]
    shapes = np.array([box.shape for _, box in local], np.int64).reshape(-1, 3)
    origins = np.array([box.origin_mm for _, box in local], np.float32).reshape(-1, 3)
    spacing = local[0][1].spacing_mm if local else 1.0
    mask, mask_lattice = near or (np.zeros((0, 0, 0), bool), onto)
    interpolation.sample(
        image,
        np.array(image_lattice.origin_mm, np.float32),
        np.float32(1 / image_lattice.spacing_mm),
        displacement,
        np.array(displacement_lattice.origin_mm, np.float32),
        np.float32(1 / displacement_lattice.spacing_mm),
        np.concatenate(boxed),
        shapes,
        origins,
        np.float32(1 / spacing),
        mask,
        np.array(mask_lattice.origin_mm, np.float32),
        np.float32(1 / mask_lattice.spacing_mm),
        volume,
        np.array(onto.origin_mm, np.float32),
        np.float32(onto.spacing_mm),
    )
    return volume
