"""The tool that executes the chapters: failures, interruptions and kills."""

import contextlib
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest

ROOT = Path(__file__).resolve().parents[1]
GOES_ON = (
    "import os, pathlib, time\npathlib.Path('pid').write_text(str(os.getpid()))\ntime.sleep(60)"
)

pytestmark = pytest.mark.slow


@pytest.fixture
def root(tmp_path):
    """A book of its own beside the tool, without chapters and without a library."""
    for name in ("tools/execute.py", "tools/seconds.json", "book/_ext/library_cache.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def write_chapter(root, name, *cells):
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(text) for text in cells], metadata={"kernelspec": kernel}
    )
    nbformat.write(notebook, root / "book" / f"{name}.ipynb")


def start(root):
    chapters = sorted(map(str, (root / "book").glob("*.ipynb")))
    return subprocess.Popen(
        [sys.executable, "tools/execute.py", "--workers", "2", *chapters],
        cwd=root,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # A shell's background job would ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def kernel_of(root):
    """Wait until a chapter has written the number of its kernel's process."""
    end, file = time.monotonic() + 120, root / "book" / "pid"
    while not (file.is_file() and file.read_text()):
        assert time.monotonic() < end, "no kernel has begun"
        time.sleep(0.1)
    return psutil.Process(int(file.read_text()))


def test_a_broken_chapter_stops_no_other_and_says_what_to_do(root):
    write_chapter(root, "broken", "x = 0", "1 / x")
    write_chapter(root, "whole", "print('done')")
    first = start(root)
    output, message = first.communicate(timeout=240)
    assert first.returncode == 1
    assert "broken: FAILED" in output and "whole: done" in output
    lines = message.strip().splitlines()
    assert len(lines) == 5
    assert lines[0] == "Chapter broken failed in cell 1:"
    assert "ZeroDivisionError" in lines[1]
    assert lines[4].strip() == "To go on when it is mended: make book"
    assert "ZeroDivisionError" in (root / "_build" / "failures" / "broken.txt").read_text()

    write_chapter(root, "broken", "x = 1", "1 / x")
    again = start(root)
    output, message = again.communicate(timeout=240)
    assert again.returncode == 0 and not message
    assert "1 of 2 to execute" in output and "broken: done" in output
    assert not (root / "_build" / "failures").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_execution_that_ends_early_leaves_no_kernel(root, number):
    write_chapter(root, "long", GOES_ON)
    tool = start(root)
    kernel = kernel_of(root)
    tool.send_signal(number)
    _, message = tool.communicate(timeout=60)
    if number == signal.SIGKILL:
        assert tool.returncode == -signal.SIGKILL
    else:
        assert tool.returncode == 130
        assert message.strip() == "Interrupted; finished chapters are kept. To go on: make book"
    with contextlib.suppress(psutil.NoSuchProcess):
        kernel.wait(20)
    assert not kernel.is_running()
