"""plant: somebody's scans with effects in them, whose twins are the scans themselves."""

import pickle
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from planted import Planted, centred
from scipy.ndimage import binary_erosion

import simba_lab as sb
from simba_lab.scans import DisplacementField, Preparation, ScanCohort, inject, saving
from simba_lab.scans.planting.draws import completed, drawn

# Three times 2.5 mm: at 8 mm much of what 2.5 mm change is less than what counts as changed.
PUTAMEN = sb.Morphology(
    "Putamen_L", 2.5, magnitude=sb.Normal(3.0, 0.0), prevalence={"disease": 0.8, "control": 0.2}
)
FAR = sb.Morphology("Postcentral_R", 2.5, prevalence=0.5)
EFFECTS = {"putamen": PUTAMEN, "cortex": FAR}
PEOPLE, NATIVE_MM, SPACING_MM = 40, 4, 8
HEADS = [
    Path(folder) / "ch2.nii.gz" for folder in ("/usr/share/mricron/templates", "/usr/share/mricron")
]


@pytest.fixture(scope="module")
def study(tmp_path_factory, template):
    """A folder with forty heads at 4 mm, of other brightness and noise each, and their table."""
    folder = tmp_path_factory.mktemp("study")
    image, coarse = template.antialiased(NATIVE_MM)
    step = round(NATIVE_MM / coarse.spacing_mm)
    image = image[::step, ::step, ::step]
    affine = nib.affines.from_matvec(np.eye(3) * NATIVE_MM, coarse.origin_mm)
    rows = []
    for person in range(PEOPLE):
        generator = np.random.default_rng(person)
        noisy = image + (image > 0) * generator.normal(0, 0.02, image.shape)
        stored = np.rint(np.maximum(noisy, 0) * (500 + 20 * person)).astype(np.int16)
        nib.save(nib.Nifti1Image(stored, affine), folder / f"{person}.nii")
        split = "train" if person % 4 < 2 else "test"
        rows.append((f"p{person}", f"{person}.nii", "patient" if person % 2 else "healthy", split))
    columns = ["subject", "file", "group", "use"]
    pd.DataFrame(rows, columns=columns).to_csv(folder / "table.csv", index=False)
    return folder


def read(study, **changes):
    preparation = Preparation(spacing_mm=SPACING_MM, **changes)
    table = study / "table.csv"
    return sb.scans.read_table(
        table, label="group", disease="patient", use="use", preparation=preparation
    )


def people_of(folder, count, **changes):
    """The scans of a folder that are called by numbers, of people without labels."""
    names = pd.DataFrame({"participant": [f"p{person}" for person in range(count)]})
    paths = {person: folder / f"{person}.nii" for person in range(count)}
    return ScanCohort(names, Preparation(spacing_mm=SPACING_MM, **changes).images(paths))


@pytest.fixture(scope="module")
def scans(study):
    return read(study)


@pytest.fixture(scope="module")
def marked(scans):
    return sb.plant(scans, EFFECTS)


@pytest.fixture(scope="module")
def readers(marked):
    """Two networks with the same activations: one uses the putamen, one the cortex."""
    few = marked.where(range(6))
    putamen, cortex = (
        np.any([few.difference(row, name) != 0 for row in range(6)], axis=0) for name in EFFECTS
    )
    assert not (putamen & cortex).any()
    return {
        name: centred(Planted([putamen, cortex], weights), marked.test)
        for name, weights in (("putamen", (1.0, 0.0)), ("cortex", (0.0, 1.0)))
    }


# -- exact --


def test_a_planted_volume_is_what_inject_makes(study, scans, marked, tmp_path):
    """Written to a file and brought to the lattice; the scale is that of the untouched scan."""
    row = int(np.flatnonzero(marked["putamen"] & marked["cortex"])[0])
    path = study / f"{marked.table.index[row]}.nii"
    injected = inject(path, EFFECTS, magnitudes={"putamen": 3.0, "cortex": 1.0})
    injected.save(tmp_path / "injected")
    plain = Preparation(SPACING_MM, rescale=False)
    made = plain.images({0: tmp_path / "injected" / "image.nii.gz"}).array(0)
    bare = plain.images({0: path}).array(0)
    brain = scans.source.reference > 0.02
    factor = np.percentile(scans.source.reference[brain], 99) / np.percentile(
        bare[brain & (bare > 0)], 99
    )
    made *= factor
    np.testing.assert_array_equal(marked.array(row), made)
    assert np.abs(made - scans.array(row)).max() > 0.02


