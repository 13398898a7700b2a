"""Cohorts as what other libraries expect."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.data import Dataset

from simba_lab.core.border import checks_arguments
from simba_lab.core.cohort import Cohort
from simba_lab.core.errors import SimbaError


@checks_arguments
class CohortDataset(Dataset):
    """A cohort as a map-style PyTorch dataset of dictionaries, for `DataLoader`, MONAI and TorchIO.

    Each item has ``image`` (float32, shape (1, X, Y, Z)), ``subject`` and the columns that were
    asked for. Volumes are rendered (or read) when an item is asked for, in the worker that asks.

    Parameters
    ----------
    cohort : Cohort
    columns : tuple of str, optional
        Columns of the design table; by default the label and the group of each bias.
    transform : callable, optional
        Applied to each item, which is a dictionary: MONAI's dictionary transforms fit.

    Examples
    --------
    >>> import simba_lab as sb
    >>> scenario = sb.Scenario(64, sb.Morphology("Insula_L", 2.5), spacing_mm=8)
    >>> dataset = sb.scans.CohortDataset(sb.synthesise(scenario))
    >>> sorted(dataset[0]), tuple(dataset[0]["image"].shape)
    (['image', 'label', 'subject'], (1, 20, 24, 20))
    """

    def __init__(
        self,
        cohort: Cohort,
        *,
        columns: tuple[str, ...] | None = None,
        transform: Callable[[dict], Any] | None = None,
    ) -> None:
        if transform is not None and not callable(transform):
            raise SimbaError("transform", transform, "a function of an item")
        self.cohort, self.transform = cohort, transform
        self.columns = {
            name: cohort[name]
            for name in (("label", *cohort.biases) if columns is None else columns)
        }

    def __len__(self) -> int:
        return len(self.cohort)

    def __getitem__(self, index: int) -> Any:
        if not -len(self) <= index < len(self):
            raise IndexError(
                f"index {index} of {len(self)} subjects"
            )  # what ends a loop over a dataset
        item: dict[str, Any] = {
            "image": torch.from_numpy(self.cohort.array(index % len(self)))[None]
        }
        item["subject"] = int(self.cohort.table.index[index])
        item |= {
            name: column[index].item() if hasattr(column[index], "item") else column[index]
            for name, column in self.columns.items()
        }
        return item if self.transform is None else self.transform(item)
