"""Execute the chapters side by side, longest first; the pages are then built from the results.

    python tools/execute.py [--workers N] [CHAPTER ...]

A chapter whose cells and library have not changed is not executed again. A chapter that fails stops
no other. There is no limit on time: a chapter is given up when its processes have not used the
processor for a quarter of an hour. Interrupted, it leaves no kernel behind, and the next call goes
on with the chapters that were not finished.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import nbformat
import psutil
import yaml
from jupyter_cache import get_cache
from jupyter_cache.base import CacheBundleIn
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "book" / "_ext"))

from library_cache import cache_path  # noqa: E402 (its folder has just been added)

BUILD = ROOT / "_build"
TIMES, FAILURES = BUILD / "seconds.json", BUILD / "failures"
# Seconds in which a chapter must use the processor at least a little.
PATIENCE, GLANCE, LEAST_WORK = 900.0, 5.0, 0.05
# Threads that wait leave the core to the other chapter.
ENVIRONMENT = {"OMP_WAIT_POLICY": "passive", "SIMBA_LAB_STATIC": "1", "PYTHONHASHSEED": "0"}


@dataclass
class Chapter:
    """A notebook, and what is known of its execution."""

    path: Path
    seconds: dict[str, float] = field(default_factory=dict)
    error: str = ""
    cell: int = 0

    @property
    def name(self) -> str:
        """The file's name without its ending."""
        return self.path.stem

    def read(self) -> nbformat.NotebookNode:
        """Return the notebook."""
        return nbformat.read(self.path, as_version=4)


def chapters_of_the_book() -> list[Path]:
    """Return the notebooks that the table of contents names, in its order."""
    contents = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    files = [entry["file"] for part in contents["parts"] for entry in part["chapters"]]
    paths = [ROOT / f"{name}.ipynb" for name in files]
    return [path for path in paths if path.is_file()]


def is_cached(cache, chapter: Chapter) -> bool:
    """Return whether these very cells were executed with this very library."""
    try:
        cache.match_cache_notebook(chapter.read())
    except KeyError:
        return False
    return True


async def execute(chapter: Chapter, cache) -> None:
    """Run all cells of a chapter in a kernel of its own, and keep the result."""
    notebook, began = chapter.read(), time.perf_counter()
    client = NotebookClient(
        notebook,
        timeout=None,
        startup_timeout=int(PATIENCE),
        kernel_name="python3",
        resources={"metadata": {"path": str(chapter.path.parent)}},
        on_cell_start=lambda cell, cell_index: setattr(chapter, "cell", cell_index),
    )
    client.create_kernel_manager()
    sockets = tempfile.TemporaryDirectory(prefix="simba-lab-")
    client.km.transport, client.km.ip = "ipc", f"{sockets.name}/kernel"
    run = asyncio.ensure_future(client.async_execute(env=os.environ | ENVIRONMENT))
    watch = asyncio.ensure_future(silence(client))
    try:
        done, _ = await asyncio.wait((run, watch), return_when=asyncio.FIRST_COMPLETED)
        if run not in done:
            raise DeadKernelError(f"no work for {PATIENCE / 60:.0f} minutes")
        run.result()
    except (CellExecutionError, DeadKernelError) as error:
        chapter.error = str(error)
    finally:
        kill(client)
        run.cancel()
        watch.cancel()
        await asyncio.gather(run, watch, return_exceptions=True)
        sockets.cleanup()
    if not chapter.error:
        total = time.perf_counter() - began
        chapter.seconds = {"total": round(total, 1)} | cell_seconds(notebook)
        data = {"execution_seconds": total}
        bundle = CacheBundleIn(notebook, str(chapter.path), data=data)
        cache.cache_notebook_bundle(bundle, check_validity=False, overwrite=True)


def cell_seconds(notebook: nbformat.NotebookNode) -> dict[str, float]:
    """Return how long each code cell took, by its position."""
    seconds = {}
    for position, cell in enumerate(notebook.cells):
        timing = cell.metadata.get("execution", {})
        ends = [timing.get(f"iopub.status.{state}") for state in ("busy", "idle")]
        if all(ends):
            start, end = (_seconds(moment) for moment in ends)
            seconds[str(position)] = round(end - start, 2)
    return seconds


def _seconds(moment: str) -> float:
    from datetime import datetime

    return datetime.fromisoformat(moment).timestamp()


