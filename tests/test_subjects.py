import numpy as np
import pytest

import simba_lab as sb

LATTICE = sb.Lattice((41, 49, 41), 4.0, (-80.5, -114.5, -75.5))
MODEL = sb.GaussianProcessSubjects()


@pytest.fixture(scope="module")
def draws():
    rng = np.random.default_rng(0)
    count = MODEL.coefficient_count(LATTICE)
    return np.stack([MODEL.velocity(rng.standard_normal(count), LATTICE)[::8, ::8, ::8] for _ in range(300)])


def test_variance_is_what_was_asked_for(draws):
    asked = sum(deviation**2 for deviation in MODEL.deviations_mm)
    assert draws.var(axis=0).mean() == pytest.approx(asked, rel=0.05)


def test_covariance_falls_off_as_asked(draws):
    """Points 32 mm apart along x: compare with the mixture of squared exponentials."""
    product = (draws[:, :-1] * draws[:, 1:]).mean()
    pairs = zip(MODEL.length_scales_mm, MODEL.deviations_mm, strict=True)
    asked = sum(deviation**2 * np.exp(-(32**2) / (2 * length**2)) for length, deviation in pairs)
    assert product == pytest.approx(asked, rel=0.06)


def test_components_are_independent(draws):
    assert abs(np.corrcoef(draws[..., 0].ravel(), draws[..., 1].ravel())[0, 1]) < 0.1


def test_subjects_are_not_of_rank_one(draws):
    flat = draws.reshape(len(draws), -1)
    share = np.linalg.svd(flat - flat.mean(axis=0), compute_uv=False) ** 2
    assert share[0] / share.sum() < 0.2
    assert (share > share.sum() * 1e-5).sum() > 100


def test_velocity_is_linear_in_the_coefficients():
    one, two = np.random.default_rng(1).standard_normal((2, MODEL.coefficient_count(LATTICE)))
    total = MODEL.velocity(one, LATTICE) + MODEL.velocity(two, LATTICE)
    np.testing.assert_allclose(MODEL.velocity(one + two, LATTICE), total, atol=1e-3)


def test_leading_coefficients_carry_most_variance():
    unit = np.eye(MODEL.coefficient_count(LATTICE), dtype=np.float32)
    leading = MODEL.leading(LATTICE, 4)
    energy = [np.square(MODEL.velocity(unit[k], LATTICE)).sum() for k in (*leading, -1)]
    assert min(energy[:-1]) > 50 * energy[-1]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"length_scales_mm": (60.0,)}, "1 numbers"),
        ({"length_scales_mm": (60.0, 2.0)}, "at least 10 mm"),
        ({"deviations_mm": (1.0, -1.0)}, "at least 0"),
    ],
)
def test_bad_models_are_refused(fields, says):
    with pytest.raises(sb.SimbaError, match=says):
        sb.GaussianProcessSubjects(**fields)


def test_wrong_number_of_coefficients():
    with pytest.raises(sb.SimbaError, match="coefficients must be of shape"):
        MODEL.velocity(np.zeros(3), LATTICE)
