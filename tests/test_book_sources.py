"""What the book is made from: chapters, table of contents, configuration."""

import json
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "book").glob("*.ipynb"))
# A tour of the package teaches no idea of its own, so it needs no guess, exercises or mathematics.
CHAPTERS = [path for path in NOTEBOOKS if path.stem != "library_in_ten_minutes"]


def test_every_chapter_is_in_the_table_of_contents():
    sections = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))["parts"]
    listed = {chapter["file"] for section in sections for chapter in section["chapters"]}
    assert {f"book/{path.stem}" for path in NOTEBOOKS} <= listed
    for name in listed:
        assert [path.suffix for path in (ROOT / name).parent.glob(f"{Path(name).name}.*")], name


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_chapters_have_their_parts(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    text = "\n".join("".join(cell["source"]) for cell in cells)
    for heading in (
        "The question.",
        "Predict first",
        "In plain words",
        "In mathematics",
        "LabSlider(",
        "Break it",
    ):
        assert heading in text, heading
    for heading in (
        "What this does not show",
        "Three takeaways",
        "The claims of this chapter",
        "{bibliography}",
    ):
        assert heading in text, heading
    assert len(re.findall(r"^:::\{exercise\}", text, flags=re.M)) == 3
    assert len(re.findall(r"^:::\{solution\}", text, flags=re.M)) == 3


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_claims_and_limits_stand_on_every_page(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    text = "\n".join("".join(cell["source"]) for cell in cells)
    for heading in ("The question.", "{runtime}", "What this does not show", "sb.__version__"):
        assert heading in text, heading
    claims = [cell for cell in cells if "# NBVAL_CHECK_OUTPUT" in "".join(cell["source"])]
    assert len(claims) == 1 and claims[0]["outputs"], (
        "the claims keep their output, for nbval to compare"
    )
    assert "keep_output" in claims[0]["metadata"]["tags"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_figures_of_chapters_have_alt_text(path):
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"]).strip().splitlines()
        if cell["cell_type"] == "code" and re.search(
            r"^figures\.(rates|intervals|learning|probes|brains)\(", "\n".join(source), re.M
        ):
            assert cell["metadata"]["mystnb"]["image"]["alt"].strip(), source[-1]


def test_requirements_pin_everything_that_the_package_needs():
    pinned = {
        re.split(r"[=\[<>]", line)[0].lower().replace("_", "-")
        for line in (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
        if line and not line.startswith("#")
    }
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = project["dependencies"] + project["optional-dependencies"]["dev"]
    missing = {re.split(r"[=\[<>]", line)[0].lower() for line in needed} - pinned
    assert not missing
