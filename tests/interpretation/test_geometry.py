import numpy as np
import pandas as pd
import pytest

import simba_lab as sb

RNG = np.random.default_rng(0)


def gram(features):
    return features @ features.T


def design(n=200, prevalence=0.8):
    """Half of the subjects are patients; the bias is more frequent among them."""
    label = np.arange(n) % 2
    carries = (np.arange(n) // 2) % 10 < 10 * prevalence
    return label, np.where(carries, label, 1 - label)


def signed(values):
    return 2.0 * values - 1


# -- components --


@pytest.fixture(scope="module")
def planted_components():
    """The disease on the strongest axis, what the bias adds to it on the second, noise on all."""
    label, bias = design()
    features = np.random.default_rng(0).standard_normal((200, 20))
    features[:, 0] += 8 * signed(label)
    features[:, 1] += 5 * (signed(bias) - 0.6 * signed(label))
    turn = np.linalg.qr(np.random.default_rng(1).standard_normal((20, 20)))[0]
    return sb.components({"layer": gram(features @ turn + 3)}, label, bias, count=3), features


def test_disease_and_bias_are_found_on_their_components(planted_components):
    table = planted_components[0].loc["layer"]
    assert table.index.tolist() == ["PC1", "PC2", "PC3", "PC1-3"]
    assert table["disease"]["PC1"] > 0.98 and table["bias_within"]["PC2"] > 0.95
    assert table["bias_within_low"]["PC2"] > 0.9
    assert (
        table["disease"]["PC1-3"] > 0.98
        and table["bias"]["PC1-3"] > 0.98
        and table["bias_within"]["PC1-3"] > 0.95
    )
    assert (
        abs(table["disease"]["PC3"] - 0.5) < 0.15 and abs(table["bias_within"]["PC3"] - 0.5) < 0.15
    )
    for name in ("disease", "bias", "bias_within"):
        assert (table[f"{name}_low"] <= table[name]).all() and (
            table[name] <= table[f"{name}_high"]
        ).all()


def test_the_leak_explains_the_bias_on_a_component_of_the_disease(planted_components):
    row = planted_components[0].loc[("layer", "PC1")]
    assert row["bias"] == pytest.approx(0.8, abs=0.03) and row["leak"] == pytest.approx(
        row["bias"], abs=0.03
    )
    assert row["bias_within_low"] <= 0.5 <= row["bias_within_high"]


def test_variance_shares_are_those_of_the_covariance(planted_components):
    table, features = planted_components
    variances = np.linalg.eigvalsh(np.cov(features.T))[::-1]
    shares = variances[:3] / variances.sum()
    np.testing.assert_allclose(table["variance_share"], [*shares, shares.sum()], rtol=0.05)


def test_components_are_held_out():
    """With as many components as training subjects, classifiers fit those subjects well."""
    rows = []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        label, bias = rng.permutation(80) % 2, rng.permutation(80) % 2
        rows.append(
            sb.components(
                {"layer": gram(rng.standard_normal((80, 200)))}, label, bias, count=4, seed=seed
            )
        )
    together = pd.concat(rows).xs("PC1-4", level="component")
    for name in ("disease", "bias", "bias_within"):
        assert (
            abs(together[name].mean() - 0.5) < 4 * together[name].std() / np.sqrt(8)
            and together[name].mean() < 0.6
        )


def test_components_take_folds_and_twins():
    label, bias = design(80)
    features = RNG.standard_normal((80, 10))
    folds = (np.arange(80) // 20).astype(int)
    table = sb.components(
        {"a": gram(features), "b": gram(features)}, label, bias, count=2, folds=folds
    )
    pd.testing.assert_frame_equal(table.loc["a"], table.loc["b"])
    recording = sb.interpretation.Recording(
        {"a": gram(features)}, subjects=np.arange(80) // 40 * 40 + np.arange(80) % 40 // 2
    )
    with pytest.raises(sb.SimbaError, match="in several folds"):
        sb.components(recording, label, bias, folds=np.arange(80) % 4)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"label": np.arange(80) % 3}, "label must be of two values"),
        ({"label": np.zeros(80)}, "label must be of two values"),
        ({"bias": np.arange(80) % 3}, "of two values"),
        ({"bias": np.zeros(80)}, "bias must be of two values"),
        ({"label": np.arange(3) % 2}, "of shape"),
        ({"count": 11}, "count must be at most 10"),
        ({"folds": 30}, "from 2 to"),
        ({"recording": {"layer": np.eye(4)}}, "of shape"),
    ],
)
def test_bad_components_are_refused(arguments, says):
    label, bias = design(80)
    arguments = {
        "recording": {"layer": gram(RNG.standard_normal((80, 10)))},
        "label": label,
        "bias": bias,
    } | arguments
    with pytest.raises(sb.SimbaError, match=says):
        sb.components(**arguments)


