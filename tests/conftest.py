"""Small cohorts that the tests share: 8 mm voxels, a few dozen subjects."""

from pathlib import Path

import pytest

import simba_lab as sb

# Files of tests that take longest, or wait: begun last, one of them would keep the others waiting.
FIRST = (
    "federation/test_engine.py",
    "experiments/test_stored_tables.py",
    "experiments/test_cluster.py",
    "experiments/test_kills.py",
    "experiments/test_sweep.py",
    "synthesis/test_observer.py",
    "synthesis/test_synthetic_cohort.py",
    "training/test_fitting.py",
)


def pytest_collection_modifyitems(items):
    places = {Path(__file__).parent / name: place for place, name in enumerate(FIRST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


@pytest.fixture(scope="session")
def template():
    return sb.load_template()


@pytest.fixture(scope="session")
def scenario():
    return sb.Scenario(
        subjects=80,
        spacing_mm=8,
        disease=sb.Morphology("Insula_L", amplitude_mm=2.5),
        bias=sb.Morphology(
            "Putamen_L", amplitude_mm=2.5, prevalence={"disease": 0.8, "control": 0.2}
        ),
    )


@pytest.fixture(scope="session")
def cohort(scenario):
    return sb.synthesise(scenario, seed=0)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """No test reads or leaves runs in the user's cache."""
    monkeypatch.setenv("SIMBA_LAB_CACHE", str(tmp_path / "cache"))
