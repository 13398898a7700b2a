import numpy as np
import pandas as pd
import pytest

import simba_lab as sb
from simba_lab.interpretation import similarity

RNG = np.random.default_rng(0)


def gram(features):
    return features @ features.T


def related(n=30, p=12, seed=0):
    """Two sets of features that have some of their directions in common."""
    rng = np.random.default_rng(seed)
    shared = rng.standard_normal((n, 3))
    return (
        np.hstack([2 * shared, rng.standard_normal((n, p))]) + 1.0,
        np.hstack([shared @ rng.standard_normal((3, 4)), rng.standard_normal((n, p))]) - 2.0,
    )


def cka_row(first, second, **options):
    return sb.cka({"a": first}, {"b": second}, **options).iloc[0]


def gaussian(features, bandwidth):
    squares = ((features[:, None] - features) ** 2).sum(axis=2)
    width = bandwidth * np.sqrt(np.median(squares[np.triu_indices(len(squares), 1)]))
    return np.exp(-squares / (2 * width**2))


def kornblith(left, right):
    """Eq. 2 and 3, with the centring matrix written out."""
    n = len(left)
    centre = np.eye(n) - np.ones((n, n)) / n

    def hsic(k, m):
        return np.trace(k @ centre @ m @ centre) / (n - 1) ** 2

    return hsic(left, right) / np.sqrt(hsic(left, left) * hsic(right, right))


def song(left, right):
    """Eq. 5 over the pairs, with explicit sums."""
    n = len(left)
    ones = np.ones(n)

    def hsic(k, m):
        k, m = k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
        inner = np.trace(k @ m) + (ones @ k @ ones) * (ones @ m @ ones) / ((n - 1) * (n - 2))
        return (inner - 2 / (n - 2) * ones @ k @ m @ ones) / (n * (n - 3))

    return hsic(left, right) / np.sqrt(hsic(left, left) * hsic(right, right))


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
@pytest.mark.parametrize("debiased", [True, False])
def test_cka_equals_its_definition(kernel, debiased):
    for seed in range(3):
        left, right = related(seed=seed)
        value = cka_row(gram(left), gram(right), kernel=kernel, debiased=debiased, bandwidth=0.7)[
            "cka"
        ]
        explicit = [gram(x) if kernel == "linear" else gaussian(x, 0.7) for x in (left, right)]
        assert value == pytest.approx((song if debiased else kornblith)(*explicit), abs=1e-9)
        assert 0.05 < value < 0.95


def test_linear_cka_of_features_is_the_ratio_of_their_products():
    left, right = related()
    left, right = left - left.mean(axis=0), right - right.mean(axis=0)
    expected = (np.linalg.norm(left.T @ right) ** 2) / (
        np.linalg.norm(left.T @ left) * np.linalg.norm(right.T @ right)
    )
    assert cka_row(gram(left), gram(right), debiased=False)["cka"] == pytest.approx(expected)


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
@pytest.mark.parametrize("debiased", [True, False])
def test_what_cka_is_blind_to(kernel, debiased):
    left, right = related()
    turn = np.linalg.qr(RNG.standard_normal((left.shape[1], left.shape[1])))[0]
    expected = cka_row(gram(left), gram(right), kernel=kernel, debiased=debiased)
    for equivalent in (left @ turn, 1e6 * left, 1e-6 * left, left + 100.0, 3 * left @ turn - 5):
        row = cka_row(gram(equivalent), gram(right), kernel=kernel, debiased=debiased)
        np.testing.assert_allclose(row, expected, atol=1e-6)
        itself = cka_row(gram(left), gram(equivalent), kernel=kernel, debiased=debiased)
        assert itself["cka"] == pytest.approx(1, abs=1e-8) and itself["low"] > 0.999
    stretched = left * np.linspace(0.1, 10, left.shape[1])
    assert (
        abs(
            cka_row(gram(stretched), gram(right), kernel=kernel, debiased=debiased)["cka"]
            - expected["cka"]
        )
        > 0.01
    )


def test_cka_is_symmetric_and_one_with_itself():
    left, right = related()
    grams = {"z": gram(left), "a": gram(right), "m": gram(RNG.standard_normal((30, 5)))}
    table = sb.cka(grams)
    assert table.index.names == ["first", "second"] and len(table) == 9
    matrix = sb.interpretation.cka_matrix(table)
    assert matrix.index.tolist() == matrix.columns.tolist() == ["z", "a", "m"]
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-12)
    np.testing.assert_allclose(np.diag(matrix), 1)
    np.testing.assert_allclose(
        sb.interpretation.cka_matrix(table, "low"),
        sb.interpretation.cka_matrix(table, "low").T,
        atol=1e-9,
    )
    pd.testing.assert_frame_equal(sb.cka(grams, grams), table)


