import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, map_coordinates

import simba_lab as sb
from simba_lab.synthesis.rendering import deformation

LATTICE = sb.core.Lattice((24, 26, 28), 2.0, (-20.0, 3.0, 7.0))


@pytest.fixture
def velocity():
    rng = np.random.default_rng(0)
    field = np.stack([gaussian_filter(rng.standard_normal(LATTICE.shape), 4) for _ in range(3)])
    window = np.prod(np.meshgrid(*(np.hanning(n) for n in LATTICE.shape), indexing="ij"), axis=0)
    return 4 * field * window / np.abs(field * window).max()  # up to 4 mm, zero at the border


def sampled(field, points):
    return np.stack([map_coordinates(f, points, order=1, mode="nearest") for f in field])


def dense_flow(velocity, steps=400):
    """The obvious reference: many small Euler steps in float64."""
    base = np.indices(LATTICE.shape).astype(float)
    moved = base.copy()
    for _ in range(steps):
        moved += sampled(velocity, moved) / LATTICE.spacing_mm / steps
    return (moved - base) * LATTICE.spacing_mm


def test_exponential_equals_dense_integration(velocity):
    error = np.linalg.norm(
        deformation.exponential(velocity, LATTICE) - dense_flow(velocity), axis=0
    )
    assert np.quantile(error, 0.95) < 0.05
    assert error.max() < 0.15


def test_flow_of_parts_is_the_flow_of_the_whole(velocity):
    field = deformation.interleaved(velocity)
    at_once = deformation.flow(field, LATTICE.spacing_mm, 1.0)
    in_steps = deformation.flow(
        field, LATTICE.spacing_mm, 0.6, start=deformation.flow(field, LATTICE.spacing_mm, 0.4)
    )
    assert np.abs(at_once - in_steps).max() < 0.02


def test_series_equals_steps_for_gentle_fields(velocity):
    field = deformation.interleaved(velocity) / 4  # up to 1 mm over 8 mm
    series = deformation.series_flow(field, LATTICE.spacing_mm)
    assert np.abs(series - deformation.flow(field, LATTICE.spacing_mm)).max() < 0.01
    assert np.abs(series - field).max() > 0.03  # which is more than the velocity alone
    steep = 8 * field
    np.testing.assert_array_equal(
        deformation.series_flow(steep, LATTICE.spacing_mm),
        deformation.flow(steep, LATTICE.spacing_mm),
    )


def test_corrected_nodes_interpolate_better(velocity):
    """Between the nodes, corrected values are nearer to a spline through the field."""
    field = deformation.interleaved(velocity)
    points = np.indices(LATTICE.shape)[:, 2:-3, 2:-3, 2:-3] + np.random.default_rng(2).random(
        (3, 1, 1, 1)
    )
    truth = np.stack([map_coordinates(f, points, order=5) for f in velocity])

    def error(nodes):
        return np.sqrt(np.mean((sampled(np.moveaxis(nodes, -1, 0), points) - truth) ** 2))

    assert error(deformation.chord_corrected(field)) < 0.6 * error(field)


def test_exponential_of_the_opposite_is_the_inverse(velocity):
    forward, backward = (
        deformation.exponential(velocity, LATTICE),
        deformation.exponential(-velocity, LATTICE),
    )
    for residual in (
        deformation.compose(backward, forward, LATTICE),
        deformation.invert(forward, LATTICE) - backward,
    ):
        assert np.quantile(np.abs(residual), 0.95) < 0.05
        assert np.abs(residual).max() < 0.3  # linear interpolation where the field bends most


def test_invert_is_exact_for_the_interpolated_map(velocity):
    forward = deformation.exponential(velocity, LATTICE)
    residual = deformation.compose(forward, deformation.invert(forward, LATTICE), LATTICE)
    assert np.abs(residual).max() < 1e-3


def test_constant_velocity_is_a_translation():
    constant = np.ones((3, *LATTICE.shape)) * np.array([1.5, -2.0, 7.0])[:, None, None, None]
    np.testing.assert_allclose(deformation.exponential(constant, LATTICE), constant, atol=1e-4)


def test_jacobian_of_a_linear_map():
    stretch = np.stack(
        [0.1 * LATTICE.points_mm()[0], -0.2 * LATTICE.points_mm()[1], 0 * LATTICE.points_mm()[2]]
    )
    np.testing.assert_allclose(
        deformation.jacobian_determinant(stretch, LATTICE), 1.1 * 0.8, rtol=1e-4
    )
    assert deformation.least_jacobian(stretch, LATTICE) == pytest.approx(0.88, rel=1e-4)


def test_a_fold_has_a_negative_jacobian():
    fold = np.zeros((3, *LATTICE.shape))
    fold[0] = -1.5 * LATTICE.points_mm()[0]
    assert deformation.least_jacobian(fold, LATTICE) < 0


def test_warp_equals_an_obvious_resampling(velocity):
    image = np.random.default_rng(1).random(LATTICE.shape).astype(np.float32)
    expected = map_coordinates(
        image, np.indices(LATTICE.shape) + velocity / LATTICE.spacing_mm, order=1, mode="nearest"
    )
    np.testing.assert_allclose(
        deformation.warp(image, LATTICE, velocity, LATTICE), expected, atol=2e-5
    )


def test_warp_onto_another_lattice():
    """A linear ramp is reproduced exactly wherever it is sampled."""
    ramp = LATTICE.points_mm().sum(axis=0).astype(np.float32)
    onto = sb.core.Lattice((5, 6, 7), 3.0, (-15.0, 10.0, 12.0))
    shift = np.ones((3, *LATTICE.shape))
    np.testing.assert_allclose(
        deformation.warp(ramp, LATTICE, shift, LATTICE, onto=onto),
        onto.points_mm().sum(axis=0) + 3,
        rtol=1e-4,
    )


@pytest.mark.parametrize(
    ("field", "says"),
    [(np.zeros((3, 4, 4, 4)), "shape"), (np.full((3, *LATTICE.shape), np.nan), "finite")],
)
def test_bad_fields_are_refused(field, says):
    with pytest.raises(sb.SimbaError, match=says):
        deformation.exponential(field, LATTICE)


def test_wrong_image_shape_is_refused(velocity):
    with pytest.raises(sb.SimbaError, match="image must be of shape"):
        deformation.warp(np.zeros((2, 2, 2)), LATTICE, velocity, LATTICE)


def test_lattice_spanning_shares_the_surplus():
    lattice = sb.core.Lattice.spanning((0, 0, 0), (10, 12, 9), 4.0, centred=True)
    assert lattice.shape == (3, 3, 3)
    assert lattice.origin_mm == (1.0, 2.0, 0.5)
