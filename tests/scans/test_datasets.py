import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import simba_lab as sb


def test_batches_hold_the_volumes_and_columns(cohort):
    subjects = cohort.where(np.arange(7))
    batches = list(DataLoader(sb.scans.CohortDataset(subjects), batch_size=4))
    assert [len(batch["image"]) for batch in batches] == [4, 3]
    np.testing.assert_array_equal(
        torch.cat([batch["image"] for batch in batches])[:, 0].numpy(), subjects.arrays()
    )
    for name in ("label", "bias"):
        assert torch.cat([batch[name] for batch in batches]).tolist() == subjects[name].tolist()


def test_other_processes_give_the_same(cohort):
    subjects = cohort.where(np.arange(4))
    loader = DataLoader(
        sb.scans.CohortDataset(subjects), num_workers=1, multiprocessing_context="spawn"
    )
    np.testing.assert_array_equal(
        torch.cat([batch["image"] for batch in loader])[:, 0].numpy(), subjects.arrays()
    )


def test_transforms_and_chosen_columns(cohort):
    data = sb.scans.CohortDataset(
        cohort,
        columns=("fold", "split"),
        transform=lambda item: item | {"image": item["image"] * 2},
    )
    assert set(data[-1]) == {"image", "subject", "fold", "split"}
    np.testing.assert_array_equal(data[-1]["image"][0].numpy(), 2 * cohort.array(len(cohort) - 1))
    with pytest.raises(IndexError):
        data[len(cohort)]
    with pytest.raises(sb.core.UnknownNameError, match="fold"):
        sb.scans.CohortDataset(cohort, columns=("folds",))
    with pytest.raises(sb.SimbaError, match="transform"):
        sb.scans.CohortDataset(cohort, transform=3)
