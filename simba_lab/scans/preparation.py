"""Preparation: how somebody's images are brought to the lattice and brightness of a template."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import nibabel as nib
import numpy as np
import pandas as pd
from nilearn.image import resample_img, smooth_img

from simba_lab.core.border import checks_arguments
from simba_lab.core.checks import choice, keep_plain
from simba_lab.core.errors import NAMES, SimbaError, TemplateError
from simba_lab.core.lattice import Lattice
from simba_lab.scans.masks import check_grid, masked_image
from simba_lab.synthesis.anatomy.nifti import open_nifti
from simba_lab.synthesis.anatomy.template import TEMPLATES, Template, check_spacing, load_template
from simba_lab.synthesis.anatomy.template_files import TemplateFiles
from simba_lab.synthesis.rendering.scanner import BACKGROUND

# An image whose voxels cover less of the template's brain than this is in another space.
LEAST_COVER = 0.5
Subject = TypeVar("Subject")
Result = TypeVar("Result")


@checks_arguments
@dataclass(frozen=True)
class Preparation:
    """How images are brought to the lattice and brightness of a template.

    An image is smoothed as voxels of the lattice would blur it, less the blur that it has already
    (as `Template.antialiased` does), sampled linearly at the points of the lattice through its
    affine, clipped at 0 and scaled. Nothing is registered or skull-stripped: bring the images to
    the space of the template first.

    Parameters
    ----------
    spacing_mm : float
        Voxel size of the volumes.
    template : str, Template or TemplateFiles
        Field of view, space and brain are taken from it. A store of scans with planted effects can
        be opened if it is named, or given by its files.
    align : {"world", "centre"}
        Take positions as the affines state them, or move each image's centre of intensity to that
        of the template.
    rescale : bool
        Whether to scale each image so that its 99th percentile in the template's brain is that of
        the template, which is about 1. This removes differences in overall brightness, wanted or
        not.

    Examples
    --------
    >>> import simba_lab as sb
    >>> sb.scans.Preparation(spacing_mm=8, align="centre")
    Preparation(spacing_mm=8, template='icbm2009c', align='centre', rescale=True)
    """

    spacing_mm: float = 4.0
    template: str | Template | TemplateFiles = "icbm2009c"
    align: str = "world"
    rescale: bool = True

    def __post_init__(self) -> None:
        keep_plain(self)
        check_spacing(self.spacing_mm)
        choice("align", self.align, ("world", "centre"))

    def images(
        self,
        paths: Mapping[int, Path],
        *,
        table: pd.DataFrame | None = None,
        masks: Mapping[int, Path] | None = None,
    ) -> PreparedImages:
        """Open every file without reading its voxels, and return the volumes to come.

        Parameters
        ----------
        paths : mapping of int to path
            The file of each subject.
        table : pandas.DataFrame, optional
            The table of the subjects: another table makes another identity.
        masks : mapping of int to path, optional
            Masks of the brain, on the grids of the images, which become 0 around it.

        Raises
        ------
        TemplateError
            If files are missing, are damaged, or lie elsewhere than the template; it describes the
            first and names the others.
        """
        _, lattice, _ = self._target()
        text = "" if table is None else table.to_csv(lineterminator="\n")
        digest = blake2b(text.encode(), digest_size=16)
        look, masks = self.opener(), dict(masks or {})

        def check(subject: int) -> None:
            look(f"image of subject {subject}", paths[subject], masks.get(subject), False)

        for_each_subject(check, paths)
        for subject, path in [*paths.items(), *masks.items()]:
            status = path.stat()
            facts = subject, path.name, status.st_size, status.st_mtime_ns
            digest.update(repr(facts).encode())
        identity = {
            "files": digest.hexdigest(),
            "template": _identity_of(self.template),
            "spacing_mm": lattice.spacing_mm,
            "align": self.align,
            "rescale": bool(self.rescale),
        }
        return self.reopened(paths, identity, masks)

    def opener(self) -> Callable[[str, Path, Path | None, bool], None]:
        """Return a function that raises unless an image can be used.

        It takes what errors call the image, its file, that of its mask, and whether to read all
        voxels as well as the header.
        """
        template, lattice, reference = self._target()
        brain_mm = nib.affines.apply_affine(lattice.affine, np.argwhere(reference > BACKGROUND))

        def look(name: str, path: Path, mask: Path | None, whole: bool) -> None:
            image = open_nifti(path, name)
            cover = cover_of(image, brain_mm)
            if self.align == "world" and cover < LEAST_COVER:
                allowed = f"in the space of the template {template.name!r}"
                problem = f"It covers {cover:.0%} of the template's brain."
                remedy = f"{problem} Register it first, or use align='centre'."
                raise TemplateError(name, str(path), allowed, remedy)
            if mask is not None:
                check_grid(image, open_nifti(mask, f"mask of {name}"), mask)
            if whole and not (masked_image(path, mask, name).get_fdata() > 0).any():
                raise TemplateError(name, str(path), "an image with voxels above 0", "It is empty.")

        return look

    def reopened(
        self,
        paths: Mapping[int, Path],
        identity: dict[str, Any],
        masks: Mapping[int, Path] | None = None,
    ) -> PreparedImages:
        """Return the volumes to come of files that `images` looked at before.

        Parameters
        ----------
        paths : mapping of int to path
        identity : dict
            That they had then.
        masks : mapping of int to path, optional
        """
        template, lattice, reference = self._target()
        centre = None
        if self.align == "centre":
            centre = _centre_mm(template.image(), template.name, "template")
        return PreparedImages(
            dict(paths),
            lattice,
            reference,
            centre,
            bool(self.rescale),
            identity,
            self.template,
            dict(masks or {}),
        )

    def _target(self) -> tuple[Template, Lattice, np.ndarray]:
        """Return the template, the lattice, and the template's T1 on it."""
        template = self.template
        template = template if isinstance(template, Template) else load_template(template)
        lattice = template.output_lattice(check_spacing(self.spacing_mm))
        return template, lattice, reference_on(template, lattice)


