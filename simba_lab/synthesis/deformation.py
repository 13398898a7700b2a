"""Deformations as the exponentials of stationary velocity fields.

Fields and displacements are arrays of shape (3, X, Y, Z) in mm on a `Lattice`. A displacement ``u`` stands for the map
``x -> x + u(x)``. Images are pulled back: warping by ``u`` gives ``I(x + u(x))``, so to move anatomy *along* a velocity
``v`` an image is sampled at ``exp(-v)``.
"""

from __future__ import annotations

import numpy as np

from simba_lab.errors import SimbaError
from simba_lab.synthesis import _kernels
from simba_lab.synthesis.anatomy import Lattice

# The first step is taken to second order, which allows steps of a voxel where first order needs half a voxel; each
# squaring saved also saves an interpolation, which is where most of the error comes from.
LONGEST_STEP_VOXELS = 1.0


def interleaved(field: np.ndarray) -> np.ndarray:
    """(3, X, Y, Z) to the (X, Y, Z, 3) float32 that the kernels read."""
    return np.ascontiguousarray(np.moveaxis(field, 0, -1), dtype=np.float32)


def _checked(field: np.ndarray, lattice: Lattice, name: str) -> np.ndarray:
    field = np.asarray(field)
    if field.shape != (3, *lattice.shape):
        raise SimbaError(name, field.shape, f"of shape {(3, *lattice.shape)}", "Axes are (component, x, y, z).")
    if not np.isfinite(field).all():
        raise SimbaError(name, "NaN or infinity", "finite")
    return interleaved(field)


def squarings(velocity: np.ndarray, spacing_mm: float) -> int:
    """Return the number of squarings that keeps the first step below a voxel."""
    longest = float(np.sqrt((velocity.astype(np.float32) ** 2).sum(axis=-1).max(initial=0.0)))
    return max(0, int(np.ceil(np.log2(max(longest, 1e-30) / (LONGEST_STEP_VOXELS * spacing_mm)))))


def exponential_interleaved(velocity: np.ndarray, spacing_mm: float) -> np.ndarray:
    """`exponential` on interleaved float32 arrays."""
    steps = squarings(velocity, spacing_mm)
    inverse_spacing = np.float32(1 / spacing_mm)
    # Midpoint rule: the displacement after time h is h v(x + h v(x) / 2).
    step = velocity / np.float32(2**steps)
    half = step / np.float32(2)
    displacement, spare = np.empty_like(step), np.empty_like(step)
    _kernels.compose(half, step, inverse_spacing, displacement)
    displacement -= half
    for _ in range(steps):
        _kernels.compose(displacement, displacement, inverse_spacing, spare)
        displacement, spare = spare, displacement
    return displacement


def exponential(velocity: np.ndarray, lattice: Lattice) -> np.ndarray:
    """Return the displacement at time 1 of the flow of a stationary velocity field, by scaling and squaring.

    The short first step is taken by the midpoint rule, all others by composing the displacement with itself.

    Parameters
    ----------
    velocity : ndarray, shape (3, X, Y, Z)
        Velocity in mm.
    lattice : Lattice
        Where it is given.

    Returns
    -------
    ndarray of float32, shape (3, X, Y, Z)
        Displacement in mm. The inverse map is ``exponential(-velocity, lattice)``.

    References
    ----------
    Arsigny, Commowick, Pennec, Ayache (2006), "A log-Euclidean framework for statistics on diffeomorphisms", MICCAI.
    """
    field = _checked(velocity, lattice, "velocity")
    return np.moveaxis(exponential_interleaved(field, lattice.spacing_mm), -1, 0)


def compose(outer: np.ndarray, inner: np.ndarray, lattice: Lattice) -> np.ndarray:
    """Return the displacement of ``outer o inner``: ``inner(x) + outer(x + inner(x))``, in mm, shape (3, X, Y, Z)."""
    one, two = _checked(inner, lattice, "inner"), _checked(outer, lattice, "outer")
    out = np.empty_like(one)
    _kernels.compose(one, two, np.float32(1 / lattice.spacing_mm), out)
    return np.moveaxis(out, -1, 0)


