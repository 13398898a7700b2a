"""Errors of worker processes arrive whole."""

import pickle

import simba_lab as sb


def test_errors_survive_the_way_home_from_a_worker():
    error = sb.core.FoldingError("a", 1, "at most 2", "Do that.")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is sb.core.FoldingError and str(again) == str(error)
