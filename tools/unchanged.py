"""Say whether a change of the code changed any number, by digests of volumes, weights and tables.

    python tools/unchanged.py store FILE [SECTION ...]     before the change
    python tools/unchanged.py check FILE [SECTION ...]     after it

The check prints what differs, and exits with 1 if anything does.

Digests are of exact bytes, so they hold on one machine with one set of libraries. Everything is
small: a few minutes.
"""

import hashlib
import json
import os
import sys
import tempfile
from pathlib import Path

os.environ["SIMBA_LAB_CACHE"] = tempfile.mkdtemp(prefix="simba-lab-unchanged-")

import numpy as np
import pandas as pd
import torch

import simba_lab as sb
from simba_lab import federation


def digest(value) -> str:
    """Digest of arrays, tensors, tables, or mappings and lists of those."""
    sha = hashlib.sha256()

    def feed(content) -> None:
        if isinstance(content, pd.DataFrame):
            feed([str(name) for name in content.columns])
            feed([str(name) for name in content.index])
            for name in content.columns:
                column = content[name].to_numpy()
                feed(column if column.dtype.kind in "biuf" else [str(entry) for entry in column])
        elif isinstance(content, torch.Tensor):
            feed(content.detach().cpu().numpy())
        elif isinstance(content, np.ndarray):
            sha.update(f"{content.dtype.kind}{content.dtype.itemsize}{content.shape}".encode())
            sha.update(np.ascontiguousarray(content).tobytes())
        elif isinstance(content, dict):
            for name, entry in content.items():
                sha.update(str(name).encode())
                feed(entry)
        elif isinstance(content, list | tuple):
            for entry in content:
                feed(entry)
        else:
            sha.update(repr(content).encode())

    feed(value)
    return sha.hexdigest()[:16]


def _scenario(**changes):
    return sb.Scenario(
        **{
            "subjects": 96,
            "spacing_mm": 8,
            "disease": sb.Morphology("Insula_L", 2.5),
            "bias": sb.Morphology("Putamen_L", 2.5, prevalence={"disease": 0.8, "control": 0.2}),
        }
        | changes
    )


CONFIG = sb.FitConfig(epochs=2, batch_size=8)


def synthesis():
    """Volumes, twins and what is true of them."""
    biases = {
        "near": sb.Morphology("Putamen_L", 2.5, prevalence={"disease": 0.8, "control": 0.2}),
        "scanner": sb.Intensity("contrast", 0.2),
        "soft": sb.Intensity("gamma", 0.1),
        "coil": sb.Intensity("bias_field", 0.1),
        "grain": sb.Intensity("noise", 0.05),
        "focus": sb.Intensity("blur", 3.0),
        "mode": sb.Morphology("Hippocampus_R", 2.0, mode=2),
    }
    for name, scenario in {
        "one": _scenario(),
        "several": _scenario(bias=biases, membership="joint"),
        "fine": _scenario(spacing_mm=4, subjects=16),
    }.items():
        cohort = sb.synthesise(scenario, seed=3)
        yield f"{name}/table", cohort.table
        yield f"{name}/volumes", [cohort.array(index) for index in range(8)]
        yield f"{name}/unbiased", cohort.unbiased().table
        yield f"{name}/ceiling", [scenario.ceiling(), cohort.ceiling]
        for effect in cohort.effects:
            yield f"{name}/{effect}/off", cohort.twin(without=effect).array(1)
            yield f"{name}/{effect}/on", cohort.twin(carrying=effect).array(1)
            yield f"{name}/{effect}/changed", cohort.changed(1, effect)
        yield f"{name}/brain", cohort.brain(2)
        yield f"{name}/region", cohort.region(2, "Insula_L")
        yield f"{name}/positions", cohort.positions_mm(2)
        yield f"{name}/clean", cohort.clean(2)
        yield f"{name}/flipped", cohort.twin(flipped=next(iter(cohort.biases))).array(3)
        yield f"{name}/scenario", scenario.to_yaml()
    second_cohort = sb.synthesise(_scenario(), seed=1)
    yield "coefficients", second_cohort.coefficients(4)
    yield "salience", list(sb.salience("bias", _scenario(), subjects=100))
    effect = sb.matched(sb.Morphology("Putamen_L", 2.5), d_prime=2, scenario=_scenario())
    yield "matched", effect.amplitude_mm
    yield "template", [sb.load_template().t1, sb.load_template().labels]
    yield "proximities", sb.load_template().proximities_mm("Insula_L")
    yield "volumes of regions", sb.synthesis.region_volumes(second_cohort.where(np.arange(4)))


