"""A network that reads the mark is found, one that does not is not, and both read it alike."""

import numpy as np
import pytest
import torch
from planted import Planted, centred, far_scenario, masks_of

import simba_lab as sb

# The mean over a region moves by 0.15 spreads when it grows: people differ by more than that.
BOUND = 0.05
SETTINGS = sb.auditing.AuditSettings(bound=BOUND, without=("maps",))


@pytest.fixture(scope="module")
def cohort():
    return sb.synthesise(far_scenario(128)).test


@pytest.fixture(scope="module")
def networks(cohort):
    masks = masks_of(cohort)
    weights = {"guilty": [1.0, 0.2], "innocent": [0.0, 1.0]}
    return {name: centred(Planted(masks, pair), cohort) for name, pair in weights.items()}


@pytest.fixture(scope="module")
def guilty(cohort, networks):
    fresh = [sb.SimBANet((2, 2), seed=0)]
    options = {
        "untrained": fresh,
        "settings": sb.auditing.AuditSettings(bound=BOUND, layers=("block*",)),
    }
    return sb.audit(networks["guilty"], cohort, groups=["bias"], **options)


def test_a_network_that_reads_the_mark_is_found_and_another_is_not(cohort, networks, guilty):
    assert guilty.marks.loc["bias", "verdict"] == "used"
    innocent = sb.audit(networks["innocent"], cohort, settings=SETTINGS)
    assert innocent.marks.loc["bias", "verdict"] == "not used"
    # The same is read from both: reading is not using.
    np.testing.assert_allclose(guilty.layers["read"], innocent.layers["read"])


def test_effects_are_those_of_scans_without_the_mark(cohort, networks, guilty):
    off, on = sb.training.twin_logits(networks["guilty"], cohort)
    np.testing.assert_allclose(guilty.marks.loc["bias", "logit"], (on - off).mean())
    effect = (on - off).mean() / off.std(ddof=1)
    np.testing.assert_allclose(guilty.marks.loc["bias", "effect"], effect)


def test_every_table_has_the_columns_that_reports_read(guilty):
    columns = ["read", "read_low", "read_high", "floor", "passes", "passes_low", "passes_high"]
    assert list(guilty.layers.columns) == columns
    assert guilty.layers.index.names == ["mark", "layer"]
    np.testing.assert_allclose(guilty.layers["passes"], 1, atol=1e-4)
    assert guilty.groups.index.names == ["column", "layer"]
    assert {"auroc", "floor", "leak"} <= set(guilty.groups.columns)
    assert guilty.rates.index.names == ["column", "rate"]
    assert guilty.erased.index.names == ["column", "layer"]
    assert guilty.erased["moved_low"].gt(0).all()


def test_maps_of_a_network_that_reads_the_mark_find_it(guilty):
    row = guilty.maps.loc["bias"]
    assert row["auroc_low"] > row["chance"] == 0.5 and row["n"] == 8


def test_a_control_that_does_the_same_takes_the_verdict_back(cohort, networks):
    twin = centred(Planted(masks_of(cohort), [1.0, 0.201]), cohort)
    audit = sb.audit(networks["guilty"], cohort, control=twin, settings=SETTINGS)
    assert audit.marks.loc["bias", "verdict"] == "not used"
    assert any("One control network" in line for line in audit.cautions)


def test_a_mark_is_stated_by_what_it_changes_beside_how_much_people_differ(cohort, guilty):
    base = cohort.twin(without="bias").where(range(16))
    images, marked = base.arrays(), base.twin(carrying="bias").arrays()
    brain = (images > 0).mean(axis=0) > 0.5
    change = np.sqrt(((marked - images)[:, brain] ** 2).mean())
    apart = np.sqrt((np.diff(images, axis=0)[:, brain] ** 2).mean())
    np.testing.assert_allclose(guilty.marks.loc["bias", "image_change"], change / apart, rtol=1e-5)
    assert 0.01 < change / apart < 1


def test_a_mark_of_which_nothing_is_seen_is_a_note(networks):
    scenario = far_scenario(64)
    blur = sb.Intensity("blur", 0.5)
    marked = sb.synthesise(scenario.replace(bias={"blur": blur})).test
    audit = sb.audit(networks["innocent"], marked, settings=SETTINGS)
    assert any("nothing is to be seen of blur" in line for line in audit.cautions)
    assert audit.marks.loc["blur", "image_change"] < 1e-3


def test_an_instrument_that_refuses_the_network_is_a_note(cohort):
    class Flat(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.fold = torch.nn.LSTM(20, 2, batch_first=True)

        def forward(self, x):
            return self.fold(x[:, 0, 10])[0].sum((1, 2))

    audit = sb.audit(Flat(), cohort, settings=SETTINGS)
    assert audit.layers is None and any("Left out (layers" in note for note in audit.notes)


def test_what_cannot_be_audited_is_refused_at_once(cohort, networks):
    with pytest.raises(sb.SimbaError, match="15 scans"):
        sb.audit(networks["guilty"], cohort.where(np.arange(15)))
    constant = Planted(masks_of(cohort), [0.0, 0.0])
    with pytest.raises(sb.SimbaError, match="different for different people"):
        sb.audit(constant, cohort)
    with pytest.raises(sb.SimbaError, match="nowhere"):
        sb.audit(networks["guilty"], cohort, groups=["nowhere"])


class Contrast(torch.nn.Module):
    """Answers with the contrast of the brain, or with the difference of its halves."""

    def __init__(self, weights):
        super().__init__()
        self.held, self.readout = torch.nn.Identity(), torch.nn.Linear(2, 1)
        with torch.no_grad():
            self.readout.weight[:], self.readout.bias[:] = torch.tensor([weights]), 0.0

    def forward(self, x):
        brain, half, axes = (x > 0.1).float(), x.shape[2] // 2, (1, 2, 3, 4)
        mean = ((x * brain).sum(axes) / brain.sum(axes))[:, None, None, None, None]
        deviation = (((x - mean) ** 2 * brain).sum(axes) / brain.sum(axes)).sqrt()
        sides = brain[:, :, :half].mean(axes) - brain[:, :, half:].mean(axes)
        return self.readout(self.held(torch.stack([100 * deviation, 100 * sides], dim=1)))


def test_the_default_bound_tells_a_reader_of_the_mark_from_one_that_holds_it_too():
    scanner = {"scanner": sb.Intensity("contrast", 0.2)}
    scenario = sb.Scenario(128, sb.Morphology("Insula_L", 2.5), scanner, spacing_mm=8)
    cohort = sb.synthesise(scenario).train
    settings = sb.auditing.AuditSettings(layers=("held",), without=("maps",))
    reader, other = (
        sb.audit(Contrast(weights), cohort, settings=settings)
        for weights in ([1.0, 0.5], [0.0, 1.0])
    )
    assert reader.marks.loc["scanner", "verdict"] == "used"
    assert other.marks.loc["scanner", "verdict"] == "not used"
    # Neither knows the disease, and there was no control: the first screen says so.
    for text in ("does not tell the classes apart", "No control network was given"):
        assert sum(text in line for line in reader.cautions) == 1
    # Both hold the mark, where a probe reads it; it passes to the answer of one of them.
    read = reader.layers.loc[("scanner", "held"), "read_low"]
    assert read > 0.5 and other.layers.loc[("scanner", "held"), "read_low"] == read
    assert reader.layers.loc[("scanner", "held"), "passes"] == pytest.approx(1)
