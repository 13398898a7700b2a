"""Kernel that sums the separable modes of a subject's velocity field."""

from __future__ import annotations

import numpy as np

from simba_lab.synthesis.kernels.compiling import compiled


@compiled
def separable_sum(coefficients, basis_x, basis_y, basis_z, out):
    """Add sum_abc coefficients[d, a, b, c] bx[i, a] by[j, b] bz[k, c] to out[i, j, k, d]."""
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
