import gzip

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import apply_affine
from scipy.ndimage import binary_erosion, distance_transform_edt, gaussian_filter, map_coordinates
from scipy.spatial.transform import Rotation

import simba_lab as sb
from simba_lab.scans import DisplacementField, inject
from simba_lab.synthesis.effects import Intensity, Morphology, Normal
from simba_lab.synthesis.rendering import deformation
from simba_lab.synthesis.rendering.flows import local_flow
from simba_lab.synthesis.rendering.scanner import Scanner, noise_key

PUTAMEN = Morphology("Putamen_L", 2.5)


@pytest.fixture(scope="module")
def smooth(template):
    """The template at 2 mm, float32, so blurred that interpolation errs little."""
    blurred = gaussian_filter(template.t1, 2.5)[::2, ::2, ::2]
    return nib.Nifti1Image(
        np.ascontiguousarray(blurred), template.lattice.affine @ np.diag([2, 2, 2, 1.0])
    )


@pytest.fixture(scope="module")
def scan_2mm(template):
    """The template's own T1 as somebody's scan, int16 at 2 mm."""
    stored = np.rint(template.t1[::2, ::2, ::2] * 1000).astype(np.int16)
    return nib.Nifti1Image(stored, template.lattice.affine @ np.diag([2, 2, 2, 1.0]))


@pytest.fixture(scope="module")
def injected(smooth):
    return inject(smooth, PUTAMEN)


def data(image):
    return np.asarray(image.dataobj)


def at_world(image, points_mm):
    """An image at world positions (3, ...), by a cubic spline."""
    index = np.moveaxis(
        apply_affine(np.linalg.inv(image.affine), np.moveaxis(points_mm, 0, -1)), -1, 0
    )
    return map_coordinates(data(image), index, order=3, mode="nearest")


def world(shape, affine):
    return np.moveaxis(apply_affine(affine, np.moveaxis(np.indices(shape), 0, -1)), -1, 0)


def errors(image, reference, twin):
    """Largest error as a share of the largest effect, both inside the image's border."""
    inner = (slice(2, -2),) * 3
    effect = np.abs(reference - twin)[inner].max()
    return np.abs(data(image) - reference)[inner].max() / effect


# The mathematics.


def test_identity_equals_warp_by_the_displacement_of_the_effect(template, smooth, injected):
    flow = local_flow(PUTAMEN, template, np.array([1.0]))
    fine, lattice = (
        gaussian_filter(template.t1, 2.5),
        sb.core.Lattice(smooth.shape, 2.0, tuple(smooth.affine[:3, 3])),
    )
    displacement = np.moveaxis(flow.at(1.0), -1, 0)
    expected = deformation.warp(fine, template.lattice, displacement, flow.lattice, onto=lattice)
    assert np.abs(expected - data(smooth)).max() > 0.03
    assert (
        errors(injected.image, expected, data(smooth)) < 0.08
    )  # trilinear interpolation, that of warp, errs by 0.06
    moved = np.abs(expected - data(smooth)) > 0.003
    effect, error = (expected - data(smooth))[moved], (expected - data(injected.image))[moved]
    assert error.std() < 0.05 * effect.std()


@pytest.mark.parametrize("axes", ["LPS", "PIR", "SAL"])
def test_order_and_direction_of_the_axes_do_not_matter(smooth, injected, axes):
    target = nib.orientations.axcodes2ornt(axes)
    turned = smooth.as_reoriented(
        nib.orientations.ornt_transform(nib.io_orientation(smooth.affine), target)
    )
    turned = nib.Nifti1Image(np.ascontiguousarray(data(turned)), turned.affine)
    result = inject(turned, PUTAMEN)
    assert nib.aff2axcodes(result.image.affine) == tuple(axes)
    canonical = nib.as_closest_canonical(result.image)
    np.testing.assert_allclose(data(canonical), data(injected.image), atol=1e-6)
    assert (data(nib.as_closest_canonical(result.mask)) != data(injected.mask)).mean() < 1e-6


