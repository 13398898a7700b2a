"""How fast, how exact and how sharp the lab renders: every figure beside its target, in one run.

Usage: python benchmarks/synthesis.py [--quick] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import published_pipeline
import truth
from measuring import Figure, bandwidth, best_of, machine
from scipy.ndimage import binary_erosion, gaussian_filter, map_coordinates

import simba_lab as sb
from simba_lab.synthesis.rendering import deformation

CORES = 2
SCENARIO = Path(__file__).parents[1] / "data" / "scenarios" / "near.yaml"
# Fewest subjects that a scenario may have.
FEWEST = 16
# Wavelengths below 4 mm, at voxels of 1 mm, are what trilinear interpolation blurs most.
HIGH_PER_MM = 0.25
# As a share of white matter; above it a voxel is brain.
BACKGROUND = 0.02
# Voxels per subject at which positions are compared.
COMPARED = 20_000


def cohort_of(
    subjects: int, spacing_mm: float, *, seed: int = 0, scanner: bool = True
) -> sb.Cohort:
    """Return a cohort of carriers of the bias; without `scanner`, no noise and a flat field."""
    scenario = sb.Scenario.from_yaml(SCENARIO).replace(subjects=subjects, spacing_mm=spacing_mm)
    if not scanner:
        scenario = scenario.replace(noise=0.0, bias_field=0.0)
    return sb.synthesise(scenario, seed=seed).twin(carrying="bias")


def onto(cohort: sb.Cohort, lattice: sb.core.Lattice) -> sb.Cohort:
    """Return the same subjects on another lattice than the template's, none rendered yet."""
    moved, renderer = replace(cohort), cohort.renderer
    cache = type(renderer.cache)(renderer.cache.size)
    moved.__dict__["renderer"] = replace(renderer, lattice=lattice, cache=cache)
    return moved


def seconds_per_volume(cohorts: Iterable[sb.Cohort]) -> tuple[float, float]:
    """Return the least time per volume over cohorts that were never rendered, on all cores.

    Both by the clock and as processor time over the cores, which is what the clock would show if
    nothing else ran.
    """
    clock, processor = [], []
    for cohort in cohorts:
        start, spent = time.perf_counter(), time.process_time()
        for _ in cohort.volumes(n_jobs=CORES):
            pass
        clock.append((time.perf_counter() - start) / len(cohort))
        processor.append((time.process_time() - spent) / len(cohort) / CORES)
    return min(clock), min(processor)


def compile_kernels() -> None:
    """Render once, so that no time includes compilation."""
    for spacing in (1.0, 4.0):
        cohort_of(FEWEST, spacing, seed=99).array(0)


def sri24() -> sb.core.Lattice:
    """Return the lattice of the published pipeline around the lab's template."""
    return published_pipeline.sri24_lattice(np.mean(sb.load_template().box_mm, axis=0))


def words(lattice: sb.core.Lattice) -> str:
    """Return the shape in words."""
    return " x ".join(map(str, lattice.shape))


def published_volume(
    cohort: sb.Cohort, index: int, lattice: sb.core.Lattice, rounds: int
) -> published_pipeline.Published:
    """Render a subject by the published pipeline, from dense velocities: the fastest round."""
    template, magnitudes = cohort.template, cohort.magnitudes(index)
    velocities = {"subject": truth.subject_velocity(cohort, index, lattice)}
    for name, effect in cohort.scenario.effects.items():
        field = truth.effect_field(effect, template)
        velocities[name] = magnitudes[name] * field(lattice.points_mm().reshape(3, -1)).reshape(
            3, *lattice.shape
        )
    interleaved = {name: deformation.interleaved(velocity) for name, velocity in velocities.items()}
    image = on_lattice(template, lattice)
    return min(
        (published_pipeline.render(image, lattice, **interleaved) for _ in range(rounds)),
        key=lambda published: published.total_seconds,
    )


def on_lattice(template: sb.synthesis.Template, lattice: sb.core.Lattice) -> np.ndarray:
    """Return the template on a lattice whose voxels coincide with its own: nothing is blurred."""
    still = np.zeros((3, 2, 2, 2))
    return deformation.warp(
        template.t1,
        template.lattice,
        still,
        sb.core.Lattice((2, 2, 2), 200.0, (0, 0, 0)),
        onto=lattice,
    )


