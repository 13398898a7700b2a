"""SyntheticCohort: a stratified design, volumes rendered on demand, and counterfactual twins."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, Protocol

import numpy as np
import pandas as pd

from simba_lab.core.border import checks_arguments
from simba_lab.core.checks import seed_number
from simba_lab.core.cohort import Source, TwinCohort
from simba_lab.core.compute import torch_device
from simba_lab.core.errors import SimbaError, Words
from simba_lab.core.lattice import Lattice
from simba_lab.synthesis.anatomy.template import Template
from simba_lab.synthesis.design import MODES, design_table
from simba_lab.synthesis.effects import Effect
from simba_lab.synthesis.rendering.renderer import CACHE_BYTES, Renderer, Subject, renderer_of
from simba_lab.synthesis.rendering.scanner import BACKGROUND
from simba_lab.synthesis.scenario import Scenario


class StoredVolumes(Source, Protocol):
    """Volumes of a synthetic cohort in a store."""

    @property
    def switches(self) -> dict[str, bool | str]:
        """The switches with which the volumes were rendered."""


def synthesise(scenario: Scenario, *, seed: int = 0) -> SyntheticCohort:
    """Return a cohort of a scenario: subjects in splits, classes and groups, all magnitudes drawn.

    Bias groups and splits are matched by construction: within each cell of split x class x group x
    fold, every magnitude and the leading anatomical modes take one value from each of n
    equal-probability strata (a Latin hypercube; McKay et al. 1979), so the cells have the same
    distributions up to one stratum and no subject is dropped.

    Matching ties the subjects of a cell together: a value that is frequent in some of them is rare
    in the others. A cross-validation over random folds would learn that backwards and score below
    chance. Folds of the design (column ``fold``) are matched by themselves and independent of each
    other: use those.

    Parameters
    ----------
    scenario : Scenario
    seed : int
        Other seeds give other subjects.

    Returns
    -------
    SyntheticCohort
        With `scenario.subjects` rows. Nothing is rendered yet, but every effect has been checked.

    Raises
    ------
    UnknownNameError
        If a region is not in the template.
    FoldingError
        If an effect would fold a brain.

    Examples
    --------
    >>> import simba_lab as sb
    >>> scenario = sb.Scenario(64, sb.Morphology("Insula_L", 2.5), spacing_mm=8)
    >>> cohort = sb.synthesise(scenario, seed=0)
    >>> len(cohort), cohort.array(0).shape
    (64, (20, 24, 20))
    """
    seed = seed_number("seed", seed)
    cohort = SyntheticCohort(scenario, seed, design_table(scenario, seed))
    _ = cohort.renderer  # raises now rather than at the first volume
    return cohort


@checks_arguments
@dataclass(frozen=True, eq=False)
class SyntheticCohort(TwinCohort):
    """Subjects of a scenario; a volume's bytes depend on scenario, seed and subject alone.

    Made by `synthesise`; subsets and twins of a cohort are cohorts too.

    Parameters
    ----------
    scenario : Scenario
    seed : int
    table : pandas.DataFrame
        From `design_table`, all rows or some. The magnitude of a bias is drawn for every subject,
        in the group or not.
    switches : mapping of effect name to bool or "other"
        Effects that are rendered in all subjects (True), in none (False) or in those outside the
        group (``"other"``): twins have these.
    store : StoredVolumes, optional
        Stored volumes, read instead of rendered unless a twin is wanted.

    Examples
    --------
    >>> import simba_lab as sb
    >>> bias = sb.Morphology("Putamen_L", 2.5)
    >>> scenario = sb.Scenario(64, sb.Morphology("Insula_L", 2.5), bias, spacing_mm=8)
    >>> cohort = sb.synthesise(scenario)
    >>> twin = cohort.twin(without="bias")
    >>> twin.carriers("bias").any()
    np.False_
    """

    scenario: Scenario
    seed: int
    table: pd.DataFrame
    switches: dict[str, bool | str] = field(default_factory=dict)
    store: StoredVolumes | None = None

    # -- what is known --

    @property
    def lattice(self) -> Lattice:
        """Where the voxels of the volumes are."""
        return self.store.lattice if self.store else self.renderer.lattice

    @property
    def template(self) -> Template:
        """The brain that the cohort is made from."""
        return self.renderer.template

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

    # -- twins --

    def unbiased(self) -> SyntheticCohort:
        """Return the control cohort: the same effects, as common in one class as in the other.

        Subjects with the same number have the same noise and the same unmatched anatomy in both. A
        cohort of some splits gives those splits.
        """
        splits, design = np.unique(self["split"]), design_table(self.scenario, self.seed)
        if sorted(self.table.index) != sorted(design.index[design["split"].isin(splits)]):
            value, remedy = f"{len(self)} of its subjects", "Call unbiased() first, then where()."
            raise SimbaError("cohort", Words(value), "whole, or whole splits", remedy)
        control = synthesise(self.scenario.unbiased(), seed=self.seed)
        return replace(control.where(np.isin(control["split"], splits)), switches=self.switches)

    # -- volumes --

    @cached_property
    def renderer(self) -> Renderer:
        """What renders these subjects."""
        return renderer_of(self.scenario, self.seed)

    @cached_property
    def _modes(self) -> np.ndarray:
        """The matched modes of anatomy: float, shape (n, modes)."""
        return self.table[[name for name in MODES if name in self.table.columns]].to_numpy(float)

    def subject(self, index: int) -> Subject:
        """Return one subject for the renderer: number, matched modes, magnitudes that show."""
        number = int(self.table.index[index])
        return Subject(number, self._modes[index], self.magnitudes(index))

    def coefficients(self, index: int) -> np.ndarray:
        """Return the coefficients of one subject's anatomy: standard normal over the population."""
        return self.renderer.coefficients(self.subject(index))

    def array(self, index: int, *, keep: bool = True) -> np.ndarray:
        """Return one subject: float32, shape (X, Y, Z), white matter about 1, background 0.

        Rendered volumes are kept in memory for a while, up to a limit, unless `keep` is false.
        """
        if self.store is not None and self.switches == self.store.switches:
            return self.store.array(int(self.table.index[index]))
        return self.renderer.volume(self.subject(index), keep=keep).copy()

    def clean(self, index: int, *, keep: bool = True) -> np.ndarray:
        """Return one subject without noise: float32, shape (X, Y, Z)."""
        return self.renderer.volume(self.subject(index), noisy=False, keep=keep).copy()

    def _array_function(self, device: str, keep: bool | None) -> Callable[[int], np.ndarray]:
        if keep is None:
            keep = len(self) * 4 * math.prod(self.lattice.shape) <= CACHE_BYTES
        if device == "cpu" or self.store is not None:
            _ = self.store or self.renderer  # made once, before threads ask for it
            return partial(self.array, keep=keep)
        from simba_lab.synthesis.rendering.gpu import gpu_renderer

        renderer = gpu_renderer(self.renderer, torch_device(device))
        return lambda index: renderer.volume(self.subject(index))

    # -- truth --

    def region(self, index: int, name: str) -> np.ndarray:
        """Return the mask of a template region as it lies in one subject, bool, shape (X, Y, Z)."""
        mask, lattice = self.template.region(name).astype(np.float32), self.template.lattice
        return self.renderer.warped(mask, lattice, self.subject(index)) > 0.5

    def positions_mm(self, index: int) -> np.ndarray:
        """Return the template position of each voxel of a subject, mm: float32, (3, X, Y, Z).

        With it anything of the template (a label, a mean map) is looked up for a voxel of the
        subject.
        """
        return self.renderer.positions(self.subject(index))

    def brain(self, index: int) -> np.ndarray:
        """Return the brain mask of one subject, bool, shape (X, Y, Z)."""
        return self.renderer.tissue(self.subject(index)) > BACKGROUND

    def difference(self, index: int, effect: str, *, keep: bool = False) -> np.ndarray:
        """Return what an effect does to the image of one subject, without noise: (X, Y, Z)."""
        on, off = self.twin(carrying=effect), self.twin(without=effect)
        return on.clean(index, keep=keep) - off.clean(index, keep=keep)

    def parcellation(self, index: int) -> tuple[np.ndarray, dict[int, str]]:
        """Return the region number of each voxel (0: none), int, (X, Y, Z), and their names.

        The number is that of the nearest voxel of the template.
        """
        lattice, labels = self.template.lattice, self.template.labels
        origin = np.array(lattice.origin_mm, np.float32)
        positions = np.moveaxis(self.positions_mm(index), 0, -1) - origin
        nearest = np.round(positions / lattice.spacing_mm).astype(int)
        within = ((nearest >= 0) & (nearest < labels.shape)).all(axis=-1)
        nearest = np.clip(nearest, 0, np.array(labels.shape) - 1)
        numbers = np.where(within, labels[tuple(np.moveaxis(nearest, -1, 0))], 0).astype(np.int64)
        return numbers, {number: name for name, number in self.template.regions.items()}