@pytest.mark.parametrize(
    ("voxels", "degrees"), [((1, 1, 3), 0), ((2, 2, 2), 25), ((1.2, 2.5, 1.7), 40)]
)
def test_voxel_size_and_obliqueness_do_not_matter(smooth, injected, voxels, degrees):
    turn = Rotation.from_euler("xyz", [degrees, degrees / 2, -degrees], degrees=True).as_matrix()
    shape = tuple(int(n) for n in np.ceil(np.array([110, 120, 110]) / voxels))
    centre = np.array([-20.0, 0, 5])
    affine = nib.affines.from_matvec(turn @ np.diag(voxels).astype(float))
    affine[:3, 3] = centre - apply_affine(affine, np.array(shape) / 2)
    points = world(shape, affine)
    scan = nib.Nifti1Image(at_world(smooth, points).astype(np.float32), affine)
    result = inject(scan, PUTAMEN)
    assert errors(result.image, at_world(injected.image, points), data(scan)) < 0.05


def moved_affine(degrees, scale):
    turn = Rotation.from_euler("zyx", [degrees, -degrees / 2, 5], degrees=True).as_matrix()
    return nib.affines.from_matvec(turn @ np.diag([scale, 1 / scale, 1.02]), [12.0, -30, 8])


def as_field(matrix, shape, affine, *, step=4):
    """A linear map as a displacement field over a grid."""
    lattice = affine @ np.diag([step, step, step, 1.0])
    points = world(tuple(n // step + 2 for n in shape), lattice)
    return np.moveaxis(apply_affine(matrix, np.moveaxis(points, 0, -1)), -1, 0) - points, lattice


@pytest.mark.parametrize("storage", ["affine", "field", "field with vectors LPS"])
@pytest.mark.parametrize(("degrees", "scale"), [(10, 1.1), (75, 1.4)])
def test_a_moved_scan_with_its_affine_gives_the_moved_result(
    smooth, injected, degrees, scale, storage
):
    """The scan's voxels stay and its world moves: every voxel of the result must stay too."""
    to_template = matrix = moved_affine(degrees, scale)
    scan = nib.Nifti1Image(data(smooth), np.linalg.inv(matrix) @ smooth.affine)
    if storage != "affine":
        field, lattice = as_field(matrix, scan.shape, scan.affine)
        vectors = np.moveaxis(field, 0, -1).astype(np.float32)
        to_template = nib.Nifti1Image(vectors, lattice)
        if storage != "field":
            flipped = nib.Nifti1Image(vectors[:, :, :, None] * np.float32([-1, -1, 1]), lattice)
            to_template = DisplacementField(flipped, vectors="LPS")
    result = inject(scan, PUTAMEN, to_template=to_template)
    assert errors(result.image, data(injected.image), data(smooth)) < 1e-3


def test_a_person_with_another_anatomy_gets_the_effect_where_the_registration_says(
    template, smooth
):
    """The scan is the template seen through a smooth map T; so must be the effect."""
    lattice = sb.core.Lattice(smooth.shape, 2.0, tuple(smooth.affine[:3, 3]))
    noise = np.random.default_rng(0).standard_normal((3, *smooth.shape))
    u = np.stack([gaussian_filter(component, 9, mode="wrap") for component in noise])
    u *= 6 / np.linalg.norm(u, axis=0).max()
    assert 0.4 < deformation.least_jacobian(u, lattice) < 0.9
    moved = lattice.points_mm() + u
    scan = nib.Nifti1Image(at_world(smooth, moved).astype(np.float32), smooth.affine)
    field = nib.Nifti1Image(np.moveaxis(u, 0, -1).astype(np.float32), smooth.affine)
    result = inject(scan, PUTAMEN, to_template=field)
    expected = at_world(inject(smooth, PUTAMEN).image, moved)
    assert errors(result.image, expected, data(scan)) < 0.05
    assert (
        errors(inject(scan, PUTAMEN).image, expected, data(scan)) > 0.5
    )  # without the field it is elsewhere


def test_two_effects_are_applied_in_their_order(smooth):
    """At once, with one interpolation, as one after the other; in the other order they differ."""
    first, second = Morphology("Putamen_L", 3.0), Morphology("Pallidum_L", -3.0)
    at_once = inject(smooth, [first, second])
    in_turn = inject(inject(smooth, first).image, second)
    assert errors(at_once.image, data(in_turn.image), data(smooth)) < 0.05
    swapped = inject(smooth, [second, first])
    assert errors(at_once.image, data(swapped.image), data(smooth)) > 0.15


def test_the_region_grows_by_the_amplitude(template):
    """A bright region grows as the warped mask says, and its surface moves by the amplitude."""
    region = template.region("Putamen_L")
    scan = nib.Nifti1Image(np.where(region, np.float32(3), template.t1), template.lattice.affine)
    flow = local_flow(PUTAMEN, template, np.array([-1.0, 1.0]))
    for magnitude, low, high in ((1.0, 1.2, 2.0), (-1.0, 0.4, 0.85)):
        result = data(inject(scan, PUTAMEN, magnitudes=magnitude).image) > 1.9
        displacement = np.moveaxis(flow.at(magnitude), -1, 0)
        expected = deformation.warp(region, template.lattice, displacement, flow.lattice).sum()
        assert low < result.sum() / region.sum() < high
        assert result.sum() == pytest.approx(expected, rel=0.03)
        bigger, smaller = (
            (mask[:80, 64:150, 40:110])
            for mask in ((result, region)[:: 1 if magnitude > 0 else -1])
        )
        surface = bigger & ~binary_erosion(bigger)
        assert distance_transform_edt(~smaller)[surface].max() == pytest.approx(2.5, abs=0.8)


# What stays as it is.


def test_voxels_out_of_reach_keep_their_bytes(template, scan_2mm):
    result = inject(scan_2mm, PUTAMEN)
    near = distance_transform_edt(~template.region("Putamen_L"))[::2, ::2, ::2] < 28
    before, after = data(scan_2mm), data(result.image)
    assert after[~near].tobytes() == before[~near].tobytes()
    assert (after != before)[near].mean() > 0.2
    assert data(result.twin).tobytes() == before.tobytes()
    assert not (after != before)[before.shape[0] // 2 + 8 :].any()  # the other hemisphere


def test_background_stays_background(template, scan_2mm):
    """Splines ring: beside the brain that would draw the effect's box into the air."""
    scan = nib.Nifti1Image(data(scan_2mm).astype(np.float32), scan_2mm.affine)
    result = data(inject(scan, Morphology("Postcentral_L", 2.5)).image)
    air = distance_transform_edt(data(scan_2mm) == 0) > 4
    assert not result[air].any()
    assert result.min() == 0
    assert result.max() <= data(scan_2mm).max()


def test_interpolation_keeps_most_of_the_noise(template):
    """Linear interpolation would keep 54 %, and a smoother region gives itself away."""
    rng = np.random.default_rng(1)
    noise = rng.normal(0, 0.05, template.t1.shape).astype(np.float32)
    scans = [
        nib.Nifti1Image(template.t1 + 2 + added, template.lattice.affine)
        for added in (np.zeros_like(noise), noise)
    ]
    clean, noisy = (data(inject(scan, PUTAMEN).image) for scan in scans)
    flow = local_flow(PUTAMEN, template, np.array([1.0]))
    size = map_coordinates(
        np.linalg.norm(flow.at(1.0), axis=-1),
        (template.lattice.points_mm() - np.reshape(flow.lattice.origin_mm, (3, 1, 1, 1)))
        / flow.lattice.spacing_mm,
        order=1,
        mode="constant",
    )
    noise_share = (noisy - clean)[(size > 0.5) & (template.t1 > 0)].std() / 0.05
    assert 0.82 < noise_share < 1.0


def test_zero_magnitude_changes_nothing(scan_2mm):
    result = inject(scan_2mm, [PUTAMEN, Intensity("contrast", 0.3)], magnitudes=0)
    assert data(result.image).tobytes() == data(scan_2mm).tobytes()
    assert not data(result.mask).any()


def test_mask_is_where_the_images_differ(template, scan_2mm):
    result = inject(scan_2mm, PUTAMEN, threshold=0.05)
    white = np.percentile(data(scan_2mm)[template.brain[::2, ::2, ::2]], 99)
    differs = np.abs(data(result.image).astype(float) - data(scan_2mm)) / white
    mask = data(result.mask).astype(bool)
    assert result.mask.get_data_dtype() == np.uint8
    assert mask.any()
    assert differs[mask].min() > 0.049
    assert differs[~mask].max() < 0.051


def test_integers_are_the_rounded_numbers(scan_2mm):
    exact = data(
        inject(nib.Nifti1Image(data(scan_2mm).astype(np.float64), scan_2mm.affine), PUTAMEN).image
    )
    stored = data(inject(scan_2mm, PUTAMEN).image)
    assert np.abs(stored - exact).max() <= 0.5
    assert abs((stored - exact)[stored != data(scan_2mm)].mean()) < 0.01  # rounded, not cut off


def test_unsigned_integers_do_not_wrap_around(template):
    scan = nib.Nifti1Image(
        np.rint(np.clip(template.t1[::2, ::2, ::2], 0, 1) * 255).astype(np.uint8), np.eye(4)
    )
    scan.set_sform(template.lattice.affine @ np.diag([2, 2, 2, 1.0]), 4)
    result = inject(scan, PUTAMEN)
    assert result.image.get_data_dtype() == np.uint8
    signed = nib.Nifti1Image(data(scan).astype(np.int16), scan.affine)
    np.testing.assert_array_equal(data(result.mask), data(inject(signed, PUTAMEN).mask))
    contrast = inject(scan, Intensity("contrast", 2.0))
    assert data(contrast.image).max() == 255


@pytest.mark.parametrize("size", [1e-300, 1e307, 1.7e308])
def test_floats_at_the_edge_of_their_range(smooth, size):
    scan = nib.Nifti1Image(
        data(smooth).astype(np.float64) / data(smooth).max() * size, smooth.affine
    )
    with np.errstate(all="raise", under="ignore"):
        result = inject(scan, PUTAMEN)
    assert np.isfinite(data(result.image)).all()
    assert data(result.mask).sum() > 100


@pytest.fixture(params=["int16 scaled", "uint8", "float32", "big-endian", "nifti2", "four axes"])
def stored(request, tmp_path, scan_2mm):
    """Scans on disk with all that a header can hold."""
    values, storage = data(scan_2mm), request.param
    make = nib.Nifti2Image if storage == "nifti2" else nib.Nifti1Image
    header = make.header_class(endianness=">" if storage == "big-endian" else "<")
    dtype = {"uint8": np.uint8, "float32": np.float32}.get(storage, header.endianness + "i2")
    values = (values / (5 if storage == "uint8" else 1)).astype(dtype)
    header.set_data_dtype(dtype)
    header["descrip"] = b"a scan of somebody"
    header["cal_max"] = 900
    header.set_xyzt_units("mm", "sec")
    header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"kept"))
    image = make(values[..., None] if storage == "four axes" else values, None, header)
    image.set_sform(scan_2mm.affine, "mni")
    image.set_qform(scan_2mm.affine, "scanner")
    if storage == "int16 scaled":
        image.header.set_slope_inter(0.37, -12.5)
    image.to_filename(tmp_path / "scan.nii.gz")
    return tmp_path / "scan.nii.gz"


def test_header_type_and_scaling_are_kept(stored, tmp_path):
    before = nib.load(stored)
    result = inject(stored, PUTAMEN)
    result.save(tmp_path / "out")
    with pytest.raises(sb.SimbaError, match=r"nothing exists yet.*image\.nii\.gz"):
        result.save(tmp_path / "out")  # might be somebody's scan
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "image.nii.gz",
        "mask.nii.gz",
        "twin.nii.gz",
    ]
    raw = before.dataobj.get_unscaled()
    for name in ("image", "twin"):
        written = nib.load(tmp_path / "out" / f"{name}.nii.gz")
        assert type(written) is type(before)
        assert written.header == before.header
        assert [extension.get_content() for extension in written.header.extensions] == [b"kept"]
        assert (written.dataobj.slope, written.dataobj.inter) == (
            before.dataobj.slope,
            before.dataobj.inter,
        )
        np.testing.assert_array_equal(written.get_fdata(), getattr(result, name).get_fdata())
        numbers = written.dataobj.get_unscaled()
        assert numbers.dtype == raw.dtype
        unchanged = numbers == raw
        assert unchanged.all() if name == "twin" else 0.9 < unchanged.mean() < 1
    assert nib.load(tmp_path / "out" / "mask.nii.gz").get_data_dtype() == np.uint8
    np.testing.assert_allclose(result.mask.affine, before.affine)
    largest = np.abs(result.image.get_fdata() - before.get_fdata()).max()
    assert largest > 0.1 * np.abs(before.get_fdata()).max()


