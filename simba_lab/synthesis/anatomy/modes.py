"""Karhunen-Loeve modes of smooth random vector fields, and the rigid motion in each of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from simba_lab.core.lattice import Lattice
from simba_lab.synthesis.anatomy.template import Template

# Subject fields are smooth (length scales of at least 10 mm): this lattice holds them whatever the
# output spacing.
SUBJECT_SPACING_MM = 4.0
# Share of the variance of each axis that the kept modes carry, and their least number: of long
# scales the rigid part is taken out, which leaves little of the first modes.
VARIANCE_KEPT, LEAST_MODES = 0.995, 3


@dataclass(frozen=True, eq=False)
class Modes:
    """Karhunen-Loeve modes of a Gaussian process on a lattice.

    Parameters
    ----------
    scales : list of (basis_x, basis_y, basis_z, scale)
        The one-dimensional modes of each axis (points x modes) and the deviation of each 3D mode.
    rigid : ndarray, shape (6, coefficients)
        Translation in mm and rotation about the centre, in radians, of the field of each
        coefficient.
    order : ndarray of int, shape (coefficients,)
        Coefficients by their variance in the ellipsoid without the rigid part, largest first.
    """

    scales: list[tuple[np.ndarray, ...]]
    rigid: np.ndarray
    order: np.ndarray


@lru_cache(maxsize=8)
def modes(
    length_scales_mm: tuple[float, ...], deviations_mm: tuple[float, ...], lattice: Lattice
) -> Modes:
    """Return the modes of a sum of squared-exponential covariances, each separable over the axes.

    Parameters
    ----------
    length_scales_mm, deviations_mm : tuple of float
        One of each per scale.
    lattice : Lattice

    References
    ----------
    Ghanem and Spanos (1991), "Stochastic finite elements", sec. 2.3 (Karhunen-Loeve expansion).
    """
    scales, rigid, variance = [], [], []
    x, y, z = open_mesh(lattice)
    ellipsoid = (x / x.max()) ** 2 + (y / y.max()) ** 2 + (z / z.max()) ** 2 <= 1
    weights = ellipsoid / ellipsoid.sum()
    squares = np.array([(weights * axis**2).sum() for axis in (x, y, z)])
    for length, deviation in zip(length_scales_mm, deviations_mm, strict=True):
        bases, spectra = [], []
        for axis in range(3):
            points = lattice.axis_mm(axis)
            values, vectors = np.linalg.eigh(
                np.exp(-((points[:, None] - points) ** 2) / (2 * length**2))
            )
            values, vectors = values[::-1].clip(0), vectors[:, ::-1]
            mode_count = max(
                LEAST_MODES,
                int(np.searchsorted(np.cumsum(values) / values.sum(), VARIANCE_KEPT)) + 1,
            )
            # The sign of an eigenvector is arbitrary: fix it, so that a seed means the same brain
            # on every machine. By the first point, as an odd mode has two peaks.
            bases.append((vectors * np.where(vectors[0] < 0, -1, 1))[:, :mode_count])
            spectra.append(np.sqrt(values[:mode_count]))
        scale = deviation * np.einsum("a,b,c->abc", *spectra)

        def mean(weights: np.ndarray, bases: list[np.ndarray] = bases) -> np.ndarray:
            return np.einsum("xyz,xa,yb,zc->abc", weights, *bases, optimize=True).ravel()

        shift = mean(weights) * scale.ravel()
        mx, my, mz = (mean(weights * axis) * scale.ravel() for axis in (x, y, z))
        zero = np.zeros_like(shift)
        # A rotation w moves x by w cross x: the w nearest to a field v is the mean of x cross v
        # over that of |x|^2 - x_i^2.
        moment = np.array([[zero, -mz, my], [mz, zero, -mx], [-my, mx, zero]])
        turn = moment / (squares.sum() - squares)[:, None, None]
        shifts = np.einsum("ij,k->ijk", np.eye(3), shift)
        rigid.append(np.concatenate([shifts, turn]).reshape(6, -1))
        energy = mean(weights, [basis**2 for basis in bases]) * scale.ravel() ** 2
        variance.append((energy - shift**2 - (moment * turn).sum(axis=0)).ravel())
        scales.append((*(np.ascontiguousarray(basis, dtype=np.float32) for basis in bases), scale))
    # Axes of the same length give modes of the same variance: rounding errors must not decide
    # their order.
    rank = np.concatenate(variance)
    order = np.argsort(-np.round(rank / rank.max(initial=np.finfo(float).tiny), 9), kind="stable")
    return Modes(scales, np.concatenate(rigid, axis=1), order)


def open_mesh(lattice: Lattice) -> list[np.ndarray]:
    """Positions from the centre of a lattice, in mm, shapes (X, 1, 1), (1, Y, 1) and (1, 1, Z)."""
    axes = [lattice.axis_mm(axis) for axis in range(3)]
    return list(
        np.meshgrid(*(np.float32(axis - axis.mean()) for axis in axes), indexing="ij", sparse=True)
    )


def subject_lattice(template: Template) -> Lattice:
    """Return the 4 mm lattice of subjects' velocity fields, over the template's field of view.

    Examples
    --------
    >>> import simba_lab as sb
    >>> sb.synthesis.subject_lattice(sb.load_template()).spacing_mm
    4.0
    """
    return Lattice.spanning(*template.box_mm, SUBJECT_SPACING_MM, centred=False)
