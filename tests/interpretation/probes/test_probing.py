from functools import partial

import joblib
import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge, RidgeCV
from sklearn.metrics import roc_auc_score

import simba_lab as sb
from simba_lab.core import compute, intervals
from simba_lab.interpretation import Recording
from simba_lab.interpretation.probes import ProbeSettings, columns, designs, ease, kernel_ridge
from simba_lab.interpretation.probes.folds import folds_of
from simba_lab.interpretation.probes.scores import conditional_auroc

RNG = np.random.default_rng(0)


def gram(features):
    return features @ features.T


def planted(n=120, p=400, strength=1.0, leak=0.0, seed=0):
    """Features in which a direction tells the target, and another one the label that leaks it."""
    rng = np.random.default_rng(seed)
    label = np.arange(n) % 2
    target = np.where(rng.random(n) < 0.85, label, 1 - label) if leak else rng.integers(0, 2, n)
    features = rng.standard_normal((n, p))
    features[:, 0] += strength * (2 * target - 1)
    features[:, 1] += leak * (2 * label - 1)
    return features, target, label


def quick(features, target, *, subjects=None, permutations=0, **options):
    """One row of a probe without its null distribution."""
    names = ("kind", "estimator", "seed")
    settings = ProbeSettings(**{name: options.pop(name) for name in names if name in options})
    recording = Recording({"layer": gram(features)}, subjects=subjects)
    table = sb.probe(recording, target, permutations=permutations, settings=settings, **options)
    return table.loc["layer"]


# -- ridge regression on Gram matrices --


@pytest.mark.parametrize("penalty", [1e-3, 1.0])
def test_dual_ridge_equals_primal_ridge_of_a_library(monkeypatch, penalty):
    monkeypatch.setattr(kernel_ridge, "PENALTIES", np.array([penalty]))
    features, target, _ = planted()
    features += 5.0  # an intercept is needed
    train, test = np.arange(90), np.arange(90, 120)
    fit = kernel_ridge.fit_ridge(
        gram(features), train, target[train, None].astype(float), np.zeros(120, int)
    )
    centred = features[train] - features[train].mean(axis=0)
    primal = Ridge(penalty * (centred**2).sum() / 90, fit_intercept=True).fit(
        features[train], target[train]
    )
    loo = []
    for row in train:
        remaining = np.setdiff1d(train, row)
        ridge = Ridge(primal.alpha, fit_intercept=True).fit(features[remaining], target[remaining])
        loo.append(
            (
                target[row] - target[remaining].mean(),
                ridge.predict(features[[row]])[0] - target[remaining].mean(),
            )
        )
    goals, predictions = np.array(loo).T
    scale = goals @ predictions / (predictions @ predictions)
    assert scale > 0
    mean = target[train].mean()
    np.testing.assert_allclose(
        fit.fitted[:, 0], scale * (primal.predict(features[train]) - mean), atol=1e-8
    )
    np.testing.assert_allclose(
        fit.predict(gram(features), test)[:, 0],
        scale * (primal.predict(features[test]) - mean),
        atol=1e-8,
    )
    np.testing.assert_allclose(centred.T @ fit.dual[:, 0], scale * primal.coef_, atol=1e-8)
    np.testing.assert_allclose(fit.left_out[:, 0], scale * predictions, atol=1e-8)
    assert fit.norm[0] == pytest.approx(scale * np.linalg.norm(primal.coef_))
    assert fit.scale[0] == pytest.approx(fit.fitted.std())


def test_the_penalty_is_the_one_that_predicts_best():
    features, target, _ = planted(strength=3.0)
    goal = target[:, None] - target.mean()
    rows, flat = np.arange(120), np.zeros(120, int)
    errors, fits = [], []
    for penalty in kernel_ridge.PENALTIES:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(kernel_ridge, "PENALTIES", np.array([penalty]))
            fits.append(kernel_ridge.fit_ridge(gram(features), rows, goal, flat))
        errors.append(((goal * 120 / 119 - fits[-1].left_out) ** 2).sum())
    best = kernel_ridge.fit_ridge(gram(features), rows, goal, flat)
    np.testing.assert_allclose(best.fitted, fits[int(np.argmin(errors))].fitted)
    assert np.argmin(errors) > 0 or len(set(np.round(errors, 6))) > 1


@pytest.mark.parametrize("folds", [None, 4])
def test_leaving_out_blocks_equals_fitting_again_without_them(folds):
    """With the means within given fitted again as well."""
    rng = np.random.default_rng(1)
    n, given = 60, np.arange(60) % 3
    features, goal = (
        rng.standard_normal((n, 20)) + 3.0 * given[:, None],
        rng.standard_normal((n, 2)) + given[:, None],
    )
    numbers = rng.permutation(n) % folds if folds else np.arange(n)
    blocks = None if folds is None else [np.flatnonzero(numbers == k) for k in range(folds)]
    penalty = 7.0
    means = kernel_ridge.means_within(given, given)
    centred = features - means @ features
    left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    shrunk = sizes**2 / (sizes**2 + penalty)
    residuals = (goal - means @ goal) - left @ (shrunk[:, None] * (left.T @ goal))
    expected, plain = np.empty_like(goal), np.empty_like(goal)
    for number in np.unique(numbers):
        test, train = np.flatnonzero(numbers == number), np.flatnonzero(numbers != number)
        within_train = kernel_ridge.means_within(given[train], given[train])
        across = kernel_ridge.means_within(given[test], given[train])
        model = Ridge(penalty, fit_intercept=False).fit(
            features[train] - within_train @ features[train],
            goal[train] - within_train @ goal[train],
        )
        plain[test] = goal[test] - across @ goal[train]
        expected[test] = plain[test] - model.predict(features[test] - across @ features[train])
    np.testing.assert_allclose(
        kernel_ridge._without(blocks, means, residuals, left, shrunk), expected, atol=1e-9
    )
    np.testing.assert_allclose(
        kernel_ridge._without(blocks, means, goal - means @ goal), plain, atol=1e-9
    )


