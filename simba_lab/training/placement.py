"""Where a network looks: its orientation, voxel size and shape, from the lattice of the scans."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import pad

from simba_lab.core.checks import positive, whole_number
from simba_lab.core.errors import SimbaError

# The directions of the axes of a scan, and their opposites.
TOWARDS, AWAY = "RAS", "LPI"


@dataclass(frozen=True)
class Placement:
    """How volumes of the lab's lattice, whose axes go right, anterior, superior, are placed.

    First axes are exchanged and turned, then voxels are resampled linearly around the middle, then
    volumes are padded with 0 or cropped on both sides.

    Parameters
    ----------
    orientation : str
        Where the axes of the network go, such as ``"LPS"``.
    steps : tuple of float, optional
        Voxel size of the network, in voxels of the scans, along the axes of the network.
    shape : tuple of int, optional
        Of the network's volumes.
    expected : tuple of int, optional
        Shape of the scans, if the steps hold for no other.
    """

    orientation: str = TOWARDS
    steps: tuple[float, float, float] | None = None
    shape: tuple[int, int, int] | None = None
    expected: tuple[int, int, int] | None = None

    @property
    def axes(self) -> list[int]:
        """The axis of the scans that each axis of the network goes along."""
        return [(TOWARDS if code in TOWARDS else AWAY).index(code) for code in self.orientation]

    @property
    def turned(self) -> list[int]:
        """The axes, as `torch.flip` counts them, along which the network looks the other way."""
        return [2 + axis for axis, code in enumerate(self.orientation) if code in AWAY]

    def to_network(self, volumes: torch.Tensor, *, nearest: bool = False) -> torch.Tensor:
        """Return volumes (N, C, X, Y, Z) of the scans as the network sees them."""
        if self.expected not in (None, tuple(volumes.shape[2:])):
            remedy = "Adapt the network for this cohort: adapt(model, ..., cohort=cohort)."
            allowed = f"of shape {self.expected}, the lattice that the network was adapted to"
            raise SimbaError("volumes", tuple(volumes.shape[2:]), allowed, remedy)
        placed = volumes.permute(0, 1, *(2 + axis for axis in self.axes))
        placed = placed.flip(self.turned) if self.turned else placed
        before = tuple(placed.shape[2:])
        after = self._after(before)
        if self.steps is None:
            return _cropped(placed, before, after).contiguous()
        return _resampled(placed, after, self.steps, nearest)

    def to_scans(self, maps: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        """Return maps (N, C, ...) on the network's lattice on that of scans of this shape."""
        before = tuple(shape[axis] for axis in self.axes)
        if self.steps is None:
            after = self._after(before)
            pads = [-size for size in _pads(before, after)]
            maps = pad(maps, pads)
        else:
            inverse = tuple(1 / step for step in self.steps)
            maps = _resampled(maps, before, inverse, nearest=False)
        maps = maps.flip(self.turned) if self.turned else maps
        return maps.permute(0, 1, *(2 + self.axes.index(axis) for axis in range(3))).contiguous()

    def _after(self, before: tuple[int, ...]) -> tuple[int, ...]:
        if self.shape is not None:
            return self.shape
        steps = self.steps or (1.0,) * 3
        return tuple(max(1, round(n / step)) for n, step in zip(before, steps, strict=True))


def placement_of(
    orientation: str | None,
    spacing_mm: float | Sequence[float] | None,
    shape: Sequence[int] | None,
    lattice_mm: float | None,
    lattice_shape: tuple[int, int, int] | None,
) -> Placement:
    """Return how volumes are placed; `lattice_mm` and `lattice_shape` are those of the scans.

    Raises
    ------
    SimbaError
        If a code, a size or a shape is none, or the lattice of the scans is not known.
    """
    orientation = _code(orientation)
    size = None
    if shape is not None:
        x, y, z = (whole_number(f"shape[{axis}]", n) for axis, n in enumerate(shape))
        size = x, y, z
    if spacing_mm is None:
        return Placement(orientation, None, size)
    sizes = list(spacing_mm) if isinstance(spacing_mm, Sequence) else [spacing_mm] * 3
    first, second, third = (positive("spacing_mm", value) for value in sizes)
    if lattice_mm is None:
        remedy = "Name scans that it will judge: adapt(model, spacing_mm=..., cohort=cohort)."
        raise SimbaError("cohort", None, "a cohort, whose voxel size is known", remedy)
    steps = first / lattice_mm, second / lattice_mm, third / lattice_mm
    if all(abs(step - 1) < 1e-6 for step in steps):
        return Placement(orientation, None, size, lattice_shape)
    return Placement(orientation, steps, size, lattice_shape)


def _code(orientation: str | None) -> str:
    """Return the code of an orientation, such as ``"LPS"``; that of the scans for None."""
    if orientation is None:
        return TOWARDS
    code = orientation.upper()
    axes = {(TOWARDS if letter in TOWARDS else AWAY).find(letter) for letter in code}
    if len(code) != 3 or axes != {0, 1, 2}:
        allowed = "three letters, one each of R or L, A or P, and S or I, such as 'LPS'"
        remedy = "Each says where an axis of the network's volumes goes; nibabel.aff2axcodes too."
        raise SimbaError("orientation", orientation, allowed, remedy)
    return code


def _pads(before: Sequence[int], after: Sequence[int]) -> list[int]:
    """Return what `pad` is given, from the last axis to the first: negative where it crops.

    An odd voxel lies on the same side as in MONAI's ``ResizeWithPadOrCrop``.
    """
    pads: list[int] = []
    for old, new in zip(reversed(before), reversed(after), strict=True):
        first = (new - old) // 2 if new >= old else new // 2 - old // 2
        pads += [first, new - old - first]
    return pads


def _cropped(volumes: torch.Tensor, before: Sequence[int], after: Sequence[int]) -> torch.Tensor:
    pads = _pads(before, after)
    return pad(volumes, pads) if any(pads) else volumes


def _resampled(
    volumes: torch.Tensor, after: Sequence[int], steps: Sequence[float], nearest: bool
) -> torch.Tensor:
    """Sample volumes at `after` points around their middle, `steps` of their voxels apart.

    Trilinear interpolation is one of each axis after the other. Products of matrices, unlike
    PyTorch's ``grid_sample``, have the same derivative each time on a GPU.
    """
    for axis, (count, step) in enumerate(zip(after, steps, strict=True)):
        weights = _weights(volumes.shape[2 + axis], count, step, nearest).to(volumes)
        moved = volumes.movedim(2 + axis, -1) @ weights.T
        volumes = moved.movedim(-1, 2 + axis)
    return volumes.contiguous()


def _weights(before: int, after: int, step: float, nearest: bool) -> torch.Tensor:
    """Return the matrix (after, before) of an interpolation; beyond the ends everything is 0."""
    points = torch.arange(after, dtype=torch.float64)
    position = (points - (after - 1) / 2) * step + (before - 1) / 2
    position = torch.floor(position + 0.5) if nearest else position
    distance = (position[:, None] - torch.arange(before, dtype=torch.float64)).abs()
    return (1 - distance).clamp(min=0)
