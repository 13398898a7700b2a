"""What every method of attribution is, and the batch of volumes that it explains."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch

from simba_lab.core.cohort import Cohort
from simba_lab.core.errors import SimbaError
from simba_lab.interpretation.attribution.explained_network import ExplainedNetwork
from simba_lab.interpretation.attribution.separation import without_in_place
from simba_lab.interpretation.attribution.split_network import SplitNetwork


@dataclass(frozen=True, eq=False)
class Batch:
    """Volumes that a method explains at once.

    Parameters
    ----------
    network : SplitNetwork
    images : tensor, shape (N, 1, X, Y, Z)
    baselines : tensor, shape (N, 1, X, Y, Z), or None
        Of methods that compare with a baseline.
    cohort : Cohort
        The N subjects.
    chunk : int
        Volumes in one pass through the network.
    points : ndarray, shape (steps,), or None
        Of the path of integrated gradients, from 0 to 1; by default as many as the settings say.
    regions : list of dict
        Filled by `Shapley`: for each subject the value of each region.
    """

    network: SplitNetwork
    images: torch.Tensor
    baselines: torch.Tensor | None
    cohort: Cohort
    chunk: int
    points: np.ndarray | None = None
    regions: list[dict[str, float]] = field(default_factory=list)

    @property
    def explained(self) -> ExplainedNetwork:
        """The network that is explained."""
        return self.network.explained

    @property
    def starts(self) -> torch.Tensor:
        """The baselines, for a method that has them."""
        if self.baselines is None:
            raise SimbaError.problem("This batch has no baselines.", "Set has_baseline = True.")
        return self.baselines

    @property
    def subjects(self) -> list[int]:
        """The numbers of the subjects."""
        return self.cohort.table.index.tolist()


@dataclass(frozen=True)
class Method(ABC):
    """A method of attribution with its settings. Class attributes say what it needs.

    Attributes
    ----------
    name : str
        Under which `attribute` knows it.
    has_baseline : bool
        It compares each volume with a baseline.
    complete : bool
        Its maps add up to the change of the output from the baseline.
    differentiates : bool
        It needs a derivative of the output by the voxels.
    splits : bool
        It needs nothing but that derivative, so that the first layer can be split off.
    hooks : bool
        It reads or replaces what happens in layers, which must then not work in place.
    activations : int
        The memory of one volume, in units of the activations that a gradient keeps.
    """

    name: ClassVar[str]
    has_baseline: ClassVar[bool] = False
    complete: ClassVar[bool] = False
    differentiates: ClassVar[bool] = True
    splits: ClassVar[bool] = False
    hooks: ClassVar[bool] = False
    activations: ClassVar[int] = 1

    @property
    def passes(self) -> int:
        """Gradients of each volume that go through the network together."""
        return 1

    def check(self, explained: ExplainedNetwork, volume: torch.Tensor) -> None:
        """Refuse networks that the method would silently read wrongly, naming the layer.

        The private copy may be changed so that it can be read, with the same output.
        """
        if self.hooks:
            without_in_place(explained, volume)

    def check_sums(
        self, error: np.ndarray, explained: ExplainedNetwork, volume: torch.Tensor
    ) -> None:
        """Refuse maps that do not add up, given the completeness error of each subject."""
        return

    @abstractmethod
    def maps(self, batch: Batch) -> torch.Tensor:
        """Return what each voxel contributes to the output, shape (N, 1, X, Y, Z)."""
