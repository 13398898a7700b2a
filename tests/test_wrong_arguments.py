"""Every public function and class, called with one wrong argument among right ones.

A call returns, or raises the lab's own error; it never hangs, and no other exception comes through.
More examples than in a usual run: ``SIMBA_LAB_EXAMPLES=300 pytest tests/test_wrong_arguments.py``.
"""

import importlib
import inspect
import os
import signal
import types
import warnings
from collections import abc
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import simba_lab as sb

EXAMPLES = int(os.environ.get("SIMBA_LAB_EXAMPLES", "2"))
SECONDS = 20
ROOMS = """simba_lab core synthesis scans training interpretation interpretation.attribution
    interpretation.interventions interpretation.probes auditing federation experiments book
    book.figures"""
# Errors are raised, not called; these need minutes, a network of computers, or a screen.
LEFT_OUT = ("SimbaError", "FoldingError", "TemplateError", "UnknownNameError", "SiteError")
LEFT_OUT += ("provision", "submit", "start", "fastest")
WRONG = [
    *(None, True, 0, -1, 3, 2**70, 10**400, 0.5, -0.5, 1e308, float("nan"), float("inf")),
    *("", "x", "Insula_L", "bias", "../x", "\0", "\ud800", "x" * 5000, b"x", Path("absent")),
    *([], [None], ["bias", "bias"], [float("nan")], (), {}, {"x": 1}, {1: 2}, {"bias": None}),
    *(set(), object(), len, int, np.int64(3), np.float32("nan"), np.bool_(True)),
    *(np.zeros(0), np.zeros((2, 3)), np.full(8, np.nan), np.array(["a"]), np.array([None])),
    *(torch.zeros(2), torch.nn.Identity(), pd.DataFrame(), pd.DataFrame({"a": [np.nan]})),
]


def entry_points():
    points = {}
    for room in ROOMS.split():
        module = importlib.import_module(room if room == "simba_lab" else f"simba_lab.{room}")
        for name in module.__all__:
            value = getattr(module, name)
            if inspect.isabstract(value):
                continue
            if callable(value) and name not in LEFT_OUT and not inspect.ismodule(value):
                points.setdefault(id(value), (f"{room}.{name}", value))
    return dict(points.values())


POINTS = entry_points()


@cache
def world():
    scenario = sb.Scenario(
        64, sb.Morphology("Insula_L", 2.5), sb.Morphology("Putamen_L", 2.5), spacing_mm=8
    )
    cohort, network = sb.synthesise(scenario), sb.SimBANet((2, 2), seed=0)
    test = cohort.test
    return {
        "scenario": scenario,
        "cohort": test,
        "network": network,
        "recording": sb.record(network, test),
        "volume": test.volume(0),
        "logits": sb.logits(network, test),
    }


def right(name, hint):
    """Return a value that the parameter may take, as far as its name and annotation tell."""
    values, text = world(), str(hint)
    if name in ("path", "folder", "file", "checkpoint", "out"):
        return "absent-folder/absent"
    for words, key in (
        (("Cohort", "SyntheticCohort", "TwinCohort", "AnyCohort"), "cohort"),
        (("Scenario",), "scenario"),
        (("Module",), "network"),
        (("Grams", "Recording"), "recording"),
    ):
        if any(word in text for word in words):
            return values[key]
    if name in ("effect", "bias", "by", "target", "concept") and "Effect" not in text:
        return "bias"
    if "Effect" in text or "Morphology" in text:
        return values["scenario"].disease
    if name in ("label", "given"):
        return "label"
    if "ndarray" in text:
        return values["logits"]
    if "int" in text:
        return 3
    if "float" in text:
        return 0.5
    return "bias"


def hints_of(value):
    function = inspect.unwrap(value.__init__ if inspect.isclass(value) else value)
    return getattr(function, "__annotations__", {})


@st.composite
def calls(draw, value):
    """Draw the arguments of a call: right ones, and one or two wrong ones."""
    parameters = [
        parameter
        for parameter in inspect.signature(value).parameters.values()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    ]
    hints = hints_of(value)
    arguments = {
        parameter.name: right(parameter.name, hints.get(parameter.name))
        for parameter in parameters
        if parameter.default is parameter.empty
    }
    # So many as to be done in a second, where the usual number is not.
    arguments |= {
        parameter.name: 100
        for parameter in parameters
        if parameter.name == "subjects" and parameter.default is not parameter.empty
    }
    if parameters:
        names = [parameter.name for parameter in parameters]
        for name in draw(st.lists(st.sampled_from(names), min_size=1, max_size=2)):
            arguments[name] = WRONG[draw(st.integers(0, len(WRONG) - 1))]
    return arguments


def too_long(*_):
    raise TimeoutError(f"longer than {SECONDS} s")


@pytest.mark.parametrize("name", POINTS)
def test_wrong_arguments_give_an_error_of_the_lab(name, tmp_path, monkeypatch):
    value = POINTS[name]
    monkeypatch.chdir(tmp_path)

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(calls(value))
    def try_out(arguments):
        before = signal.signal(signal.SIGALRM, too_long)
        signal.alarm(SECONDS)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                answer = value(**arguments)
                if isinstance(answer, types.GeneratorType | abc.Iterator):
                    next(answer, None)
        except sb.SimbaError:
            return
        except AssertionError:  # a claim that does not hold
            assert name == "book.check"
            return
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, before)
        if isinstance(answer, float):
            assert not np.isnan(answer), f"{name} gives NaN for {arguments}"

    try_out()