def test_the_matrix_has_the_first_network_in_its_rows():
    left, right = related()
    first = {"x2": gram(left), "x1": gram(left[:, :4])}
    second = {"y3": gram(right), "y1": gram(right[:, :4]), "y2": gram(right[:, 4:])}
    matrix = sb.interpretation.cka_matrix(sb.cka(first, second, permutations=3), "cka")
    assert matrix.index.tolist() == ["x2", "x1"] and matrix.columns.tolist() == ["y3", "y1", "y2"]
    assert matrix.loc["x1", "y3"] == cka_row(first["x1"], second["y3"])["cka"]


@pytest.mark.parametrize("debiased", [True, False])
def test_leaving_subjects_out_equals_computing_without_them(debiased):
    left, right = (gram(x) for x in related(n=12))
    groups = [np.arange(12)]

    def criterion(k, m, rows):
        ready = [
            similarity._kernels(
                x[np.ix_(rows, rows)],
                kernel="linear",
                debiased=debiased,
                bandwidth=1,
                groups=[np.arange(len(rows))],
            )
            for x in (k, m)
        ]
        return (similarity._unbiased if debiased else similarity._biased)(ready[0][0], ready[1][0])

    for k, m in ((left, right), (left, left)):
        whole = criterion(k, m, groups[0])
        again = [criterion(k, m, np.delete(groups[0], i)).value for i in range(12)]
        np.testing.assert_allclose(whole.without, again, rtol=1e-8)
        assert np.ptp(again) > 0.01 * abs(whole.value)


def test_the_interval_is_that_of_a_jackknife():
    left, right = related()
    row = cka_row(gram(left), gram(right))
    without = [
        cka_row(*(gram(np.delete(x, i, axis=0)) for x in (left, right)))["cka"] for i in range(30)
    ]
    bent = np.arctanh(without)
    error = np.sqrt(29 / 30 * ((bent - bent.mean()) ** 2).sum())
    expected = np.tanh(np.arctanh(row["cka"]) + 1.959964 * error * np.array([-1, 1]))
    np.testing.assert_allclose([row["low"], row["high"]], expected, rtol=1e-6)


def test_random_features_look_alike_only_without_the_debiasing():
    covered, within, biased, values = [], [], [], []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        left, right = (gram(rng.standard_normal((50, 2000), np.float32)) for _ in range(2))
        row = cka_row(left, right, permutations=20, seed=seed)
        covered.append(row["low"] <= 0 <= row["high"])
        within.append(row["null_low"] <= row["cka"] <= row["null_high"])
        values.append(row["cka"])
        biased.append(cka_row(left, right, debiased=False)["cka"])
    assert np.mean(covered) >= 0.85
    assert np.mean(within) >= 0.75  # of only 20 shuffles
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(40) and min(biased) > 0.5


def test_intervals_cover_the_alignment_of_many_subjects():
    mixing = np.random.default_rng(99).standard_normal((2, 4, 10))

    def pair(rng, n):
        shared = rng.standard_normal((n, 4))
        return [gram(shared @ mix + 2 * rng.standard_normal((n, 10))) for mix in mixing]

    true = cka_row(*pair(np.random.default_rng(1000), 1500))["cka"]
    rows = [cka_row(*pair(np.random.default_rng(seed), 50)) for seed in range(40)]
    covered = np.mean([row["low"] <= true <= row["high"] for row in rows])
    values = np.array([row["cka"] for row in rows])
    assert 0.1 < true < 0.9 and covered >= 0.85
    assert abs(values.mean() - true) < 3 * values.std() / np.sqrt(40) + 0.02
    # not by being wide: they are about as wide as the values scatter
    width = np.mean([row["high"] - row["low"] for row in rows])
    assert 0.6 < width / (2 * 1.96 * values.std()) < 1.7


def test_the_null_distribution_tells_shared_from_unrelated_layers():
    left, right = related(n=40)
    row = cka_row(gram(left), gram(right), permutations=40)
    assert row["cka"] > row["null_high"] > 0 > row["null_low"] and row["p"] == 1 / 41
    shuffled = cka_row(gram(left), gram(right[RNG.permutation(40)]), permutations=40)
    assert shuffled["p"] > 0.05
    assert "p" not in cka_row(gram(left), gram(right)).index


@pytest.mark.parametrize("debiased", [True, False])
def test_shuffles_equal_computing_with_shuffled_subjects(debiased):
    left, right = (gram(x) for x in related())
    order = RNG.permutation(30)
    ready = [
        similarity._kernels(
            x, kernel="linear", debiased=debiased, bandwidth=1, groups=[np.arange(30)]
        )
        for x in (left, right)
    ]
    moved = right[np.ix_(order, order)]
    shuffled_kernels = similarity._kernels(
        moved, kernel="linear", debiased=debiased, bandwidth=1, groups=[np.arange(30)]
    )
    assert similarity._shuffled(*ready, [order], debiased) == pytest.approx(
        similarity._criterion(ready[0], shuffled_kernels, debiased).value, rel=1e-9
    )