# -- angles --


def turned(first, second, cosine, n=100, p=40, seed=0):
    """Features with two directions of known cosine and lengths (relative to all noise)."""
    rng = np.random.default_rng(seed)
    label, bias = design(n)
    features, size = rng.standard_normal((n, p)), np.sqrt(p)
    features[:, 0] += first * size * label + cosine * second * size * bias
    features[:, 1] += np.sqrt(1 - cosine**2) * second * size * bias
    return sb.interpretation.angles(
        {"layer": gram(features)}, {"disease": label, "bias": bias}, seed=seed
    ).loc["layer"]


@pytest.mark.parametrize("cosine", [0.0, 0.6, -0.6, 1.0])
def test_angles_and_lengths_are_the_planted_ones(cosine):
    rows = pd.DataFrame([turned(1.0, 0.7, cosine, seed=seed) for seed in range(20)])
    for name, true in (
        ("cosine_disease_bias", cosine),
        ("length_disease", 1.0),
        ("length_bias", 0.7),
    ):
        covered = (rows[f"{name}_low"] <= true) & (true <= rows[f"{name}_high"])
        assert covered.sum() >= 16, name
        assert abs(rows[name].mean() - true) < 4 * rows[name].std() / np.sqrt(20) + 0.01
        width = (rows[f"{name}_high"] - rows[f"{name}_low"]).mean()
        assert 0.5 < width / (2 * 1.96 * rows[name].std()) < 3  # not by being wide


def test_equal_directions_have_a_cosine_of_one_in_noise():
    """The plain cosine of two noisy estimates of one direction is far below one."""
    values = [turned(0.3, 0.3, 1.0, p=300, seed=seed)["cosine_disease_bias"] for seed in range(10)]
    assert np.mean(values) == pytest.approx(1, abs=0.1)


def test_a_factor_that_is_not_there_has_no_cosine():
    rows = pd.DataFrame([turned(1.0, 0.0, 0.0, seed=seed) for seed in range(20)])
    missing = rows["cosine_disease_bias"].isna()
    assert (
        4 <= missing.sum() <= 17
    )  # chance makes about half of the directions longer than it should
    assert rows["length_bias"][missing].eq(0).all() and rows["length_bias"].max() < 0.4
    shown = rows[rows["cosine_disease_bias_low"].notna() & rows["cosine_disease_bias_high"].notna()]
    assert (
        (shown["cosine_disease_bias_low"] <= 0) & (shown["cosine_disease_bias_high"] >= 0)
    ).mean() >= 0.7


def test_angles_do_not_depend_on_scale_origin_or_rotation():
    label, bias = design(60)
    features = (
        RNG.standard_normal((60, 20))
        + np.outer(label, np.ones(20))
        + np.outer(bias, np.linspace(-1, 1, 20))
    )
    turn = np.linalg.qr(RNG.standard_normal((20, 20)))[0]
    table = sb.interpretation.angles(
        {
            "a": gram(features),
            "b": gram(1e6 * features @ turn),
            "c": gram(1e-6 * features),
            "d": gram(features + 100),
        },
        {"disease": label.astype(bool), "bias": pd.Series(bias)},
    )
    for name in "bcd":
        np.testing.assert_allclose(table.loc[name], table.loc["a"], rtol=1e-5)
    assert table.columns[:3].tolist() == [
        "length_disease",
        "length_disease_low",
        "length_disease_high",
    ]


def test_a_regression_keeps_the_other_factors_still():
    """The bias moves along its own axis only, though it goes with the disease."""
    label, bias = design(200, prevalence=0.9)
    features = np.random.default_rng(0).standard_normal((200, 10))
    features[:, 0] += 4 * bias
    features[:, 1] += 4 * label
    row = sb.interpretation.angles({"layer": gram(features)}, {"disease": label, "bias": bias}).loc[
        "layer"
    ]
    assert abs(row["cosine_disease_bias"]) < 0.3
    assert row["length_bias"] == pytest.approx(4 / np.sqrt(10), rel=0.2)


