"""Time and memory of a whole audit: 48 scans at 4 mm, the eight marks of the battery, six layers.

    python benchmarks/auditing.py [--out report.html]

Everything is in it that an audit has: verdicts, layers with two untrained networks, maps, and one
column of real groups. Beside it, for the ratio, the forward passes of question A alone.
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path

from measuring import Figure, machine

import simba_lab as sb

SCANS, SPACING_MM = 48, 4


def study() -> sb.Cohort:
    """Return scans of a BIDS folder, read as somebody's."""
    scenario = sb.Scenario(
        subjects=SCANS * 4,
        disease=sb.Morphology("Insula_L", 2.5),
        bias=sb.Morphology("Precuneus_R", 2.5),
        spacing_mm=SPACING_MM,
    )
    cohort = sb.synthesise(scenario, seed=3).test
    folder = sb.export_bids(cohort, tempfile.mkdtemp() + "/study", masks=False)
    preparation = sb.scans.Preparation(spacing_mm=SPACING_MM)
    options = {"label": "label", "disease": "disease", "groups": ["bias"]}
    return sb.read_bids(folder, **options, preparation=preparation)


def network(seed: int) -> sb.training.ResNet3D:
    return sb.training.ResNet3D(seed=seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="where to write the report")
    out = parser.parse_args().out
    print(machine())
    marked = sb.plant(study(), sb.scans.battery())
    model = network(0)
    names = sb.layers(model, marked).index
    layers = tuple(names[:: max(1, len(names) // 6)][:6])
    start = time.perf_counter()
    audit = sb.audit(
        model,
        marked,
        groups=["bias"],
        untrained=[network(1), network(2)],
        settings=sb.auditing.AuditSettings(layers=layers),
    )
    seconds = time.perf_counter() - start
    gigabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    start = time.perf_counter()
    base = marked.twin(without=list(marked.biases))
    for mark in (None, *marked.biases):
        sb.logits(model, base if mark is None else base.twin(carrying=mark))
    answers = time.perf_counter() - start
    print(audit.marks[["image_change", "effect", "verdict"]].round(3).to_string())
    print(*audit.notes, sep="\n")
    print(f"layers: {', '.join(layers)}")
    print(Figure(f"audit of {len(marked)} scans, 8 marks, {len(layers)} layers", seconds, "s", 180))
    print(Figure("peak memory", gigabytes, "GB", 3))
    print(Figure("times the answers of question A alone", seconds / answers))
    if out:
        audit.save(out)
        print(Figure("report", out.stat().st_size / 2**20, "MB", 5))


if __name__ == "__main__":
    main()
