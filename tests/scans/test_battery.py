"""The battery: marks that can be planted together, each of a size that can be seen and believed."""

import pytest

import simba_lab as sb
from simba_lab.auditing.marks import image_changes
from simba_lab.scans.planting.plans import read_plan


def test_every_mark_changes_the_image_less_than_another_person_does():
    cohort = sb.synthesise(
        sb.Scenario(16, sb.Morphology("Insula_L", 2.5), sb.scans.battery(), spacing_mm=4)
    )
    base = cohort.twin(without=list(cohort.biases))
    changes = image_changes(base, list(cohort.biases))
    assert len(changes) == 8 and min(changes) > 0.005 and max(changes) < 0.6


def test_strength_scales_every_mark():
    once, twice = sb.scans.battery(), sb.scans.battery(2.0)
    assert list(once) == list(twice)
    assert all(twice[name] == mark.scaled(2.0) for name, mark in once.items())


def test_a_plan_may_ask_for_the_battery(tmp_path):
    (tmp_path / "plan.yaml").write_text("marks: battery\n")
    assert read_plan(tmp_path / "plan.yaml").marks == sb.scans.battery()


def test_a_battery_beyond_its_range_is_refused():
    with pytest.raises(sb.SimbaError, match="strength"):
        sb.scans.battery(1000.0)
