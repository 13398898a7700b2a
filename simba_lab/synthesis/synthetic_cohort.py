"""SyntheticCohort: a stratified design, volumes rendered when asked for, and counterfactual twins."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import pandas as pd

from simba_lab.core.checks import whole_number
from simba_lab.core.cohort import Source, TwinCohort
from simba_lab.core.compute import torch_device
from simba_lab.core.errors import SimbaError, UnknownNameError
from simba_lab.core.lattice import Lattice
from simba_lab.synthesis.anatomy.template import Template
from simba_lab.synthesis.design import design
from simba_lab.synthesis.effects import Effect
from simba_lab.synthesis.rendering.scanner import BACKGROUND
from simba_lab.synthesis.rendering.studio import MODES, SHELF_BYTES, Studio, studio
from simba_lab.synthesis.scenario import Scenario

# The switch of a bias that is rendered in those outside its group.
OTHER = "other"


@dataclass(frozen=True, eq=False)
class SyntheticCohort(TwinCohort):
    """Subjects of a scenario. Volumes are rendered on demand; their bytes depend on scenario, seed and subject alone.

    Made by `synthesise`; parts and twins of a cohort are cohorts too.

    Parameters
    ----------
    scenario : Scenario
    seed : int
    table : pandas.DataFrame
        One row per subject: ``split``, ``label`` (1: disease), a column per bias (1: in its group),
        ``fold`` (for cross-validation), the magnitude of each effect (that of a bias is drawn for
        everybody, in the group or not) and the matched anatomical modes.
    switches : mapping of effect name to bool or "other"
        Effects that are rendered in everybody (True), nobody (False) or those outside the group
        (``"other"``): twins have these.
    store : Source, optional
        Where the volumes are read instead of rendered, unless a twin is wanted.
    """

    scenario: Scenario
    seed: int
    table: pd.DataFrame
    switches: dict[str, bool | str] = field(default_factory=dict)
    store: Source | None = None

    @cached_property
    def _studio(self) -> Studio:
        return studio(self.scenario, self.seed)

    def __getstate__(self) -> dict[str, Any]:
        # A studio is large and holds a lock; another process makes its own.
        return {
            name: value
            for name, value in self.__dict__.items()
            if name not in ("_studio", "_columns")
        }

    @property
    def lattice(self) -> Lattice:
        """Where the voxels of the volumes are."""
        return self.store.lattice if self.store else self._studio.output

    @property
    def template(self) -> Template:
        """The brain that the cohort is made from."""
        return self._studio.template

    @property
    def identity(self) -> dict[str, Any]:
        """What the volumes follow from: scenario and seed."""
        return {"scenario": self.scenario.to_dict(), "seed": self.seed}

    @property
    def population(self) -> int:
        """The seed: in cohorts of one seed the same number is the same person."""
        return self.seed

    @property
    def effects(self) -> dict[str, Effect]:
        """The effects of the scenario by name, the disease first."""
        return self.scenario.effects

    @property
    def biases(self) -> dict[str, Effect]:
        """The biases of the scenario by name."""
        return self.scenario.biases

    @property
    def ceiling(self) -> float:
        """Best accuracy that any classifier can reach by the disease alone."""
        return self.scenario.ceiling()

    def twin(
        self,
        *,
        without: str | Iterable[str] = (),
        carrying: str | Iterable[str] = (),
        flipped: str | Iterable[str] = (),
    ) -> SyntheticCohort:
        """Return the same subjects (same anatomy, noise and other effects) with effects switched off, or on.

        The twins keep their group membership in the table: only the rendering changes.

        Parameters
        ----------
        without : str or several
            Effects that nobody shows in the twins.
        carrying : str or several
            Effects that everybody shows, in the group or not, each with the magnitude of the table.
        flipped : str or several
            Biases that those in the group do not show, and those outside it do.
        """
        switches = dict(self.switches)
        for names, state in ((without, False), (carrying, True), (flipped, OTHER)):
            known = self.scenario.biases if state == OTHER else self.scenario.effects
            for name in [names] if isinstance(names, str) else names:
                if name not in known:
                    raise UnknownNameError.among("twin effect", name, known)
                switches[name] = state
        return replace(self, switches=switches)

    def unbiased(self) -> SyntheticCohort:
        """Return the control cohort: the same effects, as common in one class as in the other, from the same seed.

        Subjects with the same number have the same noise and the same unmatched anatomy in both. A
        cohort of some splits gives those splits.
        """
        splits, whole = np.unique(self["split"]), design(self.scenario, self.seed)
        if sorted(self.table.index) != sorted(whole.index[whole["split"].isin(splits)]):
            raise SimbaError(
                "cohort",
                f"{len(self)} of its subjects",
                "whole, or whole splits",
                "Take its control first.",
            )
        control = synthesise(self.scenario.unbiased(), seed=self.seed)
        return replace(control.where(np.isin(control["split"], splits)), switches=self.switches)

    @cached_property
    def _columns(self) -> dict[str, np.ndarray]:
        columns = {
            name: self.table[name].to_numpy() for name in self.table.columns if name not in MODES
        }
        modes = [name for name in MODES if name in self.table.columns]
        return columns | {
            "modes": self.table[modes].to_numpy(float),
            "subject": self.table.index.to_numpy(),
        }

    def _person(self, index: int) -> tuple[int, np.ndarray]:
        """Return who a subject is: its number and its matched modes."""
        return int(self._columns["subject"][index]), self._columns["modes"][index]

    def coefficients(self, index: int) -> np.ndarray:
        """Return the coefficients of one subject's anatomy: standard normal over the population."""
        return self._studio.coefficients(*self._person(index))

    def magnitudes(self, index: int) -> dict[str, float]:
        """Return the magnitude at which each effect is rendered in a subject: 0 if it does not show."""
        columns = self._columns
        return {
            name: float(columns[f"{name}_magnitude"][index]) if self._shows(name, index) else 0.0
            for name in self.scenario.effects
        }

    def _shows(self, effect: str, index: int) -> bool:
        member = effect == "disease" or bool(self._columns[effect][index])
        state = self.switches.get(effect, member)
        return not member if state == OTHER else bool(state)

    def carriers(self, bias: str) -> np.ndarray:
        """Return who shows a bias in these volumes, bool, shape (n,): in twins not who is in its group."""
        if bias not in self.biases:
            raise UnknownNameError.among("bias", bias, self.biases)
        return np.array([self._shows(bias, index) for index in range(len(self))])

    def array(self, index: int, *, keep: bool = True) -> np.ndarray:
        """Return one subject: float32, shape (X, Y, Z), white matter about 1, background 0.

        Rendered volumes are kept in memory for a while, up to a limit, unless `keep` is false.
        """
        if self.store is not None and self.switches == self.store.switches:
            return self.store.array(self._person(index)[0])
        return self._studio.exposed(*self._person(index), self.magnitudes(index), keep=keep).copy()

    def _renderer(self, device: str, keep: bool | None) -> Callable[[int], np.ndarray]:
        if keep is None:
            keep = len(self) * 4 * math.prod(self.lattice.shape) <= SHELF_BYTES
        if device == "cpu" or self.store is not None:
            _ = self.store or self._studio  # made once, before threads ask for it
            return partial(self.array, keep=keep)
        from simba_lab.synthesis.rendering.gpu import darkroom

        room = darkroom(self._studio, torch_device(device))

        def render(index: int) -> np.ndarray:
            return room.exposed(*self._person(index), self.magnitudes(index))

        return render

    def region(self, index: int, name: str) -> np.ndarray:
        """Return the mask of a region as it lies in one subject, bool, shape (X, Y, Z): the warped template region."""
        mask, lattice = self.template.region(name).astype(np.float32), self.template.lattice
        return (
            self._studio.sampled(mask, lattice, *self._person(index), self.magnitudes(index)) > 0.5
        )

    def positions_mm(self, index: int) -> np.ndarray:
        """Return where in the template the tissue of each voxel of a subject comes from: float32, shape (3, X, Y, Z), mm.

        With it anything of the template (a label, a mean map) is looked up for a voxel of the
        subject.
        """
        return self._studio.positions(*self._person(index), self.magnitudes(index))

    def brain(self, index: int) -> np.ndarray:
        """Return the brain mask of one subject, bool, shape (X, Y, Z)."""
        return self._studio.tissue(*self._person(index), self.magnitudes(index)) > BACKGROUND

    def clean(self, index: int, *, keep: bool = True) -> np.ndarray:
        """Return one subject without noise: float32, shape (X, Y, Z)."""
        return self._studio.exposed(
            *self._person(index), self.magnitudes(index), noisy=False, keep=keep
        ).copy()

    def difference(self, index: int, effect: str, *, keep: bool = False) -> np.ndarray:
        """Return what an effect does to the image of one subject, without noise: float32, shape (X, Y, Z)."""
        on, off = self.twin(carrying=effect), self.twin(without=effect)
        return on.clean(index, keep=keep) - off.clean(index, keep=keep)

    def region_of(self, index: int, effect: str) -> np.ndarray | None:
        """Return the region of an effect in one subject, bool, shape (X, Y, Z); None if it has none."""
        name = getattr(self.effects[effect], "region", None)
        return None if name is None else self.region(index, name)

    def parcellation(self, index: int) -> tuple[np.ndarray, dict[int, str]]:
        """Return the region number of each voxel (0: none), int, shape (X, Y, Z), and the names of numbers.

        The number is that of the nearest voxel of the template.
        """
        lattice, labels = self.template.lattice, self.template.labels
        positions = np.moveaxis(self.positions_mm(index), 0, -1) - np.float32(lattice.origin_mm)
        nearest = np.round(positions / lattice.spacing_mm).astype(int)
        within = ((nearest >= 0) & (nearest < labels.shape)).all(axis=-1)
        nearest = np.clip(nearest, 0, np.array(labels.shape) - 1)
        numbers = np.where(within, labels[tuple(np.moveaxis(nearest, -1, 0))], 0).astype(np.int64)
        return numbers, {number: name for name, number in self.template.regions.items()}


def synthesise(scenario: Scenario, *, seed: int = 0) -> SyntheticCohort:
    """Design a cohort: assign subjects to splits, classes and bias groups, draw all magnitudes, check all deformations.

    Bias groups and splits are matched by construction: within each cell of split x class x group x
    fold, every magnitude and the leading anatomical modes take one value from each of n
    equal-probability strata (a Latin hypercube; McKay et al. 1979), so the cells have the same
    distributions up to one stratum and no subject is dropped.

    Matching ties the subjects of a cell together: what one group has more of in some of them, it
    has less of in the others. A cross-validation over random folds would learn that backwards and
    score below chance. Folds of the design (column ``fold``) are matched by themselves and
    independent of each other: use those.

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
    seed = whole_number("seed", seed, least=0)
    cohort = SyntheticCohort(scenario, seed, design(scenario, seed))
    _ = cohort._studio  # raises now rather than at the first volume
    return cohort
