"""Networks whose reading is known: of the same activations, one uses the bias, one ignores it."""

import numpy as np
import torch
from torch import nn

import simba_lab as sb


class Planted(nn.Module):
    """Two channels: the means over the voxels of the bias, and over those of the disease alone.

    Both exist in every planted network, so a probe finds the same in all of them. The read-out
    decides what is used.
    """

    def __init__(self, masks, weights):
        super().__init__()
        self.register_buffer("masks", torch.from_numpy(np.stack(masks).astype(np.float32)))
        self.block1, self.block2 = nn.Identity(), nn.AvgPool3d(2)
        self.readout = nn.Linear(2, 1)
        with torch.no_grad():
            self.readout.weight[:] = torch.tensor([weights])
            self.readout.bias[:] = 0
        self.blocks = ["block1", "block2"]

    def forward(self, x):
        activations = self.block2(self.block1(x * self.masks))
        share = self.masks.mean((1, 2, 3))
        return self.readout(activations.mean((2, 3, 4)) / share)


def masks_of(cohort):
    """Voxels that the bias changes in any subject, and those that only the disease changes."""
    volumes = {
        name: cohort.twin(carrying=name).arrays() != cohort.twin(without=name).arrays()
        for name in ("bias", "disease")
    }
    bias, disease = (volumes[name].any(axis=0) for name in ("bias", "disease"))
    return bias, disease & ~bias


def far_scenario(subjects=80):
    """A bias far from the disease, so that a network can read one without the other."""
    return sb.Scenario(
        subjects=subjects,
        spacing_mm=8,
        disease=sb.Morphology("Insula_L", amplitude_mm=2.5),
        bias=sb.Morphology(
            "Postcentral_R", amplitude_mm=2.5, prevalence={"disease": 0.8, "control": 0.2}
        ),
    )


def centred(model, cohort):
    """Shift the read-out so that half of the subjects are called diseased; scale it to SD 1."""
    scores = sb.logits(model, cohort)
    with torch.no_grad():
        model.readout.weight /= scores.std()
        model.readout.bias[:] = -float(np.median(scores) / scores.std())
    return model