def test_the_twin_without_effects_is_the_scan(scans, marked):
    twin = marked.twin(without=list(EFFECTS))
    np.testing.assert_array_equal(twin.arrays(), scans.arrays())
    outside = (marked["putamen"] == 0) & (marked["cortex"] == 0)
    np.testing.assert_array_equal(marked.where(outside).arrays(), scans.where(outside).arrays())
    assert marked.population == scans.population and marked.lattice == scans.lattice


@pytest.mark.parametrize("amount", [0.1, 1.3])
def test_drawn_magnitudes_give_the_bytes_of_inject(study, scans, amount):
    """Deformations are tabulated over all magnitudes once, and not for each scan."""
    effect = sb.Morphology("Putamen_L", 2.0, magnitude=sb.Normal(amount, 0.8))
    some = sb.plant(scans.where(range(6)), {"mark": effect})
    for row in range(3):
        subject = int(some.table.index[row])
        magnitude = some.magnitudes(row)["mark"]
        image = inject(study / f"{subject}.nii", {"mark": effect}, magnitudes=magnitude).image
        again = some.source.planted(subject, (("mark", magnitude),))
        np.testing.assert_array_equal(np.asarray(again.dataobj), np.asarray(image.dataobj))


def test_ten_per_cent_of_contrast_is_ten_per_cent(scans):
    """Scaled by itself the marked twin would show less: its 99th percentile moves with it."""
    marked = sb.plant(scans.where(range(4)), {"scanner": sb.Intensity("contrast", 0.1)})
    for row in range(4):
        before, after = marked.twin(without="scanner").array(row), marked.array(row)
        deep = binary_erosion(marked.brain(row), iterations=2)  # no background is mixed in
        slope = np.polyfit(before[deep], after[deep], 1)[0]
        assert slope == pytest.approx(1.1, abs=0.005)


def test_noise_is_the_same_in_all_twins_and_not_part_of_a_difference(scans):
    effects = {"noise": sb.Intensity("noise", 0.1), "putamen": sb.Morphology("Putamen_L", 2.5)}
    marked = sb.plant(scans.where(range(2)), effects)
    far = ~marked.changed(0, "putamen", threshold=0)
    noisy, without = marked.array(0), marked.twin(without="putamen").array(0)
    np.testing.assert_allclose(noisy[far], without[far], atol=1e-4)
    assert not marked.changed(0, "noise").any() and marked.changed(0, "putamen").any()
    assert np.abs(marked.array(0) - marked.twin(without="noise").array(0)).max() > 0.02


# -- who and how much --


def test_members_are_as_many_as_the_prevalence_says_in_each_class_of_each_split(marked):
    counts = marked.table.groupby(["split", "label"])[["putamen", "cortex"]].sum()
    assert counts["putamen"].tolist() == [2, 8, 2, 8]
    assert counts["cortex"].tolist() == [5, 5, 5, 5]
    both = marked.table.groupby(["split", "label", "putamen"])["cortex"].mean()
    assert both.between(0.25, 0.75).all()  # as common among the members of the other effect


def test_draws_depend_on_no_order_and_splits_may_be_planted_alone(scans, marked):
    effects = completed(EFFECTS, scans.table)
    turned = drawn(scans.table.iloc[::-1], effects, 0)
    pd.testing.assert_frame_equal(turned.sort_index(), marked.table)
    pd.testing.assert_frame_equal(drawn(scans.test.table, effects, 0), marked.test.table)
    drawn_once = {"mark": sb.Intensity("gamma", 0.1, magnitude=sb.Normal(2, 0.5))}
    whole = drawn(scans.table, completed(drawn_once, scans.table), 0)
    few = drawn(scans.table.iloc[3:9], completed(drawn_once, scans.table), 0)
    pd.testing.assert_frame_equal(few, whole.iloc[3:9])
    other = drawn(scans.table, completed(drawn_once, scans.table), 1)
    assert not np.allclose(other["mark_magnitude"], whole["mark_magnitude"])
    assert whole["mark_magnitude"].mean() == pytest.approx(2, abs=0.3)


