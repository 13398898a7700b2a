"""Writing: hidden until it is complete, by one process at a time, and no trace after a kill."""

import errno
import os
import signal
import time

import pytest

import simba_lab as sb
from simba_lab.core.files import atomic_write, new_file, new_folder
from simba_lab.core.unfinished import DISK_ERRORS, one_process, part_of


def killed_in(context, path):
    """Enter a context in a child process, write something, and kill the child."""
    ready, child = os.pipe(), os.fork()
    if child == 0:
        with context(path) as part:
            (part / "half" if part.is_dir() else part).write_text("half")
            os.write(ready[1], b"x")
            time.sleep(60)
        os._exit(1)
    os.read(ready[0], 1)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def test_what_a_kill_left_is_cleared_by_the_next_writer(tmp_path):
    for context, path in ((new_folder, tmp_path / "folder"), (new_file, tmp_path / "file")):
        killed_in(context, path)
        assert part_of(path).exists() and not path.exists()
        with context(path) as part:
            (part / "whole" if part.is_dir() else part).write_text("whole")
    assert [entry.name for entry in (tmp_path / "folder").iterdir()] == ["whole"]
    assert (tmp_path / "file").read_text() == "whole"
    assert {entry.name for entry in tmp_path.iterdir()} == {"folder", "file"}


@pytest.mark.parametrize("left", ["file", "folder", "link"])
def test_whatever_lies_in_the_way_blocks_nobody(tmp_path, left):
    (tmp_path / "elsewhere").write_text("stays")
    for context, path in ((new_folder, tmp_path / "a"), (new_file, tmp_path / "b")):
        part = part_of(path)
        if left == "file":
            part.write_text("x")
        elif left == "folder":
            (part / "x").mkdir(parents=True)
        else:
            part.symlink_to(tmp_path / "elsewhere")
        with context(path) as lent:
            (lent / "whole" if lent.is_dir() else lent).write_text("whole")
    assert [entry.name for entry in (tmp_path / "a").iterdir()] == ["whole"]
    assert (tmp_path / "elsewhere").read_text() == "stays"
    assert {entry.name for entry in tmp_path.iterdir()} == {"a", "b", "elsewhere"}


def test_the_second_writer_of_a_folder_is_refused_at_its_start(tmp_path):
    with new_folder(tmp_path / "a") as part:
        (part / "x").write_text("x")
        with pytest.raises(sb.SimbaError, match=r"Another process is writing '.*/a'"):
            new_folder(tmp_path / "a").__enter__()
        assert (part / "x").exists()
    with (
        one_process(tmp_path / "b", "It is in use."),
        pytest.raises(sb.SimbaError, match="It is in use"),
    ):
        one_process(tmp_path / "b", "It is in use.").__enter__()
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.ESTALE, errno.EIO, errno.EROFS])
def test_what_disks_do_is_an_error_of_the_lab(tmp_path, code):
    assert code in DISK_ERRORS
    (tmp_path / "file").write_text("old")
    for context, path in ((new_folder, tmp_path / "a"), (new_file, tmp_path / "file")):
        with pytest.raises(sb.SimbaError, match=os.strerror(code)), context(path):
            raise OSError(code, os.strerror(code))
    assert (tmp_path / "file").read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
    with pytest.raises(TimeoutError), new_file(tmp_path / "file"):
        raise TimeoutError("no fault of the disk")


def test_a_folder_that_cannot_be_written_is_an_error_of_the_lab(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(sb.SimbaError, match="Not a directory"):
        atomic_write(tmp_path / "file" / "x", "x")
    with pytest.raises(sb.SimbaError, match="No such file"):
        atomic_write(tmp_path / "none" / "x", "x")
    with pytest.raises(sb.SimbaError, match="too long"):
        atomic_write(tmp_path / ("x" * 300), "x")