def test_inner_folds_that_hold_a_whole_value_of_given_are_not_used():
    given = np.array([0, 0, 0, 0, 1, 1])
    assert kernel_ridge._inner_folds(None, given) is None
    assert kernel_ridge._inner_folds(np.zeros(6), given) is None
    assert kernel_ridge._inner_folds(np.array([0, 0, 1, 1, 0, 0]), given) is None
    assert [
        fold.tolist() for fold in kernel_ridge._inner_folds(np.array([5, 5, 8, 8, 5, 8]), given)
    ] == [[0, 1, 4], [2, 3, 5]]


def test_kernel_coordinates_are_principal_component_scores():
    features, _, label = planted(n=60, p=30)
    train, test = np.arange(45), np.arange(45, 60)
    seen, unseen = sb.probes.kernel_coordinates(gram(features), train, test)
    centred = features - features[train].mean(axis=0)
    np.testing.assert_allclose(
        gram(np.vstack([seen, unseen])), gram(np.vstack([centred[train], centred[test]])), atol=1e-8
    )
    assert (np.diff((seen**2).sum(axis=0)) <= 0).all() and seen.shape == (45, 30)
    np.testing.assert_allclose(seen.mean(axis=0), 0, atol=1e-9)
    within, _ = sb.probes.kernel_coordinates(gram(features), train, test, label)
    for value in (0, 1):
        np.testing.assert_allclose(within[label[train] == value].mean(axis=0), 0, atol=1e-9)


# -- probe: what it finds --


def test_a_planted_direction_is_found_and_its_removal_hides_it():
    features, target, _ = planted(strength=2.0)
    row = quick(features, target, permutations=50)
    assert row["auroc"] > 0.9 and row["auroc_low"] > row["null_high"] and row["p"] == 1 / 51
    assert row["balanced_accuracy_low"] > 0.5
    features[:, 0] = 0
    gone = quick(features, target, permutations=50)
    assert gone["auroc_low"] < 0.5 < gone["auroc_high"] and gone["p"] > 0.05


def test_shuffled_targets_sit_at_chance():
    scores = []
    for seed in range(20):
        features, target, _ = planted(strength=2.0, seed=seed)
        shuffled = np.random.default_rng(seed).permutation(target)
        scores.append(quick(features, shuffled)[["auroc", "balanced_accuracy"]])
    for name in ("auroc", "balanced_accuracy"):
        values = np.array([score[name] for score in scores])
        assert abs(values.mean() - 0.5) < 3 * values.std() / np.sqrt(20)


def test_p_values_under_the_null_are_rarely_small():
    values, above = [], []
    for seed in range(20):
        features, target, _ = planted(n=60, p=50, strength=0.0, seed=seed)
        row = quick(features, target, permutations=39, seed=seed)
        values.append(row["p"])
        above.append(row["auroc"] > row["null_high"])
    assert np.sum(np.array(values) > 0.05) >= 16 and np.sum(above) <= 4
    assert 0.25 < np.mean(values) < 0.75 and max(values) > 0.6


def test_p_values_hold_where_volumes_are_of_the_same_subject():
    """Volumes of a subject are similar: shuffles that separate them are no model of chance."""
    small, rows = 0, np.repeat(np.arange(20), 4)
    for seed in range(40):
        rng = np.random.default_rng(seed)
        features = rng.standard_normal((20, 20))[rows] + 0.05 * rng.standard_normal((80, 20))
        small += quick(features, rows % 2, subjects=rows, permutations=19, seed=seed)["p"] <= 0.1
    assert small <= 8  # four are expected


def test_given_removes_the_leak_that_fools_the_plain_probe():
    """Features know the label and nothing about the target beyond it."""
    rows = []
    for seed in range(8):
        features, target, label = planted(n=240, p=40, strength=0.0, leak=3.0, seed=seed)
        rows.append(quick(features, target, given=label))
    scores = np.array([row["auroc"] for row in rows])
    assert min(row["auroc_plain"] for row in rows) > 0.75
    assert min(row["auroc_leak"] for row in rows) > 0.75
    assert abs(scores.mean() - 0.5) < 3 * scores.std() / np.sqrt(8)
    # What the layer knows of the label is all that the plain probe scores with.
    assert np.mean(
        [row["auroc_plain"] - row["auroc_through_given"] for row in rows]
    ) == pytest.approx(0, abs=0.03)


def test_what_a_layer_does_not_know_of_the_label_does_not_leak():
    features, target, label = planted(n=400, p=40, strength=0.0, leak=3.0)
    features[:, 1] -= 6 * label  # nothing of the label is left
    row = quick(features, target, given=label)
    assert (
        row["auroc_leak"] > 0.75 and row["auroc_through_given"] < 0.65 and row["auroc_plain"] < 0.65
    )


def test_given_keeps_what_is_not_a_leak():
    features, target, label = planted(n=400, p=40, strength=2.0, leak=3.0)
    row = quick(features, target, given=label)
    assert row["auroc"] > 0.9 and row["balanced_accuracy"] > 0.85


