import numpy as np
import pytest
from scipy.ndimage import map_coordinates

import simba_lab as sb
from simba_lab.synthesis.rendering import deformation
from simba_lab.synthesis.rendering.flows import local_flow, local_velocity


@pytest.fixture(scope="module")
def flow(template):
    return local_flow(sb.Morphology("Putamen_L", 2.5), template, np.array([-2.0, 4.0]))


def planar(field):
    return np.moveaxis(field, -1, 0)


def size(flow, template, region, magnitude):
    lattice = sb.core.Lattice.spanning(*template.box_mm, 200.0, centred=False)
    still = np.zeros((*lattice.shape, 3), np.float32)
    mask = template.region(region).astype(np.float32)
    local = [(flow.at(magnitude), flow.lattice)]
    return (
        deformation.warp_once(mask, template.lattice, still, lattice, local, template.lattice).sum()
        / mask.sum()
    )


@pytest.mark.parametrize("amplitude", [0.7, 2.5, -2.0])
def test_amplitude_set_is_amplitude_measured(template, amplitude):
    flow = local_flow(sb.Morphology("Hippocampus_R", amplitude), template, np.array([-1.0, 1.0]))
    anywhere = np.random.default_rng(0).random((3, 200_000)) * (
        np.array(flow.lattice.shape)[:, None] - 1
    )
    for magnitude in (-1.0, 1.0):
        moved = [
            map_coordinates(component, anywhere, order=1)
            for component in planar(flow.at(magnitude))
        ]
        assert np.linalg.norm(moved, axis=0).max() == pytest.approx(abs(amplitude), abs=0.05)


def test_positive_amplitudes_grow_and_negative_ones_shrink(template, flow):
    grown, shrunk = (size(flow, template, "Putamen_L", magnitude) for magnitude in (1.0, -1.0))
    assert shrunk < 0.85 < 1.15 < grown
    opposite = local_flow(sb.Morphology("Putamen_L", -2.0), template, np.array([1.0]))
    assert size(opposite, template, "Putamen_L", 1.0) < 0.85


def test_zero_magnitude_does_nothing(flow):
    assert not flow.at(0.0).any()


def test_table_equals_scaling_and_squaring(template, flow):
    """Two independent integrators of the same velocity, at a magnitude between two knots."""
    velocity, lattice = local_velocity(sb.Morphology("Putamen_L", 2.5), template)
    unit = (
        np.linalg.norm(flow.at(0.25), axis=-1).max() / 0.25
    )  # displacement is nearly linear in small magnitudes
    magnitude = 1.13
    best = min(
        np.quantile(
            np.abs(
                deformation.exponential(-scale * planar(velocity), lattice)
                - planar(flow.at(magnitude))
            ),
            0.95,
        )
        for scale in np.linspace(0.9, 1.1, 41) * unit * magnitude
    )
    assert best < 0.05


def test_no_magnitude_of_the_table_folds(flow):
    for knot in flow.knots:
        assert deformation.least_jacobian(planar(flow.at(knot)), flow.lattice) > 0


def test_a_mode_moves_the_region_along_the_variability(template):
    """The effect follows the mode inside the region, and nothing moves far from it."""
    effect = sb.Morphology("Putamen_L", 2.0, mode=3)
    flow = local_flow(effect, template, np.array([-1.0, 1.0]))
    assert np.linalg.norm(flow.at(1.0), axis=-1).max() == pytest.approx(2.0, abs=0.1)
    assert not np.allclose(
        flow.at(1.0), local_flow(sb.Morphology("Putamen_L", 2.0), template, np.array([1.0])).at(1.0)
    )
    edge = np.ones(flow.lattice.shape, bool)
    edge[2:-2, 2:-2, 2:-2] = False
    assert np.abs(flow.at(1.0)[edge]).max() < 0.05
    with pytest.raises(sb.SimbaError, match="mode must be"):
        sb.Morphology("Putamen_L", 2.0, mode=0)


def test_folding_amplitude_names_subject_and_limit(template):
    effect = sb.Morphology("Insula_L", 9.0)
    magnitudes = np.array([0.5, 3.0, -1.0])
    with pytest.raises(sb.core.FoldingError, match="subject 8") as caught:
        local_flow(
            effect, template, magnitudes, field="scenario.disease", subjects=np.array([7, 8, 9])
        )
    limit = float(caught.value.allowed.split()[2])
    assert "scenario.disease.amplitude_mm" in str(caught.value)
    works = local_flow(sb.Morphology("Insula_L", limit), template, magnitudes)
    assert deformation.least_jacobian(planar(works.at(3.0)), works.lattice) > 0


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"amplitude_mm": 0}, "other than 0"),
        ({"amplitude_mm": float("nan")}, "finite"),
        ({"amplitude_mm": "big"}, "finite"),
        ({"amplitude_mm": 1, "smoothness_mm": 0.5}, "from 2 to 20"),
        (
            {"amplitude_mm": 1, "prevalence": {"disease": 1.4, "control": 0.2}},
            r"prevalence\['disease'\] must be in \[0, 1\], got 1.4",
        ),
        ({"amplitude_mm": 1, "prevalence": {"disease": 0.4}}, "control and disease"),
        ({"amplitude_mm": 1, "magnitude": 3.0}, "Normal"),
    ],
)
def test_bad_effects_are_refused(fields, says):
    with pytest.raises(sb.SimbaError, match=says):
        sb.Morphology("Insula_L", **fields)


def test_bad_distribution_is_refused():
    with pytest.raises(sb.SimbaError, match="at least 0"):
        sb.Normal(1.0, -1.0)


def test_numbers_of_numpy_are_numbers():
    """They are kept as plain ones: keys and files tell them apart."""
    f, i = np.float32, np.int64
    plain = sb.Scenario(
        32,
        sb.Morphology("Insula_L", 2.5, magnitude=sb.Normal(1.0, 1.0)),
        {"b": sb.Intensity("contrast", 0.5, prevalence={"disease": 0.75, "control": 0.25})},
        spacing_mm=8,
        noise=0.5,
    )
    scenario = sb.Scenario(
        i(32),
        sb.Morphology("Insula_L", f(2.5), magnitude=sb.Normal(f(1), np.array(1.0))),
        {
            "b": sb.Intensity(
                "contrast", f(0.5), prevalence={"disease": f(0.75), "control": f(0.25)}
            )
        },
        spacing_mm=i(8),
        noise=f(0.5),
    )
    assert repr(scenario) == repr(plain) and scenario.to_yaml() == plain.to_yaml()


@pytest.mark.parametrize(
    "values", [(-4e16, 1.0, 2.0), (1e308, 1.0, -np.inf, 0.0), (0.0, 1e-3, 1.0, 2.0)]
)
def test_bounds_that_keep_nothing_of_a_distribution_are_refused(values):
    assert np.isfinite(sb.Normal(0.0, 1.0, 5.0).ppf([0.5])).all()  # a tail that does exist
    with pytest.raises(sb.SimbaError, match="keep at least 1e-09 of the distribution"):
        sb.Normal(*values)