def training():
    """Weights and histories, with every mitigation; tables of evaluation."""
    cohort = sb.synthesise(_scenario(), seed=0)
    networks = {
        "simba": sb.SimBANet((4, 8), seed=0),
        "late": sb.SimBANet(
            (4, 8),
            activation="sigmoid",
            norm="group",
            stem="pool",
            pool="late",
            dropout=0.2,
            seed=1,
        ),
        "resnet": sb.training.ResNet3D((4, 8), seed=0),
    }
    for name, network in networks.items():
        run = sb.fit(network, cohort, CONFIG)
        yield f"{name}/weights", dict(run.model.state_dict())
        yield f"{name}/history", run.history.drop(columns="seconds")
    remedies = (
        "reweighing",
        "resampling",
        "group_dro",
        "twin_consistency",
        "unlearning",
        "group_models",
    )
    for name in remedies:
        run = sb.fit(networks["simba"], cohort, CONFIG, mitigation=name)
        yield f"{name}/weights", dict(run.model.state_dict())
        yield f"{name}/logits", sb.logits(run.model, cohort.test)
    run = sb.fit(
        networks["simba"], cohort, sb.FitConfig(epochs=2, snapshots=True, schedule="constant")
    )
    yield "snapshots", [dict(run.at(epoch).state_dict()) for epoch in range(3)]
    pair = sb.fit_pair(networks["simba"], cohort, CONFIG)
    model, test = pair.biased.model, cohort.where(cohort["split"] != "train")
    yield "pair", [dict(run.model.state_dict()) for run in pair]
    yield "evaluate", sb.evaluate(model, test)
    yield "evaluate none", sb.evaluate(model, test, by=None)
    yield "disparity", sb.disparity(model, test, control=pair.control.model)
    yield "twin effect", sb.twin_effect(model, test, control=pair.control.model)
    yield "disease effect", sb.twin_effect(model, test, effect="disease")
    calibration = sb.training.calibration
    yield "calibration", calibration(model, test, bins=3)


def _network(cohort):
    return sb.fit(sb.SimBANet((4, 8), seed=0), cohort, CONFIG).model


def _with_old_names(table):
    """Return a table with the names of columns that it had when its digest was stored."""
    table = table.rename(columns={"auroc_through_given": "auroc_leak_here"})
    return table.rename(columns=lambda name: name.replace("auroc", "auc"))


def encoding():
    """Gram matrices and every kind of probe."""
    cohort = sb.synthesise(_scenario(subjects=160), seed=0)
    test, model = cohort.where(cohort["split"] != "train"), _network(cohort)
    grams = sb.record(model, test, activations=["block2"])
    yield "grams", dict(grams)
    yield "features", grams.activations
    yield "spooled", dict(sb.record(model, test, compute=sb.Compute(memory_gb=1e-4)))
    untrained = [sb.record(sb.SimBANet((4, 8), seed=seed), test) for seed in (1, 2)]
    design = {"given": "label"}
    probes = sb.probes
    types = probes.octants(test.table[["anatomy_1", "anatomy_2"]].to_numpy())
    controls = {"floors": untrained, "types": types}
    yield ("probe", _with_old_names(sb.probe(grams, "bias", **design, **controls, permutations=20)))
    yield "probe plain", _with_old_names(sb.probe(grams, "label", folds=5, permutations=5))
    yield "probe number", sb.probe(grams, "anatomy_1", permutations=5)
    yield "probe classes", _with_old_names(sb.probe(grams, types, permutations=5, folds=4))
    curve = sb.learning_curve(grams, "bias", **design)
    yield "learning curve", _with_old_names(curve)
    yield "code length", probes.code_length(curve)
    yield "prominence", probes.prominence(grams, "bias", **design)
    geometry = sb.interpretation
    for name in ("components", "angles", "projections"):
        function = getattr(sb, name, None) or getattr(geometry, name)
        if name == "angles":
            yield name, function(grams, {"disease": "label", "bias": "bias"})
            continue
        yield name, function(grams, "label", "bias")
    yield "cka", sb.cka(grams, untrained[0], permutations=10)
    yield "cka rbf", sb.cka(grams, kernel="rbf", given="label")
    yield "cka biased", sb.cka(grams, untrained[1], debiased=False)
    coordinates = probes.kernel_coordinates
    yield (
        "coordinates",
        [
            np.abs(points)
            for points in coordinates(grams["block2"], np.arange(60), np.arange(60, 70))
        ],
    )
    twins = sb.record(model, [test.twin(without="bias"), test.twin(carrying="bias")])
    yield "twins", dict(twins)
    yield "probe twins", _with_old_names(sb.probe(twins, "cohort", folds=5, permutations=5))