def test_given_may_have_several_values():
    rng = np.random.default_rng(0)
    site = np.arange(300) % 3
    target = (rng.random(300) < np.array([0.1, 0.5, 0.9])[site]).astype(int)
    features = rng.standard_normal((300, 30))
    features[np.arange(300), site] += 6
    fooled = quick(features, target, given=np.array(["a", "b", "c"])[site])
    assert fooled["auroc_plain"] > 0.75 and abs(fooled["auroc"] - 0.5) < 0.12
    assert "auroc_through_given" not in fooled.index
    features[:, 5] += 4 * target
    assert quick(features, target, given=site)["auroc"] > 0.9


def test_without_given_nothing_leaks():
    features, target, _ = planted()
    row = quick(features, target)
    assert row["auroc_plain"] == row["auroc"] and row["auroc_leak"] == 0.5


def test_a_target_that_is_known_from_given_is_refused():
    features, target, _ = planted()
    with pytest.raises(sb.SimbaError):
        quick(features, target, given=target)


def test_a_small_value_of_given_does_not_spoil_the_others():
    """A value of `given` of one class, whose training part has a single subject."""
    features, target, _ = planted(n=200, p=20, strength=3.0)
    given = np.zeros(200, int)
    given[np.flatnonzero(target == 1)[:2]] = 1
    assert quick(features, target, given=given, folds=2)["auroc"] > 0.95


def test_floors_are_probed_in_the_same_way():
    features, target, _ = planted(strength=2.0)
    noises = [{"layer": gram(RNG.standard_normal(features.shape))} for _ in range(3)]
    floors = {
        "same": {"layer": gram(features)},
        "noise": noises,
        "other": {"elsewhere": noises[0]["layer"]},
    }
    row = quick(features, target, floors=floors)
    assert row["floor_same"] == row["auroc"] > 0.9 > 0.7 > row["floor_noise"]
    floor_scores = [quick(features, target, floors={"one": noise})["floor_one"] for noise in noises]
    assert row["floor_noise"] == pytest.approx(np.mean(floor_scores))
    assert (row["floor_noise_min"], row["floor_noise_max"]) == (
        min(floor_scores),
        max(floor_scores),
    ) and min(floor_scores) < max(floor_scores)
    assert np.isnan(row["floor_other"]) and "floor_same_min" not in row.index


def test_floors_that_lack_a_layer_are_missing():
    features, target, _ = planted()
    floor = Recording({"elsewhere": gram(features)})
    assert np.isnan(quick(features, target, floors={"other": floor})["floor_other"])


def test_pixels_are_a_floor_of_their_own():
    features, target, _ = planted(strength=2.0)
    grams = {"pixels": gram(RNG.standard_normal(features.shape)), "layer": gram(features)}
    table = sb.probe(grams, target, permutations=0)
    assert (
        table["floor_pixels"] == table.loc["pixels", "auroc"]
    ).all() and table.index.tolist() == ["pixels", "layer"]


# -- probe: what does not matter to it --


def test_scale_and_rotation_and_origin_of_the_features_do_not_matter():
    features, target, label = planted(leak=1.0)
    turned = features @ np.linalg.qr(RNG.standard_normal((400, 400)))[0]
    grams = {
        "plain": gram(features),
        "turned": gram(1e3 * turned),
        "moved": gram(turned + 10.0),
        "huge": gram(1e6 * features),
        "tiny": gram(1e-6 * features),
        "rounded": gram(features) - 1e-9 * np.eye(120),
    }
    logistic = ProbeSettings(estimator=LogisticRegression(C=1e-3))
    for options in ({}, {"given": label}, {"settings": logistic}):
        if "settings" in options:  # whose penalty is not relative
            grams = {name: grams[name] for name in ("plain", "moved", "rounded")}
        table = sb.probe(grams, target, permutations=0, **options)
        np.testing.assert_allclose(table["auroc"], table["auroc"]["plain"], atol=1e-3)
        np.testing.assert_allclose(
            table["balanced_accuracy"], table["balanced_accuracy"]["plain"], atol=0.02
        )


@pytest.mark.parametrize(
    "renamed",
    [
        lambda t: t.astype(bool),
        lambda t: t.astype(float),
        lambda t: np.where(t == 1, "patient", "control"),
        lambda t: pd.Series(t, index=np.arange(len(t))[::-1]),
        lambda t: pd.Series(t).astype("category"),
        lambda t: list(t),
    ],
)
def test_groups_may_be_named_in_any_way(renamed):
    features, target, label = planted(n=60, p=30, leak=1.0)
    coded = quick(features, target, given=label, permutations=5)
    named = quick(features, renamed(target), given=renamed(label), permutations=5)
    pd.testing.assert_series_equal(coded, named)


def test_the_same_call_gives_the_same_bytes_on_any_number_of_cores(monkeypatch):
    features, target, label = planted(n=80)
    grams = {str(k): gram(features[:, k:]) for k in range(4)}
    call = partial(sb.probe, grams, target, given=label, types=np.arange(80) % 5, permutations=5)
    first = call()
    assert call().to_numpy().tobytes() == first.to_numpy().tobytes()
    with monkeypatch.context() as patch:
        patch.setattr(
            compute, "Parallel", lambda n_jobs, **options: joblib.Parallel(n_jobs=1, **options)
        )
        assert call().to_numpy().tobytes() == first.to_numpy().tobytes()
    alone = sb.probe(
        {"3": grams["3"]}, target, given=label, types=np.arange(80) % 5, permutations=5
    )
    assert alone.loc["3"].to_numpy().tobytes() == first.loc["3"].to_numpy().tobytes()
    assert (
        sb.probe(grams, target, permutations=0, settings=ProbeSettings(seed=1))["auroc_low"]
        .ne(sb.probe(grams, target, permutations=0)["auroc_low"])
        .any()
    )


