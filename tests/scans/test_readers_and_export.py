import errno
import gzip
import json
import os
import pickle
import shutil
import signal
import subprocess
import time
from dataclasses import fields

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from scipy.spatial.transform import Rotation

import simba_lab as sb
from simba_lab.scans import (
    BidsImages,
    Preparation,
    TableImages,
    bids_export,
    export_bids,
    open_cohort,
    read_bids,
    read_simba,
    read_table,
    save_cohort,
)
from simba_lab.synthesis.anatomy.nifti import read_nifti

SPACING_MM = 8.0


@pytest.fixture(scope="module")
def dataset(cohort, tmp_path_factory):
    subjects = cohort.where(np.arange(30))
    return export_bids(
        subjects, tmp_path_factory.mktemp("bids") / "ds", twins="bias", authors=("A. One", "B. Two")
    )


@pytest.fixture(scope="module")
def lattice(template):
    return template.output_lattice(SPACING_MM)


@pytest.fixture
def people(tmp_path, template, lattice):
    """A folder with twelve small images and a table; the brains differ in brightness."""
    image, coarse = template.antialiased(SPACING_MM)
    step = round(SPACING_MM / coarse.spacing_mm)
    data = image[step // 2 :: step, step // 2 :: step, step // 2 :: step]
    affine = nib.affines.from_matvec(
        np.eye(3) * SPACING_MM, np.add(coarse.origin_mm, (step // 2) * coarse.spacing_mm)
    )
    (tmp_path / "images").mkdir()
    rows = []
    for person in range(12):
        nib.save(
            nib.Nifti1Image(data * (50 + 10 * person), affine),
            tmp_path / "images" / f"{person}.nii.gz",
        )
        rows.append(
            (
                f"images/{person}.nii.gz",
                "patient" if person % 2 else "healthy",
                "FM"[person % 4 // 2],
                person,
            )
        )
    table = pd.DataFrame(rows, columns=["file", "group", "sex", "age"])
    table.to_csv(tmp_path / "table.csv", index=False)
    return tmp_path


def load(folder, **changes):
    """Read the table; changes are parameters of `read_table` or of `Preparation`."""
    settings = {field.name for field in fields(Preparation)}
    chosen = {name: value for name, value in changes.items() if name in settings}
    preparation = Preparation(**({"spacing_mm": SPACING_MM} | chosen))
    options = {name: value for name, value in changes.items() if name not in settings}
    options = {"label": "group", "disease": "patient"} | options
    columns = {name: options.pop(name) for name in ("file", "subject") if name in options}
    table = TableImages(folder / "table.csv", **columns) if columns else folder / "table.csv"
    return read_table(table, preparation=preparation, **options)


def edit(folder, **columns):
    table = pd.read_csv(folder / "table.csv", dtype=str)
    table.assign(**columns).to_csv(folder / "table.csv", index=False)


# -- export --


def test_round_trip_keeps_every_voxel_and_label(cohort, dataset):
    cohort = cohort.where(np.arange(30))
    scans = read_bids(
        dataset,
        label="label",
        disease="disease",
        groups="bias",
        use="split",
        preparation=Preparation(SPACING_MM, rescale=False),
    )
    np.testing.assert_array_equal(scans.arrays(), cohort.arrays())
    assert scans.lattice == cohort.lattice
    for column in ("split", "label", "bias"):
        np.testing.assert_array_equal(scans[column], cohort[column])
    np.testing.assert_array_equal(scans.table.index, cohort.table.index)
    assert len(scans.test) == len(cohort.test) and set(scans["fold"]) == set(range(5))


def test_derivatives_are_the_twins_and_the_truth(cohort, dataset):
    index = int(np.flatnonzero(cohort["bias"])[0])
    subject = f"sub-{cohort.table.index[index]:04d}"
    folder = dataset / "derivatives" / "simba-lab" / subject / "anat"
    twin = nib.load(folder / f"{subject}_desc-withoutBias_T1w.nii.gz")
    mask = nib.load(folder / f"{subject}_desc-bias_mask.nii.gz")
    raw = nib.load(dataset / subject / "anat" / f"{subject}_T1w.nii.gz")
    np.testing.assert_array_equal(
        twin.get_fdata(dtype=np.float32), cohort.twin(without="bias").array(index)
    )
    np.testing.assert_array_equal(
        np.asarray(mask.dataobj).astype(bool), cohort.changed(index, "bias")
    )
    np.testing.assert_allclose(raw.affine, cohort.lattice.affine)
    assert raw.header.get_xyzt_units()[0] == "mm" and np.asarray(mask.dataobj).any()
    sidecar = json.loads(
        (folder / f"{subject}_desc-withoutBias_T1w.json").read_text(encoding="utf-8")
    )
    assert sidecar["EffectMagnitudes"]["bias"] == 0 and sidecar["Simulated"] is True


def test_dataset_says_that_it_is_simulated_and_describes_every_column(cohort, dataset):
    table = pd.read_csv(dataset / "participants.tsv", sep="\t")
    described = json.loads((dataset / "participants.json").read_text(encoding="utf-8"))
    assert set(described) == set(table.columns) >= set(cohort.table.columns)
    assert all(entry["Description"] for entry in described.values())
    assert "Putamen_L" in described["bias"]["Description"] and set(
        described["label"]["Levels"]
    ) == set(table["label"])
    for sidecar in dataset.glob("sub-*/anat/*.json"):
        assert "Simulated image" in json.loads(sidecar.read_text(encoding="utf-8"))["Description"]
    assert "does not exist" in (dataset / "README.md").read_text(encoding="utf-8")


def test_scenario_in_the_dataset_makes_the_same_images(cohort, dataset):
    again = sb.synthesise(
        sb.Scenario.from_yaml(dataset / "code" / "scenario.yaml"), seed=cohort.seed
    )
    np.testing.assert_array_equal(again.array(5), cohort.array(5))


def test_files_are_equal_whatever_the_threads(cohort, tmp_path):
    subjects = cohort.where(np.arange(3))
    single = export_bids(subjects, tmp_path / "one", twins="bias", n_jobs=1)
    double = export_bids(subjects, tmp_path / "two", twins="bias", n_jobs=2)
    names = sorted(path.relative_to(single) for path in single.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(double) for path in double.rglob("*") if path.is_file())
    assert len(names) == 5 + 2 + 3 * 2 * (1 + 1 + 2)
    for name in names:
        assert (single / name).read_bytes() == (double / name).read_bytes(), name


def test_public_validator_finds_no_error(dataset, scenario, tmp_path):
    biases = {
        "bright_scanner": sb.Intensity(
            "contrast", 0.2, prevalence={"disease": 0.8, "control": 0.2}
        ),
        "blur": sb.Intensity("blur", 0.2),
    }
    biased = sb.synthesise(scenario.replace(subjects=16, bias=biases), seed=1)
    exported = export_bids(biased.where(np.arange(2)), tmp_path / "several", twins=biases)
    for folder in (dataset, exported):
        result = subprocess.run(
            ["bids-validator-deno", str(folder), "--recursive", "--format", "json"],
            capture_output=True,
            text=True,
        )
        report = json.loads(result.stdout)
        reports = [report, *report["derivativesSummary"].values()]
        assert len(reports) == 2
        issues = [issue for entry in reports for issue in entry["issues"]["issues"]]
        assert not [issue for issue in issues if issue["severity"] == "error"]
        # Warnings are left for facts that a simulation has not got: coils, echo times, event tags,
        # for one also authors.
        assert {issue["code"] for issue in issues} <= {
            "SIDECAR_KEY_RECOMMENDED",
            "JSON_KEY_RECOMMENDED",
            "NO_AUTHORS",
            "TOO_FEW_AUTHORS",
        }
        assert result.returncode == 0


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_failed_export_leaves_nothing(cohort, tmp_path, monkeypatch, code):
    written = []

    def failing(stem, *arguments):
        written.append(stem)
        if len(written) > 5:
            raise OSError(code, "the reason")
        stem.with_suffix(".nii.gz").write_bytes(b"x")

    monkeypatch.setattr(bids_export, "_write_image", failing)
    with pytest.raises(
        sb.SimbaError, match="enough space" if code == errno.ENOSPC else "the reason"
    ):
        export_bids(cohort, tmp_path / "ds")
    assert len(written) > 5 and not list(tmp_path.iterdir())


def test_an_export_that_was_killed_leaves_nothing_for_the_next(cohort, tmp_path):
    """Real processes, SIGKILL at random moments; the third time nobody kills it."""
    few = cohort.where(np.arange(6))
    export_bids(few, tmp_path / "whole", n_jobs=1)
    for moment in (0.05, 0.15, None):
        child = os.fork()
        if child == 0:
            try:
                export_bids(few, tmp_path / "ds", n_jobs=1)
            finally:
                os._exit(0)
        if moment is not None:
            time.sleep(moment)
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        if (tmp_path / "ds").exists():
            break
    assert {path.name for path in tmp_path.iterdir()} == {"whole", "ds"}
    whole, again = (
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.*")}
        for folder in (tmp_path / "whole", tmp_path / "ds")
    )
    assert whole == again


def test_exports_that_are_refused(cohort, people, tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(sb.SimbaError, match="nothing exists yet"):
        export_bids(cohort, tmp_path / "there")
    with pytest.raises(sb.SimbaError, match="in a folder that exists"):
        export_bids(cohort, tmp_path / "not" / "there")
    with pytest.raises(sb.core.UnknownNameError, match="Did you mean bias"):
        export_bids(cohort, tmp_path / "ds", twins="biass")
    with pytest.raises(sb.SimbaError, match="synthetic cohort, got 'ScanCohort'"):
        export_bids(load(people), tmp_path / "ds")
    with pytest.raises(sb.SimbaError, match="none of them twice"):
        export_bids(cohort.where(np.array([0, 0])), tmp_path / "ds")
    assert not (tmp_path / "ds").exists() and not list((tmp_path / "there").iterdir())


# -- reading --


@pytest.mark.parametrize(
    "storage", ["as it is", "other axes", "oblique", "anisotropic", "scaled integers"]
)
def test_orientation_shape_and_type_of_voxels_do_not_matter(tmp_path, template, storage):
    """The template, stored in many ways, is the template again at 4 mm."""
    image = template.image()
    if storage == "other axes":
        image = image.as_reoriented(nib.orientations.axcodes2ornt("PIL"))
    elif storage == "scaled integers":
        image = nib.Nifti1Image(template.t1 * 900, image.affine, dtype=np.int16)
        image.header.set_slope_inter(0.5, 0)
    elif storage != "as it is":
        from nilearn.image import resample_img

        turn = Rotation.from_euler(
            "xyz", (15, -10, 20) if storage == "oblique" else (0, 0, 0), degrees=True
        ).as_matrix()
        axes = turn * ((2, 2, 2) if storage == "oblique" else (1.5, 1.5, 3))
        shape = np.array((110, 120, 110) if storage == "oblique" else (125, 145, 70))
        centre = np.mean(template.box_mm, axis=0)
        affine = nib.affines.from_matvec(axes, centre - axes @ (shape - 1) / 2)
        image = resample_img(image, target_affine=affine, target_shape=tuple(shape.tolist()))
    nib.save(image, tmp_path / "image.nii.gz")
    source = Preparation(template=template).images({7: tmp_path / "image.nii.gz"})
    volume = source.array(7)
    brain = source.reference > 0.1
    tolerance = {"oblique": 0.01, "anisotropic": 0.015}.get(
        storage, 1e-3
    )  # both were interpolated once before
    assert np.abs(volume - source.reference)[brain].mean() < tolerance
    assert np.abs(volume[::-1] - source.reference)[brain].mean() > 0.03  # left for right would show
    assert np.percentile(volume[source.reference > 0.02], 99) == pytest.approx(1, abs=0.05)


def test_coarse_voxels_are_not_aliased(tmp_path, template, lattice):
    """A pattern that alternates faster than the coarse voxels vanishes; its mean stays."""
    checks = np.indices(template.t1.shape).sum(axis=0) % 2
    nib.save(
        nib.Nifti1Image(checks.astype(np.int16), template.lattice.affine), tmp_path / "c.nii.gz"
    )
    preparation = Preparation(SPACING_MM, template, rescale=False)
    volume = preparation.images({0: tmp_path / "c.nii.gz"}).array(0)
    assert volume.shape == lattice.shape
    assert volume.mean() == pytest.approx(0.5, abs=1e-3) and volume.std() < 0.01


def test_fine_volumes_read_coarsely_are_coarse_volumes(scenario, tmp_path):
    """Reading 4 mm images at 8 mm comes closer to rendering at 8 mm than another subject."""
    clean = {"noise": 0.0, "bias_field": 0.0}
    fine = sb.synthesise(scenario.replace(spacing_mm=4, **clean), seed=0)
    coarse = sb.synthesise(scenario.replace(**clean), seed=0).arrays()[:10]
    export_bids(fine.where(np.arange(10)), tmp_path / "ds", masks=False)
    table = pd.read_csv(tmp_path / "ds" / "participants.tsv", sep="\t", dtype=str)
    table["label"] = ["disease", "control"] * 5  # reading needs five of either class
    table.to_csv(tmp_path / "ds" / "participants.tsv", sep="\t", index=False)
    preparation = Preparation(spacing_mm=8, rescale=False)
    read = read_bids(
        tmp_path / "ds", label="label", disease="disease", preparation=preparation
    ).arrays()
    brain = coarse > 0.1
    error = np.abs(read - coarse)[brain].mean()
    error_of_others = np.abs(np.roll(coarse, 1, axis=0) - coarse)[brain].mean()
    assert error < 0.02 and error < 0.3 * error_of_others


def test_brightness_is_that_of_the_template(people):
    cohort = load(people)
    volumes = cohort.arrays()
    reference = cohort.source.reference
    assert (volumes >= 0).all() and volumes.dtype == np.float32
    levels = np.percentile(volumes[:, reference > 0.02], 99, axis=1)
    np.testing.assert_allclose(levels, np.percentile(reference[reference > 0.02], 99), rtol=1e-3)
    assert levels[0] == pytest.approx(1, abs=0.06)
    raw = load(people, rescale=False).arrays()
    np.testing.assert_allclose(
        raw.max(axis=(1, 2, 3)) / raw[0].max(), 1 + np.arange(12) / 5, rtol=1e-4
    )


def test_images_elsewhere_are_refused_or_centred(tmp_path, template):
    image = template.image()
    affine = nib.affines.from_matvec(np.eye(3), (120, -90, 60)) @ image.affine
    nib.save(nib.Nifti1Image(template.t1, affine), tmp_path / "there.nii")
    with pytest.raises(
        sb.core.TemplateError, match=r"there.nii.*covers \d+% of the template's brain"
    ):
        Preparation(template=template).images({0: tmp_path / "there.nii"})
    source = Preparation(template=template, align="centre").images({0: tmp_path / "there.nii"})
    assert np.abs(source.array(0) - source.reference).mean() < 1e-3


def test_classes_groups_splits_and_folds(people):
    cohort = load(people, groups={"sex": "F"})
    table = pd.read_csv(people / "table.csv")
    np.testing.assert_array_equal(cohort["label"], table["group"] == "patient")
    np.testing.assert_array_equal(cohort["sex"], table["sex"] == "F")
    assert [len(part) for part in (cohort.train, cohort.validation, cohort.test)] == [6, 3, 3]
    assert cohort.table.groupby("split")["label"].sum().between(1, 3).all()
    assert (
        cohort.table.groupby("fold")["label"]
        .agg(["sum", "size"])
        .apply(lambda row: 0 < row["sum"] < row["size"], axis=1)
        .all()
    )
    pd.testing.assert_frame_equal(load(people, groups={"sex": "F"}).table, cohort.table)
    edit(people, split=["train", "test"] * 3 + ["validation", "train"] * 3)
    assert (
        load(people, use="split")["split"].tolist()
        == ["train", "test"] * 3 + ["validation", "train"] * 3
    )


def test_groups_keep_their_values_and_others_are_kept_beside(people):
    sites = ["north", "south", "west"] * 4
    edit(people, site=sites, dose=["0.5", "n/a"] * 6, code=["007", "8"] * 6, label="x", fold="y")
    cohort = load(people, groups=["site", "age"])
    assert cohort["site"].tolist() == sites and cohort["age"].tolist() == list(range(12))
    columns = ["participant", "split", "label", "site", "age", "fold", "sex", "dose", "code"]
    assert cohort.table.columns.tolist() == columns
    assert cohort["code"].tolist() == ["007", "8"] * 6
    assert cohort["dose"].tolist()[::2] == [0.5] * 6 and np.isnan(cohort["dose"][1::2]).all()
    # What is beside the design is no part of what the volumes follow from.
    before = cohort.identity
    edit(people, code="other")
    assert load(people, groups=["site", "age"]).identity == before
    edit(people, site=sites[::-1])
    assert load(people, groups=["site", "age"]).identity != before
    save_cohort(cohort, people / "store", n_jobs=1)
    pd.testing.assert_frame_equal(open_cohort(people / "store").table, cohort.table)


def test_splits_are_stratified_by_groups_of_several_values(dataset, tmp_path):
    shutil.copytree(dataset, tmp_path / "ds", ignore=shutil.ignore_patterns("derivatives"))
    table = pd.read_csv(tmp_path / "ds" / "participants.tsv", sep="\t", dtype=str)
    table["site"] = np.array(["a", "b", "c"])[table.groupby("label").cumcount() % 3]
    table.to_csv(tmp_path / "ds" / "participants.tsv", sep="\t", index=False)
    preparation = Preparation(SPACING_MM)
    cohort = read_bids(
        tmp_path / "ds", label="label", disease="disease", groups="site", preparation=preparation
    )
    assert pd.crosstab(cohort["site"], cohort["split"])["train"].between(4, 6).all()


def test_a_number_is_a_target_and_no_label_is_needed(people):
    cohort = load(people, label="age", disease=None, use="test")
    assert cohort["label"].tolist() == list(range(12)) and len(cohort.test) == 12
    quarters = load(people, label="age", disease=None)
    assert quarters.table.groupby("split")["label"].mean().between(3, 8).all()
    save_cohort(quarters, people / "store", n_jobs=1)
    pd.testing.assert_frame_equal(open_cohort(people / "store").table, quarters.table)
    bare = load(people, label=None, disease=None)
    assert "label" not in bare.table and len(bare.train) == 6 and bare["sex"][0] == "F"
    edit(people, age=["61.5", "n/a", *map(str, range(10))])
    with pytest.raises(sb.SimbaError, match=r"column 'age' .* 1 of 12 missing"):
        load(people, label="age", disease=None)


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_all_scans_can_be_for_one_use(people, split):
    cohort = load(people, use=split)
    assert set(cohort["split"]) == {split} and set(cohort["fold"]) == set(range(5))


def test_whoever_lacks_something_is_dropped_with_one_warning(people, template):
    for number in range(12, 18):
        shutil.copy(
            people / "images" / f"{number - 12}.nii.gz", people / "images" / f"{number}.nii.gz"
        )
    rows = [
        (f"images/{k}.nii.gz", "patient" if k % 2 else "healthy", "FM"[k % 4 // 2], k)
        for k in range(18)
    ]
    table = pd.DataFrame(rows, columns=["file", "group", "sex", "age"]).astype(str)
    table.loc[0, "group"], table.loc[1, "sex"] = "n/a", ""
    table.to_csv(people / "table.csv", index=False)
    (people / "images" / "2.nii.gz").unlink()
    path = people / "images" / "3.nii.gz"
    path.write_bytes(path.read_bytes()[:-200])
    image = nib.load(people / "images" / "4.nii.gz")
    affine = nib.affines.from_matvec(np.eye(3), (150, 0, 0)) @ image.affine
    nib.save(nib.Nifti1Image(image.get_fdata(), affine), people / "images" / "4.nii.gz")
    image = nib.load(people / "images" / "5.nii.gz")
    nib.save(nib.Nifti1Image(image.get_fdata() * 0, image.affine), people / "images" / "5.nii.gz")
    with pytest.raises(sb.SimbaError, match="missing"):
        load(people, groups="sex")
    with pytest.warns(UserWarning) as caught:
        cohort = load(people, groups="sex", on_missing="drop")
    (warning,) = [str(w.message) for w in caught if "dropped" in str(w.message)]
    assert warning.startswith("6 of 18 people were dropped.")
    for text in ("no value of 'group': images/0.", "no value of 'sex': images/1.", "images/2."):
        assert text in warning
    assert "in the space of the template 'icbm2009c': images/4." in warning and "3.nii" in warning
    assert cohort["participant"].tolist() == [f"images/{k}.nii.gz" for k in range(6, 18)]
    table["group"] = "n/a"
    table.to_csv(people / "table.csv", index=False)
    with pytest.warns(UserWarning, match="18 of 18"), pytest.raises(sb.SimbaError, match="nobody"):
        load(people, on_missing="drop")


@pytest.mark.parametrize("name", ["subject", "participant_id"])
def test_a_column_names_the_subjects_and_numbers_them(people, name):
    assert load(people)["participant"][3] == "images/3.nii.gz"
    edit(people, **{name: [f"sub-{number:03d}" for number in range(20, 32)]})
    cohort = load(people)
    assert cohort["participant"][3] == "sub-023"
    assert cohort.table.index.tolist() == list(range(20, 32))


def test_any_column_can_name_the_subjects_and_the_files(people):
    table = pd.read_csv(people / "table.csv", dtype=str).rename(columns={"file": "scan"})
    records = [f"R{number}" for number in range(12)]
    table.assign(record=records, subject="unused").to_csv(people / "table.csv", index=False)
    cohort = load(people, file="scan", subject="record")
    assert cohort["participant"].tolist() == records
    assert cohort.source.paths[3] == (people / "images" / "3.nii.gz").resolve()


def test_third_values_are_left_out_when_both_classes_are_named(people):
    edit(people, group=["healthy", "patient"] * 5 + ["unclear", "n/a"])
    cohort = load(people, control="healthy")
    assert len(cohort) == 10 and cohort["label"].tolist() == [0, 1] * 5
    with pytest.raises(sb.SimbaError, match=r"missing values, got 1 of 12 .*written as \['n/a'\]"):
        load(people)
    edit(people, group=["healthy", "patient"] * 5 + ["unclear", "unclear"])
    with pytest.raises(sb.SimbaError, match="more than two classes"):
        load(people)


def test_a_table_by_hand_has_no_missing_classes(people):
    table = pd.DataFrame({"split": "test", "label": [0, 1, np.nan], "fold": 0})
    with pytest.raises(sb.SimbaError, match=r"'label' of the table .*1 of 3 missing"):
        sb.scans.ScanCohort(table, load(people).source)


def test_whoever_has_no_class_is_left_out_when_both_are_named(people):
    edit(people, group=["patient"] * 5 + ["none"] * 5 + ["n/a", "-"])
    clinic = load(people, control="none")
    assert clinic["label"].tolist() == [1] * 5 + [0] * 5
    with pytest.raises(sb.SimbaError, match="7 of 12 missing"):
        load(people)


def test_names_that_look_like_numbers_or_gaps_survive_a_store(people):
    """An unmatched quote swallows no row, and 0001 is not 1 when the store is opened again."""
    names = ["0001", "NA", "1E5", "01", *(f"P{person}" for person in range(8))]
    edit(people, subject=names, note=["ok"] * 3 + ['"fell asleep'] + ["ok"] * 5 + ['woke up"'] * 3)
    rows = pd.read_csv(people / "table.csv", dtype=str, keep_default_na=False)
    lines = ["\t".join(row) for row in [rows.columns, *rows.to_numpy().tolist()]]
    (people / "table.tsv").write_text("\n".join(lines), encoding="utf-8")
    preparation = Preparation(spacing_mm=SPACING_MM)
    settings = {"label": "group", "disease": "patient", "preparation": preparation}
    scans = read_table(people / "table.tsv", **settings)
    assert scans["participant"].tolist() == names
    save_cohort(scans, people / "store", n_jobs=1)
    opened = open_cohort(people / "store")
    assert opened["participant"].tolist() == names
    pd.testing.assert_frame_equal(opened.table, scans.table)


def test_source_travels_and_tells_what_it_is(people):
    cohort = load(people)
    again = pickle.loads(pickle.dumps(cohort.source))
    np.testing.assert_array_equal(again.array(3), cohort.array(3))
    assert again.identity == cohort.source.identity == load(people).source.identity
    assert load(people, spacing_mm=7.0).source.identity != cohort.source.identity
    assert load(people, disease="healthy").source.identity != cohort.source.identity
    image = nib.load(people / "images" / "3.nii.gz")
    nib.save(
        nib.Nifti1Image(image.get_fdata()[:, :, ::-1], image.affine), people / "images" / "3.nii.gz"
    )
    assert load(people).source.identity != cohort.source.identity


def test_sessions_and_runs_are_chosen_by_entities(people, template):
    rows = ["participant_id\tgroup"]
    for person in range(12):
        rows.append(f"sub-p{person}\t{'patient' if person % 2 else 'healthy'}")
        for session in ("1", "2"):
            folder = people / "bids" / f"sub-p{person}" / f"ses-{session}" / "anat"
            folder.mkdir(parents=True)
            shutil.copy(
                people / "images" / f"{person}.nii.gz",
                folder / f"sub-p{person}_ses-{session}_T1w.nii.gz",
            )
            (folder / f"sub-p{person}_ses-{session}_T2w.nii.gz").touch()
    (people / "bids" / "participants.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    options = {"label": "group", "disease": "patient", "preparation": Preparation(SPACING_MM)}
    with pytest.raises(
        sb.core.TemplateError, match=r"sub-p0.*exactly one.*sub-p0_ses-1_T1w.nii.gz.*entities="
    ):
        read_bids(people / "bids", **options)
    cohort = read_bids(BidsImages(people / "bids", entities={"ses": "2"}), **options)
    assert {path.parent.parent.name for path in cohort.source.paths.values()} == {"ses-2"}
    assert cohort["participant"][3] == "sub-p3" and cohort.array(3).max() > 0.5
    for path in sorted((people / "bids").glob("sub-*/ses-2/anat/*_T1w.nii.gz")):
        shutil.copy(path, path.with_name(path.name.replace("_T1w", "_space-MNI_T1w")))
    with pytest.raises(sb.core.TemplateError, match="None is an image without it"):
        read_bids(BidsImages(people / "bids", entities={"ses": 2}), **options)
    cohort = read_bids(BidsImages(people / "bids", entities={"ses": 2, "space": None}), **options)
    assert all("space" not in path.name for path in cohort.source.paths.values())
    shutil.rmtree(people / "bids" / "sub-p4")
    with pytest.raises(sb.core.TemplateError, match=r"sub-p4.*Found: none"):
        read_bids(BidsImages(people / "bids", entities={"ses": "2", "space": None}), **options)


@pytest.mark.parametrize("codes", [("0", "1"), ("0", "1", "2", "3")])
def test_tables_of_the_simba_papers(people, codes):
    """As the authors' scripts write it: absolute paths of their machine, names with magnitudes."""
    source = sorted((people / "images").iterdir())
    expected = []
    for split, count in (("train", 12), ("val", 8), ("test", 8)):
        (people / "exp" / split).mkdir(parents=True)
        rows = []
        for number in range(count):
            code, disease = codes[number // 2 % len(codes)], (-1.0, 1.25)[number % 2]
            name = (
                f"{number:05d}_0.{number}_S_{disease}_D"
                + ("_2.1_B" if code == "1" else "")
                + ".nii.gz"
            )
            image = nib.load(source[number])  # the atlas has its origin in a corner
            affine = nib.affines.from_matvec(np.diag([-SPACING_MM, -SPACING_MM, SPACING_MM]))
            nib.save(
                nib.Nifti1Image(image.get_fdata()[::-1, ::-1], affine),
                people / "exp" / split / name,
            )
            rows.append(
                (
                    number * 7,
                    0.1 * number,
                    disease,
                    3,
                    4,
                    "3_4",
                    code,
                    number % 2,
                    "x",
                    f"/home/{name}",
                    name,
                )
            )
            expected.append(code)
        columns = [
            "",
            "isv_dst",
            "effect_dst",
            "isv_bin",
            "effect_bin",
            "both_bins",
            "bias_label",
            "class_label",
        ]
        table = pd.DataFrame(rows, columns=[*columns, "strat_col", "filepath", "filename"])
        table.to_csv(people / "exp" / f"{split}.csv", index=False)
    cohort = read_simba(people / "exp", preparation=Preparation(SPACING_MM, align="centre"))
    assert [len(part) for part in (cohort.train, cohort.validation, cohort.test)] == [12, 8, 8]
    np.testing.assert_array_equal(cohort["label"], cohort["disease_magnitude"] > 0)
    if len(codes) == 2:
        np.testing.assert_array_equal(cohort["bias"], np.array(expected) == "1")
    else:
        np.testing.assert_array_equal(cohort["morphology"], np.isin(expected, ("0", "2")))
        np.testing.assert_array_equal(cohort["intensity"], np.isin(expected, ("0", "1")))
    reference = cohort.source.reference
    assert np.corrcoef(cohort.array(20).ravel(), reference.ravel())[0, 1] > 0.99
    (people / "exp" / "val.csv").unlink()
    with pytest.raises(sb.core.TemplateError, match=r"val\.csv"):
        read_simba(people / "exp")


# -- bad input --


def claiming(path, shape, zipped):
    """Write a header that claims a shape, with hardly any data behind it."""
    header = nib.Nifti1Header()
    header.set_data_dtype(np.float32)
    header.set_data_shape(shape)
    header.set_sform(np.eye(4), 1)
    header["magic"], header["vox_offset"] = b"n+1", 352
    data = header.binaryblock + bytes(4 + 4000)
    path.write_bytes(gzip.compress(data) if zipped else data)


def saved(path, data):
    nib.save(nib.Nifti1Image(data, AFFINE), path)


def patched(path, **fields):
    """Change fields of a header behind nibabel's back."""
    content = gzip.decompress(path.read_bytes())
    header = nib.Nifti1Header(content[:348])
    for name, value in fields.items():
        header[name] = value
    path.write_bytes(gzip.compress(header.binaryblock + content[348:]))


AFFINE = nib.affines.from_matvec(np.eye(3) * 8, (-76, -110, -70))
ONES = np.ones((20, 24, 20), np.float32)
CORNER = np.where(np.indices(ONES.shape).sum(axis=0) < 3, np.arange(20), ONES * 0)
ONE_NAN = np.where(np.indices(ONES.shape).sum(axis=0) == 3, np.nan, ONES)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda p: p.unlink(), "existing NIfTI file"),
        (
            lambda p: saved(p, np.stack([ONES, ONES], axis=-1)),
            "three-dimensional image.*20, 24, 20, 2",
        ),
        (lambda p: saved(p, ONE_NAN), "without NaN"),
        (lambda p: saved(p, ONES * np.inf), "without NaN or infinity"),
        (lambda p: saved(p, ONES * 1j), "real numbers"),
        (lambda p: saved(p, CORNER), "brighter than 0"),
        (lambda p: p.write_bytes(p.read_bytes()[:2000]), "truncated or corrupt"),
        (lambda p: p.write_bytes(p.read_bytes()[:-6]), "truncated or corrupt"),
        (lambda p: p.write_bytes(p.read_bytes()[:-8] + bytes(8)), "truncated or corrupt"),
        (lambda p: p.write_bytes(gzip.compress(b"something else")), "truncated or corrupt"),
        (lambda p: p.write_bytes(b""), "truncated or corrupt"),
        (lambda p: claiming(p, (20000, 20000, 20000), True), "cannot hold the 32,000,000,000,352"),
        (lambda p: claiming(p, (1000, 100, 100), True), "truncated or corrupt"),
        (lambda p: patched(p, dim=(3, 20, -24, 20, 1, 1, 1, 1)), "three-dimensional"),
        (lambda p: patched(p, sform_code=0, qform_code=0), "an orientation"),
        (
            lambda p: patched(p, srow_x=(0, 0, 0, 0), srow_y=(0, 0, 0, 0), srow_z=(0, 0, 0, 0)),
            "an orientation",
        ),
        (lambda p: patched(p, srow_x=(8, 8, 0, 0), srow_y=(8, 8, 0, 0)), "an orientation"),
        (lambda p: patched(p, srow_x=(np.nan, 0, 0, 0)), "an orientation"),
        (lambda p: patched(p, srow_x=(0.008, 0, 0, 0)), "an orientation"),
    ],
)
def test_damaged_images_give_one_error_that_names_the_file(people, damage, says):
    damage(people / "images" / "3.nii.gz")
    with pytest.raises(sb.core.TemplateError, match=rf"(?s){says}") as caught:
        load(people).array(3)
    assert "3.nii.gz" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "make", "says"),
    [
        ("3.nii.gz", lambda path: path.symlink_to(".git/annex/objects/x/3"), "git annex get"),
        ("3.nii.gz", lambda path: path.symlink_to("nowhere"), "a link to nowhere"),
        ("3.nii.gz", lambda path: path.write_text("/annex/objects/MD5E-s1--0\n"), "annex get"),
        ("3.nii", lambda path: path.write_text("version https://git-lfs\n"), "lfs"),
        ("3.nii.gz", lambda path: path.write_bytes(b"\0" * 400), "not compressed: call it .nii"),
        ("3.nii", lambda path: path.write_bytes(gzip.compress(b"x")), "call it .nii.gz"),
    ],
)
def test_files_that_are_not_what_their_names_say(tmp_path, name, make, says):
    make(tmp_path / name)
    with pytest.raises(sb.core.TemplateError, match=says):
        read_nifti(tmp_path / name)


def test_uncompressed_files_must_hold_what_they_claim(tmp_path):
    saved(tmp_path / "whole.nii", ONES)
    assert read_nifti(tmp_path / "whole.nii").shape == ONES.shape
    (tmp_path / "cut.nii").write_bytes((tmp_path / "whole.nii").read_bytes()[:-1])
    claiming(tmp_path / "large.nii", (30000, 30000, 30000), False)
    for name in ("cut.nii", "large.nii"):
        with pytest.raises(sb.core.TemplateError, match=f"{name}.*cannot hold"):
            read_nifti(tmp_path / name)
    with pytest.raises(sb.core.TemplateError, match=r"a NIfTI file.*table\.csv"):
        read_nifti(tmp_path / "table.csv")


def test_single_volumes_with_a_fourth_axis_and_negative_values_are_read(people):
    image = nib.load(people / "images" / "3.nii.gz")
    data = image.get_fdata(dtype=np.float32)
    data[0, 0, 0] = -50
    nib.save(nib.Nifti1Image(data[..., None], image.affine), people / "images" / "3.nii.gz")
    cohort = load(people)
    assert cohort.array(3).min() == 0
    np.testing.assert_allclose(cohort.array(3), cohort.array(5), atol=1e-5)


def test_empty_images_have_no_centre(people):
    saved(people / "images" / "3.nii.gz", ONES * 0)
    with pytest.raises(sb.core.TemplateError, match=r"above 0.*3\.nii\.gz"):
        load(people, align="centre").array(3)


@pytest.mark.parametrize(
    ("changes", "options", "says"),
    [
        ({}, {"label": "grup"}, "Did you mean group"),
        ({}, {"disease": "patents"}, "Did you mean patient"),
        ({}, {"disease": None}, "disease must be one of .*, got None.*hold numbers"),
        ({}, {"control": "helthy"}, "Did you mean healthy"),
        ({}, {"file": "path"}, "a column of table.csv"),
        ({}, {"subject": "grup"}, "Did you mean group"),
        ({"sex": "F"}, {"groups": "sex"}, r"of at least two values, got \['F'\]"),
        ({}, {"use": "tset"}, "use.*Did you mean test"),
        ({}, {"on_missing": "ignore"}, "on_missing"),
        ({}, {"label": None}, "disease must be None without a label"),
        ({"age": ["1", "2"] * 6}, {"label": "age", "disease": None}, "3 or more"),
        ({}, {"groups": {"sex": "female"}}, r"groups\['sex'\]"),
        ({"sex": ["F"] * 11 + ["n/a"]}, {"groups": {"sex": "F"}}, "without missing values"),
        ({"fold": "1"}, {"groups": "fold"}, "groups must be none of"),
        ({"group": ["patient"] * 12}, {}, "at least two classes"),
        (
            {"group": ["patient"] * 9 + ["healthy"] * 3},
            {},
            "3 of one class.*at least 5|at least 5.*3 of one class",
        ),
        (
            {"group": ["patient"] * 6 + ["n/a", "-", "", "NULL", "healthy", "healthy"]},
            {},
            r"column 'group' of .*4 of 12 missing \(images/6\.nii\.gz, .*'NULL'",
        ),
        ({"group": ["patient"] * 6 + ["n/a"] * 6}, {"control": "n/a", "label": "sex"}, "disease"),
        (
            {"sex": ["F"] * 10 + ["n.a.", "N/A"]},
            {"groups": {"sex": "F"}},
            r"column 'sex' .*2 of 12 missing .*'N/A', 'n\.a\.'",
        ),
        ({"split": ["train"] * 11 + [" "]}, {"use": "split"}, "column 'split' .*1 of 12 missing"),
        ({"file": ["-", *(f"images/{k}.nii.gz" for k in range(1, 12))]}, {}, "'file'.*1 of 12"),
        ({"subject": "7"}, {}, "subject is in 12 rows"),
        ({"file": "images/3.nii.gz"}, {}, "file is in 12 rows"),
        ({"split": "training"}, {"use": "split"}, "Did you mean train"),
        ({}, {"spacing_mm": 0.1}, "spacing_mm must be"),
        ({}, {"align": "center"}, "Did you mean centre"),
        ({}, {"template": "icbm"}, "Did you mean icbm2009c"),
    ],
)
def test_tables_that_do_not_fit_give_one_error(people, changes, options, says):
    edit(people, **changes)
    with pytest.raises(sb.SimbaError, match=rf"(?s){says}"):
        load(people, **options)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "file,group\n",
        "file,group\na.nii,x,1\n",
        "file,group\na.nii\n",
        "a,a\n1,2\n",
        "\xff\xfe\x00",
    ],
)
def test_damaged_tables(tmp_path, text):
    (tmp_path / "table.csv").write_bytes(text.encode("latin1"))
    with pytest.raises(sb.core.TemplateError, match=r"table\.csv"):
        load(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "{outside}",
        "../outside.nii.gz",
        "images/../../outside.nii.gz",
        "link.nii.gz",
        "C:\\x.nii",
        "a\0b",
    ],
)
def test_files_outside_the_folder_are_not_opened(people, name):
    folder = people / "inside"
    folder.mkdir()
    shutil.move(people / "images", folder / "images")
    shutil.move(people / "table.csv", folder / "table.csv")
    secret = people / "outside.nii.gz"
    shutil.copy(folder / "images" / "3.nii.gz", secret)
    (folder / "link.nii.gz").symlink_to(secret)
    table = (folder / "table.csv").read_text(encoding="utf-8")
    (folder / "table.csv").write_text(
        table.replace("images/3.nii.gz", name.format(outside=secret)), encoding="utf-8"
    )
    says = "a link that leads outside" if name == "link.nii.gz" else "Nothing else is opened"
    with pytest.raises(sb.SimbaError, match=f"a relative path inside.*{says}"):
        load(folder)


@pytest.mark.parametrize("name", ["sub-../../x", "01", "sub-*", "sub-"])
def test_names_of_participants_are_checked(dataset, tmp_path, name):
    (tmp_path / "participants.tsv").write_text(
        f"participant_id\tgroup\n{name}\tpatient\n", encoding="utf-8"
    )
    with pytest.raises(sb.SimbaError, match="sub- and letters and digits"):
        read_bids(tmp_path, label="group", disease="patient")
    with pytest.raises(sb.core.TemplateError, match=r"participants\.tsv"):
        read_bids(tmp_path / "missing", label="group", disease="patient")


def test_all_missing_images_of_a_dataset_are_named(dataset, tmp_path):
    shutil.copytree(dataset, tmp_path / "ds")
    names = sorted(path.name for path in (tmp_path / "ds").glob("sub-*"))
    absent, present = names[3:6], names[6]
    for name in absent:
        shutil.rmtree(tmp_path / "ds" / name)
    preparation = Preparation(spacing_mm=SPACING_MM)
    with pytest.raises(sb.SimbaError, match="3 of 30 subjects") as caught:
        read_bids(tmp_path / "ds", label="label", disease="disease", preparation=preparation)
    assert all(name in str(caught.value) for name in absent)
    assert present not in str(caught.value)


def test_all_missing_and_damaged_images_of_a_table_are_named(people):
    files = sorted((people / "images").iterdir())
    files[2].unlink()
    files[5].write_bytes(b"no image")
    with pytest.raises(sb.SimbaError, match="2 of 12 subjects have such problems: "):
        load(people)
    # A single problem is said as before, without a count.
    shutil.copy(files[0], files[5])
    with pytest.raises(sb.SimbaError) as caught:
        load(people)
    assert "have such problems" not in str(caught.value)
