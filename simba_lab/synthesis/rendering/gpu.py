"""Rendering on a GPU: what `Renderer` does per volume, with PyTorch.

The same numbers are drawn (the noise is the same function of the same counters), the same maps
composed and the same image interpolated, so volumes agree with those of the CPU to rounding; only
the CPU promises its bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import conv3d, grid_sample

from simba_lab.core.lattice import FWHM_PER_SIGMA, Lattice
from simba_lab.synthesis.rendering.deformation import chord_corrected
from simba_lab.synthesis.rendering.renderer import Renderer, Subject
from simba_lab.synthesis.rendering.scanner import BACKGROUND, Scanner, field_terms, noise_key

WORD = 0xFFFFFFFF


def gpu_renderer(renderer: Renderer, device: torch.device) -> GPURenderer:
    """Return a renderer whose image and lattices are on a device."""
    image, lattice = renderer.template.antialiased(renderer.scenario.spacing_mm)
    points = renderer.lattice.points_mm()
    arrays = (image[None, None], points, field_terms(points))
    tensors = [_tensor(array, device) for array in arrays]
    return GPURenderer(renderer, device, lattice, *tensors)


def _tensor(array: np.ndarray, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32)).to(device)


@dataclass(frozen=True, eq=False)
class GPURenderer:
    """A renderer's image and lattices on a device.

    Parameters
    ----------
    renderer : Renderer
    device : torch.device
    image_lattice : Lattice
    image : tensor, shape (1, 1, X, Y, Z), on `image_lattice`
    points, terms : tensors, shape (3, ...) and (10, ...)
        Of the output's voxels: positions in mm, and the terms of a bias field at them.
    """

    renderer: Renderer
    device: torch.device
    image_lattice: Lattice
    image: torch.Tensor
    points: torch.Tensor
    terms: torch.Tensor

    def volume(self, subject: Subject) -> np.ndarray:
        """Return the volume of a subject, as `Renderer.volume` does: float32, shape (X, Y, Z)."""
        return self.volume_from(chord_corrected(self.renderer.displacement(subject)), subject)

    @torch.inference_mode()
    def volume_from(self, anatomy: np.ndarray, subject: Subject) -> np.ndarray:
        """Return the volume of a subject whose displacement has been computed."""
        lattice = self.renderer.subject_lattice
        points = self.points + _at(self._as_channels(anatomy), self.points, lattice, "border")
        for displacement, box in self.renderer.effect_displacements(subject):
            points = points + _at(self._as_channels(displacement), points, box, "zeros")
        tissue = _at(self.image, points, self.image_lattice, "border")[0]
        key = noise_key(self.renderer.seed, subject.number)
        return self._signal(tissue, self.renderer.scanner_of(subject), key).cpu().numpy()

    def _as_channels(self, interleaved: np.ndarray) -> torch.Tensor:
        return _tensor(np.moveaxis(interleaved, -1, 0), self.device)[None]

    def _signal(
        self, tissue: torch.Tensor, scanner: Scanner, key: tuple[np.uint32, np.uint32]
    ) -> torch.Tensor:
        if scanner.blur_mm:
            sigma = scanner.blur_mm / FWHM_PER_SIGMA / self.renderer.lattice.spacing_mm
            tissue = _blurred(tissue, sigma)
        contrasted = scanner.pivot + scanner.contrast * (tissue - scanner.pivot)
        signal = contrasted.clamp(min=0) ** scanner.gamma
        log_field = _tensor(np.array(scanner.bias_field), self.device)
        signal = signal * torch.tensordot(log_field, self.terms, dims=1).exp()
        if scanner.noise:
            counter = torch.arange(tissue.numel(), device=self.device)
            first, second = _philox(counter, *(int(word) for word in key))
            radius = scanner.noise * torch.sqrt(-2 * torch.log((first.float() + 0.5) * 2.0**-32))
            across = torch.cos(2 * np.pi * second.float() * 2.0**-32)
            radius, across = radius.view_as(tissue), across.view_as(tissue)
            power = signal * signal + radius * (radius + 2 * signal * across)
            signal = torch.sqrt(power.clamp(min=0))
        return torch.where(tissue > BACKGROUND, signal, tissue)


def _at(
    volume: torch.Tensor, points_mm: torch.Tensor, lattice: Lattice, padding: str
) -> torch.Tensor:
    """Trilinear interpolation of (1, C, X, Y, Z) at positions (3, ...), giving (C, ...)."""
    last = torch.tensor(lattice.shape, device=points_mm.device).view(3, 1, 1, 1) - 1
    origin = torch.tensor(lattice.origin_mm, device=points_mm.device).view(3, 1, 1, 1)
    relative = (points_mm - origin) / lattice.spacing_mm / last * 2 - 1
    grid = relative.flip(0).movedim(0, -1)[None].float()  # grid_sample wants z, y, x
    return grid_sample(volume, grid, mode="bilinear", padding_mode=padding, align_corners=True)[0]


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
    """Philox2x32-10 as in the kernels, in the low words of 64-bit integers that wrap around."""
    low, high, key = counter & WORD, torch.full_like(counter, key_high), key_low
    for _ in range(10):
        product = low * 0xD256D193
        low = ((product >> 32) & WORD) ^ key ^ high
        high = product & WORD
        key = (key + 0x9E3779B9) & WORD
    return low, high