@pytest.mark.parametrize("rows", [np.arange(12), np.arange(60) % 30])
def test_few_subjects_and_repeated_ones_are_no_trouble(rows):
    features, target, _ = planted(n=60, p=20, strength=3.0)
    target = np.arange(60) % 2
    features[:, 0] = 10 * target
    row = quick(features[rows], target[rows], folds=3, permutations=5)
    assert row["auroc"] == 1 and row.notna().all()


def test_a_layer_without_anything_scores_chance():
    target = np.arange(40) % 2
    for layer in (np.zeros((40, 40)), gram(np.full((40, 50), 0.1))):
        row = sb.probe({"layer": layer}, target, permutations=5).loc["layer"]
        assert 0.3 < row["auroc"] < 0.7 and row["p"] > 0.1 and 0.3 < row["balanced_accuracy"] < 0.7


# -- probe: decisions --


def test_everybody_is_decided_rightly_where_the_groups_lie_apart():
    features, target, label = planted(p=20, strength=30.0, leak=1.0)
    for given in (None, label):
        row = quick(features, target, given=given)
        assert row["auroc"] == row["balanced_accuracy"] == row["balanced_accuracy_low"] == 1


@pytest.mark.parametrize(("p", "strength"), [(20, 8.0), (2000, 8.0)])
def test_decisions_balance_unbalanced_groups(p, strength):
    """Ten of two hundred; also with more features than subjects, where every fit is perfect."""
    rng = np.random.default_rng(0)
    target = (np.arange(200) < 10).astype(int)
    features = rng.standard_normal((200, p))
    features[:, 0] += strength * target
    row = quick(features, target)
    assert row["auroc"] > 0.95 and row["balanced_accuracy"] > 0.8


# -- probe: design --


def test_folds_of_the_design_avoid_below_chance_scores(scenario):
    """Pixels of healthy twins do not tell the group: random folds learn the matching backwards."""
    cohort = sb.synthesise(scenario.replace(subjects=400).unbiased(), seed=2).twin(
        without=("bias", "disease")
    )
    modes = cohort.table[[f"anatomy_{k}" for k in range(1, 17)]].to_numpy()
    designed = quick(modes, cohort["bias"], given=cohort["label"], folds=cohort["fold"])
    assert designed["auroc_low"] < 0.5 < designed["auroc_high"]


def test_twins_in_several_folds_are_refused():
    features, target, _ = planted()
    torn = np.arange(120) % 4
    with pytest.raises(
        sb.SimbaError, match=r"volumes of one subject in several folds \(rows \[0, 1\]\)"
    ):
        quick(features, target, folds=torn, subjects=np.repeat(np.arange(60), 2))
    quick(
        features,
        target,
        folds=np.repeat(np.arange(60) % 4, 2),
        subjects=np.repeat(np.arange(60), 2),
    )


def test_random_folds_keep_the_volumes_of_a_subject_together():
    subjects = RNG.permutation(np.repeat(np.arange(40), 3))
    cells = RNG.integers(0, 2, 120)
    clusters = columns.clusters_of(Recording({}, subjects=subjects), 120)
    for train, test in folds_of(5, cells, clusters, 0):
        assert not set(subjects[train]) & set(subjects[test]) and len(train) + len(test) == 120


def test_a_recording_knows_its_twins():
    """Who remembers a subject reads any target of its twin, unless twins are held out together."""
    fooled, held, told = [], [], []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        subjects = np.repeat(np.arange(40), 2)
        layer = gram(np.repeat(rng.standard_normal((40, 300)), 2, axis=0))
        target = np.repeat(rng.permutation(40) % 2, 2)
        ask = partial(sb.probe, target=target, permutations=0)
        fooled.append(ask({"layer": layer})["auroc"].iloc[0])
        held.append(ask(Recording({"layer": layer}, subjects=subjects))["auroc"].iloc[0])
        names = [f"sub-{k:02}" for k in subjects]
        told.append(ask(Recording({"layer": layer}, subjects=names))["auroc"].iloc[0])
    assert (
        min(fooled) > 0.9
        and abs(np.mean(held) - 0.5) < 3 * np.std(held) / np.sqrt(8)
        and held == told
    )


def test_intervals_draw_subjects_not_volumes():
    features, target, _ = planted(n=60, p=20)
    single = quick(features, target)
    rows = np.repeat(np.arange(60), 4)
    repeats = quick(features[rows], target[rows], subjects=rows)
    width, repeated = (row["auroc_high"] - row["auroc_low"] for row in (single, repeats))
    assert 0.7 < repeated / width < 1.4


def test_conditional_auroc_by_hand():
    target, scores, given = (
        np.array([0, 1, 0, 1]),
        np.array([0.1, 0.2, 5.0, 4.0]),
        np.array([0, 0, 1, 1]),
    )
    assert conditional_auroc(target, scores, given) == 0.5
    assert (
        conditional_auroc(target, np.array([1.0, 1.0, 0.0, 3.0]), given) == 0.75
    )  # a tie counts half
    assert conditional_auroc(target, scores, np.zeros(4)) == 0.5
    assert (
        conditional_auroc(target, scores, np.array([0, 0, 1, 2])) == 1
    )  # values of one group say nothing
    assert np.isnan(conditional_auroc(target, scores, np.arange(4)))


def test_balanced_accuracy_by_hand():
    target = designs.ProbeTarget(
        "binary", np.array([0, 0, 0, 1, 0, 1]), np.array([0, 0, 0, 0, 1, 1])
    )
    assert target.balanced_accuracy(np.array([0, 0, 1, 1, 1, 1])) == pytest.approx(
        np.mean([2 / 3, 1, 0, 1])
    )
    once = np.array([[1, 1, 0, 1, 0, 0], [1, 0, 1, 0, 0, 0]])
    assert target.balanced_accuracy(np.array([0, 0, 1, 1, 1, 1]), once).tolist() == [1, 0.5]


