"""Kernels that interpolate: composition and flows of displacements, and sampling of an image.

Displacements are stored interleaved, shape (X, Y, Z, 3), in mm; positions outside a lattice take
its border values. Arithmetic is float32 in a fixed order, so results do not depend on the number of
threads. Kernels are serial and release the interpreter lock: threads work on different volumes.
"""

from __future__ import annotations

import numpy as np

from simba_lab.synthesis.kernels.compiling import compiled, inlined


@inlined
def _cell(position, size):
    """Lower corner and fraction of the cell of a position in voxels, clamped to the lattice."""
    clamped = min(max(position, np.float32(0)), np.float32(size - 1))
    corner = min(int(clamped), size - 2)
    return corner, clamped - np.float32(corner)


@inlined
def _vector_at(vectors, x, y, z):
    """Trilinear interpolation of an interleaved vector field at a position in voxels."""
    i, fx = _cell(x, vectors.shape[0])
    j, fy = _cell(y, vectors.shape[1])
    k, fz = _cell(z, vectors.shape[2])
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
        a += weight * vectors[p, q, r, 0]
        b += weight * vectors[p, q, r, 1]
        c += weight * vectors[p, q, r, 2]
    return a, b, c


@inlined
def _curved_at(vectors, curvature, x, y, z):
    """`_vector_at` less its leading error, which is t (1 - t) h^2 v'' / 2 between nodes."""
    a, b, c = _vector_at(vectors, x, y, z)
    i, fx = _cell(x, vectors.shape[0])
    j, fy = _cell(y, vectors.shape[1])
    k, fz = _cell(z, vectors.shape[2])
    half, one = np.float32(0.5), np.float32(1)
    near = curvature[i + (fx > half), j + (fy > half), k + (fz > half)]
    tx, ty, tz = fx * (one - fx), fy * (one - fy), fz * (one - fz)
    a -= tx * near[0] + ty * near[3] + tz * near[6]
    b -= tx * near[1] + ty * near[4] + tz * near[7]
    c -= tx * near[2] + ty * near[5] + tz * near[8]
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
def first_step(velocity, curvature, inverse_spacing, h, out):
    """Displacement of every lattice point after one midpoint step: h v(x + h v(x) / 2)."""
    s = np.float32(0.5) * h * inverse_spacing
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            for k in range(out.shape[2]):
                x = np.float32(i) + s * velocity[i, j, k, 0]
                y = np.float32(j) + s * velocity[i, j, k, 1]
                z = np.float32(k) + s * velocity[i, j, k, 2]
                a, b, c = _curved_at(velocity, curvature, x, y, z)
                out[i, j, k, 0], out[i, j, k, 1], out[i, j, k, 2] = h * a, h * b, h * c


@compiled
def flow(velocity, curvature, inverse_spacing, h, steps, out):
    """Carry displaced lattice points (`out`, in place) along a velocity by midpoint steps h."""
    half, s = np.float32(0.5) * h, inverse_spacing
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            for k in range(out.shape[2]):
                fi, fj, fk = np.float32(i), np.float32(j), np.float32(k)
                x, y, z = out[i, j, k, 0], out[i, j, k, 1], out[i, j, k, 2]
                for _ in range(steps):
                    a, b, c = _curved_at(velocity, curvature, fi + x * s, fj + y * s, fk + z * s)
                    a, b, c = _curved_at(
                        velocity,
                        curvature,
                        fi + (x + half * a) * s,
                        fj + (y + half * b) * s,
                        fk + (z + half * c) * s,
                    )
                    x, y, z = x + h * a, y + h * b, z + h * c
                out[i, j, k, 0], out[i, j, k, 1], out[i, j, k, 2] = x, y, z


@inlined
def _extent(
    line,
    px,
    py,
    oz,
    shift_origin_z,
    shift_spacing,
    near,
    near_origin,
    near_inverse,
    out_inverse,
    nz,
):
    """First and one past the last voxel of a row that can hold brain, given its displacements."""
    cz = line.shape[1]
    first, last = cz, -1
    for k in range(cz):
        x = (px + line[0, k] - near_origin[0]) * near_inverse
        y = (py + line[1, k] - near_origin[1]) * near_inverse
        z = (
            shift_origin_z + np.float32(k) * shift_spacing + line[2, k] - near_origin[2]
        ) * near_inverse
        a = min(max(int(x + np.float32(0.5)), 0), near.shape[0] - 1)
        b = min(max(int(y + np.float32(0.5)), 0), near.shape[1] - 1)
        c = min(max(int(z + np.float32(0.5)), 0), near.shape[2] - 1)
        if near[a, b, c]:
            first = min(first, k)
            last = k
    low = (shift_origin_z + np.float32(first - 1) * shift_spacing - oz) * out_inverse
    high = (shift_origin_z + np.float32(last + 1) * shift_spacing - oz) * out_inverse
    if last < 0:
        return 0, 0
    return (
        0 if first == 0 else min(max(int(np.floor(low)), 0), nz),
        nz if last == cz - 1 else min(max(int(np.ceil(high)) + 1, 0), nz),
    )


@compiled
def sample(
    image,
    image_origin,
    image_inverse,
    shift,
    shift_origin,
    shift_inverse,
    local,
    local_shape,
    local_origin,
    local_inverse,
    near,
    near_origin,
    near_inverse,
    out,
    out_origin,
    out_spacing,
):
    """Sample an image at positions moved by one displacement and then by local ones.

    Rows are cut to positions near the image: `near` is a mask on a lattice of its own, and empty if
    all of `out` is wanted. Voxels that are cut off keep their value.

    Parameters
    ----------
    image : float32 (X, Y, Z)
    shift : float32 (A, B, C, 3)
        Displacement of the subject, in mm.
    local : float32 (total,)
        Displacements of the effects, flattened one after the other, in mm; `local_shape`,
        `local_origin` and `local_inverse` describe the box of each. Effects apply in this order.
    out : float32
        The volume; written. Origins and spacings are in mm; "inverse" is one over the spacing.
    """
    nx, ny, nz = out.shape
    cz = shift.shape[2]
    line = np.empty((3, cz), np.float32)
    one = np.float32(1)
    shift_spacing, out_inverse = one / shift_inverse, one / out_spacing
    for i in range(nx):
        px = out_origin[0] + np.float32(i) * out_spacing
        ci, wi = _cell((px - shift_origin[0]) * shift_inverse, shift.shape[0])
        for j in range(ny):
            py = out_origin[1] + np.float32(j) * out_spacing
            cj, wj = _cell((py - shift_origin[1]) * shift_inverse, shift.shape[1])
            # One bilinear blend per row leaves a linear interpolation per voxel.
            w00, w01, w10, w11 = (one - wi) * (one - wj), (one - wi) * wj, wi * (one - wj), wi * wj
            for k in range(cz):
                for d in range(3):
                    line[d, k] = (
                        w00 * shift[ci, cj, k, d]
                        + w01 * shift[ci, cj + 1, k, d]
                        + w10 * shift[ci + 1, cj, k, d]
                        + w11 * shift[ci + 1, cj + 1, k, d]
                    )
            begin, end = 0, nz
            if near.size:
                begin, end = _extent(
                    line,
                    px,
                    py,
                    out_origin[2],
                    shift_origin[2],
                    shift_spacing,
                    near,
                    near_origin,
                    near_inverse,
                    out_inverse,
                    nz,
                )
            for k in range(begin, end):
                pz = out_origin[2] + np.float32(k) * out_spacing
                ck, wk = _cell((pz - shift_origin[2]) * shift_inverse, cz)
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
