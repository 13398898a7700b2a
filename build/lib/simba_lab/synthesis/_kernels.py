"""CPU inner loops of `deformation` (Numba). Serial and without the interpreter lock: threads work on different volumes.

Displacements are stored interleaved, shape (X, Y, Z, 3), in mm; positions outside a lattice take its border values.
Arithmetic is float32 in a fixed order, so results do not depend on the number of threads.
"""

from __future__ import annotations

import numba as nb
import numpy as np

# Contraction (fused multiply-add) and reassociation vectorise the inner loops; NaN and infinity keep their meaning.
FAST = {"contract", "reassoc", "nsz", "arcp"}
compiled = nb.njit(nogil=True, cache=True, fastmath=FAST)
inlined = nb.njit(inline="always", fastmath=FAST)


@inlined
def _cell(position, size):
    """Lower corner and fraction of the cell that holds a position given in voxels, clamped to the lattice."""
    clamped = min(max(position, np.float32(0)), np.float32(size - 1))
    corner = min(int(clamped), size - 2)
    return corner, clamped - np.float32(corner)


@inlined
def _vector_at(field, x, y, z):
    """Trilinear interpolation of an interleaved vector field at a position in voxels."""
    i, fx = _cell(x, field.shape[0])
    j, fy = _cell(y, field.shape[1])
    k, fz = _cell(z, field.shape[2])
    gx, gy, gz = np.float32(1) - fx, np.float32(1) - fy, np.float32(1) - fz
    w000, w001, w010, w011 = gx * gy * gz, gx * gy * fz, gx * fy * gz, gx * fy * fz
    w100, w101, w110, w111 = fx * gy * gz, fx * gy * fz, fx * fy * gz, fx * fy * fz
    a, b, c = np.float32(0), np.float32(0), np.float32(0)
    for weight, p, q, r in (
        (w000, i, j, k),
        (w001, i, j, k + 1),
        (w010, i, j + 1, k),
        (w011, i, j + 1, k + 1),
        (w100, i + 1, j, k),
        (w101, i + 1, j, k + 1),
        (w110, i + 1, j + 1, k),
        (w111, i + 1, j + 1, k + 1),
    ):
        a += weight * field[p, q, r, 0]
        b += weight * field[p, q, r, 1]
        c += weight * field[p, q, r, 2]
    return a, b, c


@inlined
def _scalar_at(image, x, y, z):
    """Trilinear interpolation of an image at a position in voxels."""
    i, fx = _cell(x, image.shape[0])
    j, fy = _cell(y, image.shape[1])
    k, fz = _cell(z, image.shape[2])
    c00 = image[i, j, k] + fz * (image[i, j, k + 1] - image[i, j, k])
    c01 = image[i, j + 1, k] + fz * (image[i, j + 1, k + 1] - image[i, j + 1, k])
    c10 = image[i + 1, j, k] + fz * (image[i + 1, j, k + 1] - image[i + 1, j, k])
    c11 = image[i + 1, j + 1, k] + fz * (image[i + 1, j + 1, k + 1] - image[i + 1, j + 1, k])
    c0 = c00 + fy * (c01 - c00)
    return c0 + fx * (c10 + fy * (c11 - c10) - c0)


@compiled
def compose(first, second, inverse_spacing, out):
    """out(x) = first(x) + second(x + first(x)), displacements on one lattice."""
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            for k in range(out.shape[2]):
                a, b, c = first[i, j, k, 0], first[i, j, k, 1], first[i, j, k, 2]
                x = np.float32(i) + a * inverse_spacing
                y = np.float32(j) + b * inverse_spacing
                z = np.float32(k) + c * inverse_spacing
                p, q, r = _vector_at(second, x, y, z)
                out[i, j, k, 0] = a + p
                out[i, j, k, 1] = b + q
                out[i, j, k, 2] = c + r


@compiled
def least_jacobian(displacement, inverse_spacing):
    """Least determinant of the Jacobian of x + u(x) over all cells, by forward differences."""
    least = np.float32(1e30)
    h = inverse_spacing
    for i in range(displacement.shape[0] - 1):
        for j in range(displacement.shape[1] - 1):
            for k in range(displacement.shape[2] - 1):
                u = displacement[i, j, k]
                ux, uy, uz = displacement[i + 1, j, k], displacement[i, j + 1, k], displacement[i, j, k + 1]
                a, b, c = 1 + (ux[0] - u[0]) * h, (uy[0] - u[0]) * h, (uz[0] - u[0]) * h
                d, e, f = (ux[1] - u[1]) * h, 1 + (uy[1] - u[1]) * h, (uz[1] - u[1]) * h
                g, p, q = (ux[2] - u[2]) * h, (uy[2] - u[2]) * h, 1 + (uz[2] - u[2]) * h
                least = min(least, np.float32(a * (e * q - f * p) - b * (d * q - f * g) + c * (d * p - e * g)))
    return least