@pytest.mark.parametrize("kind", ["binary", "classes", "regression"])
def test_scores_of_samples_are_those_of_their_rows(kind):
    """Fast counting equals scoring the drawn rows of one sample after another, with ties."""
    draws = np.random.default_rng(0)
    given, takes = draws.integers(0, 3, 60), draws.integers(0, 60, (40, 60))
    target = {
        "binary": draws.integers(0, 2, 60),
        "classes": np.arange(60) % 4,
        "regression": draws.normal(size=60),
    }[kind]
    scores = np.round(draws.normal(size=(60, 4 if kind == "classes" else 2)), 1)
    counts = intervals.counts_of(takes, 60)
    counted = designs.ProbeTarget(kind, target, given).score(target, scores, counts)
    expected = [
        designs.ProbeTarget(kind, target, given[take]).score(target[take], scores[take])
        for take in takes
    ]
    np.testing.assert_allclose(counted, expected, rtol=1e-12)


def test_what_has_no_order_or_no_pairs_has_no_area():
    target, scores, given = (
        np.array([0, 1, 0, 1]),
        np.array([0.1, 0.2, 5.0, 4.0]),
        np.zeros(4, int),
    )
    counts = np.array([[1, 1, 1, 1], [2, 0, 2, 0], [0, 2, 1, 0]])
    np.testing.assert_array_equal(
        conditional_auroc(target, scores, given, counts), [0.5, np.nan, 0]
    )
    scores[2] = np.nan
    assert np.isnan(conditional_auroc(target, scores, given))
    assert np.isnan(conditional_auroc(target, scores, given, counts)).all()


def test_conditional_auroc_is_the_mean_of_those_of_scikit_learn():
    draws = np.random.default_rng(1)
    target, given, scores = (
        draws.integers(0, 2, 90),
        draws.integers(0, 3, 90),
        np.round(draws.normal(size=90), 1),
    )
    areas = [roc_auc_score(target[given == k], scores[given == k]) for k in range(3)]
    assert conditional_auroc(target, scores, given) == pytest.approx(np.mean(areas), rel=1e-12)


# -- probe: several classes, numbers, other estimators, control task --


def test_several_classes_are_told_apart():
    rng = np.random.default_rng(0)
    target = rng.integers(0, 3, 150)
    features = rng.standard_normal((150, 60))
    features[np.arange(150), target] += 6
    row = quick(features, np.array(["London", "Oslo", "Rome"])[target], permutations=20)
    assert (
        row["auroc"] > 0.97
        and row["balanced_accuracy"] > 0.85
        and row["p"] == 1 / 21
        and row["null_high"] < 0.65
    )
    features[:, 2] = rng.standard_normal(150)
    features[:, 1] -= 3 * (target != 0)  # one class is told, the other two are alike
    merged = quick(np.delete(features, 1, axis=1), target)
    assert 0.6 < merged["auroc"] < row["auroc"] and 0.4 < merged["balanced_accuracy"] < 0.85
    noise = quick(rng.standard_normal((150, 60)), target)
    assert abs(noise["auroc"] - 0.5) < 0.12 and abs(noise["balanced_accuracy"] - 1 / 3) < 0.12


