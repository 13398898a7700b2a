"""Masks of the brain in files: the images that they belong to are 0 around them."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np

from simba_lab.core.errors import TemplateError
from simba_lab.synthesis.anatomy.nifti import read_nifti


def masked_image(path: Path, mask: Path | None, name: str) -> nib.Nifti1Image:
    """Read an image, and set it to 0 where its mask, on the same grid, is below one half."""
    image = read_nifti(path, name)
    if mask is None:
        return image
    brain = read_nifti(mask, f"mask of {name}")
    check_grid(image, brain, mask)
    data = np.where(np.asarray(brain.dataobj) > 0.5, np.asarray(image.dataobj), np.float32(0))
    return nib.Nifti1Image(data, image.affine)


def check_grid(image: nib.Nifti1Image, mask: nib.Nifti1Image, path: Path) -> None:
    """Raise unless the mask in a file has the voxels of its image."""
    shape = image.shape[:3]
    if mask.shape[:3] != shape or not np.allclose(mask.affine, image.affine, atol=1e-3):
        raise TemplateError("mask", str(path), f"on the grid {shape} of its image")
