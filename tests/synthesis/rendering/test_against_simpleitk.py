"""The deformations against SimpleITK, which shares no code with them and has other axes."""

import numpy as np
import pytest

import simba_lab as sb
from simba_lab.synthesis.rendering import deformation

sitk = pytest.importorskip("SimpleITK")

LATTICE = sb.core.Lattice((30, 26, 28), 2.0, (-20.0, 3.0, 7.0))
# The lab's world is RAS+ (x to the right, y to the front), SimpleITK's is LPS+: the first two
# components change sign.
LPS_FROM_RAS = np.array([-1.0, -1.0, 1.0])


def velocity_on(lattice):
    """A swirl of up to 3.6 mm, the same on any lattice, shape (3, X, Y, Z).

    It ends before the border: SimpleITK counts what lies outside a field as unmoved, the lab as
    moving with the border.
    """
    low, extent = (
        np.add(LATTICE.origin_mm, 5),
        LATTICE.spacing_mm * np.subtract(LATTICE.shape, 1) - 10,
    )
    share = np.clip((lattice.points_mm().T - low) / extent, 0, 1).T
    window = np.prod(np.sin(np.pi * share) ** 2, axis=0)
    x, y, z = 2 * np.pi * share
    return (
        4
        * window
        * np.stack([np.cos(y + 0.3), np.sin(z) * np.cos(x), np.sin(x - 0.7)])
        / np.sqrt(2)
    )


@pytest.fixture(scope="module")
def velocity():
    return velocity_on(LATTICE)


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(1).random(LATTICE.shape).astype(np.float32)


def to_itk(array, lattice, pixel_type=None):
    """A scalar (X, Y, Z) or vector (3, X, Y, Z) array as a SimpleITK image at the same position."""
    vector = array.ndim == 4
    if vector:
        array = np.moveaxis(array, 0, -1) * LPS_FROM_RAS
    itk_image = sitk.GetImageFromArray(
        np.ascontiguousarray(np.swapaxes(array, 0, 2)), isVector=vector
    )
    itk_image.SetOrigin((LPS_FROM_RAS * lattice.origin_mm).tolist())
    itk_image.SetSpacing([lattice.spacing_mm] * 3)
    itk_image.SetDirection(np.diag(LPS_FROM_RAS).ravel().tolist())
    return itk_image if pixel_type is None else sitk.Cast(itk_image, pixel_type)


def from_itk(image):
    array = np.swapaxes(sitk.GetArrayFromImage(image), 0, 2)
    return np.moveaxis(array * LPS_FROM_RAS, -1, 0) if array.ndim == 4 else array


def as_transform(displacement, lattice=LATTICE):
    return sitk.DisplacementFieldTransform(to_itk(displacement, lattice, sitk.sitkVectorFloat64))


def itk_compose(outer, inner, lattice=LATTICE):
    """`outer o inner`: SimpleITK applies the transform that was added last first."""
    grid = to_itk(inner, lattice)
    composite = sitk.CompositeTransform(
        [as_transform(outer, lattice), as_transform(inner, lattice)]
    )
    return from_itk(
        sitk.TransformToDisplacementField(
            composite,
            sitk.sitkVectorFloat64,
            grid.GetSize(),
            grid.GetOrigin(),
            grid.GetSpacing(),
            grid.GetDirection(),
        )
    )


def itk_exponential(velocity, lattice=LATTICE, squarings=8):
    """Scaling and squaring in float64 from a plain first step of 16 um."""
    displacement = velocity / 2**squarings
    for _ in range(squarings):
        displacement = itk_compose(displacement, displacement, lattice)
    return displacement


def test_points_mean_the_same_place(image):
    """Voxel (3, 4, 5) of the lab is the same point of the world in SimpleITK, signs aside."""
    position = to_itk(image, LATTICE).TransformIndexToPhysicalPoint((3, 4, 5))
    np.testing.assert_allclose(LPS_FROM_RAS * position, LATTICE.points_mm()[:, 3, 4, 5])