def test_classes_are_read_within_given():
    rng = np.random.default_rng(1)
    label = np.arange(240) % 2
    target = np.array([[0, 0, 0, 1, 2], [1, 1, 1, 0, 2]])[label, np.arange(240) // 2 % 5]
    features = rng.standard_normal((240, 20))
    features[:, 0] += 5 * label
    row = quick(features, target, given=label)
    assert row["auroc_plain"] > 0.6 and row["auroc"] < 0.56
    features[:, 4] += 5 * (target == 2)
    assert quick(features, target, given=label)["auroc"] > 0.6


def test_numbers_are_regressed():
    rng = np.random.default_rng(0)
    features = rng.standard_normal((150, 20))
    goal = features @ rng.standard_normal(20)
    row = quick(features, goal, permutations=20)
    assert (
        row["r2"] > 0.99
        and row["r2_low"] > 0.98
        and row["p"] == 1 / 21
        and row["r2_plain"] == row["r2"]
    )
    assert row["r2_leak"] == 0 and "balanced_accuracy" not in row.index and row["null_high"] < 0.1
    half = goal / goal.std() + rng.standard_normal(150)
    assert 0.3 < quick(features, half)["r2"] < 0.6  # half of the variance is noise
    noise = [
        quick(rng.standard_normal((100, p)), rng.standard_normal(100))["r2"]
        for p in (5, 20, 500)
        for _ in range(4)
    ]
    assert max(noise) < 0.1 and -0.15 < np.mean(noise) < 0.03
    whole = np.round(10 * half).astype(int)
    assert quick(features, whole, kind="regression")["r2"] > 0.3


def test_regression_within_given_says_what_is_left_of_the_differences():
    rng = np.random.default_rng(0)
    label = np.arange(200) % 2
    features = rng.standard_normal((200, 20))
    features[:, 1] += 5 * label
    goal = features[:, 0] + 5.0 * label
    row = quick(features, goal, given=label)
    assert row["r2"] > 0.95 and row["r2_plain"] > 0.8
    assert row["r2_leak"] == pytest.approx(25 / 4 / (25 / 4 + 1), abs=0.03)
    noise = quick(features, rng.standard_normal(200) + 5.0 * label, given=label)
    assert noise["r2"] < 0.05 and noise["r2_plain"] > 0.5


def test_estimators_of_a_library_agree_on_a_strong_target():
    features, target, label = planted(p=30, strength=1.5, leak=1.0)
    for given in (None, label):
        ridge, library = (
            quick(features, target, given=given, estimator=est)
            for est in (None, LogisticRegression(C=0.1))
        )
        assert ridge["auroc"] > 0.85
        # An estimator of a library decides as it likes; ours balances the groups within each
        # given.
        for name in ("auroc", "auroc_plain", *(["balanced_accuracy"] if given is None else [])):
            assert ridge[name] == pytest.approx(library[name], abs=0.05)
    balanced = quick(
        features, target, estimator=LogisticRegression(class_weight="balanced"), permutations=3
    )
    assert balanced["auroc"] > 0.8 and balanced["p"] == 0.25
    goal = features[:, 0] * 2.0
    assert quick(features, goal, estimator=RidgeCV())["r2"] > 0.95


def test_estimators_of_a_library_regress_within_given():
    rng = np.random.default_rng(0)
    label = np.arange(200) % 2
    features = rng.standard_normal((200, 20))
    goal = features[:, 0] + 5.0 * label
    ridge, library = (
        quick(features, goal, given=label, estimator=estimator)["r2"]
        for estimator in (None, RidgeCV())
    )
    assert ridge == pytest.approx(library, abs=0.05)


def test_estimators_tell_several_classes():
    rng = np.random.default_rng(0)
    target = rng.integers(0, 3, 120)
    features = rng.standard_normal((120, 20))
    features[np.arange(120), target] += 4
    ridge, library = (
        quick(features, target, estimator=est)["auroc"] for est in (None, LogisticRegression())
    )
    assert ridge > 0.9 and ridge == pytest.approx(library, abs=0.05)


def test_the_control_task_tells_a_layer_that_holds_everything():
    rng = np.random.default_rng(0)
    anatomy = rng.standard_normal((240, 3))
    types = sb.probes.octants(anatomy)
    target = (anatomy[:, 0] > 0).astype(int)
    holds = np.hstack([10 * np.eye(8)[types], rng.standard_normal((240, 10))])
    knows = np.hstack([10 * np.sign(anatomy[:, :1]), rng.standard_normal((240, 10))])
    table = sb.probe(
        {"holds": gram(holds), "knows": gram(knows)}, target, types=types, permutations=0
    )
    assert (table["auroc"] > 0.95).all()
    assert table["control"]["holds"] > 0.95 and table["control"]["knows"] < 0.75
    np.testing.assert_allclose(table["selectivity"], table["auroc"] - table["control"])
    noise = quick(rng.standard_normal((240, 10)), target, types=types)
    assert abs(noise["control"] - 0.5) < 0.05


def test_octants_are_the_signs_of_components():
    frame = pd.DataFrame({"a": [-1.0, -2.0, 3.0, 4.0], "b": [5.0, 1.0, 6.0, 2.0]})
    assert sb.probes.octants(frame).tolist() == [2, 0, 3, 1]


def test_ages_in_whole_years_are_numbers_and_few_integers_are_classes():
    ages = np.random.default_rng(0).integers(20, 80, 200)
    assert designs.probe_target(ages, None, "auto").kind == "regression"
    assert designs.probe_target(ages.astype(float), None, "auto").kind == "regression"
    assert designs.probe_target(ages % 5, None, "auto").kind == "classes"
    assert designs.probe_target(ages.astype(str), None, "auto").kind == "classes"
    assert designs.probe_target(ages % 2, None, "auto").kind == "binary"


# -- probe: what is refused --


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"target": np.zeros(6)}, "at least two different values"),
        ({"target": np.zeros((6, 2))}, "one value per subject"),
        ({"target": np.array([0, 1, np.nan, 0, 1, 0])}, "target .*1 of 6 missing"),
        (
            {"target": np.array(list("abn")), "given": np.array(["x", None, "n/a"])},
            "given .* 2 of 3",
        ),
        ({"target": np.array([0, 1, np.inf, 0, 1, 0])}, "target must be finite"),
        ({"target": np.arange(6), "kind": "binary"}, "of two values"),
        ({"target": np.array(list("ababab")), "kind": "regression"}, "target must be numbers"),
        ({"kind": "regresion"}, "Did you mean regression"),
        ({"given": np.zeros(3)}, "given must be of shape"),
        ({"subjects": np.arange(3)}, "subjects must be of shape"),
        ({"folds": 5}, "from 2 to 3"),
        ({"folds": 1}, "from 2 to 3"),
        ({"folds": 2.0}, "folds must be an integer"),
        (
            {"folds": np.array([0, 0, 0, 1, 1, 1]), "target": np.array([0, 0, 0, 1, 1, 1])},
            "no subjects left",
        ),
        (
            {"folds": np.array([0, 0, 1, 1, 0, 1]), "given": np.array([0, 0, 0, 0, 1, 0])},
            "no subjects left",
        ),
        ({"folds": np.zeros(6)}, "at least 2 values"),
        ({"folds": np.zeros(5)}, "folds must be of shape"),
        ({"folds": np.arange(6) % 3, "subjects": np.zeros(6)}, "in several folds"),
        (
            {"grams": {"layer": np.eye(5)}, "folds": 2},
            r"recording\['layer'\] must be of shape \(6, 6\)",
        ),
        (
            {"grams": {"layer": np.full((6, 6), np.nan)}, "folds": 2},
            r"recording\['layer'\] must be finite",
        ),
        (
            {"floors": {"a": [{"layer": np.eye(6)}, {"layer": np.eye(7)}]}, "folds": 2},
            r"floors\['a'\]\[1\]\['layer'\]",
        ),
        ({"types": np.arange(6) % 3, "folds": 2}, "at least 4 types"),
        ({"types": np.arange(6), "folds": 2}, "at least 4 types that occur in every training fold"),
        ({"estimator": LinearRegression(), "folds": 2}, "decision_function or predict_proba"),
    ],
)
def test_bad_probes_are_refused(arguments, says):
    arguments = {"grams": {"layer": np.eye(6)}, "target": np.array([0, 1, 0, 1, 0, 1])} | arguments
    recording = Recording(arguments.pop("grams"), subjects=arguments.pop("subjects", None))
    names = [name for name in ("kind", "estimator") if name in arguments]
    with pytest.raises(sb.SimbaError, match=says):
        settings = ProbeSettings(**{name: arguments.pop(name) for name in names})
        sb.probe(recording, settings=settings, **arguments)


