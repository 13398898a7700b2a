"""What readers and users of the command line see: claims, sliders, figures, commands, notebooks, configuration."""

import base64
import io
import json
import pickle
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image
from scipy.stats import ttest_1samp

import simba_lab as sb
from simba_lab import cli
from simba_lab.book import figures
from simba_lab.book.lab_slider import STATIC_VARIABLE, WIDGET_VIEW

ROOT = Path(__file__).parents[1]
CHAPTERS = sorted((ROOT / "book").glob("*.ipynb"))


# -- claims --


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(0.2, 0.4, "confirmed"), (1.2, 1.4, "refuted"), (0.9, 1.1, "undecided"), (-1, 2, "undecided")],
)
def test_verdicts(low, high, verdict, capsys):
    middle = (low + high) / 2
    claim = sb.book.check(
        "It is small", middle, low=low, high=high, expected=(0, 1), verdict=verdict
    )
    assert claim.verdict == verdict
    assert capsys.readouterr().out == f"{verdict}: It is small\n"


def test_a_claim_that_does_not_hold_fails_with_its_numbers():
    with pytest.raises(
        AssertionError, match=r"refuted: It is small Measured 3 \[3, 3\], expected \(0, 1\)"
    ):
        sb.book.check("It is small", 3, expected=(0, 1))


@pytest.mark.parametrize(
    "values", [{"estimate": float("nan")}, {"estimate": 1, "low": 2, "high": 3}]
)
def test_claims_need_numbers(values):
    with pytest.raises(sb.SimbaError, match="not NaN"):
        sb.book.check("x", **values, expected=(0, 1))


def test_interval_over_seeds_is_that_of_a_t_test():
    values = [0.2, 0.5, 0.9]
    mean, low, high = sb.core.over_seeds(values)
    expected = ttest_1samp(values, 0).confidence_interval(0.95)
    assert (mean, low, high) == pytest.approx((np.mean(values), expected.low, expected.high))
    with pytest.raises(sb.SimbaError, match="at least 2 runs"):
        sb.core.over_seeds([1.0])


def test_interval_of_a_rank_correlation_covers_the_truth():
    """For normal variables with correlation r, Spearman's is 6 / pi * asin(r / 2)."""
    generator, truth, inside = np.random.default_rng(0), 6 / np.pi * np.arcsin(0.35), 0
    for _ in range(1000):
        one, noise = generator.normal(size=(2, 12))
        value, low, high = sb.core.rank_correlation(one, 0.7 * one + np.sqrt(0.51) * noise)
        assert low <= value <= high
        inside += low <= truth <= high
    assert 0.92 < inside / 1000 < 0.99
    assert sb.core.rank_correlation([1, 2, 3, 4], [2, 3, 5, 9]) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        ([1, 2, 3], [1, 2, 3], "at least 4"),
        ([1, 2, 3, 4], [1, 2, 3], "as many"),
        ([1] * 4, [1, 2, 3, 4], "the same for all"),
    ],
)
def test_what_cannot_be_ranked_is_refused(one, other, message):
    with pytest.raises(sb.SimbaError, match=message):
        sb.core.rank_correlation(one, other)


def test_answers_are_told_apart():
    assert sb.book.check_answer(None, 1, 0.1).startswith("Not answered")
    assert sb.book.check_answer(1.05, 1, 0.1) == "Right."
    assert sb.book.check_answer(1.2, 1, 0.1) == "Not yet."


def test_errors_survive_the_way_home_from_a_worker():
    error = sb.core.FoldingError("a", 1, "at most 2", "Do that.")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is sb.core.FoldingError and str(again) == str(error)


# -- slider --


def slider(**options):
    options = {"label": "Size <x>", "alt": 'A "ramp"', "unit": "mm"} | options
    return sb.book.LabSlider(lambda value: np.full((4, 6), value), [0.0, 0.5, 1.0], **options)


def test_slider_works_without_network_and_without_a_mouse():
    page = slider(marks=[("L", 0.1, 0.5)]).html()
    assert "http" not in page
    assert 'type="range"' in page and 'aria-valuetext="+0.5 mm"' in page
    assert 'aria-label="A &quot;ramp&quot;"' in page and "Size &lt;x&gt;" in page
    assert page == slider(marks=[("L", 0.1, 0.5)]).html()  # the same page gives the same bytes


def test_many_high_frames_fit_into_one_picture():
    """A WebP image is at most 16383 pixels high: the frames go on in a second column."""
    shades = np.linspace(0.2, 0.8, 5)
    page = sb.book.LabSlider(
        lambda k: np.full((4000, 8), shades[int(k)]), range(5), label="frame", alt="grey", start=4
    ).html()
    picture = np.asarray(
        Image.open(
            io.BytesIO(base64.b64decode(re.search(r"base64,([^)]+)", page).group(1)))
        ).convert("L")
    )
    assert picture.shape == (16000, 16)
    np.testing.assert_allclose(picture[2000::4000, 4] / 255, shades[:4], atol=0.03)
    assert picture[2000, 12] / 255 == pytest.approx(shades[4], abs=0.03)
    assert "100.0000% 0.0000%/200% 400%" in page