def test_threads_and_processes_make_the_same_bytes(marked):
    few = marked.where(range(4))
    expected = few.arrays(n_jobs=1)
    again = pickle.loads(pickle.dumps(few))  # as a worker gets it: nothing is kept in memory
    np.testing.assert_array_equal(again.arrays(n_jobs=4), expected)
    assert again.identity == few.identity


def test_people_without_labels_are_planted_alike(scans):
    bare = ScanCohort(scans.table[["participant"]], scans.source).where(range(8))
    marked = sb.plant(bare, {"mark": sb.Intensity("contrast", 0.1, prevalence=0.25)})
    assert marked["mark"].sum() == 2
    everybody = sb.plant(bare, {"mark": sb.Intensity("contrast", 0.1)})
    assert everybody["mark"].tolist() == [1] * 8 and everybody["mark_magnitude"].min() == 1
    with pytest.raises(sb.SimbaError, match=r"effects\['mark'\].prevalence must be one number"):
        sb.plant(bare, {"mark": PUTAMEN})
    steep = {"disease": sb.Normal(2), "control": sb.Normal(1)}
    with pytest.raises(sb.SimbaError, match=r"effects\['mark'\].magnitude must be one dist"):
        sb.plant(bare, {"mark": sb.Intensity("contrast", 0.1, magnitude=steep)})


def test_the_control_cohort_has_the_mark_as_often_in_both_classes(marked):
    control = marked.unbiased()
    counts = control.table.groupby(["split", "label"])["putamen"].sum()
    assert counts.tolist() == [5, 5, 5, 5]
    np.testing.assert_array_equal(control["putamen_magnitude"], marked["putamen_magnitude"])
    assert control.population == marked.population and control.identity != marked.identity


# -- where it is --


def test_the_region_lies_where_the_mark_changes_the_scan(marked):
    row = int(np.flatnonzero(marked["putamen"])[0])
    region, changed = marked.region_of(row, "putamen"), marked.changed(row, "putamen")
    assert changed.any() and region.any()
    near = np.abs(np.argwhere(changed)[:, None] - np.argwhere(region)[None]).max(-1).min(1)
    assert near.max() <= 3  # voxels of 8 mm
    numbers, names = marked.parcellation(row)
    number = {name: value for value, name in names.items()}["Putamen_L"]
    overlap = ((numbers == number) & region).sum() / region.sum()
    assert overlap > 0.5


@pytest.mark.parametrize("as_field", [False, True])
def test_a_transform_says_where_a_scan_lies_in_the_template(study, scans, tmp_path, as_field):
    """Scans that are shifted by 8 mm, and the transform that undoes it: shifted twins."""
    shift = np.array([0.0, 8.0, 0.0])
    to_template = nib.affines.from_matvec(np.eye(3), -shift)
    transforms = {}
    for person in range(2):
        image = nib.load(study / f"{person}.nii")
        moved = nib.Nifti1Image(
            image.dataobj.get_unscaled(), nib.affines.from_matvec(np.eye(3), shift) @ image.affine
        )
        nib.save(moved, tmp_path / f"{person}.nii")
        field = np.broadcast_to(-shift.astype(np.float32), (*moved.shape, 3))
        nib.save(nib.Nifti1Image(field, moved.affine), tmp_path / f"field{person}.nii")
        field_file = DisplacementField(tmp_path / f"field{person}.nii")
        transforms[f"p{person}"] = field_file if as_field else to_template
    effects = {"mark": sb.Morphology("Putamen_L", 2.5)}
    moved = sb.plant(people_of(tmp_path, 2), effects, transforms=transforms)
    still = sb.plant(scans.where([0, 1]), effects)
    for row in range(2):  # one voxel further in the second direction
        difference, expected = (cohort.difference(row, "mark") for cohort in (moved, still))
        correlation = np.corrcoef(np.roll(expected, 1, axis=1).ravel(), difference.ravel())[0, 1]
        assert correlation > 0.99
        region = np.roll(still.region(row, "Putamen_L"), 1, axis=1)
        assert (moved.region(row, "Putamen_L") != region).sum() <= 1  # rounding of the field
    stored = sb.save_cohort(moved, tmp_path / "store")
    again = sb.open_cohort(tmp_path / "store")
    assert again.identity == stored.identity == moved.identity
    np.testing.assert_array_equal(
        again.twin(without="mark").arrays(), moved.twin(without="mark").arrays()
    )


