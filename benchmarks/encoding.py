"""Probes and similarity of all blocks against scikit-learn on flattened activations, with memory.

Usage: python benchmarks/encoding.py [--quick]
"""

import argparse
import multiprocessing
import resource
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

import numpy as np
from measuring import Figure, machine
from sklearn.linear_model import Ridge
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import PredefinedSplit, cross_val_predict

import simba_lab as sb
from simba_lab.interpretation.probes.designs import probe_target
from simba_lab.interpretation.probes.folds import fold_numbers
from simba_lab.interpretation.probes.kernel_ridge import PENALTIES, predict_held_out


def audience(subjects: int, spacing_mm: float) -> sb.Cohort:
    """Subjects in whom the bias is as common in both classes, all of them in one part."""
    scenario = sb.Scenario(
        subjects=subjects,
        spacing_mm=spacing_mm,
        disease=sb.Morphology("Insula_L", 2.5),
        bias=sb.Morphology("Putamen_L", 2.5, prevalence={"disease": 0.5, "control": 0.5}),
    )
    return sb.synthesise(scenario, seed=0)


def lab(subjects: int) -> dict[str, float]:
    """Seconds of recording, of probes with all their floors, and of CKA; peak memory in GB."""
    cohort = audience(subjects, 4)
    start = time.perf_counter()
    recording = sb.record(sb.SimBANet(seed=0), cohort)
    recorded = time.perf_counter()
    types = sb.probes.octants(cohort.table[["anatomy_1", "anatomy_2", "anatomy_3"]])
    sb.probe(recording, "bias", given="label", types=types)
    sb.probe(recording, "label")
    probed = time.perf_counter()
    sb.cka(recording, permutations=100)
    compared = time.perf_counter()
    return {
        "record": recorded - start,
        "probe": probed - recorded,
        "cka": compared - probed,
        "memory": peak_gb(),
    }


def both_ways(subjects: int) -> dict[str, float]:
    """One held-out fold by the lab and by scikit-learn on the flattened activations of blocks."""
    cohort = audience(subjects, 4)
    blocks, volumes = (
        sb.SimBANet(seed=0).blocks,
        cohort.arrays(),
    )  # rendering is not what is compared
    recording = sb.record(
        sb.SimBANet(seed=0), volumes, activations=blocks, compute=sb.Compute(memory_gb=4)
    )
    start = time.perf_counter()
    sb.record(sb.SimBANet(seed=0), volumes, pixels=False)
    recorded = time.perf_counter() - start
    target, folds = cohort["bias"], cohort["fold"]
    train, test = np.flatnonzero(folds != 0), np.flatnonzero(folds == 0)
    probed, split = (
        probe_target(target, None, "binary"),
        [(np.flatnonzero(folds != k), np.flatnonzero(folds == k)) for k in np.unique(folds)],
    )
    inner = PredefinedSplit(fold_numbers(split, len(target))[train])
    lab_seconds = library_seconds = difference = 0.0
    for block in blocks:
        start = time.perf_counter()
        ((scores, _),) = predict_held_out(recording[block], split, probed, [probed.coded], None)
        lab_seconds += (time.perf_counter() - start) / len(split)
        activations = recording.activations[block].reshape(len(cohort), -1)
        start = time.perf_counter()
        predictions = by_library(activations[train], target[train], activations[test], inner)
        library_seconds += time.perf_counter() - start
        difference = max(
            difference,
            abs(
                roc_auc_score(target[test], predictions)
                - roc_auc_score(target[test], scores[test, 0])
            ),
        )
    # The lab records once for all folds.
    return {
        "lab": lab_seconds + recorded / len(split),
        "library": library_seconds,
        "difference": difference,
    }


def by_library(
    activations: np.ndarray,
    target: np.ndarray,
    test_activations: np.ndarray,
    inner: PredefinedSplit,
) -> np.ndarray:
    """Choose the penalty as the lab does: by the best scaled prediction of inner folds."""
    means = np.array([np.mean(target[inner.test_fold != fold]) for fold in inner.test_fold])
    deviations, best = target - means, (np.inf, 0.0)
    size = np.square(activations - activations.mean(axis=0)).sum() / len(activations)
    for penalty in PENALTIES * size:
        predicted = (
            cross_val_predict(Ridge(penalty), activations, target.astype(np.float32), cv=inner)
            - means
        )
        scale = max(deviations @ predicted, 0.0) / (predicted @ predicted)
        best = min(best, (np.square(deviations - scale * predicted).sum(), penalty))
    return Ridge(best[1]).fit(activations, target.astype(np.float32)).predict(test_activations)


def at_one_millimetre(subjects: int) -> dict[str, float]:
    """Record the published network at 1 mm; peak memory in GB and seconds a volume."""
    cohort = audience(16, 1).where(np.arange(subjects))
    start = time.perf_counter()
    sb.record(sb.SimBANet.paper(seed=0), cohort)
    return {"memory": peak_gb(), "seconds": (time.perf_counter() - start) / subjects}


def peak_gb() -> float:
    """Largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def alone(measure: Callable[[int], dict[str, float]], subjects: int) -> dict[str, float]:
    """Run in a process of its own, whose memory is that of the measure alone."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, subjects).result()


def main() -> None:
    """Print every figure beside its target."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few subjects")
    quick = parser.parse_args().quick
    print(machine())
    subjects = 200 if quick else 1000
    print(f"All probes and CKA of {subjects} volumes at 4 mm, pixels and four blocks")
    measures = alone(lab, subjects)
    total = measures["record"] + measures["probe"] + measures["cka"]
    for name in ("record", "probe", "cka"):
        print(Figure(name, measures[name], "s"))
    print(Figure("together", total, "s", at_most=60.0))
    print(Figure("peak memory", measures["memory"], "GB", at_most=2.0), flush=True)
    print("One held-out fold of a probe of each block, against scikit-learn's Ridge")
    measures = alone(both_ways, subjects)
    print(Figure("lab, its share of recording included", measures["lab"], "s"))
    print(Figure("scikit-learn", measures["library"], "s"))
    print(Figure("scikit-learn / lab", measures["library"] / measures["lab"], at_least=10.0))
    print(Figure("largest difference of AUROC", measures["difference"], at_most=0.005), flush=True)
    print("The published five blocks at 1 mm")
    measures = alone(at_one_millimetre, 3 if quick else 12)
    print(Figure("peak memory", measures["memory"], "GB", at_most=3.0))
    print(Figure("a volume", measures["seconds"], "s"))


if __name__ == "__main__":
    main()
