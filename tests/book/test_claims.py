"""A claim says what the text says, or fails."""

import pytest

import simba_lab as sb


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(0.2, 0.4, "confirmed"), (1.2, 1.4, "refuted"), (0.9, 1.1, "undecided"), (-1, 2, "undecided")],
)
def test_verdicts(low, high, verdict, capsys):
    middle = (low + high) / 2
    claim = sb.book.check(
        "It is small", middle, low=low, high=high, expected=(0, 1), verdict=verdict
    )
    assert claim.verdict == verdict
    assert capsys.readouterr().out == f"{verdict}: It is small\n"


def test_a_claim_that_does_not_hold_fails_with_its_numbers():
    with pytest.raises(
        AssertionError, match=r"refuted: It is small Measured 3 \[3, 3\], expected \(0, 1\)"
    ):
        sb.book.check("It is small", 3, expected=(0, 1))


@pytest.mark.parametrize(
    "values", [{"estimate": float("nan")}, {"estimate": 1, "low": 2, "high": 3}]
)
def test_claims_need_numbers(values):
    with pytest.raises(sb.SimbaError, match=r"finite number|not NaN"):
        sb.book.check("x", **values, expected=(0, 1))


def test_answers_are_told_apart():
    assert sb.book.check_answer(None, 1, 0.1).startswith("Not answered")
    assert sb.book.check_answer(1.05, 1, 0.1) == "Right."
    assert sb.book.check_answer(1.2, 1, 0.1) == "Not yet."