def test_scans_that_were_moved_to_the_centre_are_planted_where_they_lie(study, tmp_path, scans):
    for person in range(2):
        image = nib.load(study / f"{person}.nii")
        affine = nib.affines.from_matvec(np.eye(3), [40.0, -24.0, 16.0]) @ image.affine
        nib.save(nib.Nifti1Image(image.dataobj.get_unscaled(), affine), tmp_path / f"{person}.nii")
    effects = {"mark": sb.Morphology("Putamen_L", 2.5)}
    centred_scans = sb.plant(people_of(tmp_path, 2, align="centre"), effects)
    still = sb.plant(scans.where([0, 1]), effects)
    first, second = (cohort.difference(0, "mark") for cohort in (centred_scans, still))
    assert np.corrcoef(first.ravel(), second.ravel())[0, 1] > 0.9


# -- the instruments --


def test_a_network_that_reads_the_mark_moves_with_it_and_another_does_not(marked, readers):
    test = marked.test
    reads = sb.twin_effect(readers["putamen"], test, effect="putamen", control=readers["cortex"])
    row = reads.loc["putamen"]
    assert row["logit_low"] > 0 or row["logit_high"] < 0
    assert row["control"] == 0 and row["excess"] == row["logit"]
    null = sb.twin_effect(readers["cortex"], test, effect="putamen").loc["putamen"]
    assert null["logit"] == null["logit_low"] == null["logit_high"] == null["flips"] == 0


def test_interchange_finds_the_block_the_channel_and_the_region(marked, readers):
    test = marked.test.where(range(6))
    blocks = sb.interchange(readers["putamen"], test, effect="putamen")
    np.testing.assert_allclose(blocks["share"], 1, atol=1e-4)
    channels = sb.interchange(
        readers["putamen"],
        test,
        effect="putamen",
        by=sb.interventions.Channels(None),
        layers=["block2"],
    ).loc["block2"]
    np.testing.assert_allclose(channels["share"], [1, 0], atol=1e-4)
    regions = sb.interchange(
        readers["putamen"],
        test,
        effect="putamen",
        by=sb.interventions.Regions(margin=1),
        layers=["block1"],
    ).loc["block1"]
    assert regions.loc["putamen", "share"] > 0.9 and abs(regions.loc["cortex", "share"]) < 0.01


def test_erasing_the_mark_takes_its_effect_away(marked, readers):
    model, test = readers["putamen"], marked.test
    before = sb.twin_effect(model, test, effect="putamen").loc["putamen", "logit"]
    edits = sb.erase(model, marked.train, "putamen", layers=["block2"])
    with sb.edit(model, edits):
        after = sb.twin_effect(model, test, effect="putamen").loc["putamen", "logit"]
    assert abs(after) < 0.3 * abs(before)


def test_maps_are_scored_against_what_was_planted(marked, readers):
    test = marked.test.where(range(4)).twin(carrying="putamen")
    method = {"method": "integrated_gradients", "baseline": test.twin(without="putamen")}
    scores = {
        name: sb.attribution.compare(model, test, {"twin": method}).loc["twin", "mean"]
        for name, model in readers.items()
    }
    assert scores["putamen"]["mass_putamen"] > 0.5 and scores["putamen"]["mass_cortex"] < 0.05
    assert scores["putamen"]["auprc_putamen"] > 0.95 and scores["putamen"]["rank_putamen"] > 0.9
    assert scores["cortex"]["mass_putamen"] == 0 or np.isnan(scores["cortex"]["mass_putamen"])


def test_a_probe_reads_the_mark_where_it_is_kept(marked, readers):
    keeps = readers["putamen"]
    table = sb.probe(sb.record(keeps, marked), "cortex", given="label", permutations=0)
    assert table.loc["block2", "auroc"] > 0.9  # kept, though it is not used
    mask = keeps.masks[0].numpy() > 0
    elsewhere = Planted([mask, mask], (1.0, 0.0))
    nothing = sb.probe(sb.record(elsewhere, marked), "cortex", given="label", permutations=0)
    assert nothing.loc["block2", "auroc"] < 0.75


