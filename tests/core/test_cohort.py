"""Cohorts: which subjects a mask means, and what is a volume by hand."""

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import simba_lab as sb
from simba_lab.core.batches import Feed, batches

LATTICE = sb.core.Lattice((2, 3, 4), 8.0, (0.0, 0.0, 0.0))


class Source:
    """A volume that is full of its subject's number."""

    lattice, identity = LATTICE, {}

    def array(self, subject):
        return np.full(LATTICE.shape, subject, np.float32)


def people(count, **columns):
    table = pd.DataFrame({"split": "test", "label": 0, **columns}, index=range(count))
    return sb.scans.ScanCohort(table, Source())


@pytest.mark.parametrize("kind", [int, np.uint8, "Int64"])
def test_zeros_and_ones_are_refused_in_the_place_of_a_mask(kind):
    """They would repeat the first two subjects."""
    cohort = people(6, bias=pd.array([0, 1, 1, 0, 1, 0], dtype=kind))
    with pytest.raises(sb.SimbaError, match=r"clearly positions.*cohort\['bias'\] == 1"):
        cohort.where(cohort["bias"])
    assert cohort.where(cohort["bias"] == 1).table.index.tolist() == [1, 2, 4]


@pytest.mark.parametrize(
    "mask",
    [
        np.ones(5, bool),
        [0.0, 1.0],
        ["a"],
        [[True] * 6],
        [6],
        [-7],
        None,
        pd.array([True, None, True, True, True, True], dtype="boolean"),
        np.zeros(6, int),
    ],
)
def test_masks_that_mean_nothing_are_refused(mask):
    with pytest.raises(sb.SimbaError, match="mask must be"):
        people(6).where(mask)


def test_masks_and_positions():
    cohort = people(6)
    for mask, rows in (
        ([True, False] * 3, [0, 2, 4]),
        (torch.tensor([False, True] * 3), [1, 3, 5]),
        ([1, 1, 0], [1, 1, 0]),
        (range(2, 4), [2, 3]),
        ([], []),
        ([-1], [5]),
    ):
        assert cohort.where(mask).table.index.tolist() == rows
    assert people(2).where([1, 0]).table.index.tolist() == [1, 0]


def test_batches_may_hold_the_first_subjects_twice():
    feed = Feed(people(3), torch.device("cpu"), memory_gb=0)
    (batch,) = feed.batches([torch.tensor([0, 1, 1])])
    assert batch[:, 0, 0, 0, 0].tolist() == [0, 1, 1]


VOLUMES = np.arange(72).reshape(3, 2, 3, 4)


class Items(torch.utils.data.Dataset):
    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[min(index, 2)]  # never an IndexError


@pytest.mark.parametrize(
    "volumes",
    [
        VOLUMES,
        VOLUMES.astype(float),
        VOLUMES.astype(np.float16),
        VOLUMES[:, None],
        VOLUMES[..., None],
        torch.tensor(VOLUMES)[:, None],
        torch.tensor(VOLUMES, dtype=torch.bfloat16),
        [nib.Nifti1Image(volume.astype(np.int16), np.eye(4)) for volume in VOLUMES],
        TensorDataset(torch.tensor(VOLUMES), torch.zeros(3)),
        Items([{"image": volume[None], "label": 1} for volume in VOLUMES]),
        DataLoader(TensorDataset(torch.tensor(VOLUMES)), batch_size=None),
    ],
)
def test_volumes_by_hand_are_taken_in_every_form(volumes):
    made = torch.cat(list(batches(volumes, 2)))
    assert made.dtype == torch.float32 and made.shape == (3, 1, 2, 3, 4)
    np.testing.assert_array_equal(made[:, 0].numpy(), VOLUMES)


@pytest.mark.parametrize(
    ("volumes", "says"),
    [
        (VOLUMES[0], r"volumes\[0\] .*shape \(3, 4\)\. Put a single volume into a list"),
        (np.stack([VOLUMES] * 2, axis=1), r"shape \(2, 2, 3, 4\)"),
        ([VOLUMES[0], VOLUMES[1, 1:]], r"volumes\[1\] must be of shape \(2, 3, 4\)"),
        (
            [VOLUMES[0], np.full((2, 3, 4), np.inf)],
            r"volumes\[1\] must be a volume of finite numbers",
        ),
        ([VOLUMES[0] * 1j], "complex"),
        (["scan.nii.gz"], "<U"),
        ([{"img": VOLUMES[0]}], "key image"),
        ([None], "object"),
        (5, "a cohort, or volumes by hand"),
    ],
)
def test_what_is_no_volume_is_named(volumes, says):
    with pytest.raises(sb.SimbaError, match=says):
        list(batches(volumes, 2))
