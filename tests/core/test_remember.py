"""Remembered results: made once, checked when read, never half kept."""

import json
import subprocess
import sys

import pytest

from simba_lab.core import remember
from simba_lab.core.remember import remembered


def never(_):
    raise AssertionError("made again")


def test_a_result_is_made_once(tmp_path):
    assert remembered("sums", "a", lambda _: {"x": 1.5}, cache=tmp_path) == {"x": 1.5}
    assert remembered("sums", "a", never, cache=tmp_path) == {"x": 1.5}
    assert remembered("sums", "b", lambda _: 2, cache=tmp_path) == 2
    assert remembered("sums", "a", lambda _: 3, cache=False) == 3
    assert remembered("sums", None, lambda path: path, cache=tmp_path) is None


@pytest.mark.parametrize("name", ["value.json", "digests.json"])
@pytest.mark.parametrize("content", ["", "{}", None])
def test_a_damaged_entry_is_made_anew_with_a_warning(tmp_path, name, content):
    remembered("sums", "a", lambda _: 1, cache=tmp_path)
    path = tmp_path / "sums" / "a" / name
    path.unlink() if content is None else path.write_text(content)
    with pytest.warns(UserWarning, match="damaged; it is made anew"):
        assert remembered("sums", "a", lambda _: 2, cache=tmp_path) == 2
    assert remembered("sums", "a", never, cache=tmp_path) == 2


def test_an_error_leaves_nothing_behind(tmp_path):
    with pytest.raises(AssertionError):
        remembered("sums", "a", never, cache=tmp_path)
    assert [path.name for path in (tmp_path / "sums").iterdir() if path.suffix != ".lock"] == []
    assert remembered("sums", "a", lambda _: 1, cache=tmp_path) == 1


def test_a_cache_that_cannot_be_written_is_read_and_done_without(tmp_path, monkeypatch):
    remembered("sums", "a", lambda _: 1, cache=tmp_path)

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(remember.FileLock, "acquire", refuse)
    assert remembered("sums", "a", never, cache=tmp_path) == 1
    with pytest.warns(UserWarning, match="cannot be written") as caught:
        assert remembered("sums", "b", lambda path: path, cache=tmp_path) is None
        assert remembered("sums", "c", lambda _: 3, cache=tmp_path) == 3
    assert len(caught) == 1


def test_a_result_that_cannot_be_saved_is_returned(tmp_path):
    def full(_, folder):
        raise OSError(28, "No space left on device")

    with pytest.warns(UserWarning, match="not kept.*enough space"):
        assert remembered("sums", "a", lambda _: 1, cache=tmp_path, save=full) == 1
    assert not (tmp_path / "sums" / "a").exists()


SCRIPT = """
import sys, time
from pathlib import Path
from simba_lab.core.remember import remembered
def make(_):
    with Path(sys.argv[1], "made").open("a") as file:
        file.write("x")
    time.sleep(1)
    return 1
assert remembered("sums", "a", make, cache=sys.argv[1]) == 1
"""


def test_two_processes_make_a_result_once(tmp_path):
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    processes = [subprocess.Popen(command) for _ in range(2)]
    assert [process.wait(60) for process in processes] == [0, 0]
    assert (tmp_path / "made").read_text() == "x"
    assert json.loads((tmp_path / "sums" / "a" / "value.json").read_text()) == 1