@dataclass(frozen=True, eq=False)
class Adjustment:
    """How one image was brought to the lattice, so that another version of it can be, alike.

    Parameters
    ----------
    offset_mm : ndarray, shape (3,), optional
        By how much it was moved; None if its affine was taken as it is.
    factor : float, optional
        By how much it was scaled; None if it was not.
    """

    offset_mm: np.ndarray | None = None
    factor: float | None = None


@dataclass(frozen=True, eq=False)
class PreparedImages:
    """The `Source` of a `ScanCohort`: files, read when asked for. Made by `Preparation.images`.

    Parameters
    ----------
    paths : mapping of int to path
        The file of each subject.
    lattice : Lattice
        Where the voxels of the volumes are.
    reference : ndarray of float32, shape (X, Y, Z)
        The template's T1 on that lattice; its brain is where it exceeds the background.
    centre_mm : ndarray, shape (3,), optional
        Where the centre of intensity of each image is moved to; without it, positions are taken as
        the affines state them.
    rescale : bool
        Whether each image's 99th percentile in the brain is scaled to that of the reference.
    identity : dict
        What the volumes follow from.
    template : str, Template or TemplateFiles
        The template of the preparation.
    masks : mapping of int to path
        Of the brain, for those subjects whose image is cut to it.
    """

    paths: Mapping[int, Path]
    lattice: Lattice
    reference: np.ndarray
    centre_mm: np.ndarray | None
    rescale: bool
    identity: dict[str, Any]
    template: str | Template | TemplateFiles = "icbm2009c"
    masks: Mapping[int, Path] = field(default_factory=dict)

    def array(self, subject: int) -> np.ndarray:
        """Return the volume of one subject: float32, shape (X, Y, Z).

        Raises
        ------
        TemplateError
            If the file is damaged or shows nothing where the template has its brain.
        """
        return self.adjusted(subject)[0]

    def adjusted(self, subject: int) -> tuple[np.ndarray, Adjustment]:
        """Return the volume of one subject, and how its image was moved and scaled."""
        path, name = self.paths[int(subject)], f"image of subject {subject}"
        image = masked_image(path, self.masks.get(int(subject)), name)
        offset, factor = None, None
        if self.centre_mm is not None:
            offset = self.centre_mm - _centre_mm(image, path, name)
        volume = self.sampled(image, offset)
        brain = self.reference > BACKGROUND
        bright = brain & (volume > 0)
        if not bright.any():
            allowed = "an image that is brighter than 0 where the template has its brain"
            remedy = "It is empty or in another space; align='centre' moves it to the template."
            raise TemplateError(name, str(path), allowed, remedy)
        if self.rescale:
            factor = np.percentile(self.reference[brain], 99) / np.percentile(volume[bright], 99)
            volume *= factor
        return volume, Adjustment(offset, factor)

    def sampled(self, image: nib.Nifti1Image, offset_mm: np.ndarray | None) -> np.ndarray:
        """Return a moved image at the points of the lattice, not scaled: float32, (X, Y, Z)."""
        if offset_mm is not None:
            affine = nib.affines.from_matvec(np.eye(3), offset_mm) @ image.affine
            image = nib.Nifti1Image(image.dataobj, affine)
        return np.maximum(_on_lattice(image, self.lattice), 0)


