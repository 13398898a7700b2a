"""Cohort: a stratified design table, volumes that are rendered when asked for, and counterfactual twins."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from threading import Lock

import nibabel as nib
import numpy as np
import pandas as pd
from joblib import Parallel, delayed

from simba_lab.errors import FoldingError, SimbaError, UnknownNameError
from simba_lab.rng import stream
from simba_lab.synthesis import _kernels
from simba_lab.synthesis.anatomy import Lattice, Template, load_template
from simba_lab.synthesis.deformation import exponential_interleaved, render
from simba_lab.synthesis.design import MATCHED_MODES, design
from simba_lab.synthesis.effects import LocalFlow, tabulate
from simba_lab.synthesis.scenario import Scenario
from simba_lab.synthesis.subjects import subject_lattice

# Memory for rendered volumes, per scenario and seed.
SHELF_BYTES = 256 * 2**20
# Intensity, as a share of white matter, up to which a voxel counts as outside the brain.
BACKGROUND = 0.02


class _Shelf:
    """Volumes rendered lately, up to a number of bytes: networks are judged on the same subjects again and again."""

    def __init__(self, size: int) -> None:
        self.left, self.volumes, self.lock = size, OrderedDict(), Lock()

    def get(self, key: tuple, render: Callable[[], np.ndarray]) -> np.ndarray:
        with self.lock:
            if key in self.volumes:
                self.volumes.move_to_end(key)
                return self.volumes[key]
        volume = render()
        with self.lock:
            if key not in self.volumes:
                self.volumes[key] = volume
                self.left -= volume.nbytes
            while self.left < 0 and self.volumes:
                self.left += self.volumes.popitem(last=False)[1].nbytes
        return volume


@dataclass(frozen=True, eq=False)
class _Studio:
    """What all subjects of a cohort share: template, lattices, the flows of the effects and the latest volumes."""

    template: Template
    output: Lattice
    subject: Lattice
    flows: dict[str, LocalFlow]
    shelf: _Shelf


@dataclass(frozen=True, eq=False)
class Cohort:
    """Subjects of a scenario. Volumes are rendered on demand; their bytes depend on scenario, seed and subject alone.

    Made by `synthesise`; parts and twins of a cohort are cohorts too.

    Parameters
    ----------
    scenario : Scenario
    seed : int
    table : pandas.DataFrame
        One row per subject: ``split``, ``label`` (1: disease), ``bias`` (1: in the bias group), ``fold`` (for
        cross-validation), the magnitude of each effect (that of the bias is drawn for everybody, in the group or not) and
        the matched anatomical modes.
    switches : mapping of effect name to bool
        Effects that are rendered in everybody (True) or nobody (False), whatever the table says: twins have these.
    """

    scenario: Scenario
    seed: int
    table: pd.DataFrame
    switches: dict[str, bool] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, column: str) -> np.ndarray:
        """Return a column of the design table."""
        if column not in self.table.columns:
            raise UnknownNameError.among("column", column, self.table.columns)
        return self.table[column].to_numpy()

    @cached_property
    def _studio(self) -> _Studio:
        return _studio(self.scenario, self.seed)

    @property
    def lattice(self) -> Lattice:
        """Where the voxels of the volumes are."""
        return self._studio.output

    @property
    def template(self) -> Template:
        """The brain that the cohort is made from."""
        return self._studio.template

    @property
    def train(self) -> Cohort:
        """The subjects to fit on."""
        return self.where(self["split"] == "train")

    @property
    def validation(self) -> Cohort:
        """The subjects to choose settings and checkpoints on."""
        return self.where(self["split"] == "validation")

    @property
    def test(self) -> Cohort:
        """The subjects to report on."""
        return self.where(self["split"] == "test")

    def where(self, mask: np.ndarray) -> Cohort:
        """Return the subjects for which a boolean mask (or an array of positions) holds."""
        mask = np.asarray(mask)
        if mask.dtype == bool and mask.shape != (len(self),):
            raise SimbaError("mask", mask.shape, f"of shape ({len(self)},)")
        return replace(self, table=self.table.iloc[np.flatnonzero(mask) if mask.dtype == bool else mask])

    def twin(self, *, without: str | Iterable[str] = (), carrying: str | Iterable[str] = ()) -> Cohort:
        """Return the same subjects (same anatomy, noise and other effects) with effects switched off, or on.

        The twins keep their group membership in the table: only the rendering changes.

        Parameters
        ----------
        without : str or several
            Effects that nobody shows in the twins.
        carrying : str or several
            Effects that everybody shows, in the group or not, each with the magnitude of the table.
        """
        switches = dict(self.switches)
        for names, state in ((without, False), (carrying, True)):
            for name in [names] if isinstance(names, str) else names:
                if name not in self.scenario.effects:
                    raise UnknownNameError.among("twin effect", name, self.scenario.effects)
                switches[name] = state
        return replace(self, switches=switches)

    def magnitudes(self, index: int) -> dict[str, float]:
        """Return the magnitude at which each effect is rendered in a subject: 0 if it does not show."""
        row = self.table.iloc[index]
        shows = {"disease": True, "bias": bool(row.get("bias", 0))} | dict(self.switches)
        return {name: float(row[f"{name}_magnitude"]) if shows[name] else 0.0 for name in self.scenario.effects}

    def array(self, index: int) -> np.ndarray:
        """Render one subject: float32, shape (X, Y, Z), white matter about 1, background 0."""
        key = (self._subject(index), *self.magnitudes(index).values())
        return self._studio.shelf.get(key, lambda: self._noisy(index)).copy()

    def _noisy(self, index: int) -> np.ndarray:
        volume = self._sampled(index, *self.template.antialiased(self.scenario.spacing_mm))
        if self.scenario.noise:
            noise = stream(self.seed, self._subject(index), "noise").standard_normal((2, *volume.shape), dtype=np.float32)
            # The magnitude of a complex signal with Gaussian noise in both channels is Rician (Gudbjartsson 1995, eq. 1).
            noise *= np.float32(self.scenario.noise)
            volume = np.where(volume > BACKGROUND, np.hypot(volume + noise[0], noise[1]), volume)
        return volume

    def arrays(self, *, n_jobs: int = -1) -> np.ndarray:
        """Render all subjects: float32, shape (n, X, Y, Z)."""
        out = np.empty((len(self), *self.lattice.shape), np.float32)
        for index, volume in enumerate(self.volumes(n_jobs=n_jobs)):
            out[index] = volume
        return out

    def volumes(self, *, n_jobs: int = -1) -> Iterator[np.ndarray]:
        """Iterate over the rendered subjects in order: float32 arrays, shape (X, Y, Z).

        Parameters
        ----------
        n_jobs : int
            Threads (joblib's convention: -1 is one per core). The bytes do not depend on it.
        """
        _ = self._studio  # made once, before threads ask for it
        jobs = Parallel(n_jobs=n_jobs, prefer="threads", return_as="generator")
        return jobs(delayed(self.array)(index) for index in range(len(self)))

    def volume(self, index: int) -> nib.Nifti1Image:
        """Render one subject as a NIfTI image, for nilearn and for files."""
        return nib.Nifti1Image(self.array(index), self.lattice.affine)

    def region(self, index: int, name: str) -> np.ndarray:
        """Return the mask of a region as it lies in one subject, bool, shape (X, Y, Z): the warped template region."""
        mask = self.template.region(name).astype(np.float32)
        return self._sampled(index, mask, self.template.lattice) > 0.5

    def brain(self, index: int) -> np.ndarray:
        """Return the brain mask of one subject, bool, shape (X, Y, Z)."""
        return self._clean(index) > BACKGROUND

    def changed(self, index: int, effect: str, *, threshold: float = 0.02) -> np.ndarray:
        """Return the voxels that an effect changes in one subject, bool, shape (X, Y, Z): the truth for attributions.

        The subject is rendered without noise, with the effect and without it; `threshold` is the least difference that
        counts, as a share of the intensity of white matter.
        """
        on, off = self.twin(carrying=effect), self.twin(without=effect)
        return np.abs(on._clean(index) - off._clean(index)) > threshold

    def _clean(self, index: int) -> np.ndarray:
        """One subject without noise; not to be written to."""
        image = self.template.antialiased(self.scenario.spacing_mm)
        key = ("clean", self._subject(index), *self.magnitudes(index).values())
        return self._studio.shelf.get(key, lambda: self._sampled(index, *image))

    def _subject(self, index: int) -> int:
        return int(self.table.index[index])

    def _sampled(self, index: int, image: np.ndarray, lattice: Lattice) -> np.ndarray:
        """Sample an image of the template at the positions where the subject's anatomy comes from."""
        studio = self._studio
        coarse = subject_displacement(
            self.scenario, self.seed, self._subject(index), self.table.iloc[index], studio.subject
        )
        shown = [(name, value) for name, value in self.magnitudes(index).items() if value]
        # T o phi_disease^-1 o phi_bias^-1 o phi_subject^-1: sampling undoes the effect that was applied last first.
        local = [(studio.flows[name].at(value), studio.flows[name].lattice) for name, value in reversed(shown)]
        return render(image, lattice, coarse, studio.subject, local, studio.output)


def subject_displacement(scenario: Scenario, seed: int, subject: int, row: pd.Series, lattice: Lattice) -> np.ndarray:
    """Return the displacement at which the template is sampled to make a healthy subject, in mm, interleaved.

    Raises
    ------
    FoldingError
        If the subject's anatomy folds; it names the subject and a scale of variability that would work.
    """
    model = scenario.variability
    coefficients = stream(seed, subject, "anatomy").standard_normal(model.coefficient_count(lattice))
    leading = model.leading(lattice, MATCHED_MODES)
    coefficients[leading] = [row[f"anatomy_{mode}"] for mode in range(1, len(leading) + 1)]
    velocity = -model.velocity(coefficients, lattice)
    displacement = exponential_interleaved(velocity, lattice.spacing_mm)
    if _kernels.least_jacobian(displacement, np.float32(1 / lattice.spacing_mm)) <= 0:
        share = 1.0
        while _kernels.least_jacobian(displacement, np.float32(1 / lattice.spacing_mm)) <= 0:
            share *= 0.9
            displacement = exponential_interleaved(np.float32(share) * velocity, lattice.spacing_mm)
        works = tuple(round(share * deviation, 2) for deviation in model.deviations_mm)
        raise FoldingError(
            "scenario.variability.deviations_mm", model.deviations_mm, f"at most {works}",
            f"The anatomy of subject {subject} would fold.",
        )  # fmt: skip
    return displacement


def synthesise(scenario: Scenario, *, seed: int = 0) -> Cohort:
    """Design a cohort: assign subjects to splits, classes and bias groups, draw all magnitudes, check all deformations.

    Bias groups and splits are matched by construction: within each cell of split x class x group x fold, every magnitude
    and the leading anatomical modes take one value from each of n equal-probability strata (a Latin hypercube; McKay et
    al. 1979), so the cells have the same distributions up to one stratum and no subject is dropped.

    Matching ties the subjects of a cell together: what one group has more of in some of them, it has less of in the
    others. A cross-validation over random folds would learn that backwards and score below chance. Folds of the design
    (column ``fold``) are matched by themselves and independent of each other: use those.

    Parameters
    ----------
    scenario : Scenario
    seed : int
        Other seeds give other subjects.

    Returns
    -------
    Cohort
        With `scenario.subjects` rows. Nothing is rendered yet.

    Raises
    ------
    UnknownNameError
        If a region is not in the template.
    FoldingError
        If an effect would fold a brain.
    """
    if not isinstance(seed, int | np.integer) or seed < 0:
        raise SimbaError("seed", seed, "an integer of at least 0")
    cohort = Cohort(scenario, int(seed), design(scenario, int(seed)))
    _ = cohort._studio  # raises now rather than at the first volume
    return cohort


@lru_cache(maxsize=4)
def _studio(scenario: Scenario, seed: int) -> _Studio:
    template = load_template(scenario.template)
    table = design(scenario, seed)
    flows = {
        name: tabulate(
            effect, template, table[f"{name}_magnitude"].to_numpy(),
            field_name=f"scenario.{name}", subjects=table.index.to_numpy(),
        )
        for name, effect in scenario.effects.items()
    }  # fmt: skip
    output, subject = template.output_lattice(scenario.spacing_mm), subject_lattice(template)
    return _Studio(template, output, subject, flows, _Shelf(SHELF_BYTES))
