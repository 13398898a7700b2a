"""YAML: what is refused, and that every error names the line."""

import time

import numpy as np
import pytest

import simba_lab as sb
from simba_lab.core import yaml_files
from simba_lab.core.errors import UnknownNameError
from simba_lab.federation import Study

BOMB = "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n"
SCENARIO = "subjects: 32\nspacing_mm: 8\ndisease: {region: Insula_L, amplitude_mm: 2.5}\n"
STUDY = """scenario: {spacing_mm: 8, disease: {region: Insula_L, amplitude_mm: 2.5}}
sites: [{name: a, subjects: 10}]
strategy: fedavg
options: {rounds: 1}
"""


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: 1\nb: 2\na: 3\n", "Line 3: the key 'a' occurs twice"),
        ("a:\n  b:\n    c: 1\n    c: 2\n", "Line 4: the key 'c' occurs twice"),
        (BOMB, "Line 1: anchors and aliases are not allowed.* at a"),
        ("a: {b: [1, *x]}\n", "Line 1: anchors and aliases.* at a.b.entry 2"),
        ("a: 1\n<<: {b: 2}\n", "Line 2: .*merge"),
        ("a: [1,\nb: 2\n", "Line [23]: "),
        ("a: !!python/object/apply:os.system ['true']\nb: 1", "Line 1: "),
        ("a: 1\nb: !!binary aGVsbG8=\n", "Line 2: "),
        ("[a]: 1\n[b]: 2\n", "Line 1: a key must be text"),
        ("a: 1\nb: {yes: 2}\n", "Line 2: a key must be text, and yes is not; write it in quotes"),
        ("a: 1\nnull: 2\n", "Line 2: a key must be text, and null is not"),
        ("a: 1\n7: 2\n", "Line 2: a key must be text, and 7 is not"),
        ("a: 1\nb: " + "9" * 5000 + "\n", "Line 2: 9{30} is not a plain decimal integer"),
        ("a: 1\nb: 0x" + "f" * 500 + "\n", "Line 2: 0xf{28} is not a plain decimal integer"),
        ("a: 1\nb: 010\n", "Line 2: 010 is not a plain decimal integer"),
        ("a: 1\nb: 12:30\n", "Line 2: 12:30 is not a plain decimal integer"),
        ("a: 1\nb: x\0y\n", "Line 2: the character .* is not allowed"),
        ("a: " + "[" * 40 + "]" * 40 + "\n", "nested deeper than 32 levels at a"),
        ("a: " + "[" * 100_000 + "\n", "Line 1: nested deeper than 32 levels at a"),
        ("a: " + "x" * 2**20 + "\n", "at most 1048576"),
        ("- 1\n- 2\n", "a mapping of field names"),
        ("---\na: 1\n---\nb: 1\n", "Line 3"),
    ],
)
def test_yaml_that_nobody_means_is_refused(text, says, tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(text, encoding="utf-8")
    for source in (text, path, str(path)):
        with pytest.raises(sb.SimbaError, match=rf"study must be .*{says}") as caught:
            yaml_files.read_yaml(source, "study")
        assert len(str(caught.value)) < 600


def test_yaml_values_come_as_they_are_meant(tmp_path):
    text = "rate: 1e-5\nbig: -2E+3\nname: 1e\nflag: true\nwidths: [4, 8]\nday: 2001-99-99\n"
    values = {"rate": 1e-5, "big": -2000.0, "name": "1e", "flag": True, "widths": [4, 8]}
    values["day"] = "2001-99-99"
    assert yaml_files.read_yaml(text, "study") == values
    shared = [1, 2]
    yaml_files.write_yaml(tmp_path / "x.yaml", {"b": shared, "a": shared})
    assert yaml_files.read_yaml(tmp_path / "x.yaml", "study") == {"b": [1, 2], "a": [1, 2]}


def test_numpy_scalars_are_written_as_numbers():
    values = {"a": np.float32(0.5), "b": [np.int64(3)], "c": np.True_, "d": np.float64(2.5)}
    assert yaml_files.to_yaml(values) == "a: 0.5\nb:\n- 3\nc: true\nd: 2.5\n"


def test_missing_and_binary_yaml_files_are_named(tmp_path):
    path = tmp_path / "x.yaml"
    with pytest.raises(sb.SimbaError, match=r"existing YAML file.*Examples are in data/"):
        yaml_files.read_yaml(path, "study", examples="data/")
    path.write_bytes(b"a: 1\nb: \xe9\n")
    with pytest.raises(sb.SimbaError, match=r"study must be a YAML file in UTF-8.*Line 2 is not"):
        yaml_files.read_yaml(path, "study")
    path.write_text("a: 1\n", encoding="utf-16")
    with pytest.raises(sb.SimbaError, match=r"It is in UTF-16: save it as UTF-8"):
        yaml_files.read_yaml(path, "study")
    path.write_text("a: 1\n", encoding="utf-8-sig")
    assert yaml_files.read_yaml(path, "study") == {"a": 1}


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ("nosie: 0.1", r"scenario\.nosie .*Did you mean noise.* See line 4"),
        ("d: 2001-99-99", r"scenario\.d .*See line 4"),
        ("noise: 3", r"scenario\.noise must be in \[0, 1\], got 3\..*See line 4"),
        ("split: abc", r"scenario\.split .*See line 4"),
        ("split: 3", r"scenario\.split .*See line 4"),
        ("template: [a]", r"scenario\.template .*See line 4"),
        ("bias:\n  region: Putamen_L\n  amplitude_mm: 0", r"bias\.amplitude_mm .*See line 6"),
        ("bias:\n  region: Putamen_L\n  amplitud_mm: 1", r"bias\.amplitud_mm .*See line 6"),
        (
            "bias:\n  a: {region: Putamen_L, amplitude_mm: 1}\n"
            "  b: {region: Putamen_R,\n    amplitude_mm: x}",
            r"scenario\.bias\.b\.amplitude_mm .*See line 7",
        ),
        (
            "bias:\n  region: Putamen_L\n  amplitude_mm: 1\n  prevalence:\n    control: 2\n"
            "    disease: 0.1",
            r"scenario\.bias\.prevalence\['control'\] .*See line 8",
        ),
        (
            "bias:\n  region: Putamen_L\n  amplitude_mm: 1\n  magnitude: {mean: 1,\n    sd: -1}",
            r"scenario\.bias\.magnitude .*See line 7",
        ),
        (
            "bias: {region: Putamen_L, amplitude_mm: 1,\n  kind: morphology}",
            r"scenario\.bias\.kind must be left out.*got 'morphology'.*See line 5",
        ),
        ("variability: {file: [a],\n  sha256: 1}", r"variability\.file .*See line 4"),
        ("bias: {yes: {region: Putamen_L, amplitude_mm: 1}}", r"Line 4: a key must be text"),
    ],
)
def test_errors_of_a_scenario_name_field_and_line(lines, says):
    with pytest.raises(sb.SimbaError, match=says):
        sb.Scenario.from_yaml(f"{SCENARIO}{lines}\n")


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("options: {rounds: 1}", "options: null", r"plan\.options must be a mapping.*See line 4"),
        ("strategy: fedavg", "strategy: [a]", r"plan\.strategy .*See line 3"),
        (
            "subjects: 10}",
            "subjects: 10, scanner: null}",
            r"sites\[0\]\.scanner .*got None.*See line 2",
        ),
        ("subjects: 10}", "subjects: 10,\n  scaner: 1}", r"sites\[0\]\.scaner .*See line 3"),
        ("{spacing_mm: 8, disease: {region: Insula_L, amplitude_mm: 2.5}}", "x", "See line 1"),
        ("strategy: fedavg", "strategy: fedavg\nnetwork: SimBANet", r"network .*See line 4"),
        ("strategy: fedavg", "strategy: fedavg\nvisit: null", r"visit must be.*See line 4"),
        ("strategy: fedavg", "strategy: fedavg\nvisit:\n  epoch: 1", r"visit\.epoch .*See line 5"),
    ],
)
def test_errors_of_a_study_name_the_line(old, new, says, tmp_path):
    (tmp_path / "study.yaml").write_text(STUDY.replace(old, new), encoding="utf-8")
    with pytest.raises(sb.SimbaError, match=says):
        Study.from_yaml(tmp_path / "study.yaml")


def test_a_message_stays_short_whatever_the_value_is():
    nested = ["x"] * 10
    for _ in range(40):  # as text: 10^41 characters
        nested = [nested] * 10
    start = time.perf_counter()
    for value in (
        nested,
        10**5000,
        "x" * 10**6,
        {"a": nested},
        list(range(10**6)),
        np.zeros(10**6),
    ):
        error = sb.SimbaError("noise", value, "in [0, 1]", "Mend it.")
        assert error.value is value and len(str(error)) < 1000 and str(error).endswith("Mend it.")
    unknown = UnknownNameError.among("region", "x" * 10**6, ["Insula_L", "Putamen_L"])
    assert len(str(unknown)) < 1000
    assert str(sb.SimbaError("noise", np.float64(1.4), "in [0, 1]")) == (
        "noise must be in [0, 1], got 1.4."
    )
    assert time.perf_counter() - start < 1
