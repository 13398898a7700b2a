"""Verdicts of the audit on twelve networks that were trained outside the lab.

A folder of scans is written, and read as somebody's. Two kinds of networks are trained by a plain
loop: on scans where a mark of contrast goes with the disease ("shortcut"), and on scans where it is
as common in both classes ("control"); of a small CNN, MONAI's DenseNet and its ViT. Twelve are
judged, two of each kind; four controls of each architecture exist, so that a network is judged
against three or four others that were trained without the shortcut. The disease is large, because a
network that does not know the disease has no answers beside which a change could be judged.

    python benchmarks/verdicts.py TABLE.csv

The table grows row by row; a second call goes on where the first ended.
"""

import argparse
import tempfile
import time
from pathlib import Path

import pandas as pd
import torch
from monai.networks.nets import DenseNet, ViT
from torch import nn

import simba_lab as sb

SPACING_MM, EPOCHS, SHAPE = 4, 10, (48, 48, 48)
SCALING = sb.training.Scaling("zscore", over="volume")
MARK = sb.Intensity("contrast", 0.2)
# Classes that hardly overlap, so that networks learn them from a few hundred people.
DISEASE = sb.Morphology(
    "Insula_L", 5.0, magnitude={"disease": sb.Normal(1.0, 0.25), "control": sb.Normal(-1.0, 0.25)}
)
SEEDS = {"shortcut": (0, 1), "control": (0, 1, 2, 3)}
JUDGED = (0, 1)
ARMS = {"shortcut": {"disease": 0.9, "control": 0.1}, "control": {"disease": 0.5, "control": 0.5}}


def cnn():
    layers, channels = [], 1
    for width in (8, 16, 32):
        stride = 2 if channels == 1 else 1
        layers += [nn.Conv3d(channels, width, 3, stride, padding=1)]
        layers += [nn.BatchNorm3d(width), nn.ReLU()]
        layers += [nn.MaxPool3d(2)]
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(channels, 2))


def densenet():
    return DenseNet(3, 1, 2, init_features=8, growth_rate=8, block_config=(2, 2), bn_size=2)


def vit():
    return ViT(1, SHAPE, (8, 8, 8), 48, 96, 2, 4, classification=True, post_activation="none")


def prepared(volumes):
    """Pad, centre and scale volumes, as their owner does it."""
    values = torch.from_numpy(volumes)[:, None]
    pads = [(want - have) for want, have in zip(SHAPE, values.shape[2:], strict=True)]
    edges = [side for pad in reversed(pads) for side in (pad // 2, pad - pad // 2)]
    values = nn.functional.pad(values, edges)
    values = values - values.mean((1, 2, 3, 4), keepdim=True)
    return values / values.std((1, 2, 3, 4), keepdim=True)


def trained(build, cohort, seed):
    torch.manual_seed(seed)
    network, volumes = build(), prepared(cohort.arrays())
    labels = torch.tensor(cohort["label"])
    optimiser = torch.optim.AdamW(network.parameters(), 2e-3, weight_decay=1e-2)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(volumes)).split(16):
            optimiser.zero_grad()
            output = network(volumes[rows])
            output = output[0] if isinstance(output, tuple) else output
            nn.functional.cross_entropy(output, labels[rows]).backward()
            optimiser.step()
    return network.eval()


def check_same(network, adapted, cohort):
    """Refuse an adapter that does not give the network what its owner gave it."""
    with torch.no_grad():
        output = network(prepared(cohort.arrays()))
    output = output[0] if isinstance(output, tuple) else output
    expected = (output[:, 1] - output[:, 0]).numpy()
    assert abs(sb.logits(adapted, cohort) - expected).max() < 1e-2


def study():
    """Return the scans of a BIDS folder, read as somebody's."""
    scenario = sb.Scenario(400, DISEASE, spacing_mm=SPACING_MM, split=(0.8, 0.05, 0.15))
    cohort = sb.synthesise(scenario, seed=5)
    folder = sb.export_bids(cohort, tempfile.mkdtemp() + "/study", masks=False)
    preparation = sb.scans.Preparation(spacing_mm=SPACING_MM)
    return sb.read_bids(
        folder, label="label", disease="disease", use="split", preparation=preparation
    )


def networks_of(build, scans, test):
    """Return the adapted networks of an architecture, by arm and seed."""
    networks = {}
    for arm, prevalence in ARMS.items():
        effect = sb.Intensity("contrast", MARK.strength, prevalence=prevalence)
        for seed in SEEDS[arm]:
            network = trained(build, sb.plant(scans.train, {"scanner": effect}, seed=seed), seed)
            adapted = sb.adapt(
                network,
                target=1,
                shape=SHAPE,
                intensity=SCALING,
                cohort=test,
                output=0 if build is vit else None,
            )
            check_same(network, adapted, test)
            networks[arm, seed] = adapted
    return networks


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", type=Path, help="CSV that grows; finished architectures are kept")
    path = parser.parse_args().table
    rows = pd.read_csv(path).to_dict("records") if path.exists() else []
    scans = study()
    test = sb.plant(scans.test, {"scanner": MARK})
    settings = sb.auditing.AuditSettings(without=("layers", "maps"))
    for build in (cnn, densenet, vit):
        if build.__name__ in {row["network"] for row in rows}:
            continue
        start = time.perf_counter()
        networks = networks_of(build, scans, test)
        for (arm, seed), network in networks.items():
            if seed not in JUDGED:
                continue
            others = [
                other
                for name, other in networks.items()
                if name[0] == "control" and name != (arm, seed)
            ]
            judged = sb.audit(network, test, control=others, settings=settings).marks.loc["scanner"]
            alone = sb.audit(network, test, settings=settings).marks.loc["scanner"]
            names = ["effect", "effect_low", "effect_high", "logit"]
            names += ["control", "excess", "excess_low", "excess_high", "verdict"]
            rows.append(
                {
                    "network": build.__name__,
                    "trained on": arm,
                    "seed": seed,
                    "AUROC": sb.evaluate(network, test, by=None)["auroc"].item(),
                    **judged[names],
                    "by the bound alone": alone["verdict"],
                }
            )
        pd.DataFrame(rows).to_csv(path, index=False)
        print(pd.DataFrame(rows[-4:]).round(2).to_string(index=False))
        print(f"{time.perf_counter() - start:.0f} s", flush=True)
    table = pd.DataFrame(rows)
    for column in ("verdict", "by the bound alone"):
        print(table.groupby(["trained on", column]).size().to_string())


if __name__ == "__main__":
    main()
