"""The same calls on networks that are not ours."""

import numpy as np
import pytest
from monai.networks.nets import DenseNet

import simba_lab as sb


@pytest.mark.slow
def test_a_densenet_of_monai_is_fitted_recorded_probed_compared_and_edited(cohort):
    model = DenseNet(
        spatial_dims=3,
        in_channels=1,
        out_channels=1,
        init_features=8,
        growth_rate=4,
        block_config=(2, 2),
        bn_size=2,
    )
    run = sb.fit(model, cohort, sb.FitConfig(epochs=1), cache=False)
    test = cohort.test
    layers = ["features.denseblock*", "features.transition1"]
    grams = sb.record(run.model, test, layers=layers, activations=["features.transition1"])
    names = ["features.denseblock1", "features.transition1", "features.denseblock2"]
    assert set(grams) == {
        "pixels",
        *(name for name in sb.record(run.model, test, layers=layers, pixels=False)),
    }
    assert set(names) <= set(grams)
    table = sb.probe(grams, test["bias"], given=test["label"], folds=2, permutations=5)
    assert (
        table[["auroc", "balanced_accuracy"]]
        .apply(lambda column: column.between(0, 1))
        .all(axis=None)
    )
    similar = sb.cka(grams)["cka"]
    assert all(similar[name, name] == pytest.approx(1) for name in names)
    # Exact twins: with the twin's activations of one layer in place, what follows is the twin's.
    twin = test.twin(without="bias")
    twin_recording = sb.record(run.model, twin, layers=layers, activations=["features.transition1"])
    with sb.edit(
        run.model,
        {
            "features.transition1": sb.interpretation.replacing(
                twin_recording.activations["features.transition1"]
            )
        },
    ):
        patched = sb.logits(run.model, test)
    np.testing.assert_allclose(patched, sb.logits(run.model, twin), atol=1e-5)
    assert not any(module._forward_hooks for module in run.model.modules())
