import json

import nibabel as nib
import numpy as np
import pytest

import simba_lab as sb
from simba_lab.synthesis.anatomy.modes import subject_lattice
from simba_lab.synthesis.anatomy.pca import PCASubjects
from simba_lab.synthesis.rendering.deformation import exponential, least_jacobian

LATTICE = sb.core.Lattice((41, 49, 41), 4.0, (-80.5, -114.5, -75.5))
MODEL = sb.synthesis.GaussianProcessSubjects()
# Small enough for the covariance of a field to be written down.
SMALL = sb.core.Lattice((7, 8, 5), 20.0, (-60.0, -70.0, -40.0))
SMALL_MODEL = sb.synthesis.GaussianProcessSubjects((120.0, 40.0), (5.0, 1.5))


def drawn(model, lattice, count, seed=0):
    rng = np.random.default_rng(seed)
    return np.stack(
        [
            model.velocity(rng.standard_normal(model.coefficient_count(lattice)), lattice)
            for _ in range(count)
        ]
    )


def rigid_fields(lattice):
    """Translations and rotations, (6, X, Y, Z, 3), and the ellipsoid that fits into the lattice."""
    points = np.moveaxis(lattice.points_mm(), 0, -1)
    points = points - points.mean(axis=(0, 1, 2))
    ellipsoid = ((points / points.max(axis=(0, 1, 2))) ** 2).sum(axis=-1) <= 1
    axes = np.eye(3)
    return np.stack(
        [np.broadcast_to(axis, points.shape) for axis in axes]
        + [np.cross(axis, points) for axis in axes]
    ), ellipsoid


@pytest.fixture(scope="module")
def target():
    """Covariance of the small model, from its definition: (1 - P) K (1 - P)'."""
    points = SMALL.points_mm().reshape(3, -1).T
    squared = ((points[:, None] - points) ** 2).sum(axis=-1)
    pairs = zip(SMALL_MODEL.length_scales_mm, SMALL_MODEL.deviations_mm, strict=True)
    kernel = sum(deviation**2 * np.exp(-squared / (2 * length**2)) for length, deviation in pairs)
    rigid, ellipsoid = rigid_fields(SMALL)
    rigid = rigid.reshape(6, -1)
    weighed = rigid * np.repeat(ellipsoid.ravel(), 3)
    projection = np.eye(rigid.shape[1]) - rigid.T @ np.linalg.solve(weighed @ rigid.T, weighed)
    return projection @ np.kron(kernel, np.eye(3)) @ projection.T


def test_covariance_is_that_of_the_process_without_rigid_motion(target):
    """Fields are linear in independent coefficients: unit coefficients give the covariance."""
    count = SMALL_MODEL.coefficient_count(SMALL)
    units = np.stack([SMALL_MODEL.velocity(unit, SMALL).ravel() for unit in np.eye(count)]).astype(
        float
    )
    # Modes with little variance are left out; nothing else is.
    assert np.linalg.norm(units.T @ units - target) < 0.01 * np.linalg.norm(target)
    assert np.trace(target) * 0.97 < np.square(units).sum() < np.trace(target)


def test_draws_fill_the_space_that_was_asked_for(target):
    """Along eigenvectors of the covariance, draws are independent with its eigenvalues."""
    values, vectors = np.linalg.eigh(target)
    values, vectors = values[:-21:-1], vectors[:, :-21:-1]  # those that no truncation touches
    scores = drawn(SMALL_MODEL, SMALL, 600).reshape(600, -1) @ vectors / np.sqrt(values)
    covariance = scores.T @ scores / len(scores)
    np.testing.assert_allclose(np.diag(covariance), 1, atol=4.5 * np.sqrt(2 / 600))
    np.testing.assert_allclose(
        covariance - np.diag(np.diag(covariance)), 0, atol=4.5 / np.sqrt(600)
    )


def test_subjects_are_not_of_rank_one():
    share = (
        np.linalg.svd(drawn(MODEL, LATTICE, 60)[:, ::8, ::8, ::8].reshape(60, -1), compute_uv=False)
        ** 2
    )
    assert share[0] / share.sum() < 0.4
    assert (share > share.sum() * 1e-5).sum() > 50