def test_a_slider_may_play_and_does_not_otherwise():
    page = slider(label="dose", alt="a grey square", play=0.5).html()
    assert ">Play</button>" in page
    assert "},500)" in page
    assert "</button>" not in slider(label="dose", alt="a grey square").html()
    _picture, moved, player = slider(label="dose", alt="a grey square", play=0.5).widget().children
    player.value = 2
    assert moved.value == 1.0
    with pytest.raises(sb.SimbaError, match="play"):
        slider(label="dose", alt="a grey square", play=0)


def test_slider_is_a_widget_with_a_kernel_and_html_without(monkeypatch):
    assert WIDGET_VIEW in slider()._repr_mimebundle_()
    monkeypatch.setenv(STATIC_VARIABLE, "1")
    assert set(slider()._repr_mimebundle_()) == {"text/plain", "text/html"}


def test_widget_draws_what_the_slider_says():
    box = slider().widget()
    picture, control = box.children
    before = picture.value
    control.value = 1.0
    assert picture.value != before


@pytest.mark.parametrize("bad", [{"alt": " "}])
def test_slider_needs_a_text_alternative(bad):
    with pytest.raises(sb.SimbaError, match="alt"):
        slider(**bad)


def test_slider_needs_increasing_values():
    with pytest.raises(sb.SimbaError, match="increasing"):
        sb.book.LabSlider(lambda v: np.zeros((2, 2)), [1, 0], label="x", alt="y")


@pytest.mark.parametrize(("other", "said"), [((3, 2), "(3, 2)"), ((1, 2, 3), "(1, 2, 3)")])
def test_frames_of_different_shapes_are_refused(other, said):
    shapes = {1: (1, 2), 2: other}
    with pytest.raises(sb.SimbaError) as refusal:
        sb.book.LabSlider(lambda v: np.zeros(shapes[v]), [1, 2], label="x", alt="y").html()
    assert str(refusal.value).startswith("draw(2.0) must be of the shape of the first, (1, 2)")
    assert said in str(refusal.value)


# -- figures --


def test_montage_puts_left_where_its_marks_say(template):
    mask = template.region("Insula_L").astype(float)
    picture = figures.montage(mask, template.lattice.affine, (-36, 4, 2))
    marks = figures.montage_marks(mask.shape)
    assert [letter for letter, *_ in marks] == ["L", "R", "L", "R", "P", "A"]
    for panel in (0, 1):  # axial and coronal: the left insula is nearer to the L
        left, right = (x * picture.shape[1] for _, x, _ in marks[2 * panel : 2 * panel + 2])
        columns = np.flatnonzero(picture[:, int(left) : int(right)].any(axis=0)) + int(left)
        assert abs(columns.mean() - left) < abs(columns.mean() - right)
    front = figures.montage(
        template.region("Frontal_Med_Orb_L").astype(float), template.lattice.affine, (-6, 50, -10)
    )
    start, stop = (x * picture.shape[1] for _, x, _ in marks[4:])
    columns = np.flatnonzero(front[:, int(start) : int(stop)].any(axis=0)) + int(start)
    assert abs(columns.mean() - stop) < abs(
        columns.mean() - start
    )  # the frontal lobe is nearer to the A


def test_tint_and_outline():
    grey = np.full((5, 5), 0.5)
    tinted = figures.tinted(grey, np.where(np.eye(5) > 0, 1.0, 0.0), limit=0.5)
    np.testing.assert_allclose(tinted[0, 1], 0.5)
    assert tinted[0, 0, 0] > tinted[0, 0, 2]  # positive is orange: more red than blue
    mask = np.zeros((5, 5), bool)
    mask[1:4, 1:4] = True
    outline = figures.outlined(grey, mask)
    np.testing.assert_allclose(outline[2, 2], 0.5)
    assert outline[1, 1, 0] > outline[1, 1, 2]