async def silence(client: NotebookClient) -> None:
    """Return when the kernel and its children have not used the processor for too long."""
    used, since = -1.0, time.monotonic()
    while True:
        await asyncio.sleep(GLANCE)
        now = processor_seconds(client)
        if now > used + LEAST_WORK:
            used, since = now, time.monotonic()
        elif time.monotonic() - since > PATIENCE:
            return


def processes(client: NotebookClient) -> list[psutil.Process]:
    """Return the kernel and all that it has started."""
    pid = getattr(getattr(client.km, "provisioner", None), "pid", None)
    try:
        kernel = psutil.Process(pid) if pid else None
        return [kernel, *kernel.children(recursive=True)] if kernel else []
    except psutil.NoSuchProcess:
        return []


def processor_seconds(client: NotebookClient) -> float:
    """Return the processor time of the kernel and its children."""
    total = 0.0
    for process in processes(client):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total


def kill(client: NotebookClient) -> None:
    """End the kernel with all that it has started."""
    left = processes(client)
    for process in reversed(left):
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(left, timeout=5)


async def run_all(chapters: list[Chapter], cache, workers: int, expected: dict) -> None:
    """Execute chapters, so many at a time, and say how it goes."""
    known = {name: entry["total"] for name, entry in expected.items()}
    typical = sorted(known.values())[len(known) // 2] if known else 60.0
    queue = sorted(chapters, key=lambda chapter: -known.get(chapter.name, typical))
    remaining = {chapter.name: known.get(chapter.name, typical) for chapter in queue}
    finished = 0

    async def worker() -> None:
        nonlocal finished
        while queue:
            chapter = queue.pop(0)
            print(f"  {chapter.name}: started", flush=True)
            began = time.perf_counter()
            await execute(chapter, cache)
            seconds, finished = time.perf_counter() - began, finished + 1
            del remaining[chapter.name]
            state = "FAILED" if chapter.error else "done"
            left = sum(remaining.values()) / workers
            ahead = f", about {max(1, round(left / 60))} min left" if remaining and known else ""
            place = f"{finished}/{len(chapters)}"
            print(f"  {chapter.name}: {state} in {seconds:.0f} s ({place}{ahead})", flush=True)
            keep_times(chapter)

    await asyncio.gather(*(worker() for _ in range(workers)))


def keep_times(chapter: Chapter) -> None:
    """Write down how long a chapter took, for the order and the forecast of the next run."""
    if not chapter.error:
        times = read_times() | {chapter.name: chapter.seconds}
        part = TIMES.with_suffix(".part")
        part.write_text(json.dumps(times, indent=1) + "\n", encoding="utf-8")
        part.replace(TIMES)


def read_times() -> dict[str, dict[str, float]]:
    """Return the times of earlier runs."""
    try:
        return json.loads(TIMES.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def explain(chapter: Chapter) -> str:
    """Return what failed, where, and what to do, in five lines; the whole is in a file."""
    FAILURES.mkdir(parents=True, exist_ok=True)
    log = FAILURES / f"{chapter.name}.txt"
    log.write_text(chapter.error, encoding="utf-8")
    lines = [line for line in chapter.error.splitlines() if line.strip()]
    return (
        f"\nChapter {chapter.name} failed in cell {chapter.cell}:\n"
        f"  {lines[-1][:300] if lines else 'no message'}\n"
        f"  The whole message is in {log.relative_to(ROOT)}; the other chapters are kept.\n"
        f"  To look: jupyter lab {chapter.path.relative_to(ROOT)}\n"
        "  To go on when it is mended: make book"
    )


def main() -> int:
    """Execute what has to be; the exit status is 1 if a chapter failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("chapters", nargs="*", type=Path, help="by default those of _toc.yml")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    BUILD.mkdir(exist_ok=True)
    cache = get_cache(cache_path(ROOT))
    paths = [path.resolve() for path in options.chapters] or chapters_of_the_book()
    chapters = [Chapter(path) for path in paths]
    pending = [chapter for chapter in chapters if not is_cached(cache, chapter)]
    for log in FAILURES.glob("*.txt"):
        log.unlink()
    if not pending:
        print("Chapters: all are as they were when they were executed.")
        return 0
    workers = max(1, min(options.workers, len(pending)))
    print(f"Chapters: {len(pending)} of {len(chapters)} to execute, {workers} at a time")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupted)
    try:
        asyncio.run(run_all(pending, cache, workers, read_times()))
    except KeyboardInterrupt:
        print("\nInterrupted; finished chapters are kept. To go on: make book", file=sys.stderr)
        return 130
    failed = [chapter for chapter in pending if chapter.error]
    for chapter in failed:
        print(explain(chapter), file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
