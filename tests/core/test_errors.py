"""Errors arrive whole, and show a value in a line."""

import pickle

import numpy as np
import pandas as pd
import pytest

import simba_lab as sb


def test_errors_survive_the_way_home_from_a_worker():
    error = sb.core.FoldingError("a", 1, "at most 2", "Do that.")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is sb.core.FoldingError and str(again) == str(error)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (pd.DataFrame({"a": range(9), "b": 0}), "a DataFrame of shape (9, 2)"),
        (pd.Series(range(9)), "a Series of shape (9,)"),
        (sb.SimBANet((2, 2)), "a SimBANet"),
        (np.eye(2), "array([[1., 0.], [0., 1.]])"),
    ],
)
def test_values_of_many_lines_are_shown_by_their_kind(value, shown):
    assert str(sb.SimbaError("table", value, "a path")) == f"table must be a path, got {shown}."


def test_a_cohort_is_shown_by_its_kind(cohort):
    error = sb.SimbaError("cohort", cohort, "a table")
    assert str(error) == f"cohort must be a table, got a SyntheticCohort of {len(cohort)}."