def test_a_folder_that_cannot_be_written_to(scan_2mm, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(sb.SimbaError, match="folder"):
        inject(scan_2mm, PUTAMEN).save(tmp_path / "file")


def test_a_real_scan(tmp_path):
    """A slab of a head from nibabel: 2 mm, signed int16, big-endian, left-handed."""
    data_path = pytest.importorskip("nibabel.testing").data_path
    before = nib.load(f"{data_path}/anatomical.nii")
    result = inject(f"{data_path}/anatomical.nii", Morphology("Thalamus_L", 2.0))
    assert result.image.get_data_dtype() == before.get_data_dtype()
    mask, points = data(result.mask).astype(bool), world(before.shape, before.affine)
    assert -30 < points[0][mask].mean() < 0  # on the left
    assert mask.sum() > 500
    with pytest.raises(sb.SimbaError, match="Postcentral_R"):
        inject(before, Morphology("Postcentral_R", 2.0))


# Magnitudes, and effects of the scanner.


def test_magnitudes(smooth, injected):
    carrier = Morphology(
        "Putamen_L", 1.25, magnitude={"disease": Normal(2.0, 1.0), "control": Normal(0.0, 1.0)}
    )
    by_name = inject(smooth, {"bias": carrier}, magnitudes={"bias": 2})
    np.testing.assert_array_equal(data(inject(smooth, carrier).image), data(by_name.image))
    by_number = inject(smooth, [PUTAMEN], magnitudes={"Putamen_L": 1.0})
    np.testing.assert_array_equal(data(by_number.image), data(injected.image))
    assert data(inject(smooth, PUTAMEN, magnitudes=0.5).mask).sum() < data(injected.mask).sum()


def test_contrast_turns_about_the_mean_of_the_brain(template, scan_2mm):
    result = inject(scan_2mm, Intensity("contrast", 0.4))
    before, after = data(scan_2mm).astype(float), data(result.image)
    brain = template.brain[::2, ::2, ::2] & (before > 100)
    slope, _ = np.polyfit(before[brain], after[brain], 1)
    assert slope == pytest.approx(1.4, abs=0.01)
    assert after[brain].mean() == pytest.approx(before[brain].mean(), rel=0.03)
    assert after.dtype == np.int16
    assert not after[before == 0].any()


def test_a_bias_field_is_that_of_a_scenario(template):
    lattice = template.lattice
    white = np.percentile(template.t1[template.brain], 99)
    scanner = Scanner(pivot=0.5).with_effect(Intensity("bias_field", 0.2), 1.0, template)
    expected = scanner.signal(template.t1 / white, lattice, noise_key(0, 0)) * white
    result = data(
        inject(nib.Nifti1Image(template.t1, lattice.affine), Intensity("bias_field", 0.2)).image
    )
    np.testing.assert_allclose(result[template.t1 > 0.1], expected[template.t1 > 0.1], rtol=2e-3)


def test_noise_is_repeatable_and_as_strong_as_asked(template, scan_2mm):
    effect = Intensity("noise", 0.08)
    first, again, reseeded = (data(inject(scan_2mm, effect, seed=seed).image) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert (first != reseeded).any()
    white = np.percentile(data(scan_2mm)[template.brain[::2, ::2, ::2]], 99)
    bright = data(scan_2mm) > 0.6 * white
    assert (first - data(scan_2mm).astype(float))[bright].std() / white == pytest.approx(
        0.08, rel=0.03
    )


def test_blur_is_in_millimetres_whatever_the_voxels(smooth):
    """A point in the middle of a head is spread to the requested width, along every axis."""
    head = nib.Nifti1Image(data(smooth)[::1, ::1, ::2], smooth.affine @ np.diag([1, 1, 2, 1.0]))
    dotted = data(head).copy()
    dotted[40, 48, 20] += 5
    spread = data(
        inject(nib.Nifti1Image(dotted, head.affine), Intensity("blur", 8.0)).image
    ) - data(inject(head, Intensity("blur", 8.0)).image)
    for axis, spacing in enumerate((2, 2, 4)):
        line = spread.sum(axis=tuple(a for a in range(3) if a != axis))
        at = np.arange(len(line)) * spacing
        centre = (line * at).sum() / line.sum()
        assert np.sqrt((line * (at - centre) ** 2).sum() / line.sum()) == pytest.approx(
            8 / 2.3548, rel=0.05
        )


def test_shape_first_then_the_scanner(scan_2mm):
    both = inject(scan_2mm, {"scanner": Intensity("contrast", 0.4), "shape": PUTAMEN})
    after = inject(inject(scan_2mm, PUTAMEN).image, Intensity("contrast", 0.4))
    assert (
        np.abs(data(both.image).astype(float) - data(after.image)).max() < 10
    )  # of 1000; the level of white shifts a little


# Bad input.


@pytest.mark.parametrize(
    ("effects", "options", "says"),
    [
        ([], {}, "effects must be"),
        ({}, {}, "effects must be"),
        ("Putamen_L", {}, "Morphology"),
        (None, {}, "Morphology"),
        ([PUTAMEN, "Insula_L"], {}, r"effects\[1\]"),
        ({"bias": 3}, {}, r"effects\['bias'\]"),
        ([PUTAMEN, Morphology("Putamen_L", 1.0)], {}, "mapping of names"),
        (Morphology("Putamen", 2.5), {}, "Putamen_L"),
        (Morphology("Putamen_L", 30.0), {}, "fold"),
        (PUTAMEN, {"magnitudes": 9.0}, "fold"),
        (PUTAMEN, {"magnitudes": float("nan")}, "a finite number"),
        (PUTAMEN, {"magnitudes": "strong"}, "a finite number"),
        (PUTAMEN, {"magnitudes": {"bias": 1.0}}, "magnitudes"),
        (PUTAMEN, {"threshold": 0}, "threshold"),
        (PUTAMEN, {"threshold": float("nan")}, "threshold"),
        (PUTAMEN, {"seed": -1}, "seed"),
        (PUTAMEN, {"template": "icbm"}, "icbm2009c"),
        (PUTAMEN, {"template": None}, "template"),
        (PUTAMEN, {"to_template": np.eye(3)}, r"shape \(4, 4\)"),
        (PUTAMEN, {"to_template": "affine.mat"}, "to_template"),
        (PUTAMEN, {"to_template": {"a": 1}}, "to_template must be a path"),
        (PUTAMEN, {"to_template": np.diag([1, 1, 0, 1])}, "inverted"),
        (PUTAMEN, {"to_template": np.diag([-1, 1, 1, 1])}, "mirror"),
        (PUTAMEN, {"to_template": np.full((4, 4), np.nan)}, "inverted"),
        (PUTAMEN, {"to_template": np.ones((4, 4))}, "last row"),
        (
            PUTAMEN,
            {"to_template": nib.affines.from_matvec(np.eye(3), [500, 0, 0])},
            "overlaps the template's brain",
        ),
        (
            PUTAMEN,
            {"to_template": nib.affines.from_matvec(np.eye(3), [40, 0, 0])},
            "position is wrong",
        ),
        (PUTAMEN, {"to_template": np.diag([-1, -1, 1, 1])}, "orientation"),
    ],
)
def test_bad_arguments(scan_2mm, effects, options, says):
    with pytest.raises(sb.SimbaError, match=says):
        inject(scan_2mm, effects, **options)


def test_unknown_axes_of_vectors():
    with pytest.raises(sb.SimbaError, match="vectors"):
        DisplacementField("field.nii.gz", vectors="ras")


def with_rows(image, affine):
    """An image whose header holds an affine that nibabel would refuse to write."""
    spoilt = nib.Nifti1Image(data(image), image.affine)
    for name, row in zip("xyz", affine, strict=False):
        spoilt.header[f"srow_{name}"] = row
    content = bytearray(nib.Nifti1Image(data(image), image.affine).to_bytes())
    content[:348] = spoilt.header.binaryblock
    return nib.Nifti1Image.from_bytes(bytes(content))


def cut(image, low, high):
    return image.slicer[low[0] : high[0], low[1] : high[1], low[2] : high[2]]


def with_value(image, value):
    values = data(image).astype(np.float32)
    values[40, 40, 40] = value
    return nib.Nifti1Image(values, image.affine)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda scan: None, "a path or a NIfTI image"),
        (lambda scan: data(scan), "a path or a NIfTI image"),
        (lambda scan: nib.MGHImage(data(scan), scan.affine), "Convert"),
        (lambda scan: nib.Nifti1Image(data(scan), None), "orientation"),
        (lambda scan: with_rows(scan, np.diag([2.0, 2, 0, 1])), "orientation"),
        (lambda scan: with_rows(scan, np.diag([2.0, np.nan, 2, 1])), "orientation"),
        (
            lambda scan: nib.Nifti1Image(data(scan), scan.affine @ np.diag([1, -1, 1, 1])),
            "overlaps",
        ),
        (lambda scan: nib.Nifti1Image(data(scan), np.eye(4)), "Putamen_L"),
        (
            lambda scan: nib.Nifti1Image(np.stack([data(scan)] * 2, -1), scan.affine),
            "three-dimensional",
        ),
        (lambda scan: nib.Nifti1Image(data(scan)[0], scan.affine), "three-dimensional"),
        (
            lambda scan: nib.Nifti1Image(data(scan).astype(np.complex64), scan.affine),
            "real numbers",
        ),
        (lambda scan: with_value(scan, np.nan), "NaN"),
        (lambda scan: with_value(scan, -np.inf), "NaN"),
        (lambda scan: nib.Nifti1Image(np.zeros(scan.shape, np.int16), scan.affine), "signal"),
        (lambda scan: nib.Nifti1Image(np.full(scan.shape, 7, np.int16), scan.affine), "signal"),
        (lambda scan: nib.Nifti1Image(data(scan)[::-1, ::-1], scan.affine), "orientation"),
        (lambda scan: cut(scan, (40, 0, 0), (80, 96, 80)), "Putamen_L"),
        (lambda scan: cut(scan, (20, 48, 30), (60, 60, 50)), "Putamen_L"),
        (lambda scan: cut(scan, (0, 0, 0), (8, 8, 8)), "overlaps"),
    ],
)
def test_bad_scans(scan_2mm, spoil, says):
    with pytest.raises(sb.SimbaError, match=says):
        inject(spoil(scan_2mm), PUTAMEN)


