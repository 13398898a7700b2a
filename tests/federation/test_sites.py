import numpy as np
import pytest

import simba_lab as sb
from simba_lab.federation.federated_cohort import Federation, hospitals
from simba_lab.federation.scanners import with_scanners
from simba_lab.federation.site_stores import open_site, save_sites
from simba_lab.federation.sites import Site, study_sites

BASE = sb.Scenario(
    subjects=16, disease=sb.Morphology("Insula_L", 2.5), bias=sb.Morphology("Putamen_L", 2.5)
)
SITES = (
    Site("site-1", 7, 0.4, {"bias": {"disease": 1.0, "control": 0.0}}, {"scanner_contrast": 2.0}),
    Site("site-2", 5, 1.0),
    Site("site-3", 4, 0.0, scanner={"scanner_noise": 1.0, "scanner_blur": 1.0}),
)


@pytest.fixture(scope="module")
def federation() -> Federation:
    return hospitals(with_scanners(BASE), SITES, validation=12, test=24, seed=1)


def test_sites_are_as_said(federation):
    for site in SITES:
        cohort = federation.at(site.name)
        assert len(cohort) == site.subjects
        assert cohort["label"].sum() == round(site.subjects * site.disease)
    first = federation.at("site-1")
    np.testing.assert_array_equal(first["bias"], first["label"])
    assert len(federation.pooled) == 16
    assert not set(federation.pooled.table.index) & set(federation.test.table.index)


def test_no_subject_is_at_two_sites_and_none_at_none(federation):
    assert federation.cohort.table.index.is_unique
    assert set(federation.cohort["site"]) == {"site-1", "site-2", "site-3"}


def test_held_out_subjects_say_nothing_of_site_and_class(federation):
    table = federation.test.table
    counts = table.groupby(["site", "label"]).size().unstack()
    assert counts.to_numpy().min() == counts.to_numpy().max() == 4
    assert table.groupby(["site", "label", "bias"]).size().max() <= 3


def test_scanner_is_the_whole_difference_between_sites(federation):
    bare = [name for name in federation.cohort.biases if name.startswith("scanner")]
    for name, expected in (("site-1", 2.0), ("site-2", 0.0)):
        assert set(federation.at(name)["scanner_contrast_magnitude"]) == {expected}
    second, first = federation.at("site-2"), federation.at("site-1")
    np.testing.assert_array_equal(second.array(0), second.twin(without=bare).array(0))
    scanned, plain = first.clean(0), first.twin(without=bare).clean(0)
    brain = plain > 0.1
    slope = np.polyfit(plain[brain], scanned[brain], 1)[0]
    assert slope == pytest.approx(1.1**2, rel=0.02)


def test_the_same_seed_gives_the_same_sites(federation):
    again = hospitals(with_scanners(BASE), SITES, validation=12, test=24, seed=1)
    assert again.cohort.table.equals(federation.cohort.table)
    reseeded = hospitals(with_scanners(BASE), SITES, validation=12, test=24, seed=2)
    assert not reseeded.cohort.table.equals(federation.cohort.table)


def test_study_sites_look_like_the_published_ones():
    sites = study_sites(seed=3)
    sizes = np.array([site.subjects for site in sites])
    assert len(sites) == 83
    assert (sizes.min(), np.median(sizes), sizes.max()) == (1, 7, 190)
    assert abs((sizes < 5).sum() - 30) <= 2
    single = sum(round(site.subjects * site.disease) in (0, site.subjects) for site in sites)
    assert 54 <= single <= 70  # small sites of mixed classes may draw one alone
    assert min(site.scanner["scanner_noise"] for site in sites) >= 0
    assert sorted(sizes) == sorted(site.subjects for site in study_sites(seed=4))


def test_a_site_reads_its_own_folder_and_nothing_else(federation, tmp_path):
    folders = save_sites(federation, tmp_path / "sites")
    for folder in folders[1:]:
        folder.rename(tmp_path / folder.name)
    name, cohort = open_site(folders[0])
    assert name == "site-1"
    assert cohort.table.index.equals(federation.at("site-1").table.index)
    np.testing.assert_array_equal(cohort.arrays(), federation.at("site-1").arrays())
    text = b"".join(path.read_bytes() for path in folders[0].iterdir())
    assert b"site-2" not in text


def test_a_store_of_several_sites_is_refused(federation, tmp_path):
    sb.save_cohort(federation.test, tmp_path / "all")
    with pytest.raises(sb.SimbaError, match="store of one site"):
        open_site(tmp_path / "all")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"name": "../x"}, "name must be small letters"),
        ({"subjects": 0}, "subjects must be an integer of at least 1"),
        ({"disease": 1.2}, r"disease must be in \[0, 1\]"),
        ({"prevalence": {"bias": {"disease": 0.5}}}, "with control and disease"),
        ({"scanner": {"scanner_noise": float("nan")}}, "a finite number"),
    ],
)
def test_bad_sites_are_refused(change, match):
    with pytest.raises(sb.SimbaError, match=match):
        Site(**({"name": "site-1", "subjects": 4} | change))


def test_bad_federations_are_refused():
    with pytest.raises(sb.SimbaError, match="its own name"):
        hospitals(BASE, (SITES[1], SITES[1]))
    with pytest.raises(sb.core.UnknownNameError, match="scanner_contrast"):
        hospitals(BASE, SITES)
    with pytest.raises(sb.SimbaError, match="both classes"):
        hospitals(BASE, (SITES[1],))
    with pytest.raises(sb.SimbaError, match="even number"):
        hospitals(BASE, (Site("site-1", 4),), test=5)
    with pytest.raises(sb.SimbaError, match="no bias of the scenario has"):
        with_scanners(with_scanners(BASE))
