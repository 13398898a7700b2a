"""Healthy variability learned from people: principal components of registered velocity fields."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from sklearn.decomposition import PCA

from simba_lab.core.border import checks_arguments
from simba_lab.core.checks import is_number, of_shape
from simba_lab.core.errors import SimbaError, Words
from simba_lab.core.lattice import Lattice
from simba_lab.synthesis.anatomy.modes import subject_lattice
from simba_lab.synthesis.anatomy.template import Template, load_template
from simba_lab.synthesis.anatomy.template_files import TemplateFiles
from simba_lab.synthesis.anatomy.velocity_files import (
    read_model,
    read_velocities,
    stem_of,
    write_model,
)

FORMAT = "simba-lab velocity components 1"


@checks_arguments
@dataclass(frozen=True, eq=False, repr=False)
class PCASubjects:
    """Velocity fields drawn from the principal components of those of real people.

    Stationary velocity fields are the logarithms of deformations, and a vector space: the mean and
    the components of a registered cohort are velocity fields too, and all that they span is
    diffeomorphic (log-Euclidean statistics). Models compare and hash by content.

    Parameters
    ----------
    mean : ndarray of float32, shape (X, Y, Z, 3)
        In mm on `lattice`.
    components : ndarray of float32, shape (K, X, Y, Z, 3)
        Orthogonal, each of length 1 on average (root mean square over the points); the one with
        most variance first.
    variance_mm2 : ndarray, shape (K,)
        Variance along each component: what it adds to the mean square length of a subject's
        velocity.
    total_mm2 : float
        Variance of the fields that the model was fitted to.
    people : int
        Number of these fields.
    lattice : Lattice
    file : str, optional
        Where the model was saved, without the ending.

    References
    ----------
    Arsigny, Commowick, Pennec, Ayache (2006), "A log-Euclidean framework for statistics on
    diffeomorphisms", MICCAI (statistics on logarithms); Vercauteren, Pennec, Perchant, Ayache
    (2008), "Symmetric log-domain diffeomorphic registration: a demons-based approach", MICCAI (a
    registration that yields such fields).

    Examples
    --------
    >>> import nibabel as nib
    >>> import numpy as np
    >>> import simba_lab as sb
    >>> lattice = sb.synthesis.subject_lattice(sb.load_template())
    >>> field = np.ones((*lattice.shape, 3), np.float32)  # registration programs write such fields
    >>> images = [nib.Nifti1Image(size * field, lattice.affine) for size in (-1, 0, 1)]
    >>> sb.synthesis.PCASubjects.fit(images).summary
    '1 components of 3 people, 100% of the variance'
    """

    mean: np.ndarray
    components: np.ndarray
    variance_mm2: np.ndarray
    total_mm2: float
    people: int
    lattice: Lattice
    file: str | None = None

    def __post_init__(self) -> None:
        types = {"mean": np.float32, "components": np.float32, "variance_mm2": np.float64}
        for name, dtype in types.items():
            array = np.array(getattr(self, name), dtype=dtype, order="C")
            if not np.isfinite(array).all():
                raise SimbaError(f"variability.{name}", Words("NaN or infinity"), "finite")
            array.setflags(write=False)
            object.__setattr__(self, name, array)
        shape, count = (*self.lattice.shape, 3), len(self.variance_mm2)
        if self.mean.shape != shape or self.components.shape != (count, *shape):
            shapes = self.mean.shape, self.components.shape
            allowed = f"a mean of shape {shape} and components of shape {(count, *shape)}"
            raise SimbaError("variability", shapes, allowed)
        variance = self.variance_mm2
        if variance.ndim != 1 or (np.diff(variance, prepend=np.inf, append=0) > 0).any():
            raise SimbaError("variability.variance_mm2", variance, "falling, and at least 0")

    @classmethod
    def fit(
        cls,
        fields: Iterable[str | Path | nib.Nifti1Image],
        components: int | None = None,
        variance_kept: float = 0.95,
        *,
        convention: str = "ras",
        template: Template | TemplateFiles | str = "icbm2009c",
        progress: bool = False,
    ) -> PCASubjects:
        """Fit the model to the velocity fields of a registered cohort.

        Parameters
        ----------
        fields : iterable of paths or nibabel images
            Stationary velocity fields in the space of the template, (X, Y, Z, 3) or (X, Y, Z, 1,
            3), in mm. Their exponentials map points of the template to points of the person, as
            in programs that resample people onto the template.
        components : int, optional
            Number of components to keep; by default as many as `variance_kept` needs.
        variance_kept : float
            Share of the variance that the kept components carry, in (0, 1].
        convention : {"ras", "lps"}
            Directions of the vectors: NIfTI's, or those of ITK and ANTs.
        template : Template, TemplateFiles or str
        progress : bool
            Show a progress bar.

        Raises
        ------
        SimbaError
            If there are fewer than two fields, or one cannot be used; the message names it.
        """
        template = template if isinstance(template, Template) else load_template(template)
        lattice = subject_lattice(template)
        matrix = read_velocities(fields, template, lattice, convention, progress=progress)
        most = len(matrix) - 1
        if most < 1:
            value, remedy = f"{len(matrix)} fields", "A hundred are better."
            raise SimbaError("fields", Words(value), "at least two fields", remedy)
        if components is not None and not (
            isinstance(components, int | np.integer) and 0 <= components <= most
        ):
            allowed = f"an integer from 0 to {most}, one less than the number of fields"
            raise SimbaError("components", components, allowed)
        if not is_number(variance_kept) or not 0 < variance_kept <= 1:
            raise SimbaError("variance_kept", variance_kept, "in (0, 1]")
        with np.errstate(invalid="ignore"):  # fields that are all alike have no ratios of variance
            # In single precision the decomposition of so wide a matrix is off by a few per cent at
            # the first point.
            pca = PCA(svd_solver="full").fit(matrix.astype(np.float64))
        points = np.prod(lattice.shape)
        variance = pca.explained_variance_[:most].astype(float) / points
        if components is None:
            share = np.cumsum(variance) / max(variance.sum(), np.finfo(float).tiny)
            components = int(np.searchsorted(share, variance_kept - 1e-9)) + 1
        rounding = 1e-9 * max(1.0, np.square(pca.mean_).sum() / points)
        components = min(components, int((variance > rounding).sum()))
        shape = (*lattice.shape, 3)
        directions = (pca.components_[:components] * np.sqrt(points)).reshape(-1, *shape)
        return cls(
            pca.mean_.reshape(shape),
            directions,
            variance[:components],
            float(variance.sum()),
            len(matrix),
            lattice,
        )

    @cached_property
    def sha256(self) -> str:
        """Digest of the model's content, whatever file it is saved in."""
        digest = hashlib.sha256(json.dumps(self._header(), sort_keys=True).encode())
        for array in (self.mean, self.components, self.variance_mm2):
            digest.update(array.astype(array.dtype.newbyteorder("<")).tobytes())
        return digest.hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PCASubjects) and self.sha256 == other.sha256

    def __hash__(self) -> int:
        return hash(self.sha256)

    def __repr__(self) -> str:
        return f"PCASubjects({self.summary}, sha256={self.sha256!r})"

    @property
    def variance_ratio(self) -> np.ndarray:
        """Share of the fields' variance that each component carries, shape (K,)."""
        return self.variance_mm2 / self.total_mm2 if self.total_mm2 else np.zeros(0)

    @property
    def summary(self) -> str:
        """The model in a few words, for errors and captions."""
        count, share = len(self.variance_mm2), self.variance_ratio.sum()
        return f"{count} components of {self.people} people, {share:.0%} of the variance"

    def scaled(self, share: float) -> PCASubjects:
        """Return the model with all velocities, the mean included, multiplied by a number."""
        squared = share**2
        return replace(
            self,
            mean=np.float32(share) * self.mean,
            variance_mm2=squared * self.variance_mm2,
            total_mm2=squared * self.total_mm2,
            file=None,
        )

    def coefficient_count(self, lattice: Lattice) -> int:
        """Return the number of independent coefficients of a subject: one per component."""
        if lattice != self.lattice:
            remedy = "Fit it with the template of the scenario."
            raise SimbaError("variability", str(self.lattice), f"on {lattice}", remedy)
        return len(self.variance_mm2)

    def leading(self, lattice: Lattice, count: int) -> np.ndarray:
        """Return the indices of the `count` coefficients with most variance, largest first."""
        return np.arange(self.coefficient_count(lattice))[:count]

    def velocity(self, coefficients: np.ndarray, lattice: Lattice) -> np.ndarray:
        """Return the velocity field of a subject in mm, interleaved float32, shape (X, Y, Z, 3).

        Parameters
        ----------
        coefficients : ndarray, shape (coefficient_count,)
            Standard normal for a subject of the population.
        """
        shape = (self.coefficient_count(lattice),)
        weights = of_shape("coefficients", coefficients, shape) * np.sqrt(self.variance_mm2)
        # Not a matrix product: the order of its sums depends on the machine.
        return self.mean + np.einsum("k,kxyzd->xyzd", weights.astype(np.float32), self.components)

    def save(self, path: str | Path) -> PCASubjects:
        """Write ``<path>.safetensors`` and ``<path>.json``; return the model with its `file`."""
        stem, names = stem_of(path), ("mean", "components", "variance_mm2")
        arrays = {name: np.array(getattr(self, name)) for name in names}
        write_model(stem, arrays, self._header() | {"sha256": self.sha256})
        return replace(self, file=str(stem))

    @classmethod
    def load(cls, path: str | Path) -> PCASubjects:
        """Read a model that was saved.

        Raises
        ------
        SimbaError
            If the files are missing, truncated, or not what was saved.
        """
        stem = stem_of(path)
        arrays, header = read_model(stem, FORMAT)
        try:
            grid = header["lattice"]
            lattice = Lattice(tuple(grid["shape"]), grid["spacing_mm"], tuple(grid["origin_mm"]))
            total, people = header["total_mm2"], header["people"]
            model = cls(**arrays, total_mm2=total, people=people, lattice=lattice, file=str(stem))
            intact = model.sha256 == header["sha256"]
        except (KeyError, TypeError, ValueError) as error:
            remedy = f"It is corrupt ({error})."
            raise SimbaError("file", str(stem), "a complete model", remedy) from error
        if not intact:
            remedy = "Content and digest differ: fit or fetch it again."
            raise SimbaError("file", str(stem), "what was saved", remedy)
        return model

    def to_dict(self) -> dict[str, str]:
        """Return the model's file and its digest, as a scenario's YAML has them."""
        if self.file is None:
            remedy = "Save the model and use the model that `save` returns."
            raise SimbaError("variability.file", None, "a file", remedy)
        return {"file": self.file, "sha256": self.sha256}

    @classmethod
    def from_dict(cls, values: Mapping[str, str]) -> PCASubjects:
        """Load the model that `to_dict` describes, if it is still the same."""
        if not isinstance(values, Mapping) or set(values) != {"file", "sha256"}:
            raise SimbaError("variability", values, "a mapping with file and sha256")
        if not isinstance(values["file"], str):
            raise SimbaError("variability.file", values["file"], "a path")
        model = cls.load(values["file"])
        if model.sha256 != values["sha256"]:
            remedy = f"{values['file']} holds another model by now."
            raise SimbaError("variability.sha256", values["sha256"], repr(model.sha256), remedy)
        return model

    def _header(self) -> dict[str, Any]:
        grid = {name: getattr(self.lattice, name) for name in ("shape", "spacing_mm", "origin_mm")}
        sizes = {"people": self.people, "total_mm2": self.total_mm2}
        return {"format": FORMAT, "lattice": grid} | sizes
