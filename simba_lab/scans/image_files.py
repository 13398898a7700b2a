"""Volumes of somebody else's images: read when asked for, brought to the lattice of a template, scaled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nilearn.image import resample_img, smooth_img

from simba_lab.core.errors import TemplateError, UnknownNameError
from simba_lab.core.lattice import Lattice
from simba_lab.synthesis.anatomy.nifti import open_nifti, read_nifti
from simba_lab.synthesis.anatomy.template import Template, check_spacing
from simba_lab.synthesis.rendering.scanner import BACKGROUND

ALIGNMENTS = ("world", "centre")
# An image whose voxels cover less of the template's brain than this is in another space.
LEAST_COVER = 0.5


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """Volumes of people, read from their files when asked for and brought to one lattice. Made by `image_files`.

    An image is smoothed as voxels of the lattice would blur it, less the blur already there (as
    `Template.antialiased` does), sampled linearly at the points of the lattice through its affine,
    clipped at 0 and scaled. Nothing is registered or skull-stripped: bring the images to the space
    of the template first.

    Parameters
    ----------
    paths : mapping of int to path
        The file of each subject.
    lattice : Lattice
        Where the voxels of the volumes are.
    reference : ndarray of float32, shape (X, Y, Z)
        The template's T1 on that lattice; its brain is where it exceeds the background.
    centre_mm : ndarray, shape (3,), optional
        Where the centre of intensity of each image is moved to; positions are taken as they are
        stated without it.
    rescale : bool
        Whether each image's 99th percentile in the brain is scaled to that of the reference, about
        1.
    identity : dict
        What the volumes follow from.
    switches : dict
        Empty: nothing is switched on or off in these images.
    """

    paths: Mapping[int, Path]
    lattice: Lattice
    reference: np.ndarray
    centre_mm: np.ndarray | None
    rescale: bool
    identity: dict[str, Any]
    switches: dict[str, bool] = field(default_factory=dict)

    def array(self, subject: int) -> np.ndarray:
        """Return the volume of one subject: float32, shape (X, Y, Z).

        Raises
        ------
        TemplateError
            If the file is damaged or shows nothing where the template has its brain.
        """
        path, name = self.paths[int(subject)], f"image of subject {subject}"
        image = read_nifti(path, name)
        if self.centre_mm is not None:
            shift = nib.affines.from_matvec(
                np.eye(3), self.centre_mm - _centre_mm(image, path, name)
            )
            image = nib.Nifti1Image(image.dataobj, shift @ image.affine)
        volume = np.maximum(_on_lattice(image, self.lattice), 0)
        brain = self.reference > BACKGROUND
        shown = brain & (volume > 0)
        if not shown.any():
            raise TemplateError(
                name,
                str(path),
                "an image that is brighter than 0 where the template has its brain",
                "It is empty or in another space; align='centre' moves it there.",
            )
        if self.rescale:
            volume *= np.percentile(self.reference[brain], 99) / np.percentile(volume[shown], 99)
        return volume


def image_files(
    paths: Mapping[int, Path],
    template: Template,
    *,
    spacing_mm: float = 4.0,
    align: str = "world",
    rescale: bool = True,
    table: str = "",
) -> ImageFiles:
    """Open every file without reading its voxels, and return the volumes to come.

    Parameters
    ----------
    paths : mapping of int to path
        The file of each subject.
    template : Template
        Whose field of view, space and brain are used.
    spacing_mm : float
        Voxel size of the volumes.
    align : {"world", "centre"}
        Take positions as the affines state them, or move each image's centre of intensity to the
        template's.
    rescale : bool
        Whether to scale each image so that the 99th percentile in the template's brain is the
        template's. This removes differences in overall brightness, wanted or not.
    table : str
        The table of the subjects: another table makes another identity.

    Raises
    ------
    TemplateError
        If a file is missing, is not what it claims, or lies elsewhere than the template.
    """
    if align not in ALIGNMENTS:
        raise UnknownNameError.among("align", align, ALIGNMENTS)
    lattice = template.output_lattice(check_spacing(spacing_mm))
    reference = _reference(template, lattice)
    brain_mm = nib.affines.apply_affine(lattice.affine, np.argwhere(reference > BACKGROUND))
    digest = blake2b(table.encode(), digest_size=16)
    for subject, path in paths.items():
        image = open_nifti(path, f"image of subject {subject}")
        voxels = nib.affines.apply_affine(np.linalg.inv(image.affine), brain_mm)
        cover = ((voxels > -0.5) & (voxels < np.array(image.shape[:3]) - 0.5)).all(axis=1).mean()
        if align == "world" and cover < LEAST_COVER:
            raise TemplateError(
                f"image of subject {subject}",
                str(path),
                f"in the space of the template {template.name!r}",
                f"It covers {cover:.0%} of the template's brain. Register it first, or use align='centre'.",
            )
        status = path.stat()
        digest.update(repr((subject, path.name, status.st_size, status.st_mtime_ns)).encode())
    identity = {
        "files": digest.hexdigest(),
        "template": template.name,
        "spacing_mm": lattice.spacing_mm,
        "align": align,
        "rescale": bool(rescale),
    }
    centre = _centre_mm(template.image(), template.name, "template") if align == "centre" else None
    return ImageFiles(dict(paths), lattice, reference, centre, bool(rescale), identity)


@lru_cache(maxsize=4)
def _reference(template: Template, lattice: Lattice) -> np.ndarray:
    reference = _on_lattice(template.image(), lattice)
    reference.setflags(write=False)
    return reference


def _on_lattice(image: nib.Nifti1Image, lattice: Lattice) -> np.ndarray:
    """Sample an image at the points of a lattice; along each of its axes it is smoothed first if its voxels are smaller."""
    edges = np.linalg.norm(image.affine[:3, :3], axis=0)
    missing = lattice.spacing_mm**2 - edges**2
    # Voxels that agree to a thousandth are the same: nothing is smoothed on a round trip.
    fwhm = np.sqrt(np.where(missing > 1e-3 * lattice.spacing_mm**2, missing, 0.0))
    if fwhm.any():
        image = smooth_img(image, fwhm)
    sampled = resample_img(
        image,
        target_affine=lattice.affine,
        target_shape=lattice.shape,
        interpolation="linear",
        copy_header=True,
    )
    return np.array(sampled.dataobj, dtype=np.float32)


def _centre_mm(image: nib.Nifti1Image, path: object, name: str) -> np.ndarray:
    weights = np.maximum(np.asarray(image.dataobj, dtype=np.float32), 0)
    sides = [weights.sum(axis=tuple({0, 1, 2} - {axis}), dtype=float) for axis in range(3)]
    if not sides[0].any():
        raise TemplateError(name, str(path), "an image with voxels above 0", "It is empty.")
    return nib.affines.apply_affine(
        image.affine, [np.average(np.arange(len(side)), weights=side) for side in sides]
    )