@pytest.mark.parametrize(
    ("factors", "says"),
    [
        ({}, "of one shape"),
        ({"a": np.zeros((60, 2))}, "of one shape"),
        ({"a": np.arange(60), "b": np.arange(59)}, "of one shape"),
        ({"a": np.ones(60)}, "linearly independent, not constant"),
        ({"a": np.arange(60), "b": 2.0 * np.arange(60)}, "linearly independent"),
        ({"a": np.arange(40)}, "at least 50"),
        ({"a": np.arange(70) % 2}, "of shape"),
    ],
)
def test_bad_angles_are_refused(factors, says):
    with pytest.raises(sb.SimbaError, match=says):
        sb.interpretation.angles({"layer": np.eye(60)}, factors)


# -- projections --


def positions(carried, seed=0, n=240, p=15):
    """Positions on the disease axis of a layer in which the bias moves along it, or is absent."""
    label, bias = design(n)
    features = np.random.default_rng(seed).standard_normal((n, p))
    features[:, 0] += 2 * signed(label) + carried * signed(bias)
    return sb.interpretation.projections({"layer": gram(features)}, label, bias, seed=seed).loc[
        "layer"
    ]


def test_minorities_lie_nearer_the_middle_where_the_axis_contains_the_bias():
    table = positions(1.5)
    assert table.index.tolist() == ["patients, B", "patients, NB", "controls, B", "controls, NB"]
    assert table["n"].tolist() == [96, 24, 24, 96]
    assert table["low"]["patients, B"] > table["high"]["patients, NB"]
    assert table["high"]["controls, NB"] < table["low"]["controls, B"]
    assert (table["low"] <= table["position"]).all() and (table["position"] <= table["high"]).all()
    # unit noise, two on either side of the middle from the disease and one and a half from the bias
    np.testing.assert_allclose(table["position"], [3.5, 0.5, -0.5, -3.5], atol=0.5)


def test_groups_lie_together_where_the_axis_does_not_contain_the_bias():
    rows = [positions(0.0, seed=seed)["position"] for seed in range(8)]
    distances = [row["patients, B"] - row["patients, NB"] for row in rows]
    assert abs(np.mean(distances)) < 0.25 and np.mean(
        [row["patients, B"] for row in rows]
    ) == pytest.approx(2, abs=0.3)
    table = positions(0.0)
    assert table["low"]["patients, B"] < table["high"]["patients, NB"]
    assert table["low"]["patients, NB"] < table["high"]["patients, B"]


def test_projections_do_not_depend_on_scale():
    label, bias = design(80)
    features = RNG.standard_normal((80, 10)) + 2.0 * label[:, None]
    table = sb.interpretation.projections(
        {"a": gram(features), "b": gram(1e6 * features), "c": gram(1e-6 * features)}, label, bias
    )
    for name in "bc":
        np.testing.assert_allclose(table.loc[name], table.loc["a"], atol=1e-6)


def test_bad_projections_are_refused():
    label, bias = design(80)
    layer = {"layer": gram(RNG.standard_normal((80, 10)))}
    with pytest.raises(sb.SimbaError, match="of shape"):
        sb.interpretation.projections({"layer": np.eye(3)}, label, bias)
    with pytest.raises(sb.SimbaError, match="of two values"):
        sb.interpretation.projections(layer, label, np.arange(80) % 3)


@pytest.mark.parametrize("label", [np.arange(80) % 3, np.zeros(80)])
def test_projections_refuse_labels_that_are_not_of_two_values(label):
    layer = {"layer": gram(RNG.standard_normal((80, 10)))}
    with pytest.raises(sb.SimbaError, match="label must be of two values"):
        sb.interpretation.projections(layer, label, (np.arange(80) // 3) % 2)


def test_the_interval_within_classes_is_as_wide_as_that_of_a_share():
    """Half-width of a balanced accuracy near 0.5 over n subjects: 0.98 / sqrt(n), about 0.08."""
    label, bias = design(160)
    features = np.random.default_rng(0).standard_normal((160, 6))
    row = sb.components({"layer": gram(features)}, label, bias, count=2, folds=4).iloc[0]
    assert row["bias_within_low"] < row["bias_within"] < row["bias_within_high"]
    assert 0.12 < row["bias_within_high"] - row["bias_within_low"] < 0.2
