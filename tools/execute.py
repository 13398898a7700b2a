"""Execute the chapters side by side, longest first; the pages are then built from the results.

    python tools/execute.py [--workers N] [--list] [CHAPTER ...]

A chapter whose cells and library have not changed is not executed again. A chapter that fails stops
no other. There is no limit on time: a chapter is given up when its processes have not used the
processor for a quarter of an hour. Interrupted, it leaves no kernel behind, and the next call goes
on with the chapters that were not finished.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import nbformat
import psutil
import yaml
from jupyter_cache import get_cache
from jupyter_cache.base import CacheBundleIn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "book" / "_ext"))

from library_cache import cache_path  # noqa: E402 (its folder has just been added)

BUILD = ROOT / "_build"
TIMES, FAILURES = BUILD / "seconds.json", BUILD / "failures"
# What each chapter took elsewhere, for the order of the first execution here.
TYPICAL = Path(__file__).with_name("seconds.json")
# Seconds in which a chapter must use the processor at least a little.
PATIENCE, LEAST_WORK = 900.0, 0.05
GLANCE, LOOK = 1.0, 10.0  # seconds between glances at a process, and at all that it has started
# Threads that wait leave the core to the other chapter.
ENVIRONMENT = {"OMP_WAIT_POLICY": "passive", "SIMBA_LAB_STATIC": "1", "PYTHONHASHSEED": "0"}


# -- one chapter, in a process of its own --


def execute(path: Path, output: Path) -> int:
    """Run all cells of a chapter; write the notebook with its outputs, or a file of what failed."""
    from nbclient import NotebookClient

    threading.Thread(target=end_with_parent, args=(os.getppid(),), daemon=True).start()
    notebook, place = nbformat.read(path, as_version=4), {"cell": 0}
    client = NotebookClient(
        notebook,
        timeout=None,
        startup_timeout=int(PATIENCE),
        kernel_name="python3",
        resources={"metadata": {"path": str(path.parent)}},
        on_cell_start=lambda cell, cell_index: place.update(cell=cell_index),
    )
    client.create_kernel_manager()
    # Sockets in the file system: the kernel warns of those that others on the machine can reach.
    client.km.transport, client.km.ip = "ipc", str(output.parent / "kernel")
    try:
        client.execute()
    except Exception as error:
        text = json.dumps({"cell": place["cell"], "error": str(error) or repr(error)})
        output.with_suffix(".json").write_text(text, encoding="utf-8")
        return 1
    nbformat.write(notebook, output)
    return 0


def end_with_parent(parent: int) -> None:
    """End this process, and with it the kernel, if the one that started it is gone."""
    while os.getppid() == parent:
        time.sleep(GLANCE)
    os._exit(1)


# -- all chapters --


@dataclass
class Chapter:
    """A notebook, the process that executes it, and what is known of its execution."""

    path: Path
    folder: Path = Path()
    process: subprocess.Popen | None = None
    began: float = 0.0
    used: float = -1.0
    worked: float = 0.0
    looked: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)
    error: str = ""
    cell: int = 0

    @property
    def name(self) -> str:
        """The file's name without its ending."""
        return self.path.stem

    @property
    def result(self) -> Path:
        """Where its process writes the executed notebook."""
        return self.folder / "executed.ipynb"

    @property
    def log(self) -> Path:
        """Where its whole message is, if it failed."""
        return FAILURES / f"{self.name}.txt"

    def start(self) -> None:
        """Start its process."""
        self.folder = Path(tempfile.mkdtemp(prefix="simba-lab-"))
        command = [sys.executable, __file__, "--result", str(self.result), str(self.path)]
        self.began = self.worked = self.looked = time.monotonic()
        log = (self.folder / "log").open("wb")
        self.process = subprocess.Popen(
            command, env=os.environ | ENVIRONMENT, stdout=log, stderr=log, start_new_session=True
        )

    def processes(self) -> list[psutil.Process]:
        """Return its process with all that it has started."""
        try:
            main = psutil.Process(self.process.pid)
            return [main, *main.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def is_silent(self) -> bool:
        """Return whether its processes have not used the processor for too long."""
        if time.monotonic() < self.looked + LOOK:
            return False
        self.looked, used = time.monotonic(), 0.0
        for process in self.processes():
            try:
                used += sum(process.cpu_times()[:4])
            except psutil.NoSuchProcess:
                continue
        if used > self.used + LEAST_WORK:
            self.used, self.worked = used, time.monotonic()
        return time.monotonic() - self.worked > PATIENCE

    def kill(self) -> None:
        """End its process with all that it has started."""
        left = self.processes() if self.process else []
        for process in left:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(left, timeout=5)
        if self.folder != Path():
            shutil.rmtree(self.folder, ignore_errors=True)

    def finish(self, cache) -> None:
        """Keep the result, or note what failed."""
        if self.result.is_file():
            notebook, total = nbformat.read(self.result, as_version=4), self.elapsed()
            self.seconds = {"total": round(total, 1)} | cell_seconds(notebook)
            for cell in notebook.cells:  # a cell with other metadata is another to the cache
                cell.metadata.pop("execution", None)
            bundle = CacheBundleIn(notebook, str(self.path), data={"execution_seconds": total})
            cache.cache_notebook_bundle(bundle, check_validity=False, overwrite=True)
        elif self.result.with_suffix(".json").is_file():
            failure = json.loads(self.result.with_suffix(".json").read_text(encoding="utf-8"))
            self.error, self.cell = failure["error"], failure["cell"]
        else:
            log = (self.folder / "log").read_text(encoding="utf-8", errors="replace")
            self.error = self.error or f"{log}\nIts process ended with {self.process.returncode}."
        self.kill()

    def elapsed(self) -> float:
        """Return the seconds since it was started."""
        return time.monotonic() - self.began


def chapters_of_the_book() -> list[Path]:
    """Return the notebooks that the table of contents names, in its order."""
    contents = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    files = [entry["file"] for section in contents["parts"] for entry in section["chapters"]]
    paths = [ROOT / f"{name}.ipynb" for name in files]
    return [path for path in paths if path.is_file()]


def is_cached(cache, chapter: Chapter) -> bool:
    """Return whether these very cells were executed with this very library."""
    try:
        cache.match_cache_notebook(nbformat.read(chapter.path, as_version=4))
    except KeyError:
        return False
    return True


def cell_seconds(notebook: nbformat.NotebookNode) -> dict[str, float]:
    """Return how long each code cell took, by its position."""
    seconds = {}
    for position, cell in enumerate(notebook.cells):
        timing = cell.metadata.get("execution", {})
        ends = [timing.get(f"iopub.status.{state}") for state in ("busy", "idle")]
        if all(ends):
            start, end = (datetime.fromisoformat(moment).timestamp() for moment in ends)
            seconds[str(position)] = round(end - start, 2)
    return seconds


def run_all(chapters: list[Chapter], cache, workers: int) -> None:
    """Execute chapters, so many at a time, and say how it goes."""
    durations, measured = expected_seconds(), bool(read_times())

    def expected(chapter: Chapter) -> float:
        return durations.get(chapter.name, 0.0)

    queue, running, finished = sorted(chapters, key=expected), [], 0
    try:
        while queue or running:
            while queue and len(running) < workers:
                chapter = queue.pop()
                chapter.start()
                running.append(chapter)
                print(f"  {chapter.name}: started", flush=True)
            time.sleep(GLANCE / 5)
            for chapter in list(running):
                if chapter.process.poll() is None and chapter.is_silent():
                    chapter.error = f"It did no work for {PATIENCE / 60:.0f} minutes."
                    chapter.process.kill()
                    chapter.process.wait()
                if chapter.process.poll() is None:
                    continue
                seconds = chapter.elapsed()
                chapter.finish(cache)
                keep_times(chapter)
                keep_error(chapter)
                running.remove(chapter)
                finished += 1
                seconds_left = sum(map(expected, queue))
                seconds_left += sum(
                    max(0.0, expected(unfinished) - unfinished.elapsed()) for unfinished in running
                )
                ahead = (
                    f", about {seconds_left / workers / 60:.0f} min left"
                    if measured and seconds_left
                    else ""
                )
                state = "FAILED after" if chapter.error else "done in"
                place = f"({finished} of {len(chapters)}{ahead})"
                print(f"  {chapter.name}: {state} {seconds:.0f} s {place}", flush=True)
    finally:
        for chapter in running:
            chapter.kill()


def keep_times(chapter: Chapter) -> None:
    """Write down how long a chapter took, for the order and the forecast of the next run."""
    if not chapter.error:
        times = read_times() | {chapter.name: chapter.seconds}
        draft = TIMES.with_suffix(".part")
        draft.write_text(json.dumps(times, indent=1) + "\n", encoding="utf-8")
        draft.replace(TIMES)


def expected_seconds() -> dict[str, float]:
    """Return how long each chapter takes: as it did here, or else where it was measured."""
    typical = json.loads(TYPICAL.read_text(encoding="utf-8"))
    return typical | {name: entry["total"] for name, entry in read_times().items()}


def read_times() -> dict[str, dict[str, float]]:
    """Return the times of earlier runs."""
    try:
        return json.loads(TIMES.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def keep_error(chapter: Chapter) -> None:
    """Write down the whole message of a chapter that failed, before the others have ended."""
    if chapter.error:
        chapter.error = re.sub(r"\x1b\[[0-9;]*m", "", chapter.error)  # colours of a terminal
        chapter.log.parent.mkdir(parents=True, exist_ok=True)
        chapter.log.write_text(chapter.error, encoding="utf-8")


def explain(chapter: Chapter) -> str:
    """Return what failed, where, and what to do, in five lines."""
    lines = [line for line in chapter.error.splitlines() if line.strip()]
    return (
        f"\nChapter {chapter.name} failed in cell {chapter.cell}:\n"
        f"  {lines[-1][:300] if lines else 'no message'}\n"
        f"  The whole message is in {os.path.relpath(chapter.log)}; the other chapters are kept.\n"
        f"  To look: jupyter lab {os.path.relpath(chapter.path)}\n"
        "  To go on when it is mended: make book"
    )


def main() -> int:
    """Execute what has to be; the exit status is 1 if a chapter failed, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("chapters", nargs="*", type=Path, help="by default those of _toc.yml")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="at a time")
    parser.add_argument("--list", action="store_true", help="only name them, longest first")
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.result:
        return execute(options.chapters[0], options.result)
    if options.list:
        durations = expected_seconds()
        paths = options.chapters or chapters_of_the_book()
        for path in sorted(paths, key=lambda path: -durations.get(path.stem, 0.0)):
            print(os.path.relpath(path))
        return 0
    BUILD.mkdir(exist_ok=True)
    cache = get_cache(cache_path(ROOT))
    paths = [path.resolve() for path in options.chapters] or chapters_of_the_book()
    chapters = [Chapter(path) for path in paths]
    pending = [chapter for chapter in chapters if not is_cached(cache, chapter)]
    shutil.rmtree(FAILURES, ignore_errors=True)
    if not pending:
        print("Chapters: all are as they were when they were executed.")
        return 0
    workers = max(1, min(options.workers, len(pending)))
    print(
        f"Chapters: {len(pending)} of {len(chapters)} to execute, {workers} at a time", flush=True
    )
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        run_all(pending, cache, workers)
    except KeyboardInterrupt:
        print("\nInterrupted; finished chapters are kept. To go on: make book", file=sys.stderr)
        return 130
    failed = [chapter for chapter in pending if chapter.error]
    for chapter in failed:
        print(explain(chapter), file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