def invert(displacement: np.ndarray, lattice: Lattice, *, iterations: int = 50) -> np.ndarray:
    """Return the inverse of a displacement that did not come from a velocity, by fixed-point iteration.

    References
    ----------
    Chen et al. (2008), "A simple fixed-point approach to invert a deformation field", Medical Physics 35(1), eq. 4.
    """
    forward = _checked(displacement, lattice, "displacement")
    inverse, spare = -forward, np.empty_like(forward)
    for _ in range(iterations):
        # compose gives inverse(x) + forward(x + inverse(x)), which is the residual: zero at the solution.
        _kernels.compose(inverse, forward, np.float32(1 / lattice.spacing_mm), spare)
        inverse = inverse - spare
    return np.moveaxis(inverse, -1, 0)


def jacobian_determinant(displacement: np.ndarray, lattice: Lattice) -> np.ndarray:
    """Return the local volume change of ``x + u(x)`` by central differences: 1 keeps volume, below 0 folds.

    Returns
    -------
    ndarray of float32, shape (X, Y, Z)
    """
    _checked(displacement, lattice, "displacement")
    gradient = np.stack(
        [np.stack(np.gradient(component, lattice.spacing_mm), axis=-1) for component in displacement], axis=-2
    )
    return np.linalg.det(gradient + np.eye(3)).astype(np.float32)


def least_jacobian(displacement: np.ndarray, lattice: Lattice) -> float:
    """Return the least Jacobian determinant over all cells, by forward differences (at most 0: the map folds)."""
    field = _checked(displacement, lattice, "displacement")
    return float(_kernels.least_jacobian(field, np.float32(1 / lattice.spacing_mm)))


def warp(
    image: np.ndarray, image_lattice: Lattice, displacement: np.ndarray, lattice: Lattice, *, onto: Lattice | None = None
) -> np.ndarray:
    """Return ``image(x + u(x))`` at the points of `onto`, by trilinear interpolation.

    Parameters
    ----------
    image : ndarray, shape (X, Y, Z), on `image_lattice`
    displacement : ndarray, shape (3, A, B, C), in mm on `lattice`
    onto : Lattice, optional
        Where to evaluate; `image_lattice` by default.

    Returns
    -------
    ndarray of float32 on `onto`
    """
    field = _checked(displacement, lattice, "displacement")
    if np.shape(image) != image_lattice.shape:
        raise SimbaError("image", np.shape(image), f"of shape {image_lattice.shape}")
    image = np.ascontiguousarray(image, dtype=np.float32)
    return render(image, image_lattice, field, lattice, [], onto or image_lattice)


def render(
    image: np.ndarray, image_lattice: Lattice, coarse: np.ndarray, coarse_lattice: Lattice,
    local: list[tuple[np.ndarray, Lattice]], onto: Lattice,
) -> np.ndarray:  # fmt: skip
    """Sample an image once, at positions moved by a coarse displacement and then by local ones in turn.

    Parameters
    ----------
    image : ndarray of float32, shape (X, Y, Z)
    coarse : ndarray of float32, shape (A, B, C, 3), interleaved
    local : list of (displacement, lattice)
        Interleaved displacements of the effects, each on the lattice of its own box; zero outside it. All boxes have
        the same spacing.
    onto : Lattice
        Where to evaluate.
    """
    out = np.empty(onto.shape, np.float32)
    flat = np.concatenate([field.ravel() for field, _ in local]) if local else np.zeros(0, np.float32)
    shapes = np.array([box.shape for _, box in local], np.int64).reshape(-1, 3)
    origins = np.array([box.origin_mm for _, box in local], np.float32).reshape(-1, 3)
    spacing = local[0][1].spacing_mm if local else 1.0
    _kernels.render(
        image, np.float32(image_lattice.origin_mm), np.float32(1 / image_lattice.spacing_mm),
        coarse, np.float32(coarse_lattice.origin_mm), np.float32(1 / coarse_lattice.spacing_mm),
        flat, shapes, origins, np.float32(1 / spacing),
        out, np.float32(onto.origin_mm), np.float32(onto.spacing_mm),
    )  # fmt: skip
    return out