def test_no_subject_is_moved_as_a_whole():
    rigid, inside = rigid_fields(LATTICE)
    subject = drawn(MODEL, LATTICE, 1)[0]
    motion = np.linalg.lstsq(
        rigid[:, inside].reshape(6, -1).T, subject[inside].ravel().astype(float), rcond=None
    )[0]
    moved_mm = np.abs(np.tensordot(motion, rigid, axes=1)).max()
    assert moved_mm < 1e-3 < 1 < np.abs(subject).max()


def test_default_subjects_do_not_fold():
    for subject in drawn(MODEL, LATTICE, 20, seed=1):
        assert least_jacobian(exponential(-np.moveaxis(subject, -1, 0), LATTICE), LATTICE) > 0.3


def test_velocity_is_linear_in_the_coefficients():
    one, two = np.random.default_rng(1).standard_normal((2, MODEL.coefficient_count(LATTICE)))
    total = MODEL.velocity(one, LATTICE) + MODEL.velocity(two, LATTICE)
    np.testing.assert_allclose(MODEL.velocity(one + two, LATTICE), total, atol=1e-3)


def test_leading_coefficients_carry_most_variance():
    unit = np.eye(MODEL.coefficient_count(LATTICE), dtype=np.float32)
    leading, (_, inside) = MODEL.leading(LATTICE, 12), rigid_fields(LATTICE)
    energy = [np.square(MODEL.velocity(unit[k], LATTICE)[inside]).sum() for k in (*leading, -1)]
    assert (np.diff(energy) <= 1e-3 * energy[0]).all()
    assert energy[0] > 500 * energy[-1]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"length_scales_mm": (60.0,)}, "1 numbers"),
        ({"length_scales_mm": (60.0, 2.0)}, "at least 10 mm"),
        ({"deviations_mm": (1.0, -1.0)}, "at least 0"),
        ({"deviations_mm": (1.0, float("nan"))}, "finite"),
        ({"deviations_mm": 1.0}, "a sequence of finite numbers"),
        ({"length_scales_mm": ("long", "short")}, "a finite number"),
    ],
)
def test_bad_models_are_refused(fields, says):
    with pytest.raises(sb.SimbaError, match=says):
        sb.synthesis.GaussianProcessSubjects(**fields)


def test_wrong_number_of_coefficients():
    with pytest.raises(sb.SimbaError, match="coefficients must be of shape"):
        MODEL.velocity(np.zeros(3), LATTICE)


# -- principal components --


def as_image(field, lattice, *, itk=False):
    if itk:
        field = (field * np.array([-1, -1, 1]))[:, :, :, None]
    return nib.Nifti1Image(field.astype(np.float32), lattice.affine)


@pytest.fixture(scope="module")
def people(template):
    """Velocity fields of 24 "people": draws of a process whose covariance is known."""
    return drawn(
        sb.synthesis.GaussianProcessSubjects((60.0,), (3.0,)), subject_lattice(template), 24, seed=2
    )


@pytest.fixture(scope="module")
def fitted(people, template):
    lattice = subject_lattice(template)
    return PCASubjects.fit(
        [as_image(field, lattice, itk=True) for field in people],
        variance_kept=1.0,
        convention="lps",
    )


def test_components_span_the_people_that_they_were_fitted_to(people, fitted):
    """Twenty-three directions and a mean hold 24 people exactly: coefficients give the person."""
    assert len(fitted.variance_mm2) == 23
    assert fitted.variance_ratio.sum() == pytest.approx(1)
    points = np.prod(fitted.lattice.shape)
    scores = (
        np.tensordot(people - fitted.mean, fitted.components, axes=([1, 2, 3, 4], [1, 2, 3, 4]))
        / points
    )
    coefficients = scores / np.sqrt(fitted.variance_mm2)
    np.testing.assert_allclose(coefficients.T @ coefficients / 23, np.eye(23), atol=1e-3)
    np.testing.assert_allclose(
        fitted.velocity(coefficients[7], fitted.lattice), people[7], atol=1e-3
    )


