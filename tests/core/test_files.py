"""Files: what is refused when read, and that nothing is written by halves."""

import json
import os
import stat

import numpy as np
import pytest

import simba_lab as sb
from simba_lab.core import files


@pytest.mark.parametrize(
    "text", ['{"a": 1, "a": 2}', '{"b": [{"a": 1, "a": 1}]}', "{", "[" * 10**5]
)
def test_damaged_json_is_refused(text, tmp_path):
    (tmp_path / "x.json").write_text(text, encoding="utf-8")
    with pytest.raises(sb.SimbaError, match=r"manifest must be a file of valid JSON.*x\.json"):
        files.read_json(tmp_path / "x.json", "manifest")


def test_json_in_another_encoding_is_refused_and_numpy_scalars_are_numbers(tmp_path):
    (tmp_path / "x.json").write_text("{}", encoding="utf-16")
    with pytest.raises(sb.SimbaError, match="It is in UTF-16"):
        files.read_json(tmp_path / "x.json", "manifest")
    (tmp_path / "x.json").write_text('{"a": ' + "9" * 5000 + "}", encoding="utf-8")
    with pytest.raises(sb.SimbaError, match="valid JSON"):
        files.read_json(tmp_path / "x.json", "manifest")
    files.write_json(tmp_path / "x.json", {"a": np.float32(0.5), "b": [np.int64(3), np.True_]})
    assert files.read_json(tmp_path / "x.json", "manifest") == {"a": 0.5, "b": [3, True]}
    with pytest.raises(TypeError):
        files.write_json(tmp_path / "y.json", {"a": object()})


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


def test_a_new_file_replaces_nothing(tmp_path):
    path = tmp_path / "x.txt"
    files.write_new(path, "old")
    files.write_new(path, "old")
    with pytest.raises(sb.SimbaError, match="file must be a path where nothing exists yet"):
        files.write_new(path, "new")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(sb.SimbaError, match="nothing exists yet"):
        files.write_new(tmp_path / "dangling", "new")
    with pytest.raises(sb.SimbaError, match="can be written"):
        files.write_new(path / "below", "new")
    assert path.read_text() == "old" and {p.name for p in tmp_path.iterdir()} == {
        "x.txt",
        "dangling",
    }
