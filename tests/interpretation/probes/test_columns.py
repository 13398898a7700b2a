"""What a recording's table gives in the place of arrays: target, groups and folds by name."""

import numpy as np
import pandas as pd
import pytest

import simba_lab as sb
from simba_lab.interpretation import Recording, angles, projections

CALLS = {
    "probe": lambda r, t, given, folds: sb.probe(r, t, given=given, folds=folds, permutations=3),
    "learning_curve": lambda r, t, given, folds: sb.learning_curve(r, t, given=given, folds=folds),
    "prominence": lambda r, t, given, folds: sb.probes.prominence(r, t, given=given, folds=folds),
    "components": lambda r, t, given, folds: sb.components(r, given, t, count=2, folds=folds),
    "projections": lambda r, t, given, folds: projections(r, given, t, folds=folds),
    "angles": lambda r, t, given, folds: angles(r, {"label": given, "bias": t}),
    "cka": lambda r, t, given, folds: sb.cka(r, given=given),
}


@pytest.fixture(scope="module")
def seen(cohort):
    return cohort.where(cohort["split"] != "test")


@pytest.fixture(scope="module")
def recording(seen):
    return sb.record(sb.SimBANet((4, 8), seed=0), seen)


@pytest.mark.parametrize("name", CALLS)
def test_columns_give_the_scores_of_arrays_to_the_bit(seen, recording, name):
    call = CALLS[name]
    arrays = call(dict(recording), seen["bias"], seen["label"], seen["fold"])
    by_name = call(recording, "bias", "label", "fold")
    by_default = call(recording, "bias", "label", None)
    pd.testing.assert_frame_equal(by_name, arrays, check_exact=True)
    pd.testing.assert_frame_equal(by_default, arrays, check_exact=True)


def test_types_and_floors_by_name(seen, recording):
    types = sb.probes.octants(seen.table[["anatomy_1", "anatomy_2"]])
    typed = Recording(dict(recording), table=seen.table.assign(octant=types))
    floor = sb.record(sb.SimBANet((4, 8), seed=1), seen)
    options = {"given": "label", "permutations": 0}
    arrays = sb.probe(recording, "bias", types=types, floors={"untrained": [floor]}, **options)
    for floors in ([floor], floor):
        table = sb.probe(typed, "bias", types="octant", floors=floors, **options)
        pd.testing.assert_frame_equal(table, arrays, check_exact=True)
    assert np.isfinite(table[["floor_untrained", "control"]]).all(axis=None)


def test_without_a_design_there_are_five_random_folds(recording, seen):
    bare = sb.probe(dict(recording), seen["label"], permutations=0)
    pd.testing.assert_frame_equal(bare, sb.probe(recording, "label", folds=5, permutations=0))
    designed = sb.probe(recording, "label", permutations=0)
    assert not designed.equals(bare)
    undesigned = seen.table.drop(columns="fold"), seen.table.assign(fold=0)
    unknown = seen.table.assign(fold=seen.table["fold"].where(seen.table["fold"] > 0))
    for table in (*undesigned, unknown):
        undesigned_recording = Recording(recording.grams, table=table)
        pd.testing.assert_frame_equal(sb.probe(undesigned_recording, "label", permutations=0), bare)


@pytest.mark.parametrize("name", CALLS)
def test_unknown_columns_suggest_the_nearest(recording, name):
    with pytest.raises(sb.core.UnknownNameError, match=r"Did you mean .*label"):
        CALLS[name](recording, "bias", "labell", None)


@pytest.mark.parametrize("name", CALLS)
def test_a_name_without_a_table_is_refused(recording, name):
    with pytest.raises(sb.SimbaError, match=r"^This recording has no table.*Record a cohort"):
        CALLS[name](dict(recording), "bias", "label", None)


def test_a_recording_keeps_the_table_of_its_rows(seen, recording):
    assert recording.table is seen.table
    arrays = sb.record(sb.SimBANet((4, 8), seed=0), seen.arrays())
    assert arrays.table is None and arrays.subjects is None
    subset = seen.where(np.arange(len(seen))[::-2])
    again = sb.record(sb.SimBANet((4, 8), seed=0), subset, pixels=False)
    assert again.table.index.tolist() == subset.table.index.tolist() == again.subjects.tolist()


def test_twins_keep_the_union_of_their_tables_and_share_folds(seen):
    model = sb.SimBANet((4, 8), seed=0)
    pair = [seen.twin(without="bias"), seen.twin(carrying="bias")]
    twins = sb.record(model, pair, pixels=False)
    count = len(seen)
    assert twins.table["cohort"].tolist() == [0] * count + [1] * count
    assert twins.table.index.tolist() == twins.subjects.tolist()
    assert (twins.table["fold"][:count].to_numpy() == twins.table["fold"][count:]).all()
    arrays = sb.probe(
        Recording(twins.grams, subjects=twins.subjects),
        np.repeat([0, 1], count),
        folds=np.tile(seen["fold"], 2),
        permutations=2,
    )
    by_name = sb.probe(twins, "cohort", permutations=2)
    pd.testing.assert_frame_equal(by_name, arrays, check_exact=True)


def test_cohorts_of_different_columns_are_united(scenario, cohort):
    reseeded = sb.synthesise(scenario, seed=1)
    cohorts = [cohort.where(np.arange(20)), reseeded.where(np.arange(20))]
    object.__setattr__(cohorts[1], "table", cohorts[1].table.assign(site="far"))
    union = sb.record(sb.SimBANet((4, 8), seed=0), cohorts, pixels=False)
    assert len(union.table) == 40 and union.table["site"].isna().sum() == 20
    assert len(set(union.subjects)) == 40