def attribution():
    """Maps and scores of all ten methods, and the checks of attributions."""
    cohort = sb.synthesise(_scenario(), seed=0)
    model = _network(cohort)
    test = cohort.test.where(np.arange(6))
    control = sb.fit(sb.SimBANet((4, 8), seed=0), cohort.unbiased(), CONFIG).model
    room = sb.attribution
    twins = test.twin(without="bias")
    for name, call in ATTRIBUTIONS.items():
        result = call(model, test, twins)
        yield f"{name}/maps", np.asarray(result.maps)
        yield f"{name}/table", result.table
        if result.regions is not None:
            yield f"{name}/regions", result.regions
    yield "compare", room.compare(model, test, ["saliency", "deep_lift"], control=control)
    yield "sanity", room.sanity_checks(model, test, method="saliency")
    yield "faithfulness", room.faithfulness(model, test, method="saliency")
    maps = [sb.attribute(network, test, method="saliency").maps for network in (control, model)]
    difference = test.twin(carrying="bias").arrays() - test.twin(without="bias").arrays()
    yield "split change", room.split_change(*maps, difference)
    yield "aligned", room.aligned(sb.attribute(model, test, "saliency"), test)


ATTRIBUTIONS = {
    "ig": lambda model, test, twins: sb.attribute(model, test),
    "ig twins": lambda model, test, twins: sb.attribute(model, test, baseline=twins),
    "saliency": lambda model, test, twins: sb.attribute(model, test, "saliency"),
    "input": lambda model, test, twins: sb.attribute(model, test, "input_x_gradient"),
    "smooth": lambda model, test, twins: sb.attribute(model, test, method="smooth_grad"),
    "deep_lift": lambda model, test, twins: sb.attribute(
        model, test, method="deep_lift", baseline="mean"
    ),
    "guided": lambda model, test, twins: sb.attribute(model, test, method="guided_backprop"),
    "cam": lambda model, test, twins: sb.attribute(model, test, method="grad_cam"),
    "guided cam": lambda model, test, twins: sb.attribute(model, test, method="guided_grad_cam"),
    "occlusion": lambda model, test, twins: sb.attribute(model, test, method="occlusion"),
    "shapley": lambda model, test, twins: sb.attribute(
        model, test.where(np.arange(2)), sb.attribution.Shapley(samples=2)
    ),
}


def use():
    """Interchange, erasure, concepts, encoding against use."""
    cohort = sb.synthesise(_scenario(), seed=0)
    model, test = _network(cohort), cohort.test
    room = sb.interventions
    for by in ("block", "region", "channels"):
        yield (
            f"interchange {by}",
            sb.interchange(
                model, test, by=by, **({"layers": ["block2"]} if by == "channels" else {})
            ),
        )
    for concept in ("bias", "disease", "random"):
        edits = sb.erase(model, cohort.train, concept)
        yield (
            f"erase {concept}",
            {name: [edit.left, edit.right, edit.mean] for name, edit in edits.items()},
        )
    with sb.edit(model, sb.erase(model, cohort.train, "bias", layers=["block2"])):
        yield "edited", sb.twin_effect(model, test)
    yield "audit", room.erasure_audit(model, cohort.train, test, layers=["block2"])
    yield "tcav", room.tcav(model, cohort.train, test, layers=["block2"])
    audience = sb.synthesise(_scenario().unbiased(), seed=1)
    yield (
        "encoding and use",
        _with_old_names(
            sb.encoding_and_use(model, audience, test, untrained=[sb.SimBANet((4, 8), seed=1)])
        ),
    )


