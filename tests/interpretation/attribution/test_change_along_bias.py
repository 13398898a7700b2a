import numpy as np
import pytest

import simba_lab as sb


def planted(aligned: float, across: float, *, before: float = 0.0, subjects: int = 200):
    """Changes of known size along a direction and at right angles to it."""
    draws = np.random.default_rng(0)
    direction = np.zeros((4, 5))
    direction[1, 2] = 3.0
    unit = direction / 3
    start = np.repeat(before * unit[None], subjects, axis=0)
    noise = draws.standard_normal((subjects, 4, 5))
    noise[:, 1, 2] = 0
    noise /= np.linalg.norm(noise.reshape(subjects, -1), axis=1)[:, None, None]
    return start, start + aligned * unit + across * noise, direction


def test_a_planted_change_is_split_into_its_parts():
    table = sb.attribution.split_change(*planted(3.0, 4.0, before=1.5))
    expected = {
        "effectiveness": 9 / 25,
        "direction": 3 / 5,
        "aligned": 3.0,
        "residual": 4.0,
        "amplification": 3.0,
    }
    for measure, value in expected.items():
        np.testing.assert_allclose(
            table.loc[measure, ["value", "low", "high"]].astype(float), value, rtol=1e-9
        )


def test_a_repair_points_away_from_the_bias():
    before, after, direction = planted(3.0, 4.0, before=1.5)
    table = sb.attribution.split_change(after, before, direction)
    assert table.loc["direction", "high"] < 0
    assert table.loc["amplification", "value"] == pytest.approx(1 / 3)


def test_a_change_that_points_anywhere_is_at_the_floor():
    draws = np.random.default_rng(1)
    before, after = draws.standard_normal((2, 400, 50))
    table = sb.attribution.split_change(before, after, draws.standard_normal((400, 50)))
    for measure in ("effectiveness", "direction", "aligned"):
        assert table.loc[measure, "low"] < table.loc[measure, "floor"] < table.loc[measure, "high"]
    assert np.isnan(table.loc["amplification", "value"])  # nothing was along it before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.zeros((3, 4)), np.zeros((3, 5)), np.ones(4)), "after"),
        ((np.zeros((3, 4)), np.ones((3, 4)), np.ones(5)), "direction"),
        ((np.zeros((3, 4)), np.ones((3, 4)), np.zeros(4)), "is zero"),
        ((np.full((3, 4), np.nan), np.ones((3, 4)), np.ones(4)), "before"),
    ],
)
def test_bad_input_is_named(arguments, message):
    with pytest.raises(sb.SimbaError, match=message):
        sb.attribution.split_change(*arguments)
