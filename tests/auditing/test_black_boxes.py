"""A tool that knows nothing of the lab is audited by its scores; bad tables are named."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

import simba_lab as sb
from simba_lab import cli

PLAN = """marks:
  scanner: {kind: contrast, strength: 0.2}
  putamen: {region: Putamen_L, amplitude_mm: 2.5}
"""
# Somebody's tool, as a file: it reads images in a folder, whatever they are, and writes a table.
TOOL = """
import csv, sys
from pathlib import Path
import nibabel, numpy

def contrast(brain):
    return 60 * (brain.std() / brain.mean() - 0.27)

def side(values):
    left, right = numpy.array_split(values, 2)
    return 200 * (left.sum() - right.sum()) / values.sum()

folder, use, table = sys.argv[1:]
with open(table, "w", newline="") as file:
    rows = csv.writer(file)
    rows.writerow(["file", "score", "control"])
    for path in sorted(Path(folder).rglob("*.nii.gz"), key=lambda path: path.name[::-1]):
        values = nibabel.load(path).get_fdata()
        scores = {"contrast": contrast(values[values > 0.3]), "side": side(values)}
        name = f"C:\\\\scans\\\\{path.name}"
        rows.writerow([name, repr(float(scores[use])), repr(float(scores["side"]))])
"""


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("black_box")
    scenario = sb.Scenario(64, sb.Morphology("Insula_L", 2.5), spacing_mm=8)
    sb.export_bids(sb.synthesise(scenario).where(range(20)), folder / "study", masks=False)
    (folder / "plan.yaml").write_text(PLAN)
    command = ["plant", str(folder / "study"), str(folder / "plan.yaml"), str(folder / "planted")]
    assert cli.main(command) == 0
    return folder / "planted"


@pytest.fixture(scope="module")
def answers(planted):
    """The tables of two tools that ran in a process without the lab."""
    (planted.parent / "tool.py").write_text(TOOL)
    tables = {}
    for use in ("contrast", "side"):
        tables[use] = planted.parent / f"{use}.csv"
        code = [planted.parent / "tool.py", planted, use, tables[use]]
        # -I: neither PYTHONPATH nor the working folder, where the lab may be.
        subprocess.run([sys.executable, "-I", *map(str, code)], check=True)
    return tables


def without_control(table, path):
    pd.read_csv(table).drop(columns="control").to_csv(path, index=False)
    return path


def test_a_tool_that_reads_contrast_is_found_and_another_is_not(planted, answers, tmp_path):
    table = without_control(answers["contrast"], tmp_path / "a.csv")
    guilty = sb.auditing.audit_answers(table, planted).marks
    assert guilty.loc["scanner", "verdict"] == "used" and guilty.loc["scanner", "effect"] > 1
    table = without_control(answers["side"], tmp_path / "b.csv")
    innocent = sb.auditing.audit_answers(table, planted).marks
    assert innocent.loc["scanner", "verdict"] == "not used"
    assert list(innocent.index) == ["scanner", "putamen"]


def test_effects_are_those_of_the_table_by_hand(planted, answers, tmp_path):
    scores = pd.read_csv(answers["contrast"])
    scores["mark"] = scores["file"].str.extract("desc-(.*)_T1w", expand=False)
    scores["person"] = scores["file"].str.extract("(sub-.*)_desc", expand=False)
    wide = scores.pivot_table(index="person", columns="mark", values="score")
    change = wide["scanner"] - wide["none"]
    table = without_control(answers["contrast"], tmp_path / "a.csv")
    marks = sb.auditing.audit_answers(table, planted).marks
    np.testing.assert_allclose(marks.loc["scanner", "logit"], change.mean())
    np.testing.assert_allclose(marks.loc["scanner", "effect"], change.mean() / wide["none"].std())
    flips = ((wide["scanner"] > 0) != (wide["none"] > 0)).mean()
    np.testing.assert_allclose(marks.loc["scanner", "flips"], flips)


def test_a_control_that_moves_as_much_takes_the_verdict_back(planted, answers, tmp_path):
    scores = pd.read_csv(answers["contrast"]).assign(control=lambda table: table["score"] * 2)
    scores.to_csv(tmp_path / "same.csv", index=False)
    marks = sb.auditing.audit_answers(tmp_path / "same.csv", planted).marks
    assert marks.loc["scanner", "verdict"] == "not used" and marks.loc["scanner", "control"] > 1
    marks = sb.auditing.audit_answers(answers["contrast"], planted).marks
    assert marks.loc["scanner", "verdict"] == "used"


def test_probabilities_become_logits_exactly_and_are_refused_unsaid(planted, answers, tmp_path):
    scores = pd.read_csv(answers["contrast"]).drop(columns="control")
    chances = scores.assign(score=1 / (1 + np.exp(-scores["score"])))
    scores.to_csv(tmp_path / "logits.csv", index=False)
    chances.to_csv(tmp_path / "chances.csv", index=False)
    with pytest.raises(sb.SimbaError, match="logits, got 60 numbers from 0"):
        sb.auditing.audit_answers(tmp_path / "chances.csv", planted)
    audit = sb.auditing.audit_answers(tmp_path / "chances.csv", planted, scores="probability")
    expected = sb.auditing.audit_answers(tmp_path / "logits.csv", planted).marks
    numbers = expected.select_dtypes("number").columns
    np.testing.assert_allclose(audit.marks[numbers], expected[numbers], rtol=1e-9, atol=1e-12)
    chances["score"] = chances["score"].round(0)
    chances.to_csv(tmp_path / "rounded.csv", index=False)
    with pytest.raises(sb.SimbaError, match="60 that are not, such as"):
        sb.auditing.audit_answers(tmp_path / "rounded.csv", planted, scores="probability")


def test_rows_may_be_named_by_participant_and_mark(planted, answers, tmp_path):
    images = pd.read_csv(planted / "images.tsv", sep="\t")
    scores = pd.read_csv(answers["contrast"])
    scores["file"] = scores["file"].str.rpartition("\\")[2]
    images["file"] = images["file"].str.rpartition("/")[2]
    named = images.merge(scores, on="file").sample(frac=1, random_state=0)
    named[["participant", "mark", "score", "control"]].to_csv(tmp_path / "b.csv", index=False)
    pd.testing.assert_frame_equal(
        sb.auditing.audit_answers(tmp_path / "b.csv", planted).marks,
        sb.auditing.audit_answers(answers["contrast"], planted).marks,
    )


def spoiled(table, change):
    rows = table.astype(str)
    if change == "missing":
        return rows.iloc[3:]
    if change == "twice":
        return pd.concat([rows, rows.iloc[:2]])
    if change == "unknown":
        return rows.assign(file=rows["file"].str.replace("sub-0003", "sub-9993"))
    if change == "columns":
        return rows.rename(columns={"score": "result"})
    if change == "constant":
        return rows.assign(score="3.5")
    rows.loc[[4, 7], "score"] = {"text": "high", "nan": "NaN", "infinite": "inf"}[change]
    return rows


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing", r"3 \(sub-.*\) are not answered"),
        ("twice", r"2 \(sub-.*\) are answered twice"),
        ("unknown", r"3 \(sub-9993_desc-none_T1w.nii.gz, .*\) are unknown"),
        ("columns", r"file \(or participant and mark\) and score, got \['file', 'result'"),
        ("text", "finite numbers, got 2 of 60 that are none: 'high' of sub-"),
        ("nan", "finite numbers, got 2 of 60 that are none: 'NaN' of sub-"),
        ("infinite", "finite numbers, got 2 of 60"),
        ("constant", "3.5 for all 20 untouched scans"),
    ],
)
def test_bad_tables_are_counted_and_named(planted, answers, tmp_path, change, message):
    table = pd.read_csv(answers["contrast"])
    spoiled(table, change).to_csv(tmp_path / "bad.csv", index=False)
    with pytest.raises(sb.SimbaError, match=message):
        sb.auditing.audit_answers(tmp_path / "bad.csv", planted)


def test_few_scans_and_unfinished_folders_are_refused(planted, answers, tmp_path):
    table = pd.read_csv(planted / "images.tsv", sep="\t", dtype=str)
    with pytest.raises(sb.SimbaError, match=r"a folder that holds images.tsv.*run that again"):
        sb.auditing.audit_answers(answers["side"], tmp_path)
    table.iloc[:9].to_csv(tmp_path / "images.tsv", sep="\t", index=False)
    with pytest.raises(sb.SimbaError, match="at least 16 scans, got 3 scans"):
        sb.auditing.audit_answers(answers["side"], tmp_path)


def test_the_command_writes_a_report_once(planted, answers, tmp_path, capsys):
    command = ["audit", "--answers", str(answers["contrast"]), "--planted", str(planted)]
    command += ["--out", str(tmp_path / "report.html")]
    assert cli.main(command) == 0
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "simba-lab audit --answers" in page and "contrast of the image, strength 0.2" in page
    marks = pd.read_csv(tmp_path / "report_marks.csv", index_col="mark")
    assert marks.loc["scanner", "verdict"] == "used"
    assert "used" in capsys.readouterr().out
    assert cli.main(command) == 2
    assert "Nothing is overwritten" in capsys.readouterr().err
    assert cli.main([*command[:-1], str(tmp_path / "absent" / "report.html")]) == 2
    assert "in a folder that exists" in capsys.readouterr().err