def test_warp_equals_simpleitk(image, velocity):
    """Float32 weights and SimpleITK's float64 ones agree to 1e-5 of the intensity."""
    theirs = sitk.Resample(
        to_itk(image, LATTICE), to_itk(image, LATTICE), as_transform(velocity), sitk.sitkLinear
    )
    ours = deformation.warp(image, LATTICE, velocity, LATTICE)
    np.testing.assert_allclose(ours, from_itk(theirs), atol=1e-5)
    assert np.abs(ours - image).max() > 0.5  # the field does move the image


def test_warp_onto_another_lattice_equals_simpleitk(velocity):
    """A coarse field, a finer image and a shifted output lattice: three frames at once."""
    fine = sb.core.Lattice((50, 48, 52), 1.0, (-16.0, 6.0, 9.0))
    onto = sb.core.Lattice((20, 21, 19), 1.5, (-9.0, 13.0, 17.0))
    image = np.random.default_rng(2).random(fine.shape).astype(np.float32)
    theirs = sitk.Resample(
        to_itk(image, fine),
        to_itk(np.zeros(onto.shape, np.float32), onto),
        as_transform(velocity),
        sitk.sitkLinear,
    )
    ours = deformation.warp(image, fine, velocity, LATTICE, onto=onto)
    np.testing.assert_allclose(ours, from_itk(theirs), atol=1e-5)
    still = deformation.warp(image, fine, np.zeros_like(velocity), LATTICE, onto=onto)
    assert np.abs(ours - still).max() > 0.5


def test_compose_equals_simpleitk_in_the_same_order(velocity):
    shifted = np.roll(velocity[::-1], 3, axis=2)
    ours = deformation.compose(velocity, shifted, LATTICE)
    np.testing.assert_allclose(ours, itk_compose(velocity, shifted), atol=1e-5)
    swapped = itk_compose(shifted, velocity)
    assert (
        np.abs(ours - swapped).max() > 0.1
    )  # the order matters for these fields, so the test can tell


@pytest.mark.parametrize(
    ("sign", "refined", "tolerance_mm"),
    [(1, 1, 0.15), (-1, 1, 0.15), (1, 2, 0.05), (-1, 2, 0.05), (1, 4, 0.02)],
)
def test_exponential_equals_simpleitk(sign, refined, tolerance_mm):
    """A flow of up to 3.5 mm: within 0.15 mm on one lattice, 0.02 mm on a lattice four times finer.

    SimpleITK interpolates displacements linearly, which errs by the square of the spacing; the lab
    follows the curvature of the velocity. So the difference is SimpleITK's and goes as its lattice
    is refined.
    """
    fine = sb.core.Lattice(
        tuple(refined * (n - 1) + 1 for n in LATTICE.shape),
        LATTICE.spacing_mm / refined,
        LATTICE.origin_mm,
    )
    theirs = itk_exponential(sign * velocity_on(fine), fine)[:, ::refined, ::refined, ::refined]
    ours = deformation.exponential(sign * velocity_on(LATTICE), LATTICE)
    assert np.linalg.norm(theirs, axis=0).max() > 3
    assert np.linalg.norm(ours - theirs, axis=0).max() < tolerance_mm


def test_invert_equals_simpleitk(velocity):
    displacement = deformation.exponential(velocity, LATTICE)
    theirs = sitk.InvertDisplacementField(
        to_itk(displacement, LATTICE),
        maximumNumberOfIterations=500,
        maxErrorToleranceThreshold=1e-6,
        meanErrorToleranceThreshold=1e-8,
    )
    np.testing.assert_allclose(
        deformation.invert(displacement, LATTICE), from_itk(theirs), atol=1e-3
    )


def test_jacobian_equals_simpleitk(velocity):
    displacement = deformation.exponential(velocity, LATTICE)
    # That filter of SimpleITK differentiates along the array's axes whatever the direction says: no
    # signs here.
    upright = sitk.GetImageFromArray(np.ascontiguousarray(displacement.T), isVector=True)
    upright.SetSpacing([LATTICE.spacing_mm] * 3)
    theirs = from_itk(sitk.DisplacementFieldJacobianDeterminant(upright))
    interior = (
        slice(2, -2),
    ) * 3  # both use one-sided differences at the border, in different ways
    np.testing.assert_allclose(
        deformation.jacobian_determinant(displacement, LATTICE)[interior],
        theirs[interior],
        atol=1e-3,
    )