def test_given_removes_alignment_that_is_due_to_the_group_alone():
    group = np.arange(90) % 3
    rows, fooled = [], []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        left, right = (rng.standard_normal((90, 40)) + 8 * np.eye(3, 40)[group] for _ in range(2))
        fooled.append(cka_row(gram(left), gram(right))["cka"])
        rows.append(
            cka_row(
                gram(left), gram(right), given=np.array(["a", "b", "c"])[group], permutations=10
            )
        )
    values = np.array([row["cka"] for row in rows])
    assert min(fooled) > 0.5 and abs(values.mean()) < 3 * values.std() / np.sqrt(20)
    assert np.mean([row["low"] <= 0 <= row["high"] for row in rows]) >= 0.8
    assert np.mean([row["p"] > 0.1 for row in rows]) >= 0.7


def test_given_keeps_alignment_within_groups():
    left, right = related(n=60)
    group = np.arange(60) % 2
    moved = [x + 10 * group[:, None] * RNG.standard_normal(x.shape[1]) for x in (left, right)]
    within = cka_row(*map(gram, moved), given=group)
    assert within["cka"] == pytest.approx(
        cka_row(gram(left), gram(right), given=group)["cka"], abs=1e-8
    )
    assert within["low"] > 0.1
    assert cka_row(gram(left), gram(left), given=group)["cka"] == pytest.approx(1)


@pytest.mark.parametrize("debiased", [True, False])
def test_given_of_a_single_value_is_none(debiased):
    left, right = (gram(x) for x in related())
    pd.testing.assert_series_equal(
        cka_row(left, right, debiased=debiased),
        cka_row(left, right, debiased=debiased, given=np.zeros(30)),
    )


def test_the_same_call_gives_the_same_bytes():
    left, right = related()
    grams = {"a": gram(left), "b": gram(right)}
    first, second = (sb.cka(grams, permutations=5).to_numpy().tobytes() for _ in range(2))
    assert first == second


def test_a_wider_gaussian_sees_coarser_likeness():
    left, right = related()
    wide = cka_row(gram(left), gram(right), kernel="rbf", bandwidth=100)["cka"]
    assert wide == pytest.approx(
        cka_row(gram(left), gram(right))["cka"], abs=1e-3
    )  # its limit is linear
    assert cka_row(gram(left), gram(right), kernel="rbf", bandwidth=0.3)["cka"] != pytest.approx(
        wide, abs=0.01
    )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"first": {"a": np.eye(4)}}, "at least 5 subjects in each group"),
        ({"given": np.array([0] * 8 + [1] * 4)}, "at least 5 subjects in each group"),
        ({"given": np.zeros(3)}, r"given must be of shape \(12,\)"),
        ({"second": {"b": np.eye(13)}}, r"second\['b'\] must be of shape \(12, 12\)"),
        ({"second": {"b": np.full((12, 12), np.nan)}}, r"second\['b'\] must be finite"),
        ({"first": {"a": np.eye(12), "c": np.ones((12, 11))}}, r"first\['c'\] must be of shape"),
        (
            {"second": {"b": np.ones((12, 12))}},
            r"In second\['b'\] all subjects are the same.*Choose a layer in which subjects differ",
        ),
        ({"second": {"b": np.zeros((12, 12))}, "debiased": False}, "in which subjects differ"),
        ({"second": {"b": np.ones((12, 12))}, "kernel": "rbf"}, "in which they differ"),
        ({"first": {"a": gram(np.full((12, 50), 0.1))}}, "in which subjects differ"),
        ({"second": {}}, "at least one layer"),
        ({"first": {}}, "at least one layer"),
        ({"kernel": "gaussian"}, "kernel must be one of 2"),
        ({"bandwidth": 0}, "bandwidth must be a finite number above 0"),
    ],
)
def test_bad_alignments_are_refused(arguments, says):
    arguments = {
        "first": {"a": gram(np.random.default_rng(0).standard_normal((12, 6)))}
    } | arguments
    with pytest.raises(sb.SimbaError, match=says):
        sb.cka(**arguments)


def test_a_bandwidth_needs_subjects_that_differ():
    features = np.zeros((12, 4))
    features[:2] = np.random.default_rng(0).normal(size=(2, 4))
    with pytest.raises(sb.SimbaError, match="Most subjects are the same"):
        sb.cka({"a": features @ features.T}, kernel="rbf")
