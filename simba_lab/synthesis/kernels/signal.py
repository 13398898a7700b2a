"""Kernel of the scanner: from tissue to signal, voxel by voxel, in place."""

from __future__ import annotations

import numpy as np

from simba_lab.synthesis.kernels.compiling import compiled, inlined


@inlined
def _philox(counter, key_low, key_high):
    """Two random 32-bit words of Philox2x32-10 (Salmon et al. 2011), with a key of 64 bits."""
    low, high, key = np.uint32(counter), np.uint32(key_high), np.uint32(key_low)
    for _ in range(10):
        product = np.uint64(0xD256D193) * np.uint64(low)
        low = np.uint32(product >> np.uint64(32)) ^ key ^ high
        high = np.uint32(product & np.uint64(0xFFFFFFFF))
        key = np.uint32(key + np.uint32(0x9E3779B9))
    return low, high


@compiled
def to_signal(
    volume,
    background,
    pivot,
    contrast,
    gamma,
    log_field,
    origin,
    spacing,
    deviation,
    key_low,
    key_high,
):
    """Turn tissue into signal, in place: contrast, gamma, bias field, Rician noise.

    The noise of a voxel depends on the key and on the voxel alone: not on what else was drawn, nor
    on the anatomy.
    """
    nx, ny, nz = volume.shape
    shaped = contrast != np.float32(1)
    bent = gamma != np.float32(1)
    fielded = False
    for value in log_field:
        fielded |= value != 0
    noisy = deviation > 0
    unit, two, zero = np.float32(2.0**-32), np.float32(2), np.float32(0)
    turn = np.float32(2 * np.pi)
    for i in range(nx):
        x = (origin[0] + np.float32(i) * spacing) * np.float32(0.01)
        for j in range(ny):
            y = (origin[1] + np.float32(j) * spacing) * np.float32(0.01)
            # Along a row the log of the bias field is a parabola in z.
            constant = (
                log_field[0]
                + x * (log_field[1] + log_field[4] * x + log_field[7] * y)
                + y * (log_field[2] + log_field[5] * y)
            )
            linear = log_field[3] + log_field[8] * x + log_field[9] * y
            row = volume[i, j]
            for k in range(nz):
                signal = row[k]
                if signal <= background:
                    continue
                if shaped:
                    signal = max(pivot + contrast * (signal - pivot), zero)
                if bent:
                    signal = signal**gamma
                if fielded:
                    z = (origin[2] + np.float32(k) * spacing) * np.float32(0.01)
                    signal *= np.exp(constant + z * (linear + log_field[6] * z))
                if noisy:
                    first, second = _philox((i * ny + j) * nz + k, key_low, key_high)
                    # Box and Muller (1958): a complex Gaussian in polar form; its magnitude on top
                    # of a signal is Rician.
                    radius = deviation * np.sqrt(
                        -two * np.log((np.float32(first) + np.float32(0.5)) * unit)
                    )
                    across = np.cos(turn * np.float32(second) * unit)
                    signal = np.sqrt(
                        max(signal * signal + radius * (radius + two * signal * across), zero)
                    )
                row[k] = signal
