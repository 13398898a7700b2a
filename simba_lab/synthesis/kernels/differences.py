"""Kernels that compare neighbours on a lattice: Jacobians, gradients and curvature."""

from __future__ import annotations

import numpy as np

from simba_lab.synthesis.kernels.compiling import compiled


@compiled
def least_jacobian(displacement, inverse_spacing):
    """Least determinant of the Jacobian of x + u(x) over all cells, by forward differences."""
    least = np.float32(1e30)
    h = inverse_spacing
    for i in range(displacement.shape[0] - 1):
        for j in range(displacement.shape[1] - 1):
            for k in range(displacement.shape[2] - 1):
                u = displacement[i, j, k]
                ux, uy, uz = (
                    displacement[i + 1, j, k],
                    displacement[i, j + 1, k],
                    displacement[i, j, k + 1],
                )
                a, b, c = 1 + (ux[0] - u[0]) * h, (uy[0] - u[0]) * h, (uz[0] - u[0]) * h
                d, e, f = (ux[1] - u[1]) * h, 1 + (uy[1] - u[1]) * h, (uz[1] - u[1]) * h
                g, p, q = (ux[2] - u[2]) * h, (uy[2] - u[2]) * h, 1 + (uz[2] - u[2]) * h
                least = min(
                    least,
                    np.float32(a * (e * q - f * p) - b * (d * q - f * g) + c * (d * p - e * g)),
                )
    return least


@compiled
def largest_gradient(velocity, inverse_spacing):
    """Largest Frobenius norm of the gradient of a velocity, over all cells, by forward steps."""
    most = np.float32(0)
    for i in range(velocity.shape[0] - 1):
        for j in range(velocity.shape[1] - 1):
            for k in range(velocity.shape[2] - 1):
                size = np.float32(0)
                for d in range(3):
                    here = velocity[i, j, k, d]
                    a, b = velocity[i + 1, j, k, d] - here, velocity[i, j + 1, k, d] - here
                    c = velocity[i, j, k + 1, d] - here
                    size += a * a + b * b + c * c
                most = max(most, size)
    return np.sqrt(most) * inverse_spacing


@compiled
def curvature(vectors, out):
    """Half the second difference per axis, to out[..., 3 * axis + component]; 0 at the border."""
    nx, ny, nz, _ = vectors.shape
    half, two = np.float32(0.5), np.float32(2)
    for i in range(nx):
        i0, i1 = max(i - 1, 0), min(i + 1, nx - 1)
        for j in range(ny):
            j0, j1 = max(j - 1, 0), min(j + 1, ny - 1)
            for k in range(nz):
                k0, k1 = max(k - 1, 0), min(k + 1, nz - 1)
                for d in range(3):
                    twice = two * vectors[i, j, k, d]
                    out[i, j, k, d] = half * (vectors[i0, j, k, d] + vectors[i1, j, k, d] - twice)
                    out[i, j, k, 3 + d] = half * (
                        vectors[i, j0, k, d] + vectors[i, j1, k, d] - twice
                    )
                    out[i, j, k, 6 + d] = half * (
                        vectors[i, j, k0, d] + vectors[i, j, k1, d] - twice
                    )


@compiled
def chord_corrected(vectors, out):
    """Each node less the h^2 v'' / 12 by which a chord lies inside its curve on average."""
    nx, ny, nz, _ = vectors.shape
    twelfth, six = np.float32(1 / 12), np.float32(6)
    for i in range(nx):
        i0, i1 = max(i - 1, 0), min(i + 1, nx - 1)
        for j in range(ny):
            j0, j1 = max(j - 1, 0), min(j + 1, ny - 1)
            for k in range(nz):
                k0, k1 = max(k - 1, 0), min(k + 1, nz - 1)
                for d in range(3):
                    around = (
                        vectors[i0, j, k, d]
                        + vectors[i1, j, k, d]
                        + vectors[i, j0, k, d]
                        + vectors[i, j1, k, d]
                    )
                    around += vectors[i, j, k0, d] + vectors[i, j, k1, d]
                    here = vectors[i, j, k, d]
                    out[i, j, k, d] = here - twelfth * (around - six * here)


@compiled
def advected(velocity, vectors, factor, out):
    """Set out to factor (v . grad) vectors: central differences, one-sided at the border."""
    nx, ny, nz, _ = velocity.shape
    for i in range(nx):
        i0, i1 = max(i - 1, 0), min(i + 1, nx - 1)
        along_x = factor / np.float32(i1 - i0)
        for j in range(ny):
            j0, j1 = max(j - 1, 0), min(j + 1, ny - 1)
            along_y = factor / np.float32(j1 - j0)
            for k in range(nz):
                k0, k1 = max(k - 1, 0), min(k + 1, nz - 1)
                a, b = velocity[i, j, k, 0] * along_x, velocity[i, j, k, 1] * along_y
                c = velocity[i, j, k, 2] * (factor / np.float32(k1 - k0))
                for d in range(3):
                    out[i, j, k, d] = (
                        a * (vectors[i1, j, k, d] - vectors[i0, j, k, d])
                        + b * (vectors[i, j1, k, d] - vectors[i, j0, k, d])
                        + c * (vectors[i, j, k1, d] - vectors[i, j, k0, d])
                    )