def _identity_of(template: str | Template | TemplateFiles) -> Any:
    """Return what a template is to those who cache: of a template in memory its content too."""
    if isinstance(template, Template):
        if template.name in TEMPLATES and template is load_template(template.name):
            return template.name
        content = blake2b(template.t1.tobytes(), digest_size=16)
        content.update(repr(template.lattice).encode())
        return {"name": template.name, "content": content.hexdigest()}
    return template if isinstance(template, str) else asdict(template)


@lru_cache(maxsize=4)
def reference_on(template: Template, lattice: Lattice) -> np.ndarray:
    """Return the T1 of a template on a lattice: float32, (X, Y, Z), not to be written to."""
    reference = _on_lattice(template.image(), lattice)
    reference.setflags(write=False)
    return reference


def cover_of(image: nib.Nifti1Image, brain_mm: np.ndarray) -> float:
    """Return the share of the template's brain, points of shape (N, 3), that an image covers."""
    voxels = nib.affines.apply_affine(np.linalg.inv(image.affine), brain_mm)
    covered = (voxels > -0.5) & (voxels < np.array(image.shape[:3]) - 0.5)
    return float(covered.all(axis=1).mean())


def _on_lattice(image: nib.Nifti1Image, lattice: Lattice) -> np.ndarray:
    """Sample an image at the points of a lattice, smoothed first along axes with smaller voxels."""
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
    """Return the centre of intensity of an image, shape (3,)."""
    weights = np.maximum(np.asarray(image.dataobj, dtype=np.float32), 0)
    profiles = [weights.sum(axis=tuple({0, 1, 2} - {axis}), dtype=float) for axis in range(3)]
    if not profiles[0].any():
        raise TemplateError(name, str(path), "an image with voxels above 0", "It is empty.")
    centre = [np.average(np.arange(len(profile)), weights=profile) for profile in profiles]
    return nib.affines.apply_affine(image.affine, centre)


def for_each_subject(
    function: Callable[[Subject], Result], subjects: Iterable[Subject]
) -> list[Result]:
    """Return what a function makes of each subject; one error describes the first, names them all.

    Whoever mends a folder of a thousand scans wants to know of every file at once.
    """
    subjects = list(subjects)
    results, errors = [], {}
    for subject in subjects:
        try:
            results.append(function(subject))
        except SimbaError as error:
            errors[subject] = error
    if len(errors) > 1:
        names = ", ".join(str(subject) for subject in islice(errors, NAMES))
        more = ", ..." if len(errors) > NAMES else ""
        sentence = f"{len(errors)} of {len(subjects)} subjects have such problems: {names}{more}."
        raise next(iter(errors.values())).with_place(sentence)
    if errors:
        raise next(iter(errors.values()))
    return results
