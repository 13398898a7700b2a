"""Training against a plain PyTorch loop that reads NIfTI files, on the same data in the same run.

Usage: python benchmarks/training.py [--quick]
"""

import argparse
import multiprocessing
import os
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from measuring import Figure, machine
from scipy.stats import binomtest
from torch.utils.data import DataLoader, Dataset

import simba_lab as sb

SCENARIOS = Path(__file__).parents[1] / "data" / "scenarios"
STANDARD = ("none", "near", "far", "intensity")
CORES = os.cpu_count() or 1
ROUNDS = 3
# The lab's own network, and one of the same widths with its layers in the usual order, all of them
# at full resolution.
PLAIN = {
    "plain loop, NIfTI": {},
    "plain loop, NIfTI, usual layers": {"stem": "pool", "pool": "late"},
}
FASTEST, RENDERED = "lab, fastest settings here", "lab, fastest settings here, rendering included"


class Files(Dataset):
    """Volumes as users of MONAI and TorchIO have them: one compressed NIfTI file each."""

    def __init__(self, paths: list[Path], labels: np.ndarray) -> None:
        self.paths, self.labels = paths, labels.astype(np.float32)

    @classmethod
    def written(cls, cohort: sb.Cohort, folder: Path) -> "Files":
        """Write a cohort's volumes into a folder."""
        paths = [folder / f"{subject}.nii.gz" for subject in cohort.table.index]
        for index, path in enumerate(paths):
            nib.save(cohort.volume(index), path)
        return cls(paths, cohort["label"])

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, float]:
        volume = np.asarray(nib.load(self.paths[index]).dataobj, dtype=np.float32)
        return torch.from_numpy(volume)[None], self.labels[index]


def plain_fit(
    train: Files, validation: Files, epochs: int, order: dict[str, str]
) -> tuple[float, float]:
    """Train as a tutorial would; return seconds and the validation accuracy of the best epoch.

    Volumes are read in this process: on two cores, worker processes only take time from the network
    (measured).
    """
    torch.set_num_threads(CORES)
    torch.manual_seed(0)
    model = sb.SimBANet(seed=0, **order)
    start = time.perf_counter()
    feed = DataLoader(train, batch_size=8, shuffle=True)
    held_out = DataLoader(validation, batch_size=32)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=epochs * len(feed))
    best = (np.inf, 0.0)
    for _ in range(epochs):
        model.train()
        for volumes, labels in feed:
            loss = torch.nn.functional.binary_cross_entropy_with_logits(
                model(volumes)[:, 0], labels
            )
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
        model.eval()
        with torch.no_grad():
            pairs = [(model(volumes)[:, 0], labels) for volumes, labels in held_out]
        scores, truth = (torch.cat(batches) for batches in zip(*pairs, strict=True))
        loss = torch.nn.functional.binary_cross_entropy_with_logits(scores, truth).item()
        best = min(best, (loss, ((scores > 0) == (truth > 0)).float().mean().item()))
    return time.perf_counter() - start, best[1]


def plain_fit_elsewhere(*arguments: object) -> tuple[float, float]:
    """Run `plain_fit` in a process of its own, which the lab has not touched."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(plain_fit, *arguments).result()


def lab_fit(cohort: sb.Cohort, config: sb.FitConfig) -> tuple[float, float]:
    """Train with the lab; return seconds and the validation accuracy of the kept epoch."""
    start = time.perf_counter()
    run = sb.fit(sb.SimBANet(seed=0), cohort, config, cache=False)
    history = run.history
    return time.perf_counter() - start, float(
        history.loc[history["kept"], "validation_accuracy"].iloc[0]
    )


def throughput(epochs: int) -> list[Figure]:
    """Volumes per second of training from disk: the lab's store, and one NIfTI file a volume."""
    cohort = sb.synthesise(sb.Scenario.from_yaml(SCENARIOS / "near.yaml"), seed=0)
    volumes, held_out = epochs * len(cohort.train), len(cohort.validation)
    fast, speeds = sb.training.fastest(sb.SimBANet(seed=0), cohort, sb.FitConfig(epochs=epochs))
    trainings_of: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        stored = sb.save_cohort(cohort, Path(folder) / "cohort")
        train, validation = (
            Files.written(cohort.train, Path(folder)),
            Files.written(cohort.validation, Path(folder)),
        )
        for _ in range(ROUNDS):  # by turns, so that a slow minute of the machine meets all
            for name, order in PLAIN.items():
                trainings_of.setdefault(name, []).append(
                    plain_fit_elsewhere(train, validation, epochs, order)
                )
            trainings_of.setdefault("lab, as it comes", []).append(
                lab_fit(stored, sb.FitConfig(epochs=epochs))
            )
            trainings_of.setdefault(FASTEST, []).append(lab_fit(stored, fast))
            trainings_of.setdefault(RENDERED, []).append(lab_fit(cohort, fast))
    seconds = {
        name: float(np.median([time for time, _ in trainings]))
        for name, trainings in trainings_of.items()
    }
    figures = [
        Figure(
            f"{row.precision}, channels {'last' if row.channels_last else 'first'}, a step alone",
            row.ms_per_volume,
            "ms",
        )
        for row in speeds.itertuples()
    ]
    figures += [
        Figure(f"{name}: volumes/s, validation included", volumes / time)
        for name, time in seconds.items()
    ]
    figures += [
        Figure(
            f"{name} / {plain}", seconds[plain] / time, at_least=3.0 if name == FASTEST else None
        )
        for plain in PLAIN
        for name, time in seconds.items()
        if name not in PLAIN
    ]
    accuracies = [trainings[0][1] for trainings in trainings_of.values()]
    middle = binomtest(round(np.median(accuracies) * held_out), held_out).proportion_ci(
        method="wilson"
    )
    spread = max(accuracies) - min(accuracies)
    figures += [
        Figure(
            "largest difference of validation accuracies", spread, at_most=middle.high - middle.low
        )
    ]
    return figures


def standard_runs(epochs: int) -> list[Figure]:
    """Seconds of the four standard runs of the book, one after the other, with nothing cached."""
    seconds = {}
    for name in STANDARD:
        cohort = sb.synthesise(sb.Scenario.from_yaml(SCENARIOS / f"{name}.yaml"), seed=0)
        seconds[name], _ = lab_fit(cohort, sb.FitConfig(epochs=epochs))
    figures = [Figure(name, value, "s") for name, value in seconds.items()]
    return [*figures, Figure("together", sum(seconds.values()), "s", at_most=180.0)]


def main() -> None:
    """Print every figure beside its target."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two epochs instead of eight")
    epochs = 2 if parser.parse_args().quick else 8
    print(machine())
    for title, measure in (
        ("Training of SimBANet 8-16-32-64 at 40 x 48 x 40, batches of 8", throughput),
        ("The four standard runs", standard_runs),
    ):
        print(title)
        print(*measure(epochs), sep="\n", flush=True)


if __name__ == "__main__":
    main()