def test_draws_of_components_have_the_covariance_of_the_people(fitted):
    """Coefficients projected back from drawn fields are those that were drawn."""
    rng = np.random.default_rng(3)
    coefficients = rng.standard_normal((40, 23))
    fields = np.stack([fitted.velocity(row, fitted.lattice) for row in coefficients])
    projected = np.tensordot(
        fields - fitted.mean, fitted.components, axes=([1, 2, 3, 4], [1, 2, 3, 4])
    )
    projected /= np.prod(fitted.lattice.shape) * np.sqrt(fitted.variance_mm2)
    np.testing.assert_allclose(np.cov(projected.T), np.cov(coefficients.T), atol=2e-3)
    expected = fitted.total_mm2 + np.square(fitted.mean).sum(axis=-1).mean()
    assert np.square(fields).sum(axis=-1).mean() == pytest.approx(expected, rel=0.15)


def test_variance_along_true_directions_is_recovered(fitted, template):
    """Along its leading modes a process has known variances; 24 people tell them to 29 % each."""
    lattice, process = (
        subject_lattice(template),
        sb.synthesis.GaussianProcessSubjects((60.0,), (3.0,)),
    )
    units = np.eye(process.coefficient_count(lattice))
    every = np.stack(
        [process.velocity(unit, lattice)[::4, ::4, ::4].ravel() for unit in units]
    ).astype(float)
    directions = every[process.leading(lattice, 6)]
    true = np.square(every @ directions.T).sum(axis=0)
    components = fitted.components[:, ::4, ::4, ::4].reshape(23, -1).astype(float)
    ratio = fitted.variance_mm2 @ np.square(components @ directions.T) / true
    assert np.abs(ratio - 1).max() < 4 * np.sqrt(2 / 23)
    assert ratio.mean() == pytest.approx(1, abs=0.4)


def test_fields_in_any_orientation_say_the_same(template):
    """A smooth field on an oblique, left-handed, anisotropic grid: the component is that field."""

    def field(x, y, z):
        return np.stack([3 + 0.05 * y, 2 * np.sin(x / 40), -0.04 * z + 0.02 * x], axis=-1)

    affine = nib.affines.from_matvec(
        np.diag([-3.0, 2.5, 3.0]) @ nib.eulerangles.euler2mat(0.2, 0.1, -0.15),
        [110.0, -110.0, -100.0],
    )
    index = np.moveaxis(np.indices((80, 100, 80)), 0, -1)
    world = nib.affines.apply_affine(affine, index)
    vectors = (field(*np.moveaxis(world, -1, 0)) * [-1, -1, 1])[:, :, :, None].astype(np.float32)
    images = [nib.Nifti1Image(sign * vectors, affine) for sign in (1, -1)]
    model = PCASubjects.fit(images, convention="lps")
    assert len(model.variance_mm2) == 1
    np.testing.assert_allclose(model.mean, 0, atol=1e-6)
    lattice = subject_lattice(template)
    # Two fields, one on either side of the mean, have a variance of two squares.
    component = model.velocity(np.ones(1), lattice) / np.sqrt(2)
    voxels = nib.affines.apply_affine(
        np.linalg.inv(affine), np.moveaxis(lattice.points_mm(), 0, -1)
    )
    covered = ((voxels >= 0) & (voxels <= np.array([79, 99, 79]))).all(axis=-1)
    expected = field(*lattice.points_mm())
    component *= np.sign((component * expected)[covered].sum())
    assert 0.5 < covered.mean() < 1
    np.testing.assert_allclose(component[covered], expected[covered], atol=0.01)
    assert np.abs(component[~covered]).max() < 1e-9


