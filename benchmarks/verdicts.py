"""Verdicts of the audit on twelve networks that were trained outside the lab.

A folder of scans is written, and read as somebody's. Six networks are trained by a plain loop on
scans where a mark of contrast goes with the disease, six where it is as common in both classes:
two seeds of a small CNN, of MONAI's DenseNet and of its ViT. Each is adapted and audited on scans
that it has not seen, without a control network: the verdict is by the bound alone, which says how
much the answer depends on the mark, not who taught it. At this size networks hardly learn the
disease (see the AUROC).

    python benchmarks/verdicts.py
"""

import tempfile
import time

import pandas as pd
import torch
from monai.networks.nets import DenseNet, ViT
from torch import nn

import simba_lab as sb

SPACING_MM, EPOCHS, SHAPE = 8, 12, (24, 24, 24)
SCALING = sb.training.Scaling("zscore", over="volume")
MARK = sb.Intensity("contrast", 0.2)
ARMS = {"shortcut": {"disease": 0.9, "control": 0.1}, "control": {"disease": 0.5, "control": 0.5}}


def cnn():
    layers, channels = [], 1
    for width in (8, 16, 32):
        layers += [nn.Conv3d(channels, width, 3, padding=1), nn.BatchNorm3d(width), nn.ReLU()]
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


def main():
    scenario = sb.Scenario(
        400, sb.Morphology("Insula_L", 2.5), spacing_mm=SPACING_MM, split=(0.8, 0.05, 0.15)
    )
    folder = sb.export_bids(
        sb.synthesise(scenario, seed=5), tempfile.mkdtemp() + "/study", masks=False
    )
    preparation = sb.scans.Preparation(spacing_mm=SPACING_MM)
    scans = sb.read_bids(folder, label="label", disease="disease", preparation=preparation)
    test = sb.plant(scans.test, {"scanner": MARK})
    rows = []
    for build in (cnn, densenet, vit):
        for arm, prevalence in ARMS.items():
            effect = sb.Intensity("contrast", MARK.strength, prevalence=prevalence)
            for seed in (0, 1):
                start = time.perf_counter()
                marked = sb.plant(scans.train, {"scanner": effect}, seed=seed)
                network = trained(build, marked, seed)
                options = {"output": 0} if build is vit else {}
                adapted = sb.adapt(
                    network, target=1, shape=SHAPE, intensity=SCALING, cohort=test, **options
                )
                check_same(network, adapted, test)
                settings = sb.auditing.AuditSettings(without=("layers", "maps"))
                row = sb.audit(adapted, test, settings=settings).marks.loc["scanner"]
                rows.append(
                    {
                        "network": build.__name__,
                        "trained on": arm,
                        "seed": seed,
                        "AUROC": sb.evaluate(adapted, test, by=None)["auroc"].item(),
                        **row[["effect", "effect_low", "effect_high", "logit", "verdict"]],
                        "seconds": time.perf_counter() - start,
                    }
                )
                print(
                    pd.DataFrame(rows[-1:]).round(2).to_string(index=False, header=len(rows) == 1)
                )
    table = pd.DataFrame(rows)
    print(table.groupby(["trained on", "verdict"]).size().to_string())


if __name__ == "__main__":
    main()