def test_encoding_and_use_need_no_twins_of_the_disease(marked, readers):
    rows = {
        name: sb.encoding_and_use(
            model, marked.train, marked.test, effect="cortex", layers=["block2"]
        ).loc["block2"]
        for name, model in readers.items()
    }
    uses, ignores = rows["cortex"], rows["putamen"]
    assert abs(uses["removed"]) > 0.7 * abs(uses["effect"]) > 0
    assert abs(ignores["removed"]) < 0.02 and ignores["effect"] == 0
    assert np.isnan(uses[["disease", "use", "use_low", "use_high"]].astype(float)).all()


# -- stores --


def test_a_store_that_was_interrupted_is_finished(marked, tmp_path, monkeypatch):
    few, made = marked.where(range(6)), []
    volume = type(few.source).volume

    def failing(source, subject, *arguments, **options):
        made.append(subject)
        if len(made) == 5:
            raise OSError("the power went")
        return volume(source, subject, *arguments, **options)

    monkeypatch.setattr(saving, "BATCH", 2)
    monkeypatch.setattr(type(few.source), "volume", failing)
    with pytest.raises((OSError, sb.SimbaError)):
        sb.save_cohort(few, tmp_path / "store", n_jobs=1)
    stored = sb.save_cohort(few, tmp_path / "store", n_jobs=1)
    assert made == [0, 1, 2, 3, 4, 4, 5]
    np.testing.assert_array_equal(stored.arrays(), few.arrays())


def test_a_store_is_opened_with_its_twins(marked, tmp_path):
    few = marked.where(range(6))
    stored = sb.save_cohort(few, tmp_path / "store")
    again = sb.open_cohort(tmp_path / "store", verify=True)
    assert isinstance(again, sb.scans.PlantedCohort)
    pd.testing.assert_frame_equal(again.table, few.table)
    assert again.identity == few.identity and again.effects == few.effects
    for twins in (again, stored):
        np.testing.assert_array_equal(twins.arrays(), few.arrays())
        np.testing.assert_array_equal(
            twins.twin(flipped="cortex").arrays(), few.twin(flipped="cortex").arrays()
        )
    assert again.store.array(0) is not None and len(again.shared_subjects(marked)) == 6


def test_a_scan_that_was_changed_or_is_gone_is_noticed(study, tmp_path):
    for name in ("0.nii", "1.nii", "2.nii", "3.nii"):
        (tmp_path / name).write_bytes((study / name).read_bytes())
    marked = sb.plant(people_of(tmp_path, 4), {"mark": sb.Intensity("contrast", 0.1)})
    sb.save_cohort(marked, tmp_path / "store")
    (tmp_path / "0.nii").write_bytes((study / "1.nii").read_bytes())
    (tmp_path / "1.nii").unlink()
    again = sb.open_cohort(tmp_path / "store")
    assert again.arrays().shape[0] == 4  # the volumes are in the store
    with pytest.raises(sb.SimbaError, match="scan of subject 0 must be the planted file"):
        again.twin(without="mark").array(0)
    with pytest.raises(sb.SimbaError, match="an existing NIfTI file"):
        again.twin(without="mark").array(1)


# -- what is refused --


@pytest.mark.parametrize(
    ("effects", "words"),
    [
        ({}, "a mapping of names to effects"),
        ({"mark": sb.Normal(1)}, r"effects\['mark'\] must be"),
        ({"label": FAR}, "and not disease, label"),
        ({"participant": FAR}, "and not disease, label"),
        ({"two words": FAR}, "letters, digits"),
        ({"x_magnitude": FAR}, "letters, digits"),
        ({"mark": sb.Morphology("Putamen", 2.5)}, "Did you mean Putamen_"),
        ({"mark": sb.Morphology("Putamen_L", 30.0)}, r"effects\['mark'\].amplitude_mm"),
        ({"mark": sb.Intensity("blur", 1.0, magnitude=sb.Normal(30))}, "from -20 to 20"),
    ],
)
def test_effects_that_cannot_be_planted(scans, effects, words):
    with pytest.raises(sb.SimbaError, match=words):
        sb.plant(scans, effects)


