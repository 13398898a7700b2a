"""Files: what is refused when read, and that nothing is written by halves."""

import json
import os
import stat

import pytest

import simba_lab as sb
from simba_lab.core import files

BOMB = "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n"


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
        ("a: 1\nb: 2024-13-45\n", "valid YAML"),
        ("[a]: 1\n[b]: 2\n", "Line 1: .*unhashable"),
        ("a: " + "[" * 40 + "]" * 40 + "\n", "nested deeper than 32 levels at a"),
        ("a: " + "x" * 2**20 + "\n", "at most 1048576"),
        ("- 1\n- 2\n", "a mapping of field names"),
        ("---\na: 1\n---\nb: 1\n", "Line 3"),
    ],
)
def test_yaml_that_nobody_means_is_refused(text, says, tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(text, encoding="utf-8")
    for source in (text, path, str(path)):
        with pytest.raises(sb.SimbaError, match=rf"study must be .*{says}"):
            files.read_yaml(source, "study")


def test_yaml_values_come_as_they_are_meant(tmp_path):
    text = "rate: 1e-5\nbig: -2E+3\nname: 1e\nflag: true\nwidths: [4, 8]\n"
    values = {"rate": 1e-5, "big": -2000.0, "name": "1e", "flag": True, "widths": [4, 8]}
    assert files.read_yaml(text, "study") == values
    shared = [1, 2]
    files.write_yaml(tmp_path / "x.yaml", {"b": shared, "a": shared})
    assert files.read_yaml(tmp_path / "x.yaml", "study") == {"b": [1, 2], "a": [1, 2]}


def test_missing_and_binary_yaml_files_are_named(tmp_path):
    with pytest.raises(sb.SimbaError, match=r"existing YAML file.*Examples are in data/"):
        files.read_yaml(tmp_path / "x.yaml", "study", examples="data/")
    (tmp_path / "x.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(sb.SimbaError, match=r"study.*UTF-8"):
        files.read_yaml(tmp_path / "x.yaml", "study")


@pytest.mark.parametrize(
    "text", ['{"a": 1, "a": 2}', '{"b": [{"a": 1, "a": 1}]}', "{", "[" * 10**5]
)
def test_damaged_json_is_refused(text, tmp_path):
    (tmp_path / "x.json").write_text(text, encoding="utf-8")
    with pytest.raises(sb.SimbaError, match=r"manifest must be a file of valid JSON.*x\.json"):
        files.read_json(tmp_path / "x.json", "manifest")


def test_json_comes_back(tmp_path):
    values = {"b": [1, 2.5, None], "a": {"ü": float("inf")}}
    files.write_json(tmp_path / "x.json", values)
    assert files.read_json(tmp_path / "x.json", "manifest") == values
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8")) == values


def test_a_write_is_complete_or_absent(tmp_path):
    path = tmp_path / "x.txt"
    files.atomic_write(path, "old\r\n")
    assert path.read_bytes() == b"old\r\n"
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask
    with pytest.raises(RuntimeError, match="halfway"), files.new_file(path) as unfinished:
        unfinished.write_text("ne")
        raise RuntimeError("halfway")
    assert path.read_bytes() == b"old\r\n" and list(tmp_path.iterdir()) == [path]


def test_a_folder_appears_at_the_end_or_not_at_all(tmp_path):
    path = tmp_path / "data"
    with pytest.raises(RuntimeError, match="halfway"), files.new_folder(path) as folder:
        (folder / "x").write_text("x")
        assert folder.name.startswith(".") and not path.exists()
        raise RuntimeError("halfway")
    assert not list(tmp_path.iterdir())
    with files.new_folder(path) as folder:
        (folder / "x").write_text("x")
    assert [entry.name for entry in path.iterdir()] == ["x"] and list(tmp_path.iterdir()) == [path]
    with pytest.raises(sb.SimbaError, match="nothing exists yet"), files.new_folder(path):
        pass
    with (
        pytest.raises(sb.SimbaError, match="in a folder that exists"),
        files.new_folder(tmp_path / "a" / "b"),
    ):
        pass
    with files.new_folder(tmp_path / "a" / "b", parents=True):
        pass
    assert (tmp_path / "a" / "b").is_dir()


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../x", "a/../../x", "C:\\x", "\\x", "a\0b", "link"]
)
def test_paths_that_lead_outside_are_refused(name, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    (tmp_path / "x").write_text("secret")
    (folder / "link").symlink_to(tmp_path / "x")
    with pytest.raises(sb.SimbaError, match="a file of the table must be a relative path inside"):
        files.inside(folder, name, "a file of the table")
    assert files.inside(folder, "a/b.nii", "a file of the table") == folder / "a" / "b.nii"


def test_what_a_killed_writer_left_is_no_stranger(tmp_path):
    for name in (".x.json.1-ab.part", "x.json", "mine.txt"):
        (tmp_path / name).write_text("")
    assert files.strangers(tmp_path, ["x.json"]) == ["mine.txt"]


def test_cache_folder_is_chosen_by_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("SIMBA_LAB_CACHE", str(tmp_path))
    assert files.cache_folder() == files.cache_root(True) == tmp_path
    monkeypatch.delenv("SIMBA_LAB_CACHE")
    assert files.cache_folder().name == "simba-lab"
    assert files.cache_root(False) is None and files.cache_root("x") == files.Path("x")
