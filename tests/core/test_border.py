"""Wrong arguments give the lab's error at the public border, and plain numbers come in."""

import inspect
import pickle
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pytest

import simba_lab as sb
from simba_lab.core.border import checks_arguments
from simba_lab.core.hints import kind_of
from simba_lab.core.kinds import Mismatch

TEXT = "subjects: x\ndisease: {region: Insula_L, amplitude_mm: 2}"


@checks_arguments
class Everything:
    """A class with an argument of each type."""

    def __init__(
        self,
        whole: int = 1,
        number: float = 1.0,
        truth: bool = True,
        name: str | None = None,
        names: "list[str]" = (),
        sizes: "dict[str, int] | None" = None,
        pair: "tuple[float, float]" = (0, 1),
    ) -> None:
        self.values = (whole, number, truth, name, names, sizes, pair)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"whole": 1.5}, r"whole must be an integer, got 1\.5\."),
        ({"whole": True}, r"whole must be an integer, got True\."),
        ({"number": float("nan")}, r"number must be a finite number, got nan\."),
        ({"number": 10**400}, "number must be a finite number"),
        ({"truth": 1}, r"truth must be True or False, got 1\."),
        ({"name": 3}, r"name must be a text or None, got 3\."),
        ({"name": "\ud800"}, "name must be a text"),
        ({"names": "abc"}, r"names must be a sequence of texts, got 'abc'\."),
        ({"names": ["a", None]}, r"names\[1\] must be a text, got None\."),
        ({"sizes": {"a": "b"}}, r"sizes\['a'\] must be an integer, got 'b'\."),
        ({"pair": (1, 2, 3)}, "pair must be 2 finite numbers"),
    ],
)
def test_an_error_names_the_argument_and_what_is_allowed(arguments, message):
    with pytest.raises(sb.SimbaError, match=message):
        Everything(**arguments)


def test_scalars_and_arrays_of_numpy_are_taken_as_plain_values():
    made = Everything(
        np.int64(3),
        np.float32(0.5),
        np.bool_(False),
        names=np.array(["a", "b"]),
        sizes={"a": np.int16(2)},
        pair=np.arange(2),
    )
    assert made.values == (3, 0.5, False, None, ["a", "b"], {"a": 2}, (0, 1))
    assert [type(value) for value in made.values[:3]] == [int, float, bool]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sb.FitConfig(epochs="three"), "epochs must be an integer"),
        (lambda: sb.FitConfig(snapshots=float("nan")), "snapshots must be True or False"),
        (lambda: sb.FitConfig(accelerator=17), "accelerator must be a text"),
        (lambda: sb.federation.VisitConfig(channels_last="banana"), "channels_last must be True"),
        (lambda: sb.synthesise(3), "scenario must be a Scenario, got 3"),
        (lambda: sb.fit(3, 4), "model must be a network"),
        (lambda: sb.SimBANet(widths=[4, "x"]), r"widths\[1\] must be an integer"),
        (lambda: sb.core.over_seeds([0, float("nan")]), r"values\[1\] must be a finite number"),
        (lambda: sb.open_cohort("\0"), "folder must be a path"),
        (lambda: sb.open_cohort("x" * 300), "folder must be a path"),
        (
            lambda: sb.Scenario.from_yaml("subjects: x\ndisease: {region: A, amplitude_mm: 2}"),
            "subj",
        ),
    ],
)
def test_wrong_kinds_of_arguments_are_refused(call, message):
    with pytest.raises(sb.SimbaError, match=message):
        call()


def test_a_function_is_the_same_from_every_room_and_can_be_pickled():
    assert sb.fit is sb.training.fit
    assert pickle.loads(pickle.dumps(sb.fit)) is sb.fit
    assert "cohort" in inspect.signature(sb.fit).parameters


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sb.Compute(memory_gb="4"), "memory_gb must be a finite number above 0 or None"),
        (lambda: sb.Compute(memory_gb=float("inf")), "memory_gb must be a finite number above 0"),
        (lambda: sb.Compute(threads=1.5), "threads must be an integer of at least 1 or None"),
        (lambda: sb.attribution.SmoothGrad(samples="9"), "samples must be an integer of at least"),
        (lambda: sb.attribution.Shapley(seed=-1), "seed must be an integer of at least 0"),
        (lambda: sb.attribution.Occlusion(window_mm=0), "window_mm must be a finite number above"),
    ],
)
def test_an_error_names_the_range_also_where_the_type_is_wrong(make, message):
    with pytest.raises(sb.SimbaError, match=message):
        make()


@pytest.mark.parametrize(
    "hint", [Iterable[str] | Mapping[str, int], Sequence[str] | dict[str, int]]
)
def test_a_mapping_beside_names_is_a_mapping_and_never_its_keys(hint):
    taker = kind_of(hint).take
    assert taker({"sex": 0}, "groups") == {"sex": 0}
    assert list(taker(["sex"], "groups")) == ["sex"]
    with pytest.raises(Mismatch) as mismatch:
        taker({"sex": "F"}, "groups")
    assert mismatch.value.path == "groups['sex']"