def test_people_who_are_all_alike_have_a_mean_and_no_components(template, scenario):
    lattice = subject_lattice(template)
    shift = np.broadcast_to([0.0, 4.0, 0.0], (*lattice.shape, 3))
    model = PCASubjects.fit([as_image(shift, lattice)] * 3)
    assert model.coefficient_count(lattice) == 0
    np.testing.assert_allclose(model.velocity(np.zeros(0), lattice), shift, atol=1e-6)
    cohort = sb.synthesise(scenario.replace(variability=model, noise=0, bias_field=0), seed=0).twin(
        without=("disease", "bias")
    )
    np.testing.assert_array_equal(cohort.array(0), cohort.array(5))
    centres = [
        np.argwhere(volume > 0.1).mean(axis=0)[1] * 8 for volume in (cohort.array(0), still(cohort))
    ]
    assert centres[0] - centres[1] == pytest.approx(4, abs=0.3)


def still(cohort):
    still_subjects = sb.synthesis.GaussianProcessSubjects((60.0,), (0.0,))
    scenario = cohort.scenario.replace(variability=still_subjects)
    return sb.synthesise(scenario, seed=0).twin(without=("disease", "bias")).array(0)


def test_models_are_interchangeable_in_a_scenario(fitted, scenario):
    cohort = sb.synthesise(scenario.replace(variability=fitted), seed=0)
    again = sb.synthesise(scenario.replace(variability=fitted), seed=0)
    assert hash(cohort.scenario) == hash(again.scenario)
    np.testing.assert_array_equal(cohort.array(3), again.array(3))
    assert np.abs(cohort.array(3) - cohort.array(4)).mean() > 0.01
    matched = [f"anatomy_{mode}" for mode in range(1, 17)]
    np.testing.assert_allclose(
        cohort.coefficients(3)[:16], cohort.table.iloc[3][matched].astype(float)
    )


@pytest.mark.parametrize("kind", ["process", "components"])
def test_scaled_models_scale_velocities(kind, fitted):
    model = fitted if kind == "components" else MODEL
    coefficients = np.random.default_rng(4).standard_normal(model.coefficient_count(LATTICE))
    expected = 0.3 * model.velocity(coefficients, LATTICE)
    np.testing.assert_allclose(
        model.scaled(0.3).velocity(coefficients, LATTICE), expected, atol=1e-4
    )


def test_too_much_variability_is_refused_with_a_share_that_works(fitted, scenario):
    wild = scenario.replace(variability=fitted.scaled(30))
    with pytest.raises(sb.SimbaError, match=r"scenario\.variability.*scaled\(0\.\d+\)"):
        sb.synthesise(wild, seed=0).array(0)


def test_fewer_components_on_request(people, template):
    images = [as_image(field, subject_lattice(template)) for field in people[:6]]
    complete, reduced = (
        PCASubjects.fit(images, variance_kept=1.0),
        PCASubjects.fit(images, variance_kept=0.6),
    )
    needed = int(np.searchsorted(np.cumsum(complete.variance_ratio), 0.6)) + 1
    assert len(reduced.variance_mm2) == needed < 5
    assert reduced.variance_ratio.sum() >= 0.6 > complete.variance_ratio[: needed - 1].sum()
    assert PCASubjects.fit(images, components=2) == PCASubjects.fit(images, 2) != reduced


def test_saved_models_come_back(fitted, scenario, tmp_path):
    saved = fitted.save(tmp_path / "models" / "people")
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == [
        "people.json",
        "people.safetensors",
    ]
    loaded = PCASubjects.load(tmp_path / "models" / "people.safetensors")
    assert loaded == fitted == saved
    assert len({loaded, fitted, saved}) == 1
    assert loaded != fitted.scaled(1.01)
    coefficients = np.random.default_rng(5).standard_normal(23)
    np.testing.assert_array_equal(
        loaded.velocity(coefficients, LATTICE), fitted.velocity(coefficients, LATTICE)
    )
    assert PCASubjects.from_dict(saved.to_dict()) == fitted
    first = scenario.replace(variability=saved)
    assert sb.Scenario.from_yaml(first.to_yaml()) == first


