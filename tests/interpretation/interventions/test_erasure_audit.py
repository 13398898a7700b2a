import numpy as np
import pytest
from planted import Planted, centred, far_scenario, masks_of

import simba_lab as sb
from simba_lab.interpretation.interventions import audit
from simba_lab.interpretation.interventions.audit import erasure_audit
from simba_lab.interpretation.interventions.erasure import erase


def hooks(model):
    return sum(len(module._forward_hooks) for module in model.modules())


@pytest.fixture(scope="module")
def far():
    return sb.synthesise(far_scenario(160), seed=0)


@pytest.fixture(scope="module")
def reader(far):
    return centred(Planted(masks_of(far.test), [1.0, 0.0]), far.test)


def test_erasing_the_bias_takes_the_twin_effect_of_its_reader_and_erasing_noise_does_not(
    far, reader
):
    table = erasure_audit(reader, far.train, far.test, layers=["block2"])
    assert table.index.tolist() == [
        ("block2", erased) for erased in ("nothing", "bias", "random", "disease")
    ]
    row = {erased: table.loc[("block2", erased)] for erased in ("nothing", "bias", "random")}
    assert row["nothing"]["twin_effect"] == pytest.approx(
        sb.twin_effect(reader, far.test).loc["bias", "logit"]
    )
    assert row["nothing"]["rank"] == 0 == row["nothing"]["twin_effect_change"]
    assert row["nothing"]["twin_effect_low"] > 0.1
    assert abs(row["bias"]["twin_effect"]) < 0.1 * row["nothing"]["twin_effect"]
    assert row["bias"]["twin_effect_change_high"] < -0.1
    assert abs(row["random"]["twin_effect_change"]) < 0.1 * row["nothing"]["twin_effect"]
    rates = sb.evaluate(reader, far.test)
    assert (
        row["nothing"]["tpr_B"] == rates.loc["B", "tpr"]
        and row["nothing"]["fpr_NB"] == rates.loc["NB", "fpr"]
    )
    grams = sb.record(reader, far.test, layers=["block2"], pixels=False)
    probe = sb.probe(
        grams, far.test["bias"], given=far.test["label"], folds=far.test["fold"], permutations=0
    )
    assert row["nothing"]["bias"] == probe.loc["block2", "auroc"]
    assert hooks(reader) == 0


def test_erasing_the_bias_does_nothing_to_a_reader_of_elsewhere(far):
    model = centred(Planted(masks_of(far.test), [0.0, 1.0]), far.test)
    table = erasure_audit(model, far.train, far.test, layers=["block2"], controls=())
    assert abs(table.loc[("block2", "bias"), "twin_effect_change"]) < 1e-3


def test_hooks_are_removed_when_something_fails(far, reader, monkeypatch):
    def failing(*_, **__):
        raise RuntimeError("in the middle of it")

    monkeypatch.setattr(audit, "twin_logits", failing)
    with pytest.raises(RuntimeError, match="in the middle"):
        erasure_audit(reader, far.train, far.test, layers=["block2"], controls=())
    assert hooks(reader) == 0


def test_bad_audits_are_refused(far, reader):
    with pytest.raises(sb.SimbaError, match="which is in both cohorts"):
        erasure_audit(reader, far, far.test)
    with pytest.raises(sb.core.UnknownNameError, match="bias"):
        erasure_audit(reader, far.train, far.test, "biass")
    with pytest.raises(sb.core.UnknownNameError, match="random"):
        erasure_audit(reader, far.train, far.test, controls=["rand"])
    with pytest.raises(sb.core.UnknownNameError, match="block2"):
        erasure_audit(reader, far.train, far.test, layers=["block7"])
    with pytest.raises(sb.SimbaError, match="Twins differ in nothing else"):
        erase(reader, far.train, "bias", given="label")
    with pytest.raises(sb.core.UnknownNameError, match="label"):
        erase(reader, far.train, "labell")
    with pytest.raises(sb.SimbaError, match="one for each of the"):
        erase(reader, far.train, np.arange(3), layers=["block2"])
