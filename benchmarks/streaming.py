"""Stream 10 000 subjects at 4 mm to disk: resident memory, and whether time grows linearly.

Usage: python benchmarks/streaming.py [subjects]
"""

import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import simba_lab as sb
from simba_lab.scans import saving

MOST_GB = 1.0
SCENARIOS = Path(__file__).parents[1] / "data" / "scenarios"


def saved_in(cohort: sb.Cohort, folder: Path) -> list[float]:
    """Return the seconds after which each batch was on disk."""
    moments, original = [], saving.BATCH
    start = time.perf_counter()

    def batches(rows: list[int]):
        for first in range(0, len(rows), original):
            yield rows[first : first + original]
            moments.append(time.perf_counter() - start)

    saving._batches = batches
    sb.save_cohort(cohort, folder)
    return moments


def main(subjects: int = 10_000) -> int:
    """Print the figures beside their targets."""
    scenario = sb.Scenario.from_yaml(SCENARIOS / "near.yaml").replace(subjects=subjects)
    # Among so many, somebody's magnitude would fold the brain.
    scenario = scenario.replace(bias=scenario.bias.scaled(0.8))
    cohort = sb.synthesise(scenario, seed=0)
    cohort.array(0)  # compiles
    with tempfile.TemporaryDirectory() as folder:
        moments = np.array(saved_in(cohort, Path(folder) / "cohort"))
        size = (Path(folder) / "cohort" / "volumes.npy").stat().st_size
    # Kilobytes on Linux, bytes on macOS.
    peak = (
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        * (1 if sys.platform == "darwin" else 1024)
        / 1e9
    )
    steps = np.diff(np.r_[0.0, moments])
    quarters = [quarter.mean() for quarter in np.array_split(steps, 4)]
    growth = quarters[-1] / np.median(quarters)
    volume = 1e3 * moments[-1] / subjects
    print(
        f"{subjects} subjects at 4 mm, {size / 1e9:.1f} GB in {moments[-1]:.0f} s: "
        f"{volume:.2f} ms a volume"
    )
    print(
        f"peak resident memory {peak:.2f} GB (target: under {MOST_GB:g}): "
        f"{'PASS' if peak < MOST_GB else 'short'}"
    )
    print(
        f"last quarter / median quarter {growth:.2f} (target: at most 1.2): "
        f"{'PASS' if growth < 1.2 else 'short'}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(*(int(value) for value in sys.argv[1:2])))
