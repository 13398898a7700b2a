"""Kills of everything that writes: SIGKILL at random moments, then the same call again.

``python tests/kills.py 25`` kills each writer so often, and says what it found. Each piece of work
runs in a fork of this process, which has imported all and computed nothing.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import simba_lab as sb
from simba_lab.scans import saving
from simba_lab.training import tensor_files, trainer

SCENARIO = sb.Scenario(
    64,
    sb.Morphology("Insula_L", 2.5),
    sb.Morphology("Putamen_L", 2.5, prevalence={"disease": 0.8, "control": 0.2}),
    spacing_mm=8,
)
NETWORK = {"name": "SimBANet", "widths": [2, 2]}


def store(place: Path) -> None:
    sb.save_cohort(sb.synthesise(SCENARIO), place / "store", n_jobs=1)


def export(place: Path) -> None:
    if not (place / "bids").exists():
        sb.export_bids(sb.synthesise(SCENARIO).where(range(24)), place / "bids", n_jobs=1)


def fit(place: Path) -> None:
    config = sb.FitConfig(epochs=12, threads=1)
    run = sb.fit(sb.SimBANet((2, 2)), sb.synthesise(SCENARIO), config, cache=place / "cache")
    (place / "result").write_text(tensor_files.digest(run.model.state_dict()))


def sweep(place: Path) -> None:
    axes, config = {"prevalence.bias": [0.5, 0.9]}, sb.FitConfig(epochs=2, threads=1)
    made = sb.Sweep(SCENARIO, axes, seeds=(0, 1), config=config, network=NETWORK)
    table = made.run(n_jobs=2, cache=place / "cache").drop(columns="seconds")
    (place / "result").write_text(table.to_csv())


def comparison(place: Path) -> None:
    made = sb.experiments.Comparison(
        SCENARIO.replace(bias=None),
        subjects=8,
        per_site=(2, 4),
        strategies=("central", "travelling"),
        passes=4,
        learning_rates=(0.03,),
        seeds=(0,),
        network=NETWORK | {"norm": "group"},
        validation=8,
        test=8,
    )
    table = made.run(n_jobs=2, cache=place / "cache").drop(columns="seconds")
    (place / "result").write_text(table.to_csv())


def ledger(place: Path) -> None:
    sites = tuple(sb.federation.Site(name, 8) for name in ("north", "south"))
    names, network = tuple(site.name for site in sites), NETWORK | {"norm": "group"}
    plan = sb.federation.Plan("travelling", names, {"cycles": 6}, network)
    study = sb.federation.Study(SCENARIO.replace(bias=None), sites, plan, validation=8, test=8)
    study.run(place / "ledger")


WRITERS = {
    function.__name__: function for function in (store, export, fit, sweep, ledger, comparison)
}


def started(work: Callable[[Path], None], place: Path) -> int:
    """Return the number of a process that works in a session of its own."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.setsid()
            # Small steps, so that kills fall between and into them.
            saving.BATCH, trainer.CHECKPOINT_SECONDS = 2, 0.0
            work(place)
            status = 0
        finally:
            os._exit(status)
    return child


def living(session: int) -> list[str]:
    """Return the processes of a session that live."""
    processes = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(") ")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            processes.append(folder.name)
    return processes


def content(place: Path) -> dict[str, bytes]:
    """Return all files outside the cache: the results hold what is in that."""
    return {
        path.relative_to(place).as_posix(): path.read_bytes()
        for path in sorted(place.rglob("*"))
        if path.is_file() and "cache" not in path.parts
    }


def left(place: Path) -> list[str]:
    """Return what only an unfinished writer has: locks of the cache are empty and stay."""
    ends = (".part", ".checkpoint", "progress.tsv", "writing.lock")
    return [path.name for path in place.rglob("*") if path.name.endswith(ends)]


def kill(writer: str, kills: int, *, seed: int = 0, in_a_row: int = 3) -> dict[str, int]:
    """Kill a writer at random moments of its work; return what was counted."""
    work, moments = WRITERS[writer], random.Random(seed)
    counts = {"kills": 0, "lost": 0, "left": 0, "orphans": 0}
    with tempfile.TemporaryDirectory() as folder:
        whole, start = Path(folder) / "whole", time.monotonic()
        whole.mkdir()
        assert os.waitpid(started(work, whole), 0)[1] == 0
        lasts, expected = time.monotonic() - start, content(whole)
        place, rows = Path(folder) / "0", 0
        while counts["kills"] < kills:
            place.mkdir(exist_ok=True)
            child = started(work, place)
            time.sleep(moments.uniform(0, lasts))
            os.kill(child, signal.SIGKILL)
            killed = os.WIFSIGNALED(os.waitpid(child, 0)[1])
            counts["kills"], rows = counts["kills"] + killed, rows + killed
            deadline = time.monotonic() + 10
            while living(child) and time.monotonic() < deadline:
                time.sleep(0.05)
            counts["orphans"] += len(living(child))
            if not killed or rows == in_a_row or counts["kills"] == kills:
                status = os.waitpid(started(work, place), 0)[1]
                counts["lost"] += status != 0 or content(place) != expected
                counts["left"] += len(left(place))
                place, rows = place.with_name(str(int(place.name) + 1)), 0
    return counts


if __name__ == "__main__":
    # Imported here once, and not in each fork.
    _ = sb.synthesise, sb.export_bids, sb.fit, sb.Sweep, sb.experiments.Comparison
    _ = sb.federation.Study, sb.federation.Site, sb.federation.Plan
    import lightning_fabric  # noqa: F401
    import torch._dynamo  # noqa: F401

    for name in sys.argv[2:] or WRITERS:
        print(json.dumps({name: kill(name, int(sys.argv[1]))}), flush=True)
