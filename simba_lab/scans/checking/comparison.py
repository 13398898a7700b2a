"""How a volume compares with a template: overlap, likeness, shift, side, skull, what is missing."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import fft, ndimage

from simba_lab.synthesis.rendering.scanner import BACKGROUND

# Voxels of which volumes are compared, and by which they are moved: finer ones cost time, and tell
# no more of where a brain lies or which side is which.
COMPARED_MM, MOVED_MM = 4.0, 8.0
# As far as a shift is searched for.
FARTHEST_MM = 40.0
# Around the brain, brighter than this share of white matter, is skull and scalp: nearer, a larger
# brain may reach, and farther, the field of view may end.
AROUND_MM, BRIGHT = (6.0, 18.0), 0.2
# Waves along each axis of the deformations that do not count when sides are compared: the longest
# three, which are those in which people differ most. They are found in rounds, of at most so much.
WAVES = 3
ROUNDS, FARTHEST_DEFORMED_MM = 3, 6.0
# What a template leaves of its own mirror image, as a share: 0.0016 and 0.0041 in the asymmetric
# one (at 8 and 4 mm), 0.0004 in the symmetric one.
LEAST_ASYMMETRY = 0.001
# A brain's slice counts where its area in the template is this share of the largest.
COUNTED = 0.3


@dataclass(frozen=True)
class Measures:
    """What a volume shows of the template's brain.

    Parameters
    ----------
    overlap : float
        Dice of what is brighter than the background, and the template's brain.
    likeness, best_likeness : float
        Correlation with the template in its brain: in place, and where it is greatest.
    skull : float
        Share of bright voxels around the brain.
    asymmetry : float
        By how much the template fits better than its mirror image, as half the logarithm of the
        ratio of squared residuals; NaN if the template is symmetric.
    shift_mm : tuple of float
        How far the brain lies to the right, front and top of the template's.
    turned : str
        ``"y"``, ``"z"`` or ``"yz"`` if the volume is more like the template when it is turned over
        along these axes; otherwise empty.
    flat : tuple of float
        Area of the outermost slice at the left, right, back, front, bottom and top, as a share of
        the template's largest; 0 at a face of the field of view that a shift has moved it to.
    dip : float
        The least brightness of a slice between brighter ones, as a share of theirs.
    """

    overlap: float
    likeness: float
    best_likeness: float
    skull: float
    asymmetry: float
    shift_mm: tuple[float, float, float]
    turned: str
    flat: tuple[float, ...]
    dip: float


class TemplateComparison:
    """A template on the lattice of volumes, to be compared with volume after volume.

    Parameters
    ----------
    reference : ndarray, shape (X, Y, Z)
        The template's T1; its brain is where it exceeds the background.
    spacing_mm : float
        Voxel size.
    """

    def __init__(self, reference: np.ndarray, spacing_mm: float) -> None:
        self._factor = max(1, int(COMPARED_MM / spacing_mm))
        self.spacing_mm = spacing_mm * self._factor
        self._fine = reference > BACKGROUND
        self._white = float(np.percentile(reference[self._fine], 99))
        self._reference = _averaged(reference, self._factor)
        self._brain = self._reference > BACKGROUND
        distance = ndimage.distance_transform_edt(~self._brain) * self.spacing_mm
        self._around = (distance > AROUND_MM[0]) & (distance <= AROUND_MM[1])
        self._wide = distance <= AROUND_MM[0]

    def is_empty(self, volume: np.ndarray) -> bool:
        """Tell whether a volume has fewer than two different values in the template's brain."""
        values = volume[self._fine]
        return not values.size or bool(values.min() == values.max()) or values.max() <= 0

    def measures(self, volume: np.ndarray) -> Measures:
        """Compare a volume, shape (X, Y, Z), that is not empty."""
        bright = self._fine & (volume > 0)
        scaled = volume * (self._white / np.percentile(volume[bright], 99))
        scaled = _averaged(scaled.astype(np.float32), self._factor)
        mask = scaled > BACKGROUND
        common = 2 * np.count_nonzero(mask & self._brain)
        shift, best = self._shift(scaled)
        turned = {
            name: self._shift(np.flip(scaled, axes))[1]
            for name, axes in (("y", 1), ("z", 2), ("yz", (1, 2)))
        }
        likest = max(turned, key=turned.__getitem__)
        # What follows is looked at where the brain lies.
        moved = ndimage.shift(scaled, -shift / self.spacing_mm, order=1)
        inner = moved[self._brain]
        return Measures(
            overlap=common / (np.count_nonzero(mask) + np.count_nonzero(self._brain)),
            likeness=_correlation(scaled[self._brain], self._reference[self._brain]),
            best_likeness=max(best, _correlation(inner, self._reference[self._brain])),
            skull=float(np.mean(moved[self._around] > BRIGHT)),
            asymmetry=self._asymmetry(moved),
            shift_mm=(float(shift[0]), float(shift[1]), float(shift[2])),
            turned=likest if turned[likest] > best else "",
            flat=self._flat(scaled, shift),
            dip=self._dip(moved),
        )

    # -- where it lies --

    @cached_property
    def _search(self) -> tuple[int, list[int], np.ndarray, np.ndarray, float, int]:
        """The template's brain as the kernel of a normalised cross-correlation."""
        factor = max(1, round(MOVED_MM / self.spacing_mm))
        reference = _averaged(self._reference, factor)
        brain = reference > BACKGROUND
        centred = np.where(brain, reference - reference[brain].mean(), 0)
        steps = int(FARTHEST_MM / (self.spacing_mm * factor))
        shape = [fft.next_fast_len(n + steps, real=True) for n in reference.shape]
        kernel, window = (
            np.conj(fft.rfftn(values, shape)) for values in (centred, brain.astype(np.float32))
        )
        return factor, shape, kernel, window, float((centred**2).sum()), int(brain.sum())

    def _shift(self, volume: np.ndarray) -> tuple[np.ndarray, float]:
        """Return where a volume is most like the template, in mm, and the correlation there.

        The correlation is normalised in the moved brain, so that a skull does not count (Padfield
        2012, IEEE Transactions on Image Processing 21(5), with a mask of one image).
        """
        factor, shape, kernel, window, energy, count = self._search
        coarse = _averaged(volume, factor)
        spectrum, squares = (fft.rfftn(values, shape) for values in (coarse, coarse**2))
        product, total, power = (
            fft.irfftn(values, shape)
            for values in (spectrum * kernel, spectrum * window, squares * window)
        )
        variance = np.maximum(power - total**2 / count, 1e-6 * count)
        spacing = self.spacing_mm * factor
        steps = int(FARTHEST_MM / spacing)
        likeness = np.roll(product / np.sqrt(energy * variance), (steps,) * 3, (0, 1, 2))
        likeness = likeness[(slice(2 * steps + 1),) * 3]
        peak = np.unravel_index(likeness.argmax(), likeness.shape)
        offset = [
            _vertex(likeness[(*peak[:axis], slice(None), *peak[axis + 1 :])], int(peak[axis]))
            for axis in range(3)
        ]
        return (np.array(offset) - steps) * spacing, float(likeness[peak])

    # -- which side is which --

    @cached_property
    def _explained(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Voxels of the brain; what the template explains in them, as Q and R; and the waves.

        That is the template itself under smooth deformations, to first order, and under changes of
        contrast and a smooth field of brightness. The deformations are the last columns.
        """
        reference, brain = self._reference, self._brain & self._brain[::-1]
        voxels = np.argwhere(brain)
        low, extent = voxels.min(axis=0), np.ptp(voxels, axis=0) + 1
        x, y, z = (voxels - low + 0.5).T / extent.reshape(3, 1)
        values = reference[brain]
        places = [2 * place - 1 for place in (x, y, z)]
        fields = itertools.combinations_with_replacement([np.ones_like(x), *places], 2)
        columns = [np.ones_like(values), values**2]
        columns += [values * first * second for first, second in fields]
        cosines = [[np.cos(np.pi * n * t) for n in range(WAVES)] for t in (x, y, z)]
        waves = np.stack([np.prod(factors, axis=0) for factors in itertools.product(*cosines)])
        slopes = [slope[brain] for slope in np.gradient(reference)]
        columns += [wave * slope for slope in slopes for wave in waves]
        basis, triangle = np.linalg.qr(np.stack(columns, axis=1).astype(np.float64))
        return np.argwhere(brain).T, basis, triangle, waves

    def _residual(self, volume: np.ndarray) -> float:
        """Return the squares that the template leaves of a volume, deformed towards it, as a share.

        Each round undoes the deformation that the last one found, so that large ones are undone
        too (Gauss and Newton).
        """
        voxels, basis, triangle, waves = self._explained
        places = voxels.astype(np.float64)
        farthest = FARTHEST_DEFORMED_MM / self.spacing_mm
        for _ in range(ROUNDS):
            values = ndimage.map_coordinates(volume, places, order=1).astype(np.float64)
            projected = basis.T @ values
            found = np.linalg.solve(triangle, projected)[-3 * len(waves) :]
            places -= np.clip(found.reshape(3, -1) @ waves, -farthest, farthest)
        return 1 - float(np.sum(projected**2) / np.sum(values**2))

    @cached_property
    def _has_sides(self) -> bool:
        return self._residual(self._reference[::-1]) > LEAST_ASYMMETRY

    def _asymmetry(self, volume: np.ndarray) -> float:
        """Return how much better the template explains a volume than the volume's mirror image."""
        if not self._has_sides:
            return float("nan")
        image, mirrored = (max(self._residual(v), 1e-9) for v in (volume, volume[::-1]))
        return 0.5 * float(np.log(mirrored / image))

    # -- what is missing --

    def _flat(self, volume: np.ndarray, shift_mm: np.ndarray) -> tuple[float, ...]:
        """Return the area of the outermost slice with signal at each of six ends."""
        wide = ndimage.shift(self._wide, shift_mm / self.spacing_mm, order=0)
        bright, ends = (volume > BRIGHT / 2) & wide, []
        for axis in range(3):
            others = tuple({0, 1, 2} - {axis})
            areas = np.count_nonzero(bright, axis=others)
            largest = np.count_nonzero(self._brain, axis=others).max()
            slices = np.flatnonzero(areas > 0.02 * largest)
            for end, face in ((0, 0), (-1, len(areas) - 1)):
                shifted_out = (
                    slices.size and slices[end] == face and np.linalg.norm(shift_mm) > MOVED_MM / 2
                )
                seen = slices.size and not shifted_out
                ends.append(float(areas[slices[end]]) / largest if seen else 0.0)
        return tuple(ends)

    def _dip(self, volume: np.ndarray) -> float:
        """Return the least brightness of a slice relative to the brightest on both its sides."""
        least = 1.0
        for axis in range(3):
            others = tuple({0, 1, 2} - {axis})
            area = np.count_nonzero(self._brain, axis=others)
            counted = area > COUNTED * area.max()
            light = np.where(self._brain, volume, 0).sum(axis=others)[counted]
            share = light / self._reference.sum(axis=others, where=self._brain)[counted]
            before, after = np.maximum.accumulate(share), np.maximum.accumulate(share[::-1])[::-1]
            around = np.minimum(before, after)
            least = min(least, float((share / np.maximum(around, 1e-6)).min()))
        return least


def _averaged(volume: np.ndarray, factor: int) -> np.ndarray:
    """Return means of blocks of voxels; what is left over at the far ends is dropped."""
    if factor == 1:
        return volume
    nx, ny, nz = (n // factor for n in volume.shape)
    cut = volume[: nx * factor, : ny * factor, : nz * factor]
    blocks = cut.reshape(nx, factor, ny, factor, nz, factor)
    return blocks.mean(axis=(1, 3, 5), dtype=np.float32)


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    first, second = first - first.mean(dtype=float), second - second.mean(dtype=float)
    scale = np.sqrt(np.sum(first**2) * np.sum(second**2))
    return float(np.sum(first * second) / scale) if scale > 0 else 0.0


def _vertex(values: np.ndarray, peak: int) -> float:
    """Return the place of the greatest of some values, by a parabola through its neighbours."""
    if not 0 < peak < len(values) - 1:
        return float(peak)
    before, here, after = values[peak - 1 : peak + 2]
    bend = before - 2 * here + after
    return peak + 0.5 * float((before - after) / bend) if bend < 0 else float(peak)