# -- ease: learning curve and code length --


def test_what_is_plain_needs_few_subjects_and_bits():
    target = np.arange(120) % 2
    grams = {}
    for strength in (0.5, 1.0, 4.0, 8.0):
        features = np.random.default_rng(1).standard_normal((120, 50))
        features[:, 0] += strength * (2 * target - 1)
        grams[f"{strength}"] = gram(features)
    curve = sb.learning_curve(grams, target)
    assert curve.loc["8.0", "auroc"].iloc[0] > 0.99 and curve.loc["1.0", "auroc"].iloc[0] < 0.8
    assert (curve["bits_low"] <= curve["bits"]).all() and (
        curve["bits"] <= curve["bits_high"]
    ).all()
    assert (curve["auroc_low"] <= curve["auroc"]).all() and (
        curve["auroc"] <= curve["auroc_high"]
    ).all()
    assert curve.loc["8.0"].index.tolist() == [6, 12, 24, 48, 96]
    code = sb.probes.code_length(curve)
    assert code.index.tolist() == list(grams)
    assert (np.diff(code["bits"]) < 0).all() and code["compression"].iloc[-1] > 2
    # More subjects, fewer bits, for what can be read.
    assert (np.diff(curve.loc["4.0", "bits"]) < 0).all()


@pytest.mark.parametrize(("n", "p"), [(80, 200), (80, 10)])
def test_noise_is_not_compressed(n, p):
    ratios = []
    for seed in range(5):
        features, target = np.random.default_rng(seed).standard_normal((n, p)), np.arange(n) % 2
        ratios.append(
            sb.probes.code_length(sb.learning_curve({"layer": gram(features)}, target, seed=seed))[
                "compression"
            ].iloc[0]
        )
    assert 0.85 < np.mean(ratios) <= 1.02 and max(ratios) < 1.05


@pytest.mark.parametrize("members", [100, 50, 20])
def test_known_bits_are_the_entropy_of_the_groups(members):
    target, share = (np.arange(200) < members).astype(int), members / 200
    curve = sb.learning_curve(
        {"layer": gram(RNG.standard_normal((200, 5)))}, target, shares=(0.5, 1), repeats=1
    )
    entropy = -share * np.log2(share) - (1 - share) * np.log2(1 - share)
    np.testing.assert_allclose(curve["bits_known"], entropy, atol=0.002)


def test_known_bits_are_counted_within_given():
    label = np.arange(200) % 2
    target = np.where(np.arange(200) % 10 < 8, label, 1 - label)
    curve = sb.learning_curve(
        {"layer": gram(RNG.standard_normal((200, 5)))}, target, given=label, shares=(1,), repeats=1
    )
    np.testing.assert_allclose(
        curve["bits_known"], -0.8 * np.log2(0.8) - 0.2 * np.log2(0.2), atol=0.01
    )
    assert curve["bits"].iloc[0] > curve["bits_known"].iloc[0] - 0.02


def test_code_length_by_hand():
    curve = pd.DataFrame(
        {"bits": [0.8, 0.5, 0.1], "bits_known": [1.0, 0.9, 0.9]},
        index=pd.MultiIndex.from_tuples(
            [("layer", 10), ("layer", 20), ("layer", 50)], names=["layer", "n"]
        ),
    )
    row = sb.probes.code_length(curve).loc["layer"]
    assert row["bits"] == pytest.approx((10 * 1.0 + 10 * 0.8 + 30 * 0.5) / 50)
    assert row["bits_known"] == pytest.approx((10 * 1.0 + 10 * 1.0 + 30 * 0.9) / 50)
    assert row["compression"] == pytest.approx(row["bits_known"] / row["bits"])


def test_learning_ends_where_the_probe_is():
    features, target, label = planted(leak=1.0, strength=1.5)
    curve = sb.learning_curve(
        {"layer": gram(features)}, target, given=label, shares=(1,), repeats=1
    )
    assert curve["auroc"].iloc[0] == pytest.approx(
        quick(features, target, given=label)["auroc"], abs=1e-6
    )


def test_learning_curves_are_repeatable_and_know_twins():
    features, target, _ = planted(n=60, p=200)
    call = partial(sb.learning_curve, shares=(0.5, 1), repeats=1)
    first = call({"layer": gram(features)}, target)
    assert first.equals(call({"layer": gram(features)}, target))
    rows = np.repeat(np.arange(60), 2)
    recording = Recording({"layer": gram(RNG.standard_normal((60, 200))[rows])}, subjects=rows)
    twins = call(recording, RNG.permutation(60)[rows] % 2)
    assert twins["bits"].iloc[-1] > 0.9


