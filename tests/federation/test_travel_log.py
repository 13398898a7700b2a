"""The log of a training over sites: it finds what was planted, where it was planted."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import expit

import simba_lab as sb
from simba_lab.federation.clients import LocalClient
from simba_lab.federation.federated_cohort import hospitals
from simba_lab.federation.journeys import travelling
from simba_lab.federation.sites import Site
from simba_lab.federation.steps import Step, follow
from simba_lab.federation.travel_log import TravelLog
from simba_lab.training.predictions import logits


class Reads(torch.nn.Module):
    """Answers with the mean of some voxels, times a weight."""

    blocks = ("mean",)

    def __init__(self, mask: np.ndarray, weight: float) -> None:
        super().__init__()
        self.register_buffer("mask", torch.from_numpy(mask.astype(np.float32)))
        self.weight, self.mean = torch.nn.Parameter(torch.tensor(weight)), torch.nn.Identity()

    def forward(self, x):
        return self.weight * self.mean((x * self.mask).sum((2, 3, 4)) / self.mask.sum())


@pytest.fixture(scope="module")
def federation():
    scenario = sb.Scenario(
        subjects=16,
        spacing_mm=8,
        disease=sb.Morphology("Insula_L", 2.5),
        bias={"plant": sb.Morphology("Occipital_Mid_R", 3.0)},
    )
    sites = [
        Site("north", 6, prevalence={"plant": {"disease": 1.0, "control": 0.0}}),
        Site("south", 6),
        Site("west", 4),
    ]
    return hospitals(scenario, sites, validation=4, test=60)


def step(number: int, model: torch.nn.Module, *sites: str) -> Step:
    return Step(
        number, "visit", sites, {name: value.clone() for name, value in model.state_dict().items()}
    )


def test_use_and_encoding_of_a_planted_reader_are_found_and_a_blind_network_has_neither(federation):
    test = federation.test
    mask = np.any([test.changed(k, "plant") for k in range(10)], axis=0)
    log = TravelLog(Reads(mask, 0.0), federation)
    follow(iter([step(1, Reads(mask, 0.0), "south"), step(2, Reads(mask, 50.0), "north")]), log)
    effects = log.steps.set_index("number")["plant.effect"]
    assert effects[1] == 0.0
    off, on = (
        logits(Reads(mask, 50.0), test.twin(**{state: "plant"}))
        for state in ("without", "carrying")
    )
    assert effects[2] == pytest.approx((on - off).mean(), rel=1e-6)
    assert abs(effects[2]) > 0.01
    assert list(log.steps["sites"]) == ["south", "north"]
    assert set(log.layers["target"]) == {"disease", "plant", "site"}
    assert set(log.layers["layer"]) == {"mean"}
    assert (
        log.layers[["auroc_low", "auroc", "auroc_high"]]
        .apply(lambda row: row.is_monotonic_increasing, axis=1)
        .all()
    )


def test_another_log_of_the_same_volumes_finds_the_same_and_keeps_nothing_of_the_first(
    federation, monkeypatch
):
    mask = np.ones(federation.test.arrays()[0].shape, bool)
    steps = [step(1, Reads(mask, 2.0), "south"), step(2, Reads(mask, 1.0), "north")]
    first = TravelLog(Reads(mask, 0.0), federation)
    follow(iter(steps), first)
    monkeypatch.setattr(sb.Cohort, "arrays", None)  # nothing is rendered
    second = first.again()
    assert second.steps.empty
    follow(iter(steps), second)
    for name in ("steps", "layers", "sites"):
        pd.testing.assert_frame_equal(getattr(second, name), getattr(first, name))
    rare = first.again(layers=[], every=2)
    follow(iter(steps), rare)
    assert rare.steps["number"].tolist() == [2]
    assert rare.layers.empty
    assert len(first.steps) == 2
    with pytest.raises(sb.SimbaError, match="every must be an integer of at least 1"):
        first.again(every=0)


def test_losses_and_what_was_forgotten_since_the_last_visit(federation):
    mask = np.ones(federation.test.arrays()[0].shape, bool)
    good, bad = Reads(mask, 1.0), Reads(mask, -5.0)
    log = TravelLog(good, federation)
    follow(iter([step(1, good, "north"), step(2, bad, "south"), step(3, good, "west")]), log)
    table = log.sites.set_index(["number", "site"])

    def loss(model, site):
        cohort = federation.at(site)
        chance = expit(logits(model, cohort))
        return -np.mean(np.where(cohort["label"] == 1, np.log(chance), np.log(1 - chance)))

    for number, model in ((1, good), (2, bad), (3, good)):
        for site in federation.names:
            assert table.loc[(number, site), "loss"] == pytest.approx(loss(model, site), rel=1e-6)
    assert np.isnan(table.loc[(1, "south"), "since"])
    assert np.isnan(table.loc[(1, "south"), "forgotten"])
    assert table.loc[(3, "north"), "since"] == 2
    assert table.loc[(3, "north"), "forgotten"] == pytest.approx(0.0, abs=1e-9)
    assert table.loc[(2, "north"), "forgotten"] == pytest.approx(
        loss(bad, "north") - loss(good, "north"), rel=1e-6
    )


def test_the_log_changes_nothing_and_may_skip_steps(federation):
    model = sb.SimBANet((4, 8), norm="group", seed=0)
    clients = [LocalClient(name, model, federation.at(name)) for name in federation.names]
    log = TravelLog(model, federation, every=2, layers=["block2"])
    watched = follow(travelling(clients, model.state_dict(), cycles=2), log)
    plain = follow(travelling(clients, model.state_dict(), cycles=2))
    assert all(torch.equal(watched.weights[name], plain.weights[name]) for name in plain.weights)
    assert list(log.steps["number"]) == [2, 4, 6]
    assert set(log.layers["layer"]) == {"block2"}
    # What it was right after a visit is known also where that visit was not looked at.
    last = log.sites[log.sites["number"] == 6]
    assert last["since"].max() < 6
    assert last["forgotten"].notna().all()


def test_without_layers_nothing_is_probed_and_the_rest_is_the_same(federation):
    model = sb.SimBANet((4, 8), norm="group", seed=0)
    whole, quick = TravelLog(model, federation), TravelLog(model, federation, layers=[])
    for log in (whole, quick):
        log(step(1, model, "south"))
    assert len(whole.layers)
    assert not len(quick.layers)
    assert quick.steps.equals(whole.steps)
    assert quick.sites.equals(whole.sites)


def test_forgetting_is_followed_at_the_sites_that_are_asked_for_alone(federation):
    model = sb.SimBANet((4, 8), norm="group", seed=0)
    whole, single, none = (
        TravelLog(model, federation, layers=[], sites=sites) for sites in (None, ["south"], ())
    )
    later = whole.again(layers=[], sites=["south"])
    for log in (whole, single, none, later):
        log(step(1, model, "south"))
        log(step(2, model, "west"))
        assert log.steps.equals(whole.steps)
    expected = whole.sites[whole.sites["site"] == "south"].reset_index(drop=True)
    assert expected["since"].tolist() == [0, 1]
    for log in (single, later):
        pd.testing.assert_frame_equal(log.sites, expected, check_dtype=False)
    assert none.sites.empty
    with pytest.raises(sb.SimbaError, match="south"):
        single.again(sites=["north"])


def test_scanners_that_everybody_has_are_not_followed_and_few_subjects_leave_out_the_site():
    from simba_lab.federation.scanners import with_scanners

    scenario = with_scanners(
        sb.Scenario(subjects=16, spacing_mm=8, disease=sb.Morphology("Insula_L", 2.5))
    )
    federation = hospitals(
        scenario, [Site(f"site-{k}", 2, scanner={"scanner_noise": 1.0}) for k in range(4)], test=8
    )
    log = TravelLog(sb.SimBANet((4, 8)), federation)
    assert set(log._targets) == {"disease"}


@pytest.mark.parametrize(
    ("options", "message"),
    [({"every": 0}, "every"), ({"biases": ["plnt"]}, "plant"), ({"sites": ["soth"]}, "south")],
)
def test_bad_logs_are_refused(federation, options, message):
    with pytest.raises(sb.SimbaError, match=message):
        TravelLog(sb.SimBANet((4, 8)), federation, **options)