def speed_of(published: published_pipeline.Published, quick: bool) -> list[Figure]:
    """Compare the time of a volume at 1 mm with the published pipeline and with memory."""
    subjects, rounds, lattice = (FEWEST, 2, sri24()) if quick else (24, 4, sri24())
    standard, wide, clean = (
        seconds_per_volume(make(seed) for seed in range(rounds))
        for make in (
            lambda seed: cohort_of(subjects, 1.0, seed=seed),
            lambda seed: onto(cohort_of(subjects, 1.0, seed=seed), lattice),
            lambda seed: onto(cohort_of(subjects, 1.0, seed=seed, scanner=False), lattice),
        )
    )
    published_seconds, template = published.total_seconds, sb.load_template()
    processor_time = "    its processor time over the cores"
    figures = [
        Figure(f"published pipeline, {words(lattice)}", published_seconds, "s"),
        *(
            Figure(f"    of it {published.counts[operation]} {operation}", value, "s")
            for operation, value in published.seconds.items()
        ),
        Figure(processor_time, published.processor_seconds / CORES, "s"),
        Figure(
            f"lab, {words(lattice)}, as published: deformations alone", clean[0], "s", at_most=0.13
        ),
        Figure(processor_time, clean[1], "s"),
        Figure(f"lab, {words(lattice)}, with noise and bias field", wide[0], "s", at_most=0.13),
        Figure(processor_time, wide[1], "s"),
        Figure(
            f"lab, {words(template.output_lattice(1.0))}, with noise and bias field",
            standard[0],
            "s",
            at_most=0.13,
        ),
        Figure(processor_time, standard[1], "s"),
        Figure("published / lab, deformations alone", published_seconds / clean[0], at_least=150),
        Figure(
            "published / lab, with noise and bias field", published_seconds / wide[0], at_least=150
        ),
        Figure(
            "published / lab, deformations alone, processor time",
            published.processor_seconds / CORES / clean[1],
        ),
    ]
    rates = bandwidth(CORES)
    traffic = template.antialiased(1.0)[0].nbytes + 4 * int(np.prod(lattice.shape))
    floor = traffic / rates["copy"]
    return [
        *figures,
        *(
            Figure(f"memory on {CORES} cores, {operation}", rate / 1e9, "GB/s")
            for operation, rate in rates.items()
        ),
        Figure("least traffic: template read once, volume written once", traffic / 1e6, "MB"),
        Figure("    time of that at the rate of a copy", 1e3 * floor, "ms"),
        Figure("lab, deformations alone / that time", clean[0] / floor),
    ]


def training_volumes(quick: bool) -> list[Figure]:
    """Time the volumes that networks are trained on: cohorts of 400, never rendered before."""
    clock, processor = seconds_per_volume(
        cohort_of(400, 4.0, seed=seed) for seed in range(2 if quick else 5)
    )
    return [
        Figure("lab at 4 mm, with noise and bias field", 1e3 * clock, "ms", at_most=4.0),
        Figure("    its processor time over the cores", 1e3 * processor, "ms"),
    ]


def displacement_error(quick: bool) -> list[Figure]:
    """Compare the positions that the lab samples with those of fine integration in float64.

    Positions are read off by rendering images whose intensity is a coordinate: trilinear
    interpolation keeps a ramp, and two points an axis make one that no position leaves.
    """
    figures, random = [], np.random.default_rng(0)
    wide = sb.core.Lattice((2, 2, 2), 512.0, (-256.0, -256.0, -256.0))
    ramps = [np.ascontiguousarray(axis, np.float32) for axis in wide.points_mm()]
    for spacing in (1.0, 4.0):
        cohort = cohort_of(FEWEST, spacing)
        points = cohort.lattice.points_mm()
        near = np.zeros(cohort.lattice.shape, bool)
        for effect in cohort.scenario.effects.values():
            box = truth.effect_field(effect, cohort.template).lattice
            ends = [[[[[box.axis_mm(axis)[end]]]] for axis in range(3)] for end in (0, -1)]
            near |= ((points >= ends[0]) & (points <= ends[1])).all(axis=0)
        errors = {"brain": [], "brain in the boxes of the effects": []}
        for index in range(2 if quick else 6):
            sampled = [cohort.renderer.warped(ramp, wide, cohort.subject(index)) for ramp in ramps]
            brain = cohort.brain(index)
            for name, mask in zip(errors, (brain, brain & near), strict=True):
                voxels = np.flatnonzero(mask)
                voxels = random.choice(voxels, min(len(voxels), COMPARED), replace=False)
                true = truth.sampled_at(cohort, index, points.reshape(3, -1)[:, voxels])
                errors[name].append(
                    np.linalg.norm(np.stack(sampled).reshape(3, -1)[:, voxels] - true, axis=0)
                )
        for name, values in errors.items():
            pooled, region = np.concatenate(values), f"voxels of {spacing:g} mm, {name}"
            figures += [
                Figure(f"{region}, 95th percentile", np.quantile(pooled, 0.95), "mm", at_most=0.05),
                Figure(f"{region}, largest", pooled.max(), "mm"),
            ]
    return figures


def blur(published: published_pipeline.Published) -> list[Figure]:
    """Compare the detail left by one interpolation and by four with that of the still template."""
    still = on_lattice(sb.load_template(), sri24())
    images = {
        "one interpolation": onto(published_cohort(), sri24()).array(0),
        "four": published.volume,
    }
    figures = []
    for measure, energy in (
        ("squared gradient", gradient_energy),
        ("power below 4 mm wavelength", fine_energy),
    ):
        shares = {name: energy(image) / energy(still) for name, image in images.items()}
        figures += [
            Figure(f"{measure}, {name}, share of the template's", value)
            for name, value in shares.items()
        ]
        figures.append(
            Figure(
                f"{measure}, one / four", shares["one interpolation"] / shares["four"], at_least=1.0
            )
        )
    return figures


