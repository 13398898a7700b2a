"""Small cohorts that the tests share: 8 mm voxels, a few dozen subjects."""

import pytest

import simba_lab as sb


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
