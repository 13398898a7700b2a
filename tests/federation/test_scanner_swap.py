"""The same subjects in another scanner: nothing else changes, and a planted reader is found."""

import numpy as np
import pytest
import torch

import simba_lab as sb
from simba_lab.federation.federated_cohort import hospitals
from simba_lab.federation.scanner_swap import scanned_at, site_effects, site_uptake
from simba_lab.federation.scanners import SCANNER, with_scanners
from simba_lab.federation.sites import Site

SITES = (
    Site("north", 10, 0.8, scanner={"scanner_contrast": 2.0, "scanner_noise": 1.0}),
    Site("south", 10, 0.2, scanner={"scanner_contrast": -1.0}),
    Site("west", 6, 1.0),
)


class Brightness(torch.nn.Module):
    """Answers with the mean of the image, times a weight."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(weight))

    def forward(self, x):
        return self.weight * x.mean((1, 2, 3, 4))[:, None]


@pytest.fixture(scope="module")
def federation():
    scenario = with_scanners(
        sb.Scenario(subjects=16, spacing_mm=8, disease=sb.Morphology("Insula_L", 2.5))
    )
    return hospitals(scenario, SITES, validation=4, test=24)


def test_at_their_own_site_subjects_look_as_they_do(federation):
    for name in federation.names:
        subjects = federation.test.where(federation.test["site"] == name)
        assert len(subjects)
        np.testing.assert_array_equal(
            scanned_at(federation, name, subjects).arrays(), subjects.arrays()
        )
    np.testing.assert_array_equal(
        scanned_at(federation, "west", federation.at("west")).arrays(),
        federation.at("west").arrays(),
    )


def test_the_scanner_is_all_that_changes(federation):
    cohorts = {name: scanned_at(federation, name) for name in federation.names}
    bare = federation.test.twin(without=list(SCANNER)).arrays()
    for cohort in cohorts.values():
        np.testing.assert_array_equal(cohort.twin(without=list(SCANNER)).arrays(), bare)
        np.testing.assert_array_equal(cohort["label"], federation.test["label"])
        np.testing.assert_array_equal(cohort["site"], federation.test["site"])
    # The scanner of west does nothing; north and south show another picture of everybody.
    np.testing.assert_array_equal(cohorts["west"].arrays(), bare)
    for name in ("north", "south"):
        assert (np.abs(cohorts[name].arrays() - bare).max(axis=(1, 2, 3)) > 0.05).all()
    # Nobody has been touched in the federation itself.
    np.testing.assert_array_equal(
        federation.test["scanner_contrast_magnitude"] == 2.0, federation.test["site"] == "north"
    )


def test_a_reader_of_the_scanner_is_found_by_its_weight_and_a_blind_network_reads_nothing(
    federation,
):
    means = np.stack(
        [scanned_at(federation, name).arrays().mean(axis=(1, 2, 3)) for name in federation.names]
    )
    expected = (means - means.mean(axis=0)).mean(axis=1)
    assert np.ptp(expected) > 0.01  # the plant can be seen
    single, triple, blind = (
        site_effects(Brightness(weight), federation) for weight in (1.0, 3.0, 0.0)
    )
    np.testing.assert_allclose(single["logit"], expected, atol=1e-6)
    np.testing.assert_allclose(triple["logit"], 3 * expected, atol=1e-6)
    assert (blind[["logit", "logit_low", "logit_high"]] == 0).all(axis=None)
    assert (
        (triple["logit_low"] < triple["logit"]) & (triple["logit"] < triple["logit_high"])
    ).all()
    assert site_uptake(triple) == pytest.approx(3 * site_uptake(single), rel=1e-5)
    assert site_uptake(blind) == 0.0


def test_the_ideal_reader_knows_the_classes_of_each_site(federation):
    ideal = site_effects(Brightness(0.0), federation)["ideal"]
    odds = np.log([8.5 / 2.5, 2.5 / 8.5, 6.5 / 0.5])
    np.testing.assert_allclose(ideal, odds - odds.mean())
    assert list(ideal.index) == ["north", "south", "west"]
    pair = site_effects(Brightness(0.0), federation, sites=["south", "north"])["ideal"]
    np.testing.assert_allclose(pair, [-odds[0], odds[0]])


def test_uptake_is_one_of_what_is_ideal_nothing_of_the_rest_and_does_not_see_who_the_subjects_are(
    federation,
):
    test, ideal = federation.test, np.log([8.5 / 2.5, 2.5 / 8.5, 6.5 / 0.5])
    person = np.random.default_rng(0).normal(size=len(test))
    assert site_uptake(site_effects(ideal[:, None] + person, federation)) == pytest.approx(1)
    assert site_uptake(
        site_effects(0.3 * ideal[:, None] + 9 * person, federation)
    ) == pytest.approx(0.3)
    assert site_uptake(site_effects(0 * ideal[:, None] + person, federation)) == pytest.approx(
        0, abs=1e-12
    )
    # A reaction to scanners at right angles to the classes is none of it, however large.
    centred = ideal - ideal.mean()
    aside = np.cross(centred, np.ones(3))
    table = site_effects(50 * aside[:, None] + person, federation)
    assert table["logit"].abs().max() > 5
    assert site_uptake(table) == pytest.approx(0, abs=1e-9)


def test_logits_that_one_has_already_give_the_same_table(federation):
    cohort, model = federation.validation, Brightness(2.0)
    ready = np.stack(
        [sb.logits(model, scanned_at(federation, name, cohort)) for name in federation.names]
    )
    assert site_effects(ready, federation, cohort).equals(site_effects(model, federation, cohort))


def test_what_makes_no_sense_is_refused(federation):
    with pytest.raises(sb.core.UnknownNameError, match="north"):
        scanned_at(federation, "nroth")
    with pytest.raises(sb.SimbaError, match="at least two"):
        site_effects(Brightness(1.0), federation, sites=["north"])
    with pytest.raises(sb.SimbaError, match="Rows are sites"):
        site_effects(np.zeros((2, len(federation.test))), federation)
    scenario = sb.Scenario(subjects=16, spacing_mm=8, disease=sb.Morphology("Insula_L", 2.5))
    plain = hospitals(scenario, [Site("a", 8), Site("b", 8)], validation=4, test=8)
    with pytest.raises(sb.SimbaError, match="with_scanners"):
        scanned_at(plain, "a")
    even = site_effects(Brightness(1.0), federation).assign(ideal=0.0)
    with pytest.raises(sb.SimbaError, match="alike"):
        site_uptake(even)