def test_only_saved_models_can_be_written_down(fitted, tmp_path):
    with pytest.raises(sb.SimbaError, match="Save the model"):
        fitted.to_dict()
    known = fitted.save(tmp_path / "people").to_dict()
    with pytest.raises(sb.SimbaError, match="where nothing exists yet"):
        fitted.scaled(0.5).save(tmp_path / "people")
    assert fitted.save(tmp_path / "people").to_dict() == known  # the same is no loss
    for ending in (".safetensors", ".json"):
        (tmp_path / f"people{ending}").unlink()
    fitted.scaled(0.5).save(tmp_path / "people")
    with pytest.raises(sb.SimbaError, match="another model by now"):
        PCASubjects.from_dict(known)
    with pytest.raises(sb.SimbaError, match="file and sha256"):
        PCASubjects.from_dict({"file": "people"})


def damage_header(change):
    def damage(folder):
        header = json.loads((folder / "people.json").read_text())
        change(header)
        (folder / "people.json").write_text(json.dumps(header))

    return damage


def truncate(name):
    def damage(folder):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])

    return damage


def flip(folder):
    content = bytearray((folder / "people.safetensors").read_bytes())
    content[-5] ^= 1
    (folder / "people.safetensors").write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda folder: (folder / "people.json").unlink(), "an existing file"),
        (truncate("people.safetensors"), "truncated or corrupt"),
        (truncate("people.json"), "truncated or corrupt"),
        (flip, "digest differ"),
        (damage_header(lambda header: header.update(people=1000)), "digest differ"),
        (damage_header(lambda header: header.update(sha256="0")), "digest differ"),
        (damage_header(lambda header: header.update(format="something else")), "of the format"),
        (damage_header(lambda header: header["lattice"].update(shape=[1, 2, 3])), "corrupt"),
        (damage_header(lambda header: header.pop("lattice")), "corrupt"),
    ],
)
def test_damaged_models_are_refused(fitted, tmp_path, damage, says):
    fitted.save(tmp_path / "people")
    damage(tmp_path)
    with pytest.raises(sb.SimbaError, match=says):
        PCASubjects.load(tmp_path / "people")


def with_nan(image):
    data = image.get_fdata(dtype=np.float32).copy()
    data[3, 3, 3] = np.nan
    return nib.Nifti1Image(data, image.affine)


def elsewhere(image):
    return nib.Nifti1Image(
        image.dataobj, nib.affines.from_matvec(image.affine[:3, :3], [500.0, 0, 0])
    )


@pytest.mark.parametrize(
    ("change", "options", "says"),
    [
        (lambda image: [image], {}, "at least two fields"),
        (lambda image: image, {}, "a list of paths"),
        (lambda image: [image, image.slicer[..., :2]], {}, r"fields\[1\] must be of shape"),
        (lambda image: [image.slicer[..., 0], image], {}, r"fields\[0\] must be of shape"),
        (lambda image: [image, with_nan(image)], {}, r"fields\[1\].*NaN"),
        (lambda image: [image, elsewhere(image)], {}, r"fields\[1\].*0% of the template's brain"),
        (lambda image: [image, "nowhere.nii.gz"], {}, r"fields\[1\].*existing NIfTI"),
        (lambda image: [image, 7], {}, r"fields\[1\].*existing NIfTI"),
        (lambda image: [image, image], {"components": 2}, "from 0 to 1"),
        (lambda image: [image, image], {"variance_kept": 0.0}, "variance_kept"),
        (lambda image: [image, image], {"convention": "ras+"}, "Did you mean ras"),
    ],
)
def test_bad_fields_are_refused(people, template, change, options, says):
    image = as_image(people[0], subject_lattice(template))
    with pytest.raises(sb.SimbaError, match=says):
        PCASubjects.fit(change(image), **options)


def test_truncated_fields_are_refused(people, template, tmp_path):
    path = tmp_path / "field.nii.gz"
    nib.save(as_image(people[0], subject_lattice(template)), path)
    PCASubjects.fit([path, str(path)])  # as it is, it is good
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(sb.SimbaError, match="truncated or corrupt"):
        PCASubjects.fit([path, path])
    path.write_bytes(b"not an image")
    with pytest.raises(sb.SimbaError, match="truncated or corrupt"):
        PCASubjects.fit([path, path])


def test_models_do_not_leave_their_lattice(fitted):
    with pytest.raises(sb.SimbaError, match="template of the scenario"):
        fitted.velocity(np.zeros(23), SMALL)
