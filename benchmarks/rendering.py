"""Time the fused CPU path against the same composition written with scipy, in one run on one thread.

Usage: python benchmarks/rendering.py
"""

import time

import numpy as np
from scipy.ndimage import map_coordinates

import simba_lab as sb
from simba_lab.synthesis import deformation
from simba_lab.synthesis.cohort import subject_displacement

ROUNDS = 5


def best_of(function) -> float:
    """Return the least time of several rounds, in seconds; the first call compiles and is not counted."""
    function()
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def with_scipy(image, image_lattice, coarse, coarse_lattice, local, onto):
    """Compose and interpolate with map_coordinates, one array a step."""
    points = onto.points_mm()

    def moved(points, field, lattice, outside):
        voxels = [(points[d] - lattice.origin_mm[d]) / lattice.spacing_mm for d in range(3)]
        step = [map_coordinates(field[..., d], voxels, order=1, mode=outside, cval=0.0) for d in range(3)]
        return points + np.stack(step)

    points = moved(points, coarse, coarse_lattice, "nearest")
    for field, lattice in local:
        points = moved(points, field, lattice, "constant")
    voxels = [(points[d] - image_lattice.origin_mm[d]) / image_lattice.spacing_mm for d in range(3)]
    return map_coordinates(image, voxels, order=1, mode="nearest")


def main() -> None:
    """Print milliseconds and the ratio for several voxel sizes."""
    print("one volume, subject and two effects, one thread, noise and subject's exponential not included")
    for spacing in (4.0, 2.0, 1.0):
        scenario = sb.Scenario.from_yaml("data/scenarios/near.yaml").replace(subjects=40, spacing_mm=spacing)
        cohort = sb.synthesise(scenario, seed=0)
        studio, row = cohort._studio, cohort.table.iloc[0]
        coarse = subject_displacement(scenario, 0, int(cohort.table.index[0]), row, studio.subject)
        flows = [studio.flows[name] for name in ("bias", "disease")]
        local = [(flow.at(1.3), flow.lattice) for flow in flows]
        arguments = (*cohort.template.antialiased(spacing), coarse, studio.subject, local, studio.output)
        fused, slow = deformation.render(*arguments), with_scipy(*arguments)
        difference = np.abs(fused - slow).max()
        ours, theirs = best_of(lambda a=arguments: deformation.render(*a)), best_of(lambda a=arguments: with_scipy(*a))
        print(
            f"{spacing:g} mm: fused {1e3 * ours:7.1f} ms, scipy {1e3 * theirs:8.1f} ms, ratio {theirs / ours:5.1f}, "
            f"largest difference {difference:.1e}"
        )


if __name__ == "__main__":
    main()
