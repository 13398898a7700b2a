"""Interchange on exact twins: theorems, planted networks, and what is refused."""

import numpy as np
import pytest
import torch
from planted import Planted, centred, far_scenario, masks_of

import simba_lab as sb
from simba_lab.interpretation.interventions import Channels, Regions


@pytest.fixture(scope="module")
def far():
    return sb.synthesise(far_scenario(), seed=0)


@pytest.fixture(scope="module")
def planted(far):
    masks = masks_of(far)
    return {
        name: centred(Planted(masks, w), far)
        for name, w in (("bias", (1.0, 0.0)), ("disease", (0.0, 1.0)))
    }


@pytest.fixture(scope="module")
def trained(far):
    return sb.SimBANet((4, 8), seed=0)


def test_patching_a_block_gives_the_output_of_the_twin(far, trained):
    table = sb.interchange(trained, far.where(range(12)))
    assert list(table.index) == ["block1", "block2", "all"]
    assert table["miss"].max() < 1e-5
    np.testing.assert_allclose(table["share"], 1, atol=1e-5)
    np.testing.assert_allclose(table["direct"], 0, atol=1e-5)


def test_patching_nothing_changes_nothing(far, trained):
    empty_mask = np.zeros(far.lattice.shape, bool)
    table = sb.interchange(
        trained, far.where(range(12)), by=Regions({"nothing": empty_mask}), layers=["block1"]
    )
    row = table.loc[("block1", "nothing")]
    assert row["cells"] == 0 and abs(row["effect"]) < 1e-9
    assert table.loc[("block1", "rest"), "share"] == pytest.approx(1, abs=1e-5)


def test_effects_of_a_part_and_of_the_rest_add_up_to_the_total(far, trained):
    table = sb.interchange(trained, far.where(range(12)), by=Channels(2), layers=["block2"])
    total = table["total"].iloc[0]
    assert table["effect"].sum() == pytest.approx(total, rel=1e-5)
    twin = sb.twin_effect(trained, far.where(range(12)))["logit"].item()
    assert total == pytest.approx(twin, abs=1e-5)


def test_a_reader_of_the_bias_and_a_reader_of_the_disease_are_told_apart(far, planted):
    by = {
        name: sb.interchange(model, far.test, by="region", layers=["block1"]).loc["block1"]
        for name, model in planted.items()
    }
    assert (
        by["bias"].loc["bias", "share_low"] > 0.85
    )  # changes below 2 % of white matter count as the rest
    assert by["bias"].loc["bias", "effect_low"] > 0 or by["bias"].loc["bias", "effect_high"] < 0
    assert abs(by["disease"]["total"].iloc[0]) < 0.02 * abs(by["bias"]["total"].iloc[0])


def test_the_channel_of_the_bias_carries_its_effect(far, planted):
    table = sb.interchange(planted["bias"], far.test, by=Channels(None), layers=["block2"])
    assert table.loc[("block2", "0"), "share"] == pytest.approx(1, abs=1e-4)
    assert table.loc[("block2", "1"), "share"] == pytest.approx(0, abs=1e-4)


def test_the_network_is_left_as_it_was(far, trained):
    before = sb.logits(trained, far.where(range(4)))
    with pytest.raises(sb.SimbaError, match="shape"):
        sb.interchange(trained, far.where(range(4)), by=Regions({"x": np.zeros((2, 2, 2), bool)}))
    sb.interchange(trained, far.where(range(4)))
    assert not any(module._forward_hooks for module in trained.modules())
    np.testing.assert_array_equal(sb.logits(trained, far.where(range(4))), before)


def test_bad_requests_are_refused(far, trained):
    subjects = far.where(range(4))
    with pytest.raises(sb.SimbaError, match="disease"):
        sb.interchange(
            trained,
            (subjects.twin(without="bias").twin(without="disease"), subjects.twin(carrying="bias")),
        )
    with pytest.raises(sb.SimbaError, match="same subjects"):
        sb.interchange(
            trained, (subjects.twin(without="bias"), far.where(range(4, 8)).twin(carrying="bias"))
        )
    with pytest.raises(sb.core.UnknownNameError, match="block1"):
        sb.interchange(trained, subjects, layers=["blok1"])
    with pytest.raises(sb.core.UnknownNameError, match="region"):
        sb.interchange(trained, subjects, by="regions")
    with pytest.raises(sb.SimbaError, match="memory_gb"):
        sb.interchange(trained, subjects, compute=sb.Compute(memory_gb=1e-6))
    with pytest.raises(sb.SimbaError, match="lattice"):
        sb.interchange(trained, subjects, by="region", layers=["readout"])
    with pytest.raises(sb.SimbaError, match="groups"):
        sb.interchange(trained, subjects, by=Channels(0))


def test_half_precision_and_tuples_are_handled(far):
    class Pair(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv3d(1, 2, 3)
            self.split = Split()

        def forward(self, x):
            return self.split(self.conv(x))[0].mean((2, 3, 4))[:, :1]

    class Split(torch.nn.Module):
        def forward(self, x):
            return x, x

    with pytest.raises(sb.SimbaError, match="tensor"):
        sb.interchange(Pair(), far.where(range(4)), layers=["split"])
