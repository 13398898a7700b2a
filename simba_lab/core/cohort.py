"""Cohort: a table of subjects, a volume for each, and batches of them (`Feed` draws its own)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property, partial
from typing import Any, Protocol, Self

import nibabel as nib
import numpy as np
import pandas as pd
import torch
from joblib import Parallel, delayed

from simba_lab.core.batches import batches
from simba_lab.core.border import checks_arguments
from simba_lab.core.checks import choice, positions, workers
from simba_lab.core.errors import SimbaError, UnknownNameError
from simba_lab.core.lattice import Lattice

# Volumes that are made before the first of them is handed on: enough to keep workers busy, few
# enough for memory.
AHEAD, AHEAD_BYTES = 16, 128 * 2**20
# The state of an effect that is shown outside its group instead of in it.
OTHER = "other"


class Source(Protocol):
    """Where volumes come from that are not rendered: a store, or somebody's files."""

    @property
    def lattice(self) -> Lattice:
        """Where the voxels are."""

    @property
    def identity(self) -> dict[str, Any]:
        """What the volumes follow from."""

    def array(self, subject: int) -> np.ndarray:
        """Return the volume of a subject, by its number: float32, shape (X, Y, Z)."""


@checks_arguments
class Cohort(ABC):
    """Subjects with a table and volumes. What is derived from a cohort keeps its table.

    Its subclasses differ in where volumes come from, and in whether the truth about them is known
    (`TwinCohort`). Each is a frozen dataclass with a field ``table``: one row per subject, indexed
    by the subject's number, with the columns ``split``, ``label`` (1: disease), ``fold`` (for
    cross-validation), groups, and whatever else is known.
    """

    table: pd.DataFrame

    # -- table --

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, column: str) -> np.ndarray:
        """Return a column of the table."""
        if column not in self.table.columns:
            raise UnknownNameError.among("column", column, self.table.columns)
        return np.asarray(self.table[column].to_numpy())

    @property
    def train(self) -> Self:
        """The subjects to fit on."""
        return self.where(self["split"] == "train")

    @property
    def validation(self) -> Self:
        """The subjects to choose settings and checkpoints on."""
        return self.where(self["split"] == "validation")

    @property
    def test(self) -> Self:
        """The subjects to report on."""
        return self.where(self["split"] == "test")

    def where(self, mask: np.ndarray) -> Self:
        """Return the subjects for which a boolean mask (or an array of positions) holds.

        Raises
        ------
        SimbaError
            If there are not as many booleans as subjects, if a position does not exist, or if 0 and
            1 for each subject leave open whether they are a mask or positions.
        """
        return self.at(positions(mask, len(self)))

    def at(self, rows: np.ndarray) -> Self:
        """Return the subjects at these positions, which exist."""
        return replace(self, table=self.table.iloc[rows])  # type: ignore[type-var]

    # -- what is known --

    @property
    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What the volumes follow from, as plain values: a scenario and a seed, or files."""

    @property
    @abstractmethod
    def population(self) -> object:
        """The key of the people: subject numbers agree between cohorts whose keys are equal."""

    @property
    @abstractmethod
    def lattice(self) -> Lattice:
        """Where the voxels of the volumes are."""

    @property
    def effects(self) -> Mapping[str, Any]:
        """The effects in these volumes by name; none are known unless the cohort has twins."""
        return {}

    @property
    def biases(self) -> Mapping[str, Any]:
        """The biases in these volumes by name; none are known unless the cohort has twins."""
        return {}

    @property
    def ceiling(self) -> float:
        """Best accuracy that a classifier can reach by the disease alone; NaN if nobody knows."""
        return float("nan")

    def shared_subjects(self, cohort: Cohort) -> np.ndarray:
        """Return the numbers of the people who are in both cohorts."""
        if self.population != cohort.population:
            return np.empty(0, int)
        return np.intersect1d(self.table.index, cohort.table.index)

    # -- volumes --

    @abstractmethod
    def array(self, index: int, *, keep: bool = True) -> np.ndarray:
        """Return one subject: float32, shape (X, Y, Z).

        Volumes that take time to make are kept in memory for a while, unless `keep` is false.
        """

    @abstractmethod
    def brain(self, index: int) -> np.ndarray:
        """Return the brain mask of one subject, bool, shape (X, Y, Z)."""

    def volume(self, index: int) -> nib.Nifti1Image:
        """Return one subject as a NIfTI image, for nilearn and for files."""
        return nib.Nifti1Image(self.array(index), self.lattice.affine)

    def volumes(
        self, *, n_jobs: int = -1, device: str = "cpu", keep: bool | None = None
    ) -> Iterator[np.ndarray]:
        """Iterate over the subjects in order: float32 arrays, shape (X, Y, Z).

        Parameters
        ----------
        n_jobs : int
            Threads (joblib's convention: -1 is one per core), or workers of the joblib backend that
            is active. The bytes do not depend on it.
        device : str
            ``cpu``; ``cuda`` (or another device of PyTorch) to render there, equal to rounding;
            ``auto`` for a GPU, if any.
        keep : bool, optional
            As for `array`; by default only if all of these volumes fit there. Of more than that the
            first would be gone before anybody asks again.
        """
        size = 4 * math.prod(self.lattice.shape)
        ahead = max(1, min(AHEAD, AHEAD_BYTES // size))
        n_jobs = workers("n_jobs", n_jobs)
        return _ahead(self._array_function(device, keep), len(self), n_jobs, ahead)

    def _array_function(self, device: str, keep: bool | None) -> Callable[[int], np.ndarray]:
        return partial(self.array, keep=bool(keep))

    def arrays(self, *, n_jobs: int = -1, device: str = "cpu") -> np.ndarray:
        """Return all subjects: float32, shape (n, X, Y, Z). Parameters are those of `volumes`."""
        arrays = np.empty((len(self), *self.lattice.shape), np.float32)
        for index, volume in enumerate(self.volumes(n_jobs=n_jobs, device=device)):
            arrays[index] = volume
        return arrays

    # -- tensors --

    def batches(self, size: int, *, device: str | torch.device = "cpu") -> Iterator[torch.Tensor]:
        """Iterate over tensors of shape (N, 1, X, Y, Z), in the order of the table.

        Training takes them by row, in any order: see `simba_lab.core.batches.Feed`.

        Parameters
        ----------
        size : int
            Subjects in a batch.
        device : str or torch.device
            Where the tensors are to be; on a GPU volumes are rendered there too.

        Examples
        --------
        >>> import simba_lab as sb
        >>> scenario = sb.Scenario(16, sb.Morphology("Insula_L", 2.5), spacing_mm=8)
        >>> [tuple(batch.shape) for batch in sb.synthesise(scenario).batches(12)]
        [(12, 1, 20, 24, 20), (4, 1, 20, 24, 20)]
        """
        return batches(self, size, device)


@checks_arguments
class TwinCohort(Cohort):
    """A cohort whose effects are known, so that anybody's counterfactual twin can be had.

    The switches of a cohort say which effects its volumes show: in everybody (True), in nobody
    (False), or in those outside the group (``"other"``).
    """

    switches: dict[str, bool | str]

    def __getstate__(self) -> dict[str, Any]:
        # What is remembered may be large or hold a lock; another process makes its own.
        return {
            name: value
            for name, value in self.__dict__.items()
            if not isinstance(getattr(type(self), name, None), cached_property)
        }

    def twin(
        self,
        *,
        without: str | Iterable[str] = (),
        carrying: str | Iterable[str] = (),
        flipped: str | Iterable[str] = (),
    ) -> Self:
        """Return the same subjects with effects switched off, or on.

        Anatomy, noise and all other effects are equal, and the table keeps its groups: only the
        volumes change.

        Parameters
        ----------
        without : str or several
            Effects that nobody shows in the twins.
        carrying : str or several
            Effects that everybody shows, in the group or not, with the magnitude of the table.
        flipped : str or several
            Biases that are shown outside the group instead of in it.
        """
        switches = dict(self.switches)
        for names, state in ((without, False), (carrying, True), (flipped, OTHER)):
            effects = self.biases if state == OTHER else self.effects
            for name in [names] if isinstance(names, str) else names:
                switches[choice("twin effect", name, effects)] = state
        return replace(self, switches=switches)  # type: ignore[type-var]

    @abstractmethod
    def unbiased(self) -> Self:
        """Return the control cohort: the same effects, as common in one class as in the other."""

    def magnitudes(self, index: int) -> dict[str, float]:
        """Return the magnitude at which each effect shows in a subject: 0 if it does not."""
        columns = self._columns
        return {
            name: float(columns[f"{name}_magnitude"][index]) if self._shows(name, index) else 0.0
            for name in self.effects
        }

    def carriers(self, bias: str) -> np.ndarray:
        """Return who shows a bias in these volumes, bool, shape (n,)."""
        choice("bias", bias, self.biases)
        return np.array([self._shows(bias, index) for index in range(len(self))], bool)

    def _shows(self, effect: str, index: int) -> bool:
        """Tell whether a subject shows an effect; all have what has no group, as the disease."""
        member = effect not in self.biases or bool(self._columns[effect][index])
        state = self.switches.get(effect, member)
        return not member if state == OTHER else bool(state)

    @cached_property
    def _columns(self) -> dict[str, np.ndarray]:
        """The table as arrays, which are faster to read one row at a time."""
        return {name: self.table[name].to_numpy() for name in self.table.columns}

    @abstractmethod
    def difference(self, index: int, effect: str, *, keep: bool = False) -> np.ndarray:
        """Return what an effect does to the image of one subject: float32, shape (X, Y, Z).

        The subject with the effect less the subject without it, both without noise, in units of
        white matter.
        """

    def changed(self, index: int, effect: str, *, threshold: float = 0.02) -> np.ndarray:
        """Return the voxels that an effect changes in one subject, bool, shape (X, Y, Z).

        `threshold` is the least difference that counts, as a share of the intensity of white
        matter. The truth for attributions.
        """
        changed: np.ndarray = np.abs(self.difference(index, effect, keep=True)) > threshold
        return changed

    @abstractmethod
    def region(self, index: int, name: str) -> np.ndarray:
        """Return a region of the atlas as it lies in one subject, bool, shape (X, Y, Z)."""

    def region_of(self, index: int, effect: str) -> np.ndarray | None:
        """Return the region of an effect in one subject, bool; None if it is the whole image."""
        name = getattr(self.effects[effect], "region", None)
        return None if name is None else self.region(index, name)

    @abstractmethod
    def parcellation(self, index: int) -> tuple[np.ndarray, dict[int, str]]:
        """Return the region number of each voxel, int, shape (X, Y, Z), and the names of numbers.

        Voxels in no region have the number 0, which has no name.
        """

    @abstractmethod
    def positions_mm(self, index: int) -> np.ndarray:
        """Return where in the template each voxel's tissue comes from: (3, X, Y, Z), mm."""


def with_twins(cohort: Cohort, field: str = "cohort") -> TwinCohort:
    """Return a cohort that has twins, or raise the error that says that this one has none."""
    if not isinstance(cohort, TwinCohort):
        raise SimbaError(
            field,
            type(cohort).__name__,
            "a cohort with twins",
            "What was done to these is not known.",
        )
    return cohort


def effect_of(cohort: Cohort, effect: str) -> TwinCohort:
    """Return a cohort that has twins with and without this effect, or raise the error."""
    twins = with_twins(cohort)
    if effect not in twins.effects:
        raise UnknownNameError.among("effect", effect, twins.effects)
    return twins


def _ahead(
    render: Callable[[int], np.ndarray], count: int, n_jobs: int, ahead: int
) -> Iterator[np.ndarray]:
    # Some at a time instead of joblib's generators, which not every backend has.
    with Parallel(n_jobs=n_jobs, prefer="threads") as jobs:
        for start in range(0, count, ahead):
            yield from jobs(
                delayed(render)(index) for index in range(start, min(start + ahead, count))
            )