def test_cohorts_that_cannot_be_planted(scans, marked, cohort, tmp_path):
    with pytest.raises(sb.SimbaError, match=r"scans, .* got 'SyntheticCohort'. These have twins"):
        sb.plant(cohort, EFFECTS)
    with pytest.raises(sb.SimbaError, match="have twins already"):
        sb.plant(marked, EFFECTS)
    stored = sb.save_cohort(scans.where(range(2)), tmp_path / "store")
    with pytest.raises(sb.SimbaError, match="plant first, then save"):
        sb.plant(stored, EFFECTS)
    with pytest.raises(sb.SimbaError, match="at least one person"):
        sb.plant(scans.where(np.zeros(PEOPLE, bool)), EFFECTS)
    with pytest.raises(sb.SimbaError, match="each in one row"):
        sb.plant(scans.where([0, 0, 1]), EFFECTS)
    taken = ScanCohort(scans.table.assign(cortex=1), scans.source)
    with pytest.raises(sb.SimbaError, match="has a column 'cortex' already"):
        sb.plant(taken, EFFECTS)


def test_transforms_that_cannot_be_used(scans, tmp_path):
    few, mark = scans.where([0, 1]), {"mark": sb.Morphology("Postcentral_R", 2.5)}
    with pytest.raises(sb.SimbaError, match="without 1 of 2: p1"):
        sb.plant(few, mark, transforms={"p0": np.eye(4)})
    for wrong, words in (
        (np.eye(3), r"transform of subject 1 \(1.nii\) must be .*affine of shape \(4, 4\)"),
        (np.diag([-1.0, 1, 1, 1]), "without a mirror"),
        (
            nib.affines.from_matvec(np.eye(3), [300.0, 0, 0]),
            r"scan of subject 1 .*No part of the scan overlaps",
        ),
        (tmp_path / "none.nii", r"transforms\['p1'\] must be an existing file"),
        ("", "transforms"),
        (3.0, "transforms"),
        (nib.Nifti1Image(np.zeros((4, 4, 4), np.float32), np.eye(4)), "displacement field"),
    ):
        with pytest.raises(sb.SimbaError, match=words):
            sb.plant(few, mark, transforms={"p0": None, "p1": wrong})


def test_a_scan_that_lacks_the_region_is_named_before_anything_is_made(study, tmp_path):
    for person in range(2):
        image = nib.load(study / f"{person}.nii")
        kept = image.slicer[:, :, : image.shape[2] * 3 // 5] if person else image
        nib.save(kept, tmp_path / f"{person}.nii")
    cut = people_of(tmp_path, 2)
    with pytest.raises(sb.SimbaError, match=r"scan of subject 1 \(1.nii\): .*'Postcentral_R'"):
        sb.plant(cut, {"mark": sb.Morphology("Postcentral_R", 2.5)})
    sb.plant(cut, {"mark": sb.Intensity("contrast", 0.1)})


def test_a_scan_upside_down_is_named_before_anything_is_made(study, tmp_path):
    image = nib.load(study / "1.nii")
    flipped = nib.Nifti1Image(image.dataobj.get_unscaled()[:, :, ::-1], image.affine)
    nib.save(flipped, tmp_path / "1.nii")
    (tmp_path / "0.nii").write_bytes((study / "0.nii").read_bytes())
    with pytest.raises(sb.SimbaError, match=r"scan of subject 1 \(1.nii\).*orientation"):
        sb.plant(people_of(tmp_path, 2), {"mark": sb.Intensity("contrast", 0.1)})


def test_a_real_head_is_planted_byte_for_byte(tmp_path):
    """Colin27, as Debian's mricron-data has it."""
    head = next((path for path in HEADS if path.is_file()), None)
    if head is None:
        pytest.skip("no real head on this machine: install mricron-data")
    (tmp_path / "colin.nii.gz").write_bytes(head.read_bytes())
    people = pd.DataFrame({"participant": ["colin"]})
    images = Preparation(spacing_mm=4).images({0: tmp_path / "colin.nii.gz"})
    effects = {"putamen": sb.Morphology("Putamen_L", 2.5), "gain": sb.Intensity("contrast", 0.1)}
    marked = sb.plant(ScanCohort(people, images), effects)
    expected = inject(head, effects, magnitudes=1.0)
    planted = marked.source.planted(0, (("putamen", 1.0), ("gain", 1.0)))
    assert planted.to_bytes() == expected.image.to_bytes()
    np.testing.assert_array_equal(marked.twin(without=list(effects)).array(0), images.array(0))
    assert marked.changed(0, "putamen").any()
