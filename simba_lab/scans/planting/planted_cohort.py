"""PlantedCohort: somebody's scans with effects in them, and the same scans without."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from simba_lab.core.border import checks_arguments
from simba_lab.core.cohort import TwinCohort
from simba_lab.core.lattice import Lattice
from simba_lab.scans.planting.draws import drawn
from simba_lab.scans.planting.planted_scans import Amounts, PlantedScans
from simba_lab.synthesis.anatomy.template import Template
from simba_lab.synthesis.effects import CLASSES, Effect, prevalence_in
from simba_lab.synthesis.rendering.renderer import CACHE_BYTES
from simba_lab.synthesis.rendering.scanner import BACKGROUND
from simba_lab.synthesis.synthetic_cohort import StoredVolumes


@checks_arguments
@dataclass(frozen=True, eq=False)
class PlantedCohort(TwinCohort):
    """People with scans, and effects in the scans that can be switched: each person has twins.

    Made by `plant`; subsets and twins of a cohort are cohorts too. The twin without any effect is
    the scan itself, as the cohort of scans has it. All effects are biases: what the scans show
    besides is not known.

    Parameters
    ----------
    table : pandas.DataFrame
        That of the scans, and for each effect its group (1: in it), under the name of the effect,
        and ``NAME_magnitude``, drawn for everybody, in the group or not.
    source : PlantedScans
        The files and the effects.
    switches : mapping of effect name to bool or "other"
        Effects that show in everybody (True), in nobody (False) or in those outside the group
        (``"other"``): twins have these.
    store : StoredVolumes, optional
        Stored volumes, read instead of made unless a twin is wanted.

    Examples
    --------
    >>> import tempfile
    >>> import simba_lab as sb
    >>> world = sb.synthesise(sb.Scenario(64, sb.Morphology("Insula_L", 2.5), spacing_mm=8))
    >>> folder = sb.export_bids(world, tempfile.mkdtemp() + "/study", masks=False)
    >>> preparation = sb.scans.Preparation(spacing_mm=8)
    >>> scans = sb.read_bids(folder, label="label", disease="disease", preparation=preparation)
    >>> marked = sb.plant(scans.test, {"scanner": sb.Intensity("contrast", 0.1)})
    >>> isinstance(marked, sb.scans.PlantedCohort), list(marked.biases)
    (True, ['scanner'])
    """

    table: pd.DataFrame
    source: PlantedScans
    switches: dict[str, bool | str] = field(default_factory=dict)
    store: StoredVolumes | None = None

    # -- what is known --

    @property
    def lattice(self) -> Lattice:
        """Where the voxels of the volumes are."""
        return self.source.lattice

    @property
    def template(self) -> Template:
        """The brain whose regions are meant."""
        return self.source.template

    @property
    def identity(self) -> dict[str, Any]:
        """What the volumes follow from: files, effects, transforms and seed."""
        return self.source.identity

    @property
    def population(self) -> str:
        """The files, as for the cohort of scans: its people are the same."""
        return repr(self.source.images.identity)

    @property
    def effects(self) -> dict[str, Effect]:
        """The planted effects by name, in the order in which they were given."""
        return dict(self.source.effects)

    @property
    def biases(self) -> dict[str, Effect]:
        """The planted effects by name."""
        return self.effects

    # -- twins --

    def unbiased(self) -> PlantedCohort:
        """Return the control cohort: the same effects, as common in one class as in the other.

        The prevalence is the mean of those of the two classes; groups are drawn anew among these
        people, who keep their magnitudes.
        """
        fair = {
            name: replace(
                effect,
                prevalence=float(np.mean([prevalence_in(effect, label) for label in CLASSES])),
            )
            for name, effect in self.effects.items()
        }
        new = [column for name in fair for column in (name, f"{name}_magnitude")]
        table = drawn(self.table.drop(columns=new), fair, self.source.seed)
        return replace(self, table=table, source=replace(self.source, effects=fair), store=None)

    # -- volumes --

    def _subject(self, index: int) -> int:
        return int(self.table.index[index])

    def _amounts(self, index: int) -> Amounts:
        return tuple((name, amount) for name, amount in self.magnitudes(index).items() if amount)

    def array(self, index: int, *, keep: bool = True) -> np.ndarray:
        """Return one scan: float32, shape (X, Y, Z), white matter about 1, background 0.

        Volumes are kept in memory for a while, up to a limit, unless `keep` is false.
        """
        if self.store is not None and self.switches == self.store.switches:
            return self.store.array(self._subject(index))
        volume = self.source.volume(self._subject(index), self._amounts(index), keep=keep)
        return volume.copy()

    def _array_function(self, device: str, keep: bool | None) -> Callable[[int], np.ndarray]:
        if keep is None:
            keep = len(self) * 4 * math.prod(self.lattice.shape) <= CACHE_BYTES
        if self.store is None:
            _ = self.source.flows  # made once, before threads ask for them
        return partial(self.array, keep=keep)

    # -- truth --

    def region(self, index: int, name: str) -> np.ndarray:
        """Return a region of the template as it lies in one scan, bool, shape (X, Y, Z).

        It lies where the transform says, moved by the effects that show.
        """
        mask = self.template.region(name).astype(np.float32)
        subject, amounts = self._subject(index), self._amounts(index)
        return self.source.looked_up(mask, subject, amounts, order=1) > 0.5

    def positions_mm(self, index: int) -> np.ndarray:
        """Return the template position of each voxel of a scan, mm: float32, (3, X, Y, Z)."""
        return self.source.positions_mm(self._subject(index), self._amounts(index))

    def brain(self, index: int) -> np.ndarray:
        """Return the voxels that are brighter than the background in the untouched scan, bool."""
        return self.source.volume(self._subject(index)) > BACKGROUND

    def difference(self, index: int, effect: str, *, keep: bool = False) -> np.ndarray:
        """Return what an effect does to one scan, without noise that is added: (X, Y, Z)."""
        on, off = self.twin(carrying=effect), self.twin(without=effect)
        return on._noiseless(index, keep) - off._noiseless(index, keep)

    def _noiseless(self, index: int, keep: bool) -> np.ndarray:
        amounts = self.source.noiseless(self._amounts(index))
        return self.source.volume(self._subject(index), amounts, keep=keep)

    def parcellation(self, index: int) -> tuple[np.ndarray, dict[int, str]]:
        """Return the region number of each voxel (0: none), int, (X, Y, Z), and their names."""
        template = self.template
        subject, amounts = self._subject(index), self._amounts(index)
        numbers = self.source.looked_up(template.labels, subject, amounts, order=0)
        return numbers.astype(np.int64), {n: name for name, n in template.regions.items()}