def truncated(path):
    path.write_bytes(path.read_bytes()[:-2000])


def huge(path):
    header = nib.load(path).header.copy()
    header.set_data_shape((30000, 30000, 30000))
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[:348] = header.binaryblock
    path.write_bytes(gzip.compress(bytes(content)))


def missing(path):
    path.unlink()


@pytest.mark.parametrize("damage", [truncated, huge, missing])
def test_bad_files(scan_2mm, tmp_path, damage):
    """As a scan, and as a field."""
    scan_2mm.to_filename(tmp_path / "scan.nii.gz")
    field = nib.Nifti1Image(
        np.random.default_rng(0).normal(size=(20, 20, 20, 3)).astype(np.float32), scan_2mm.affine
    )
    field.to_filename(tmp_path / "field.nii.gz")
    for name in ("scan", "field"):
        if not (name == "field" and damage is huge):
            damage(tmp_path / f"{name}.nii.gz")
    with pytest.raises(sb.SimbaError, match="scan"):
        inject(tmp_path / "scan.nii.gz", PUTAMEN)
    if damage is not huge:
        with pytest.raises(sb.SimbaError, match="to_template"):
            inject(scan_2mm, PUTAMEN, to_template=tmp_path / "field.nii.gz")


def lazily_truncated(scan_2mm, tmp_path):
    scan_2mm.to_filename(tmp_path / "scan.nii.gz")
    image = nib.load(tmp_path / "scan.nii.gz")
    truncated(tmp_path / "scan.nii.gz")
    return image


