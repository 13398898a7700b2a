"""SmoothGrad and integrated gradients against Captum, volume by volume with its defaults.

Usage: python benchmarks/attribution.py [--quick]
"""

import argparse
import multiprocessing
import resource
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import numpy as np
import torch
from captum.attr import IntegratedGradients, NoiseTunnel, Saliency
from measuring import Figure, machine

import simba_lab as sb
from simba_lab.core.compute import deterministic
from simba_lab.core.rng import stream
from simba_lab.training.networks import logit

STEPS = 38  # these err no more than Captum's 50
SAMPLES, NOISE = 20, 0.2  # as published
REFERENCE = 600  # steps of the map that both are compared with
MEMORY_GB = 4.0


class SeededTunnel(NoiseTunnel):
    """Captum's SmoothGrad with the noise of the lab: pairs of opposite sign, comparable maps."""

    subject = 0

    def _add_noise_to_input(self, image: torch.Tensor, stdev: float, count: int) -> torch.Tensor:
        draws = stream(0, self.subject, "attribution noise")
        drawn = [draws.standard_normal(image.shape[1:], np.float32) for _ in range(count // 2)]
        noise = np.stack([sign * half for half in drawn for sign in (1, -1)])
        return image.repeat_interleave(count, dim=0) + stdev * torch.from_numpy(noise)


def audience(subjects: int, spacing_mm: float) -> sb.Cohort:
    """Subjects of a biased scenario."""
    scenario = sb.Scenario(
        subjects=max(16, subjects),
        spacing_mm=spacing_mm,
        disease=sb.Morphology("Insula_L", 2.5),
        bias=sb.Morphology("Putamen_L", 2.5, prevalence={"disease": 0.8, "control": 0.2}),
    )
    return sb.synthesise(scenario, seed=0).where(np.arange(subjects))


def trained() -> torch.nn.Module:
    """Return a network that has learnt something: harder to explain than initial weights."""
    return sb.fit(sb.SimBANet(seed=0), audience(160, 4), sb.FitConfig(epochs=8)).model.eval()


def against_captum(subjects: int) -> dict[str, float]:
    """Times of both in turns of fifty subjects, so that other work of the machine slows both."""
    cohort, model, figures = audience(subjects, 4), trained(), {}
    # Rendered before either starts; the lab keeps its own.
    volumes = torch.from_numpy(cohort.arrays())[:, None]
    seconds = dict.fromkeys(("ig", "captum ig", "sg", "captum sg", "default"), 0.0)
    distances, errors, size = (
        {"ig": [], "captum ig": [], "sg": []},
        {"ig": [], "captum ig": [], "default": []},
        [],
    )

    def timed(name: str, run: Callable):
        start = time.perf_counter()
        attribution = run()
        seconds[name] += time.perf_counter() - start
        return attribution

    def score(x: torch.Tensor) -> torch.Tensor:
        return logit(model(x))

    settings = {"nt_samples": SAMPLES, "stdevs": NOISE, "abs": False}
    smoothing = sb.attribution.SmoothGrad(SAMPLES, NOISE)
    steps = partial(sb.attribution.IntegratedGradients, tolerance=None)
    with deterministic():
        for begin in range(0, subjects, 50):
            batch, images = (
                cohort.where(np.arange(begin, min(begin + 50, subjects))),
                volumes[begin : begin + 50],
            )
            _ = batch.arrays()  # in memory: rendering is not what is measured
            captum_maps = timed(
                "captum ig",
                lambda x=images: torch.cat(
                    [IntegratedGradients(score).attribute(v[None]) for v in x]
                ),
            )
            lab_maps = timed("ig", lambda p=batch: sb.attribute(model, p, steps(STEPS)))
            default = timed("default", lambda p=batch: sb.attribute(model, p))
            with torch.no_grad():
                change = (score(images) - score(torch.zeros_like(images[:1]))).double().numpy()
            size += list(np.abs(change))
            errors["captum ig"] += list(
                np.abs(captum_maps.double().sum((1, 2, 3, 4)).numpy() - change)
            )
            errors["ig"] += list(np.abs(lab_maps.sums["total"] - change))
            errors["default"] += list(np.abs(default.sums["total"] - change))
            exact = sb.attribute(
                model, batch.where(np.arange(min(5, len(batch)))), steps(REFERENCE)
            ).maps
            distances["ig"] += list(distance(lab_maps.maps[: len(exact)], exact))
            distances["captum ig"] += list(
                distance(captum_maps[: len(exact), 0].detach().numpy(), exact)
            )
            lab_maps = timed("sg", lambda p=batch: sb.attribute(model, p, smoothing))
            timed(
                "captum sg",
                lambda x=images: [
                    NoiseTunnel(Saliency(score)).attribute(v[None], **settings) for v in x
                ],
            )
            for row, volume in enumerate(images):
                tunnel = SeededTunnel(Saliency(score))
                tunnel.subject = batch.table.index[row]
                same = tunnel.attribute(volume[None], **settings)[0, 0].detach().numpy()
                distances["sg"] += list(distance(lab_maps.maps[row][None], same[None]))
    figures = {f"seconds {name}": value for name, value in seconds.items()}
    figures |= {f"error {name}": np.mean(values) / np.mean(size) for name, values in errors.items()}
    return figures | {f"apart {name}": np.mean(values) for name, values in distances.items()}


def distance(maps: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Root mean square difference of each map, as a share of the root mean square of the other."""
    return np.sqrt(
        ((maps - reference) ** 2).mean(axis=(1, 2, 3)) / (reference**2).mean(axis=(1, 2, 3))
    )


def twins_and_memory(spacing_mm: float, subjects: int, memory_gb: float) -> dict[str, float]:
    """Completeness with the twin as baseline, and memory beyond what the process had before."""
    cohort, model = audience(subjects, spacing_mm), trained()
    _ = cohort.array(0, keep=False)
    sb.logits(model, [np.zeros((32, 32, 32), np.float32)])
    before = peak_gb()
    start = time.perf_counter()
    twins, compute = cohort.twin(without="bias"), sb.Compute("cpu", memory_gb=memory_gb)
    attribution = sb.attribute(model, cohort, baseline=twins, compute=compute)
    return {
        "memory": peak_gb() - before,
        "seconds": (time.perf_counter() - start) / subjects,
        "error": float(attribution.sums["completeness_error"].abs().max()),
    }


def peak_gb() -> float:
    """Largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def alone(measure: Callable[..., dict[str, float]], *arguments: float) -> dict[str, float]:
    """Run in a process of its own, whose memory is that of the measure alone."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, *arguments).result()


def main() -> None:
    """Print every figure beside its target."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few subjects")
    quick = parser.parse_args().quick
    print(machine())
    subjects = 10 if quick else 200
    print(f"{subjects} volumes at 4 mm, a trained network of four blocks, blank baseline")
    measures = alone(against_captum, subjects)
    for name, label in (
        ("ig", f"integrated gradients, {STEPS} steps"),
        ("sg", f"SmoothGrad, {SAMPLES} samples"),
    ):
        print(Figure(f"{label}: lab", measures[f"seconds {name}"], "s"))
        print(Figure("Captum, volume by volume, defaults", measures[f"seconds captum {name}"], "s"))
        print(
            Figure(
                "Captum / lab",
                measures[f"seconds captum {name}"] / measures[f"seconds {name}"],
                at_least=2.5,
            )
        )
    print(Figure("SmoothGrad: difference of maps, same noise", measures["apart sg"], at_most=1e-3))
    print(
        Figure(
            f"integrated gradients: error of Captum's maps ({REFERENCE} steps are exact)",
            measures["apart captum ig"],
        )
    )
    print(
        Figure("error of the lab's maps", measures["apart ig"], at_most=measures["apart captum ig"])
    )
    print(Figure("completeness error, Captum", measures["error captum ig"]))
    print(
        Figure("completeness error, lab", measures["error ig"], at_most=measures["error captum ig"])
    )
    print(
        Figure("lab, as many steps as a tolerance of 0.01 takes", measures["seconds default"], "s")
    )
    print(Figure("completeness error", measures["error default"], at_most=0.01), flush=True)
    print("Twin baseline, beyond what the process had")
    volumes_at_1_mm = 2 if quick else 4
    for spacing, count, limit in (
        (4.0, subjects, 0.5),
        (1.0, volumes_at_1_mm, 1.5),
        (1.0, volumes_at_1_mm, MEMORY_GB),
    ):
        measures = alone(twins_and_memory, spacing, count, limit)
        print(Figure(f"peak memory at {spacing:g} mm", measures["memory"], "GB", at_most=limit))
        print(Figure("largest completeness error", measures["error"], at_most=0.01))
        print(Figure("a volume", measures["seconds"], "s"), flush=True)


if __name__ == "__main__":
    main()