def federated():
    """Hospitals, strategies, the log of a journey."""
    sites = federation.study_sites(4, largest=12, seed=0)
    hospitals = federation.hospitals(federation.with_scanners(_scenario()), sites)
    yield "table", hospitals.cohort.table
    model = sb.SimBANet((4, 8), norm="group", seed=0)
    clients = [federation.LocalClient(name, model, hospitals.at(name)) for name in hospitals.names]
    weights = model.state_dict()
    calls = {
        "fedavg": lambda: federation.fedavg(clients, weights, rounds=2),
        "fedprox": lambda: federation.fedprox(clients, weights, rounds=1, proximal=0.1),
        "travelling": lambda: federation.travelling(clients, weights, cycles=2, decay=0.9),
    }
    for name, call in calls.items():
        yield name, dict(federation.follow(call()).weights)
    model.load_state_dict(
        federation.follow(federation.travelling(clients, weights, cycles=2)).weights
    )
    yield "site effects", federation.site_effects(model, hospitals)
    yield "evaluate", sb.evaluate(model, hospitals.test, by=None)


def experiments():
    """A small sweep, with its inside."""
    sweep = sb.Sweep(
        _scenario(),
        {"prevalence.bias": [0.5, 0.9]},
        seeds=(0, 1),
        config=sb.FitConfig(epochs=1, threads=1),
        network={"name": "SimBANet", "widths": [4, 8]},
        inside=False,
    )
    yield "sweep", sweep.run(n_jobs=1).drop(columns="seconds")
    yield "surface", [str(path) for path in sorted(Path("data/results").glob("*/cells.csv"))]


def files():
    """What is written to disk."""
    folder = Path(tempfile.mkdtemp())
    cohort = sb.synthesise(_scenario(subjects=16), seed=0)
    stored = sb.save_cohort(cohort, folder / "store")
    for name in ("volumes.npy", "subjects.tsv"):
        yield name, (folder / "store" / name).read_bytes()
    yield "stored", stored.array(2)
    sb.export_bids(cohort, folder / "bids", twins=["bias"])
    for path in sorted((folder / "bids").rglob("*.nii.gz")):
        yield str(path.relative_to(folder)), path.read_bytes()
    preparation = sb.scans.Preparation(spacing_mm=8)
    scans = sb.read_bids(folder / "bids", label="label", disease="disease", preparation=preparation)
    yield "read", [scans.table, scans.array(0), scans.array(5)]
    scan = sorted((folder / "bids").rglob("*_T1w.nii.gz"))[0]
    planted = sb.scans.inject(scan, sb.Morphology("Putamen_L", 2.5))
    yield "inject", [np.asarray(planted.image.dataobj), np.asarray(planted.twin.dataobj)]


SECTIONS = [synthesis, training, encoding, attribution, use, federated, experiments, files]


def main() -> int:
    """Store digests, or hold them against stored ones."""
    action, path, *chosen = sys.argv[1:]
    kept = json.loads(Path(path).read_text()) if Path(path).exists() else {}
    differences = 0
    for section in SECTIONS:
        if chosen and section.__name__ not in chosen:
            continue
        digests = {name: digest(value) for name, value in section()}
        if action == "store":
            kept[section.__name__] = digests
            Path(path).write_text(json.dumps(kept, indent=1) + "\n")
        else:
            before = kept[section.__name__]
            different = [name for name in before if digests.get(name) != before[name]]
            differences += len(different)
            print(
                f"{section.__name__}: {len(before) - len(different)} of {len(before)} the same",
                *different,
                sep="\n  ",
            )
        sys.stdout.flush()
    return int(differences > 0)


if __name__ == "__main__":
    sys.exit(main())
