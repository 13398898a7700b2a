"""Question B: a recipe that learns what goes with the disease, and one that cannot see the mark."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

import simba_lab as sb
from simba_lab.auditing import recipes

MARK = {"scanner": sb.Intensity("contrast", 0.2)}


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    scenario = sb.Scenario(128, sb.Morphology("Insula_L", 2.5), spacing_mm=8, split=(0.6, 0.1, 0.3))
    folder = sb.export_bids(
        sb.synthesise(scenario), tmp_path_factory.mktemp("recipe") / "study", masks=False
    )
    preparation = sb.scans.Preparation(spacing_mm=8)
    return sb.read_bids(folder, label="label", disease="disease", preparation=preparation)


class Reader(torch.nn.Module):
    """A plane through two numbers of each volume: its contrast, and how its halves differ.

    One number alone would not do: an answer that follows nothing but contrast moves by as many of
    its own spreads however little was learned of it.
    """

    def __init__(self, contrast):
        super().__init__()
        self.plane, self.contrast = torch.nn.Linear(2, 1), float(contrast)

    def forward(self, x):
        return self.plane(self.values(x))

    def values(self, x):
        brain, half = (x > 0.1).float(), x.shape[2] // 2
        axes = (1, 2, 3, 4)
        mean = ((x * brain).sum(axes) / brain.sum(axes))[:, None, None, None, None]
        deviation = (((x - mean) ** 2 * brain).sum(axes) / brain.sum(axes)).sqrt()
        left, right = (part.float().mean(axes) for part in (brain[:, :, :half], brain[:, :, half:]))
        return torch.stack([self.contrast * 30 * deviation, 100 * (left - right)], dim=1)


@dataclass(frozen=True)
class Recipe:
    """Fits the plane by least squares; may be blind to contrast."""

    contrast: bool

    def __call__(self, cohort, seed):
        network = Reader(self.contrast)
        with torch.no_grad():
            values = network.values(torch.from_numpy(cohort.arrays())[:, None]).numpy()
            columns = np.column_stack([values, np.ones(len(values))])
            fit = np.linalg.lstsq(columns, 2.0 * cohort["label"] - 1, rcond=None)[0]
            network.plane.weight[:] = torch.from_numpy(fit[None, :2].astype(np.float32))
            network.plane.bias[:] = float(fit[2])
        return network


def test_a_recipe_that_learns_the_mark_is_told_from_one_that_cannot(scans):
    options = {"seeds": range(6), "cache": False}
    learns = sb.auditing.audit_recipe(Recipe(True), scans, MARK, **options).loc["scanner"]
    assert learns["verdict"] == "learns it"
    assert learns["excess_low"] > learns["bound"]
    assert learns["networks"] == 6
    assert learns["excess"] == pytest.approx(learns["marked"] - learns["balanced"])
    cannot = sb.auditing.audit_recipe(Recipe(False), scans, MARK, **options).loc["scanner"]
    assert cannot["verdict"] == "does not learn it"
    assert abs(cannot["excess"]) < 0.2


def test_what_was_trained_is_kept(scans, monkeypatch):
    trained, real = [], recipes._trained_effect
    monkeypatch.setattr(
        recipes, "_trained_effect", lambda *args: trained.append(args[2]) or real(*args)
    )
    first = sb.auditing.audit_recipe(Recipe(False), scans, MARK, seeds=(0, 1, 2))
    again = sb.auditing.audit_recipe(Recipe(False), scans, MARK, seeds=(0, 1, 2))
    assert sorted(trained) == [0, 0, 1, 1, 2, 2]
    assert first.equals(again)
    sb.auditing.audit_recipe(Recipe(True), scans, MARK, seeds=(0, 1, 2))
    assert len(trained) == 12


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"seeds": (0, 1)}, "at least 3 different"),
        ({"seeds": (0, 0, 1)}, "at least 3 different"),
        ({"effects": {}}, "at least one"),
        ({"prevalence": 1.5}, r"prevalence must be in \[0, 1\]"),
        ({"train": lambda cohort, seed: None}, "one that returns NoneType"),
    ],
)
def test_what_cannot_be_asked_is_refused(scans, changes, match):
    arguments = {"train": Recipe(False), "scans": scans, "effects": MARK, "cache": False}
    with pytest.raises(sb.SimbaError, match=match):
        sb.auditing.audit_recipe(**arguments | changes)


def test_people_to_train_and_to_judge_are_both_needed(scans):
    with pytest.raises(sb.SimbaError, match=r"scans.train must be at least 16"):
        sb.auditing.audit_recipe(Recipe(False), scans.test, MARK)
