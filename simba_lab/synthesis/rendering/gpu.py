"""Rendering on a GPU: what `studio` does per volume, with PyTorch. The coarse fields still come from the CPU.

The same numbers are drawn (the noise is the same function of the same counters), the same maps
composed and the same image interpolated, so volumes agree with those of the CPU to rounding; only
the CPU promises its bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import conv3d, grid_sample

from simba_lab.core.lattice import FWHM_PER_SIGMA, Lattice
from simba_lab.synthesis.rendering.deformation import evened
from simba_lab.synthesis.rendering.scanner import BACKGROUND, Scanner, noise_key, terms
from simba_lab.synthesis.rendering.studio import Studio

WORD = 0xFFFFFFFF


def darkroom(studio: Studio, device: torch.device) -> Darkroom:
    """Return the darkroom of a studio on a device."""
    image, lattice = studio.template.antialiased(studio.scenario.spacing_mm)
    points = studio.output.points_mm()
    tensors = (_tensor(array, device) for array in (image[None, None], points, terms(points)))
    image, points, field_terms = tensors
    return Darkroom(studio, device, image, lattice, points, field_terms)


def _tensor(array: np.ndarray, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32)).to(device)


@dataclass(frozen=True, eq=False)
class Darkroom:
    """A studio's images and lattices on a device.

    Parameters
    ----------
    studio : Studio
    device : torch.device
    image : tensor, shape (1, 1, X, Y, Z), on `image_lattice`
    points, terms : tensors, shape (3, ...) and (10, ...)
        Of the output's voxels: positions in mm, and the terms of a bias field there.
    """

    studio: Studio
    device: torch.device
    image: torch.Tensor
    image_lattice: Lattice
    points: torch.Tensor
    terms: torch.Tensor

    def exposed(
        self, subject: int, leading: np.ndarray, magnitudes: Mapping[str, float]
    ) -> np.ndarray:
        """Return the image of a subject, as `Studio.exposed` does: float32, shape (X, Y, Z)."""
        return self.developed(
            subject, evened(self.studio.displacement(subject, leading)), magnitudes
        )

    @torch.inference_mode()
    def developed(
        self, subject: int, coarse: np.ndarray, magnitudes: Mapping[str, float]
    ) -> np.ndarray:
        """Return the image of a subject whose coarse displacement has been computed."""
        points = self.points + _at(self._field(coarse), self.points, self.studio.subject, "border")
        flows = self.studio.flows
        shown = [
            (flows[name], value) for name, value in magnitudes.items() if value and name in flows
        ]
        for flow, value in reversed(shown):
            points = points + _at(self._field(flow.at(value)), points, flow.lattice, "zeros")
        tissue = _at(self.image, points, self.image_lattice, "border")[0]
        scanner = self.studio.settings(subject, magnitudes)
        return self._signal(tissue, scanner, noise_key(self.studio.seed, subject)).cpu().numpy()

    def _field(self, interleaved: np.ndarray) -> torch.Tensor:
        return _tensor(np.moveaxis(interleaved, -1, 0), self.device)[None]

    def _signal(
        self, tissue: torch.Tensor, scanner: Scanner, key: tuple[np.uint32, np.uint32]
    ) -> torch.Tensor:
        if scanner.blur_mm:
            tissue = _blurred(
                tissue, scanner.blur_mm / FWHM_PER_SIGMA / self.studio.output.spacing_mm
            )
        signal = (scanner.pivot + scanner.contrast * (tissue - scanner.pivot)).clamp(
            min=0
        ) ** scanner.gamma
        signal = (
            signal
            * torch.tensordot(
                _tensor(np.array(scanner.field), self.device), self.terms, dims=1
            ).exp()
        )
        if scanner.noise:
            first, second = _philox(
                torch.arange(tissue.numel(), device=self.device), *(int(word) for word in key)
            )
            radius = scanner.noise * torch.sqrt(-2 * torch.log((first.float() + 0.5) * 2.0**-32))
            across = torch.cos(2 * np.pi * second.float() * 2.0**-32)
            radius, across = radius.view_as(tissue), across.view_as(tissue)
            signal = torch.sqrt(
                (signal * signal + radius * (radius + 2 * signal * across)).clamp(min=0)
            )
        return torch.where(tissue > BACKGROUND, signal, tissue)


def _at(
    volume: torch.Tensor, points_mm: torch.Tensor, lattice: Lattice, outside: str
) -> torch.Tensor:
    """Trilinear interpolation of (1, C, X, Y, Z) at positions (3, ...), giving (C, ...)."""
    last = torch.tensor(lattice.shape, device=points_mm.device).view(3, 1, 1, 1) - 1
    origin = torch.tensor(lattice.origin_mm, device=points_mm.device).view(3, 1, 1, 1)
    relative = (points_mm - origin) / lattice.spacing_mm / last * 2 - 1
    grid = relative.flip(0).movedim(0, -1)[None].float()  # grid_sample wants z, y, x
    return grid_sample(volume, grid, mode="bilinear", padding_mode=outside, align_corners=True)[0]


def _blurred(volume: torch.Tensor, sigma: float) -> torch.Tensor:
    reach = int(3.0 * sigma + 0.5)
    offsets = torch.arange(-reach, reach + 1, device=volume.device, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = kernel / kernel.sum()
    for axis in range(3):
        shape, padding = [1, 1, 1], [0, 0, 0]
        shape[axis], padding[axis] = len(kernel), reach
        volume = conv3d(volume[None, None], kernel.view(1, 1, *shape), padding=padding)[0, 0]
    return volume


def _philox(
    counter: torch.Tensor, key_low: int, key_high: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Philox2x32-10 as in the kernels: 64-bit integers wrap around, of which the wanted words are kept."""
    low, high, key = counter & WORD, torch.full_like(counter, key_high), key_low
    for _ in range(10):
        product = low * 0xD256D193
        low = ((product >> 32) & WORD) ^ key ^ high
        high = product & WORD
        key = (key + 0x9E3779B9) & WORD
    return low, high