def published_cohort() -> sb.Cohort:
    """Return the cohort whose first subject the published pipeline renders too."""
    return cohort_of(FEWEST, 1.0, scanner=False)


def gradient_energy(image: np.ndarray) -> float:
    """Mean squared difference of neighbours inside the brain, away from its edge."""
    brain = binary_erosion(image > BACKGROUND, iterations=3)
    return float(np.mean([np.diff(image, axis=axis, append=0)[brain] ** 2 for axis in range(3)]))


def fine_energy(image: np.ndarray) -> float:
    """Power per voxel of brain at wavelengths below 4 mm, well inside the brain.

    What a local mean explains is taken out first, so that the edge of the mask is no step.
    """
    brain = binary_erosion(image > BACKGROUND, iterations=3)
    core = binary_erosion(brain, iterations=2)
    weight = gaussian_filter(brain.astype(np.float32), 2)
    mean = gaussian_filter(np.where(brain, image, 0), 2) / np.maximum(weight, 1e-3)
    power = np.abs(np.fft.rfftn(np.where(core, image - mean, 0))) ** 2
    axes = [*(np.fft.fftfreq(n) for n in image.shape[:2]), np.fft.rfftfreq(image.shape[2])]
    high = np.linalg.norm(np.meshgrid(*axes, indexing="ij"), axis=0) > HIGH_PER_MM
    return float(power[high].sum() / core.sum())


def against_scipy(quick: bool) -> list[Figure]:
    """Time the fused kernel against the same composition in scipy, both on one thread."""
    figures = []
    for spacing in (4.0,) if quick else (4.0, 2.0, 1.0):
        cohort = cohort_of(FEWEST, spacing)
        renderer, subject = cohort.renderer, cohort.subject(0)
        coarse = renderer.displacement(subject)
        local = renderer.effect_displacements(subject)
        arguments = (
            *cohort.template.antialiased(spacing),
            coarse,
            renderer.subject_lattice,
            local,
            renderer.lattice,
        )
        difference = np.abs(deformation.warp_once(*arguments) - with_scipy(*arguments)).max()
        fused_seconds = best_of(5, lambda a=arguments: deformation.warp_once(*a))
        scipy_seconds = best_of(1 if spacing == 1 else 3, lambda a=arguments: with_scipy(*a))
        figures += [
            Figure(f"fused, {spacing:g} mm", 1e3 * fused_seconds, "ms"),
            Figure(f"scipy, {spacing:g} mm", 1e3 * scipy_seconds, "ms"),
            Figure(f"scipy / fused, {spacing:g} mm", scipy_seconds / fused_seconds, at_least=1.0),
            Figure(
                f"largest difference, {spacing:g} mm (white matter is 1)", difference, at_most=1e-3
            ),
        ]
    return figures


def with_scipy(image, image_lattice, coarse, coarse_lattice, local, output):
    """Compose and interpolate with map_coordinates; parameters of `deformation.warp_once`."""

    def voxels(points, lattice):
        return [(points[axis] - lattice.origin_mm[axis]) / lattice.spacing_mm for axis in range(3)]

    def moved(points, field, lattice, mode):
        coordinates = voxels(points, lattice)
        return points + np.stack(
            [
                map_coordinates(field[..., d], coordinates, order=1, mode=mode, cval=0.0)
                for d in range(3)
            ]
        )

    points = moved(output.points_mm(), coarse, coarse_lattice, "nearest")
    for field, lattice in local:
        points = moved(points, field, lattice, "constant")
    return map_coordinates(image, voxels(points, image_lattice), order=1, mode="nearest")


def main() -> None:
    """Print every figure, section by section, and write them to a JSON file if one is named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="fewer subjects and rounds: about three minutes"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    print(machine())
    compile_kernels()
    published = published_volume(published_cohort(), 0, sri24(), rounds=2 if options.quick else 3)
    sections: dict[str, Callable[[], list[Figure]]] = {
        f"Seconds per volume of 1 mm, subject and disease and bias, {CORES} cores": lambda: (
            speed_of(published, options.quick)
        ),
        f"Milliseconds per volume for training, {CORES} cores": lambda: training_volumes(
            options.quick
        ),
        "Displacement, distance from fine integration": lambda: displacement_error(options.quick),
        "Detail at 1 mm": lambda: blur(published),
        "Rendering alone, one thread": lambda: against_scipy(options.quick),
    }
    report: dict[str, object] = {"cores": os.cpu_count(), "load": load}
    for title, measure in sections.items():
        print(title)
        figures = measure()
        print(*figures, sep="\n", flush=True)
        report[title] = [figure.to_dict() for figure in figures]
    if options.json:
        options.json.write_text(json.dumps(report, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
