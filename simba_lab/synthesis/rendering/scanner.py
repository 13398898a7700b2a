"""From tissue to signal: blur, contrast, gamma, receive field and Rician noise, in this order."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from scipy.ndimage import gaussian_filter

from simba_lab.core.border import checks_arguments
from simba_lab.core.errors import SimbaError
from simba_lab.core.lattice import FWHM_PER_SIGMA, Lattice
from simba_lab.core.rng import stream
from simba_lab.synthesis.anatomy.template import Template
from simba_lab.synthesis.effects import Intensity
from simba_lab.synthesis.kernels import signal as _kernels

# Intensity, as a share of white matter, up to which a voxel counts as outside the brain.
BACKGROUND = 0.02
# Terms of the log of a bias field in units of 100 mm: 1, x, y, z, xx, yy, zz, xy, xz, yz.
TERMS = 10
# A receive coil that is closer to the front, the right and the top: equal weights of the linear and
# squared terms.
COIL = np.array([1, 1, 1, 1, 1, 1, 0, 0, 0]) / np.sqrt(6)


@checks_arguments
@dataclass(frozen=True)
class Scanner:
    """The settings of one scan.

    Parameters
    ----------
    noise : float
        Standard deviation of the Rician noise, as a share of white matter.
    contrast : float
        Factor on the distance of an intensity from `pivot`.
    gamma : float
        Exponent of the intensity.
    blur_mm : float
        Full width at half maximum of the point-spread function, over that of the voxel.
    bias_field : tuple of float
        Ten coefficients of the log of the bias field (see `TERMS`); all 0 for a flat field.
    pivot : float
        Mean intensity of the template's brain.

    Examples
    --------
    >>> import numpy as np
    >>> import simba_lab as sb
    >>> lattice = sb.core.Lattice((2, 2, 2), 4.0, (0.0, 0.0, 0.0))
    >>> tissue = np.full(lattice.shape, 0.8, np.float32)
    >>> scanner = sb.synthesis.Scanner(contrast=2.0)
    >>> scanner.signal(tissue, lattice, sb.synthesis.noise_key(0, 0))[0, 0].round(2)
    array([1.1, 1.1], dtype=float32)
    """

    noise: float = 0.0
    contrast: float = 1.0
    gamma: float = 1.0
    blur_mm: float = 0.0
    bias_field: tuple[float, ...] = (0.0,) * TERMS
    pivot: float = 0.5

    def with_effect(self, effect: Intensity, magnitude: float, template: Template) -> Scanner:
        """Return the settings with an intensity effect added at some magnitude."""
        amount = effect.strength * magnitude
        added = max(0.0, amount)
        match effect.kind:
            case "contrast":
                return replace(self, contrast=self.contrast * (1 + effect.strength) ** magnitude)
            case "gamma":
                return replace(self, gamma=self.gamma * (1 + effect.strength) ** magnitude)
            case "noise":
                return replace(self, noise=float(np.hypot(self.noise, added)))
            case "blur":
                return replace(self, blur_mm=float(np.hypot(self.blur_mm, added)))
            case "bias_field":
                log_field = np.asarray(self.bias_field) + amount * COIL @ field_basis(template)
                return replace(self, bias_field=tuple(log_field.tolist()))
        raise SimbaError("kind", effect.kind, "an intensity effect")

    def signal(
        self, tissue: np.ndarray, lattice: Lattice, key: tuple[np.uint32, np.uint32]
    ) -> np.ndarray:
        """Return the signal of tissue (white matter about 1, background 0), which may change.

        Parameters
        ----------
        tissue : ndarray of float32, shape (X, Y, Z), on `lattice`
        key : pair of uint32
            Identifies the noise, from `noise_key`.

        Returns
        -------
        ndarray of float32, shape (X, Y, Z)
        """
        if self.blur_mm:
            sigma = self.blur_mm / FWHM_PER_SIGMA / lattice.spacing_mm
            tissue = gaussian_filter(tissue, sigma, mode="constant", truncate=3.0)
        _kernels.to_signal(
            tissue,
            np.float32(BACKGROUND),
            np.float32(self.pivot),
            np.float32(self.contrast),
            np.float32(self.gamma),
            np.array(self.bias_field, np.float32),
            np.array(lattice.origin_mm, np.float32),
            np.float32(lattice.spacing_mm),
            np.float32(self.noise),
            *key,
        )
        return tissue

    def signal_at(
        self, tissue: np.ndarray, points_mm: np.ndarray, generator: np.random.Generator
    ) -> np.ndarray:
        """Return the signal of tissue at any positions, without blur: for scans with another grid.

        Parameters
        ----------
        tissue : ndarray, any shape
            White matter about 1, background 0.
        points_mm : ndarray, shape (3, ...)
            Positions in template millimetres.
        generator : numpy.random.Generator
            Draws the noise.
        """
        tissue = np.asarray(tissue, float)
        contrasted = np.maximum(self.pivot + self.contrast * (tissue - self.pivot), 0)
        signal = contrasted**self.gamma
        signal = signal * np.exp(np.tensordot(self.bias_field, field_terms(points_mm), axes=1))
        if self.noise:
            real, imaginary = self.noise * generator.standard_normal((2, *tissue.shape))
            signal = np.hypot(signal + real, imaginary)
        return np.where(tissue > BACKGROUND, signal, tissue)


@lru_cache(maxsize=4)
def field_basis(template: Template) -> np.ndarray:
    """Return nine smooth receive fields as coefficients of the ten terms, shape (9, 10).

    Over the brain each has mean 0 and variance 1, and they are uncorrelated: coefficients with a
    sum of squares of s^2 make a field whose log has the standard deviation s.

    Examples
    --------
    >>> import simba_lab as sb
    >>> sb.synthesis.field_basis(sb.load_template()).shape
    (9, 10)
    """
    voxels = np.argwhere(template.brain)[::50]
    points = voxels * template.lattice.spacing_mm + template.lattice.origin_mm
    q, r = np.linalg.qr(field_terms(points.T).T)
    signs = np.sign(np.diag(r))
    # terms = q r, so q = terms r^-1; the first column of q is constant, which makes the others mean
    # 0.
    return (np.linalg.inv(r) * signs * np.sqrt(len(q))).T[1:]


def field_terms(points_mm: np.ndarray) -> np.ndarray:
    """Return the terms of a bias field at positions of shape (3, ...): shape (10, ...)."""
    x, y, z = np.asarray(points_mm) / 100
    return np.stack([np.ones_like(x), x, y, z, x * x, y * y, z * z, x * y, x * z, y * z])


def noise_key(seed: int, subject: int | str) -> tuple[np.uint32, np.uint32]:
    """Return the key of a subject's noise: 64 bits of its own stream.

    Examples
    --------
    >>> import simba_lab as sb
    >>> sb.synthesis.noise_key(0, 7) == sb.synthesis.noise_key(0, 7)
    True
    """
    words = stream(seed, subject, "noise").integers(0, 2**32, 2, dtype=np.uint32)
    return words[0], words[1]