def test_a_file_that_is_damaged_after_it_was_opened(scan_2mm, tmp_path):
    with pytest.raises(sb.SimbaError, match="readable"):
        inject(lazily_truncated(scan_2mm, tmp_path), PUTAMEN)


def folding(image):
    u = np.zeros((*image.shape, 3), np.float32)
    u[..., 0] = 12 * np.sin(np.arange(image.shape[0]) / 2)[:, None, None]
    return nib.Nifti1Image(u, image.affine)


def creased(image):
    """A fold of one voxel beside the region, which the iteration would step over unnoticed."""
    u = np.zeros((*image.shape, 3), np.float32)
    u[:, 40:, :, 1] = -3
    return nib.Nifti1Image(u, image.affine)


@pytest.mark.parametrize(
    ("field", "says"),
    [
        (lambda scan: nib.Nifti1Image(data(scan), scan.affine), r"\(X, Y, Z, 3\)"),
        (
            lambda scan: nib.Nifti1Image(np.zeros((*scan.shape, 2), np.float32), scan.affine),
            r"\(X, Y, Z, 3\)",
        ),
        (
            lambda scan: nib.Nifti1Image(np.zeros((9, 9, 1, 3), np.float32), scan.affine),
            "at least 2 points",
        ),
        (
            lambda scan: nib.Nifti1Image(np.full((9, 9, 9, 3), np.nan, np.float32), scan.affine),
            "without NaN",
        ),
        (
            lambda scan: with_rows(
                nib.Nifti1Image(np.zeros((9, 9, 9, 3), np.float32), scan.affine), np.zeros((4, 4))
            ),
            "affine",
        ),
        (
            lambda scan: nib.Nifti1Image(
                np.zeros((*scan.shape, 3), np.float32)[:, :48], scan.affine
            ),
            "does not cover the region",
        ),
        (
            lambda scan: nib.Nifti1Image(
                np.zeros((*scan.shape, 3), np.float32)[:, :, :50], scan.affine
            ),
            "surroundings",
        ),
        (folding, "invert"),
        (creased, "invert"),
    ],
)
def test_bad_fields(scan_2mm, field, says):
    with pytest.raises(sb.SimbaError, match=says):
        inject(scan_2mm, PUTAMEN, to_template=field(scan_2mm))