@compiled
def separable_sum(coefficients, basis_x, basis_y, basis_z, out):
    """Add the sum over (a, b, c) of coefficients[d, a, b, c] bx[i, a] by[j, b] bz[k, c] to out[i, j, k, d]."""
    dims, na, nb_, nc = coefficients.shape
    nx, ny, nz = basis_x.shape[0], basis_y.shape[0], basis_z.shape[0]
    along_z = np.zeros((na, nb_, nz), np.float32)
    along_y = np.zeros((na, ny, nz), np.float32)
    row = np.zeros(nz, np.float32)
    for d in range(dims):
        along_z[:] = 0
        along_y[:] = 0
        for a in range(na):
            for b in range(nb_):
                for c in range(nc):
                    weight = coefficients[d, a, b, c]
                    for k in range(nz):
                        along_z[a, b, k] += weight * basis_z[k, c]
            for j in range(ny):
                for b in range(nb_):
                    weight = basis_y[j, b]
                    for k in range(nz):
                        along_y[a, j, k] += weight * along_z[a, b, k]
        for i in range(nx):
            for j in range(ny):
                row[:] = 0
                for a in range(na):
                    weight = basis_x[i, a]
                    for k in range(nz):
                        row[k] += weight * along_y[a, j, k]
                for k in range(nz):
                    out[i, j, k, d] += row[k]


@compiled
def flow(velocity, inverse_spacing, start, step, substeps, out):
    """Carry displaced lattice points along a velocity field for a time `step` (classical Runge-Kutta).

    `start` and `out` hold displacements on the lattice of the velocity; they may be the same array.
    """
    h = np.float32(step / substeps)
    half = np.float32(0.5) * h
    s = inverse_spacing
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            for k in range(out.shape[2]):
                x, y, z = start[i, j, k, 0], start[i, j, k, 1], start[i, j, k, 2]
                fi, fj, fk = np.float32(i), np.float32(j), np.float32(k)
                for _ in range(substeps):
                    a1, b1, c1 = _vector_at(velocity, fi + x * s, fj + y * s, fk + z * s)
                    a2, b2, c2 = _vector_at(
                        velocity, fi + (x + half * a1) * s, fj + (y + half * b1) * s, fk + (z + half * c1) * s
                    )
                    a3, b3, c3 = _vector_at(
                        velocity, fi + (x + half * a2) * s, fj + (y + half * b2) * s, fk + (z + half * c2) * s
                    )
                    a4, b4, c4 = _vector_at(velocity, fi + (x + h * a3) * s, fj + (y + h * b3) * s, fk + (z + h * c3) * s)
                    sixth = h / np.float32(6)
                    x += sixth * (a1 + np.float32(2) * (a2 + a3) + a4)
                    y += sixth * (b1 + np.float32(2) * (b2 + b3) + b4)
                    z += sixth * (c1 + np.float32(2) * (c2 + c3) + c4)
                out[i, j, k, 0], out[i, j, k, 1], out[i, j, k, 2] = x, y, z


@compiled
def render(image, image_origin, image_inverse, coarse, coarse_origin, coarse_inverse, local, local_shape, local_origin,
           local_inverse, out, out_origin, out_spacing):  # fmt: skip
    """Sample an image at positions moved by a coarse displacement and then by local ones, in one pass.

    Parameters
    ----------
    image : float32 (X, Y, Z)
    coarse : float32 (A, B, C, 3)
        Displacement of the subject, in mm.
    local : float32 (total,)
        Displacements of the effects, flattened one after the other, in mm; `local_shape`, `local_origin` and
        `local_inverse` describe the box of each. Effects apply in this order.
    out : float32
        The volume; written. Origins and spacings are in mm; "inverse" is one over the spacing.
    """
    nx, ny, nz = out.shape
    cz = coarse.shape[2]
    line = np.empty((3, cz), np.float32)
    one = np.float32(1)
    for i in range(nx):
        px = out_origin[0] + np.float32(i) * out_spacing
        ci, wi = _cell((px - coarse_origin[0]) * coarse_inverse, coarse.shape[0])
        for j in range(ny):
            py = out_origin[1] + np.float32(j) * out_spacing
            cj, wj = _cell((py - coarse_origin[1]) * coarse_inverse, coarse.shape[1])
            # One bilinear blend per row leaves a linear interpolation per voxel.
            w00, w01, w10, w11 = (one - wi) * (one - wj), (one - wi) * wj, wi * (one - wj), wi * wj
            for k in range(cz):
                for d in range(3):
                    line[d, k] = (
                        w00 * coarse[ci, cj, k, d]
                        + w01 * coarse[ci, cj + 1, k, d]
                        + w10 * coarse[ci + 1, cj, k, d]
                        + w11 * coarse[ci + 1, cj + 1, k, d]
                    )
            for k in range(nz):
                pz = out_origin[2] + np.float32(k) * out_spacing
                ck, wk = _cell((pz - coarse_origin[2]) * coarse_inverse, cz)
                x = px + line[0, ck] + wk * (line[0, ck + 1] - line[0, ck])
                y = py + line[1, ck] + wk * (line[1, ck + 1] - line[1, ck])
                z = pz + line[2, ck] + wk * (line[2, ck + 1] - line[2, ck])
                offset = 0
                for e in range(local_shape.shape[0]):
                    ex, ey, ez = local_shape[e, 0], local_shape[e, 1], local_shape[e, 2]
                    u = (x - local_origin[e, 0]) * local_inverse
                    v = (y - local_origin[e, 1]) * local_inverse
                    w = (z - local_origin[e, 2]) * local_inverse
                    if u > 0 and v > 0 and w > 0 and u < ex - 1 and v < ey - 1 and w < ez - 1:
                        box = local[offset : offset + ex * ey * ez * 3].reshape((ex, ey, ez, 3))
                        a, b, c = _vector_at(box, u, v, w)
                        x, y, z = x + a, y + b, z + c
                    offset += ex * ey * ez * 3
                out[i, j, k] = _scalar_at(
                    image,
                    (x - image_origin[0]) * image_inverse,
                    (y - image_origin[1]) * image_inverse,
                    (z - image_origin[2]) * image_inverse,
                )
