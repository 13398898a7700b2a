"""Encoding against use: planted networks that hold the same and use different things."""

import dataclasses

import numpy as np
import pytest
from planted import Planted, centred, far_scenario, masks_of

import simba_lab as sb


@pytest.fixture(scope="module")
def audience():
    return sb.synthesise(far_scenario(200).unbiased(), seed=1)


@pytest.fixture(scope="module")
def far():
    return sb.synthesise(far_scenario(80), seed=0)


@pytest.fixture(scope="module")
def tables(far, audience):
    masks = masks_of(far.where(range(40)))
    rows = {}
    for name, weights in (("bias", (1.0, 0.0)), ("disease", (0.0, 1.0))):
        model = centred(Planted(masks, weights), far)
        rows[name] = sb.encoding_and_use(
            model, audience, far, layers=["block2"], untrained=[Planted(masks, (1.0, 1.0))]
        )
    return rows


def test_networks_that_hold_the_same_are_told_apart_by_use(tables):
    uses, ignores = (tables[name].loc["block2"] for name in ("bias", "disease"))
    assert uses["auroc"] == pytest.approx(ignores["auroc"], abs=1e-6)
    assert uses["above_floor"] == pytest.approx(0, abs=1e-6)  # the first weights hold it too
    assert uses["removed_low"] > 0 or uses["removed_high"] < 0
    assert abs(uses["removed"]) > 0.75 * abs(uses["effect"])
    assert abs(ignores["removed"]) < 0.02
    assert abs(uses["removed_random"]) < 0.3 * abs(uses["removed"])


def test_use_is_measured_in_units_of_the_disease(tables):
    row = tables["disease"].loc["block2"]
    assert abs(row["disease"]) > 0.02
    assert row["use"] == pytest.approx(row["removed"] / row["disease"])
    assert row["use_low"] <= row["use"] <= row["use_high"]
    assert np.isnan(tables["bias"].loc["block2", "use"])  # it does not see the disease at all


def test_audience_and_test_must_be_other_people(far):
    with pytest.raises(sb.SimbaError, match="audience"):
        sb.encoding_and_use(sb.SimBANet((4, 8), seed=0), far, far.test)
    with pytest.raises(sb.core.UnknownNameError, match="bias"):
        sb.encoding_and_use(sb.SimBANet((4, 8), seed=0), far, far.test, effect="bais")


def test_a_sweep_that_looks_inside_notes_every_block_of_every_bias(tmp_path):
    scenario = far_scenario(80)
    sweep = sb.Sweep(
        scenario,
        {"prevalence.bias": [0.5, 0.9]},
        seeds=[0],
        config=sb.FitConfig(epochs=1, threads=1),
        network={"name": "SimBANet", "widths": (4, 8)},
        inside=True,
    )
    assert sb.Sweep.from_dict(sweep.to_dict()).inside
    table = sweep.run(n_jobs=1, cache=tmp_path)
    layers = sb.experiments.layers_of(table)
    assert len(layers) == 4 and set(layers["layer"]) == {"block1", "block2"}
    assert np.isfinite(layers[["auroc", "floor", "effect", "removed"]]).all(axis=None)
    with pytest.raises(sb.SimbaError, match="inside"):
        sb.experiments.layers_of(
            dataclasses.replace(sweep, inside=False, seeds=[1]).run(n_jobs=1, cache=tmp_path)
        )
    with pytest.raises(sb.SimbaError, match="group_models"):
        sb.Sweep(scenario, {"mitigation": ["group_models"]}, inside=True)