def test_a_constant_layer_has_no_code_to_offer():
    target = np.arange(40) % 2
    curve = sb.learning_curve({"layer": np.zeros((40, 40))}, target)
    np.testing.assert_allclose(curve["bits"], 1, atol=0.05)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"shares": ()}, "shares above 0"),
        ({"shares": (0, 1)}, "shares above 0"),
        ({"shares": (0.5, 1.1)}, "at most 1"),
        ({"target": np.arange(40) % 3}, "of two values"),
        ({"target": np.zeros(40)}, "at least two different values"),
        ({"grams": {"layer": np.eye(3)}}, "of shape"),
        ({"folds": 30}, "from 2 to 20"),
        ({"folds": np.arange(40) % 4, "subjects": np.arange(40) // 2}, "in several folds"),
    ],
)
def test_bad_learning_curves_are_refused(arguments, says):
    arguments = {"grams": {"layer": np.eye(40)}, "target": np.arange(40) % 2} | arguments
    with pytest.raises(sb.SimbaError, match=says):
        recording = Recording(arguments.pop("grams"), subjects=arguments.pop("subjects", None))
        sb.learning_curve(recording, **arguments)


# -- ease: prominence --


@pytest.mark.parametrize("leak", [False, True])
def test_prominence_of_a_planted_direction_is_the_analytic_one(leak):
    rng = np.random.default_rng(0)
    n, p, distance = 600, 12, 5.0
    label = np.arange(n) % 2
    target = label if not leak else np.where(np.arange(n) // 2 % 5 < 4, label, 1 - label)
    features = rng.standard_normal((n, p))
    features[:, 0] += distance * target
    if leak:
        features[:, 1] += 20 * label
    row = sb.probes.prominence(
        {"layer": gram(features)}, target, given=label if leak else None
    ).loc["layer"]
    between = distance**2 * (0.16 if leak else 0.25)  # within given: four in five
    assert row["variance_share"] == pytest.approx((1 + between) / (p + between), rel=0.08)
    assert row["group_share"] == pytest.approx(between / (p + between), rel=0.08)
    assert row["typical_share"] == pytest.approx(
        ((1 + between) ** 2 + p - 1) / (p + between) ** 2, rel=0.1
    )
    assert row["d_prime"] == pytest.approx(distance, rel=0.08)
    assert (
        row["d_prime_pc1"] == pytest.approx(distance, rel=0.1)
        and row[["d_prime_pc2", "d_prime_pc5"]].abs().max() < 1
    )


def test_prominence_of_noise_is_none():
    rows, shares, target = [], [], np.arange(60) % 2
    for seed in range(20):
        layer = gram(np.random.default_rng(seed).standard_normal((60, 100)))
        rows.append(sb.probes.prominence({"layer": layer}, target, components=2).loc["layer"])
    for seed in range(100):
        layer = gram(np.random.default_rng(1000 + seed).standard_normal((60, 100)))
        shares.append(ease._group_share(layer, target, np.zeros(60, int)))
    assert rows[3]["group_share"] == ease._group_share(
        gram(np.random.default_rng(3).standard_normal((60, 100))), target, np.zeros(60, int)
    )
    for values in (
        np.array(shares),
        *(np.array([row[name] for row in rows]) for name in ("d_prime", "d_prime_pc1")),
    ):
        assert abs(values.mean()) < 3 * values.std() / np.sqrt(len(values))
    assert abs(np.mean(shares)) < 1e-3 and np.mean([row["variance_share"] for row in rows]) < 0.03


def test_group_share_is_unbiased_for_unbalanced_groups():
    target, distance, p = (np.arange(80) < 16).astype(int), 2.0, 100
    values = []
    for seed in range(40):
        features = np.random.default_rng(seed).standard_normal((80, p))
        features[:, 0] += distance * target
        values.append(ease._group_share(gram(features), target, np.zeros(80, int)))
    between = 0.16 * distance**2
    assert abs(np.mean(values) - between / (p + between)) < 3 * np.std(values) / np.sqrt(40)


def test_a_louder_layer_is_not_a_plainer_one():
    """Both layers are read perfectly; in the first the target is loud, in the second faint."""
    target = np.arange(200) % 2
    features = RNG.standard_normal((200, 10))
    whisper = np.column_stack([0.01 * (features[:, 0] + 20 * target), 100 * features[:, 1:3]])
    loud = np.column_stack([features[:, 0] + 20 * target, features[:, 1:]])
    table = sb.probes.prominence(
        {"whisper": gram(whisper), "loud": gram(loud)}, target, components=2
    )
    assert table["variance_share"]["loud"] > 0.8 > 0.05 > table["variance_share"]["whisper"]
    assert abs(table["d_prime_pc1"]["whisper"]) < 1 < 10 < table["d_prime_pc1"]["loud"]


def test_bad_prominence_is_refused():
    with pytest.raises(sb.SimbaError, match="of two values"):
        sb.probes.prominence({"layer": np.eye(40)}, np.arange(40) % 3)
    with pytest.raises(sb.SimbaError, match="finite"):
        sb.probes.prominence({"layer": np.full((40, 40), np.inf)}, np.arange(40) % 2)


def test_more_folds_than_subjects_of_a_group_are_refused_however_many_volumes_they_have():
    features, target, _ = planted(n=40)
    with pytest.raises(sb.SimbaError, match="from 2 to"):
        quick(features, target, folds=30, subjects=np.arange(40) // 2 + 100 * target)


def test_an_estimator_is_judged_on_folds_of_one_subject():
    features, target, _ = planted(n=60, strength=4.0)
    row = quick(features, target, folds=np.arange(60), estimator=LogisticRegression())
    assert row["auroc"] > 0.7