def test_every_figure_has_a_title_and_labels_and_draws(cohort, template):
    rates = sb.evaluate(sb.SimBANet((2,), seed=0), cohort.test)
    effects = sb.twin_effect(sb.SimBANet((2,), seed=0), cohort.test)
    history = pd.DataFrame(
        {"train_loss": [0.7, 0.6], "validation_loss": [0.7, 0.65], "kept": [False, True]}
    )
    grams = {"block1": np.diag(np.arange(1.0, 21)) + np.outer(np.arange(20), np.arange(20))}
    half, other = np.arange(20) % 2, np.arange(20) // 2 % 2
    probe = sb.probe(grams, half, floors={"same": [grams, grams]})
    seeds = pd.MultiIndex.from_product([["biased"], [0, 1]], names=["network", "seed"])
    over_seeds = pd.DataFrame({"block1": [0.5, 0.6], "block2": [0.7, 0.6]}, index=seeds)
    for figure in (
        figures.rates(rates, title="Rates"),
        figures.intervals(effects.assign(kind="x"), "logit", title="Effect", label="logit"),
        figures.learning(history, title="Loss"),
        figures.probes(probe, title="Probes", floors={"floor_same": "same"}),
        figures.per_layer(
            over_seeds, title="Seeds", label="AUC", names={"biased": "biased"}, reference=0.5
        ),
        figures.learning_curves(
            {"this": sb.learning_curve(grams, half, folds=3)}, "block1", title="Curve"
        ),
        figures.plane(np.eye(20)[:, :2], half, other, title="Plane", axes_labels=["one", "two"]),
        figures.groups_on_axis(
            sb.interpretation.projections(grams, half, other, folds=3), title="Axis"
        ),
        figures.arrival(
            {"biased": over_seeds.T.set_axis(["mark", "disease"], axis=1)}, title="Epoch"
        ),
        figures.alignment({"both": sb.interpretation.cka_matrix(sb.cka(grams))}, title="CKA"),
    ):
        axes = figure.axes[0]
        assert axes.get_title() and (axes.get_xlabel() or axes.get_ylabel() or axes.images)
        assert figure._repr_png_().startswith(b"\x89PNG")
    brains = figures.brains(
        {"one": cohort.array(0)}, cohort.lattice.affine, (0, 0, 0), title="Brains"
    )
    assert brains._repr_png_().startswith(b"\x89PNG")
    with pytest.raises(sb.SimbaError, match="at least one volume"):
        figures.brains({}, np.eye(4), (0, 0, 0), title="x")


# -- command line --


@pytest.fixture
def scenario_file(tmp_path, scenario):
    scenario.replace(subjects=40).to_yaml(tmp_path / "scenario.yaml")
    return tmp_path / "scenario.yaml"


def test_commands_from_scenario_to_probe(tmp_path, scenario_file, capsys):
    scenario = sb.Scenario.from_yaml(scenario_file)
    # The default network halves four times: 8 mm voxels leave just enough.
    assert cli.main(["synthesise", str(scenario_file), str(tmp_path / "volumes")]) == 0
    cohort = sb.open_cohort(tmp_path / "volumes", verify=True)
    np.testing.assert_array_equal(cohort.array(3), sb.synthesise(scenario, seed=0).array(3))
    assert cli.main(["export", str(tmp_path / "volumes"), str(tmp_path / "bids")]) == 0
    exported = tmp_path / "bids" / "sub-0003" / "anat" / "sub-0003_T1w.nii.gz"
    np.testing.assert_array_equal(nib.load(exported).get_fdata(dtype=np.float32), cohort.array(3))
    assert list((tmp_path / "bids" / "derivatives").rglob("*mask.nii.gz"))
    assert cli.main(["fit", str(scenario_file), str(tmp_path / "run"), "--epochs", "1"]) == 0
    assert "ceiling" in capsys.readouterr().out
    assert (
        cli.main(["synthesise", str(scenario_file), str(tmp_path / "volumes")]) == 0
    )  # it is there already
    assert (
        cli.main(["synthesise", str(scenario_file), str(tmp_path / "volumes"), "--seed", "1"]) == 2
    )
    assert "nothing is overwritten" in capsys.readouterr().err
    assert cli.main(["probe", str(scenario_file), str(tmp_path / "run"), "--seed", "1"]) == 2
    assert "fitted on" in capsys.readouterr().err


def test_regions_are_listed(capsys):
    assert cli.main(["regions"]) == 0
    assert "Putamen_L" in capsys.readouterr().out.splitlines()


def test_bad_input_is_one_line(tmp_path, capsys):
    (tmp_path / "bad.yaml").write_text(
        "subjects: 100\ndisease: {region: Insula, amplitude_mm: 2}\n", encoding="utf-8"
    )
    assert cli.main(["synthesise", str(tmp_path / "bad.yaml"), str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "scenario.disease.region" in error and "Insula_L" in error and "Traceback" not in error
    assert not (tmp_path / "out").exists()


# -- book and repository --


def test_every_chapter_is_in_the_table_of_contents():
    parts = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))["parts"]
    listed = {chapter["file"] for part in parts for chapter in part["chapters"]}
    assert {f"book/{path.stem}" for path in CHAPTERS} <= listed
    assert all(
        (ROOT / f"{name}.ipynb").exists() or (ROOT / f"{name}.md").exists() for name in listed
    )


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_chapters_have_their_parts(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    text = "\n".join("".join(cell["source"]) for cell in cells)
    for part in (
        "The question.",
        "Predict first",
        "In plain words",
        "In mathematics",
        "LabSlider(",
        "Break it",
    ):
        assert part in text, part
    for part in (
        "What this does not show",
        "Three takeaways",
        "The claims of this chapter",
        "{bibliography}",
    ):
        assert part in text, part
    assert len(re.findall(r"^:::\{exercise\}", text, flags=re.M)) == 3
    assert len(re.findall(r"^:::\{solution\}", text, flags=re.M)) == 3
    claims = [cell for cell in cells if "# NBVAL_CHECK_OUTPUT" in "".join(cell["source"])]
    assert len(claims) == 1 and claims[0]["outputs"], (
        "the claims keep their output, for nbval to compare"
    )
    assert "keep_output" in claims[0]["metadata"]["tags"]


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
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
