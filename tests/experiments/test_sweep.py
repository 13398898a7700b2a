import dataclasses
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import simba_lab as sb
from simba_lab.cli import main
from simba_lab.experiments import cells, dose_response

ROOT = Path(__file__).parents[2]
CONFIG = sb.FitConfig(epochs=1, threads=1)
NETWORK = {"name": "SimBANet", "widths": [4, 8]}
PREVALENCES = {"prevalence.bias": [0.5, 0.9]}


@pytest.fixture
def small(scenario):
    return sb.Sweep(scenario, PREVALENCES, seeds=(0, 1), config=CONFIG, network=NETWORK)


def test_cells_are_all_combinations_with_what_they_say(scenario):
    sweep = sb.Sweep(
        scenario,
        {
            "place": {
                "near": {"scenario.bias.region": "Putamen_L"},
                "far": {"scenario.bias.region": "Putamen_R"},
            },
            "scenario.bias.amplitude_mm": [1.0, 2.0],
            "training": {"plain": {}, "repaired": {"mitigation": "reweighing", "config.epochs": 3}},
            **PREVALENCES,
        },
        seeds=(0, 5),
        network=NETWORK,
    )
    cells = sweep.cells()
    assert len(cells) == len({cell.key for cell in cells}) == 2 * 2 * 2 * 2 * 2
    for cell in cells:
        bias = cell.scenario.bias
        assert bias.region == {"near": "Putamen_L", "far": "Putamen_R"}[cell.levels["place"]]
        assert bias.amplitude_mm == cell.levels["scenario.bias.amplitude_mm"]
        assert (
            bias.prevalence["disease"]
            == cell.levels["prevalence.bias"]
            == pytest.approx(1 - bias.prevalence["control"])
        )
        repaired = cell.levels["training"] == "repaired"
        assert (cell.mitigation is not None) == repaired and cell.config.epochs == (
            3 if repaired else 8
        )
        assert cell.config.seed == cell.seed and cell.config.threads == 1


def test_a_sweep_is_read_back_from_yaml(small, tmp_path):
    text = json.dumps(small.to_dict())  # JSON is YAML
    (tmp_path / "sweep.yaml").write_text(text)
    assert [cell.key for cell in sb.Sweep.from_yaml(tmp_path / "sweep.yaml").cells()] == [
        cell.key for cell in small.cells()
    ]


@pytest.mark.parametrize(
    "path", sorted((ROOT / "data" / "sweeps").glob("*.yaml")), ids=lambda path: path.stem
)
def test_the_sweeps_of_the_book_are_valid(path):
    assert len(sb.Sweep.from_yaml(path).cells()) > 1


@pytest.mark.parametrize(
    ("axes", "says"),
    [
        ({}, "at least one axis"),
        ({"prevalence.bias": []}, "at least one value"),
        ({"prevalence.bias": "0.5"}, "must be a sequence"),
        ({"prevalence.bais": [0.5]}, "Did you mean bias"),
        ({"prevalence.bias": [1.5]}, r"in \[0, 1\]"),
        ({"prevalense.bias": [0.5]}, "Did you mean prevalence"),
        ({"scenario.bias.amplitud_mm": [1.0]}, "Did you mean amplitude_mm"),
        ({"scenario.bais.region": ["Insula_R"]}, "Did you mean bias"),
        ({"scenario.bias.region": ["Putamen"]}, "Putamen_L"),
        ({"scenario.subjects": [4]}, "at least 16"),
        ({"config.epoch": [3]}, "Did you mean epochs"),
        ({"config.learning_rate": [7]}, "config.learning_rate"),
        ({"network.widhts": [[4]]}, "options of SimBANet"),
        ({"network.name": ["SimbaNet"]}, "Did you mean SimBANet"),
        ({"mitigation": ["reweighting"]}, "Did you mean reweighing"),
        ({"mitigation.by": ["bias"]}, "mitigation, followed by nothing"),
        ({"d_prime.bias": [-1]}, "number above 0"),
        ({"scenario": [1]}, "followed by a field of the scenario"),
    ],
)
def test_every_mistake_is_found_before_anything_runs(scenario, axes, says):
    with pytest.raises(sb.SimbaError, match=says):
        sb.Sweep(scenario, axes)


def test_sweeps_with_a_typo_in_a_field_are_refused(small, tmp_path):
    for change, says in (
        ({"seed": [1]}, "Did you mean seeds"),
        ({"config": {"epoch": 3}}, "Did you mean epochs"),
    ):
        with pytest.raises(sb.SimbaError, match=says):
            sb.Sweep.from_dict(small.to_dict() | change)
    with pytest.raises(sb.SimbaError, match="different integers"):
        dataclasses.replace(small, seeds=(1, 1))
    with pytest.raises(sb.SimbaError, match="existing YAML"):
        sb.Sweep.from_yaml(tmp_path / "none.yaml")
    (tmp_path / "broken.yaml").write_text("axes: [")
    with pytest.raises(sb.SimbaError, match="valid YAML"):
        sb.Sweep.from_yaml(tmp_path / "broken.yaml")


def test_rows_are_what_the_single_calls_measure(small, scenario, tmp_path):
    table = small.run(n_jobs=1, cache=tmp_path)
    assert table[["prevalence.bias", "seed"]].to_numpy().tolist() == [
        [0.5, 0],
        [0.9, 0],
        [0.5, 1],
        [0.9, 1],
    ]
    biased = scenario.replace(
        bias=dataclasses.replace(scenario.bias, prevalence={"control": 0.1, "disease": 0.9})
    )
    cohort = sb.synthesise(biased, seed=1)
    run = sb.fit(
        sb.SimBANet((4, 8), seed=1), cohort, dataclasses.replace(CONFIG, seed=1), cache=False
    )
    row, test = table.iloc[3], cohort.test
    effect = sb.twin_effect(run.model, test).iloc[0]
    for name in ("logit", "rate", "flips"):
        assert row[f"twin_{name}"] == pytest.approx(effect[name], abs=1e-6)
    overall = sb.evaluate(run.model, test, by=None).iloc[0]
    for name in ("accuracy", "auroc", "brier", "tpr"):
        assert row[name] == pytest.approx(overall[name], abs=1e-6)
    assert row["fpr_gap"] == pytest.approx(sb.disparity(run.model, test).loc["fpr", "difference"])
    assert row["size"] == scenario.bias.amplitude_mm
    # Everybody as a carrier and as none, weighted as the scenario has them.
    scores = {
        state: sb.logits(run.model, test.twin(**{state: "bias"})) > 0
        for state in ("carrying", "without")
    }
    right = {state: scores[state] == test["label"] for state in scores}
    fair = np.mean(
        [right[state][test["label"] == label].mean() for state in scores for label in (0, 1)]
    )
    assert row["fair_accuracy"] == pytest.approx(fair)
    assert row["twin_tpr"] == pytest.approx(
        scores["carrying"][test["label"] == 1].mean() - scores["without"][test["label"] == 1].mean()
    )


def rows_in(cache):
    return sorted(path for path in (cache / "cells").iterdir() if path.is_dir())


def test_a_sweep_goes_on_where_it_was_and_processes_do_not_change_it(small, tmp_path, monkeypatch):
    first = small.run(n_jobs=1, cache=tmp_path / "one")
    kept = rows_in(tmp_path / "one")
    shutil.rmtree(kept[0])  # as if it had been stopped before the last cell
    fitted = []
    real = cells.fit
    monkeypatch.setattr(
        cells, "fit", lambda *args, **options: fitted.append(1) or real(*args, **options)
    )
    again = small.run(n_jobs=1, cache=tmp_path / "one")
    assert len(fitted) == 1
    monkeypatch.undo()
    second = small.run(n_jobs=2, cache=tmp_path / "two")
    for table in (again, second):
        pd.testing.assert_frame_equal(first.drop(columns="seconds"), table.drop(columns="seconds"))


def test_cells_that_fail_are_named_and_the_others_kept(scenario, tmp_path):
    axes = {"prevalence.bias": [0.9], "scenario.bias.amplitude_mm": [2.0, 60.0]}
    sweep = sb.Sweep(scenario, axes, seeds=(0,), config=CONFIG, network=NETWORK)
    with pytest.raises(sb.SimbaError, match=r"1 of 2 cells.*amplitude_mm 60\.0.*would fold"):
        sweep.run(n_jobs=1, cache=tmp_path)
    assert len(rows_in(tmp_path)) == 1


def test_several_biases_are_judged_by_name(scenario):
    scanner = sb.Intensity("contrast", 0.1, prevalence={"disease": 0.8, "control": 0.2})
    two_biases = scenario.replace(bias={"near": scenario.bias, "scanner": scanner})
    table = sb.Sweep(
        two_biases, {"prevalence.scanner": [0.7]}, seeds=(0,), config=CONFIG, network=NETWORK
    ).run(n_jobs=1, cache=False)
    assert {
        "near.size",
        "scanner.size",
        "near.twin_logit",
        "scanner.twin_logit",
        "scanner.fair_accuracy",
    } <= set(table)


def rows_changed(cache):
    for path in cache.glob("cells/*/value.json"):
        path.write_text(path.read_text().replace('"auroc": 0.', '"auroc": 9.'))


@pytest.mark.parametrize(
    "damage",
    [rows_changed, lambda cache: [path.write_text("") for path in cache.glob("cells/*/*.json")]],
    ids=["another number", "empty"],
)
def test_a_row_that_was_changed_is_made_anew(scenario, tmp_path, damage):
    sweep = sb.Sweep(scenario, {"prevalence.bias": [0.9]}, (0,), CONFIG, NETWORK)
    first = sweep.run(n_jobs=1, cache=tmp_path)
    damage(tmp_path)
    with pytest.warns(UserWarning, match="damaged; it is made anew"):
        again = sweep.run(n_jobs=1, cache=tmp_path)
    pd.testing.assert_frame_equal(first.drop(columns="seconds"), again.drop(columns="seconds"))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"seeds": range(10**7)}, "the number of cells must be an integer of at most 100000"),
        ({"seeds": (-1,)}, "sweep.seeds must be an integer of at least 0"),
        ({"seeds": (10**30,)}, "sweep.seeds must be an integer of at most"),
        ({"axes": {"config.epochs": [10**9]}}, "at most 1000000"),
        ({"axes": {"config.threads": [10**6]}}, "at most 512"),
    ],
)
def test_counts_have_limits(small, changes, says):
    with pytest.raises(sb.SimbaError, match=says):
        dataclasses.replace(small, **changes)
    with pytest.raises(sb.SimbaError, match="n_jobs must be an integer of at most 512"):
        small.run(n_jobs=10**6, cache=False)
    with pytest.raises(sb.SimbaError, match="n_jobs must be an integer of at least 1"):
        small.run(n_jobs=0, cache=False)


WORKING = """
import os, sys, time
from simba_lab.experiments.parallel import in_parallel, worker_processes
def work(path):
    open(path + "." + str(os.getpid()), "w").close()
    time.sleep(120)
with worker_processes(2) as jobs:
    in_parallel(jobs, work, [(sys.argv[1],)] * 4, progress=False, unit="calls")
"""


def test_workers_end_with_the_process_that_they_work_for(tmp_path):
    """A real SIGKILL of the parent, while its workers are busy."""
    command = [sys.executable, "-c", WORKING, str(tmp_path / "worker")]
    parent = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    workers = [int(path.suffix[1:]) for path in tmp_path.iterdir()]
    assert len(workers) == 2 and all(Path(f"/proc/{worker}").exists() for worker in workers)
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 10
    while any(map(lives, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(lives, workers))


def lives(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except OSError:
        return False


def test_saved_results_are_read_back_and_changes_are_noticed(small, tmp_path):
    table = small.run(n_jobs=1, cache=tmp_path / "cache")
    small.save(table, tmp_path / "results", seconds=60)
    read, manifest = sb.experiments.read_results(tmp_path / "results")
    np.testing.assert_allclose(read.to_numpy(float), table.to_numpy(float), rtol=1e-5)
    assert sb.Sweep.from_dict(manifest["sweep"]).to_dict() == small.to_dict()
    with pytest.raises(sb.SimbaError, match="nothing exists yet"):
        small.save(table, tmp_path / "results", seconds=60)
    csv = tmp_path / "results" / "cells.csv"
    csv.write_text(csv.read_text().replace("0.9", "0.8", 1))
    with pytest.raises(sb.SimbaError, match="changed since"):
        sb.experiments.read_results(tmp_path / "results")
    with pytest.raises(sb.SimbaError, match=r"Sweep\.save"):
        sb.experiments.read_results(tmp_path)


def test_the_command_line_runs_a_sweep(small, tmp_path, capsys):
    (tmp_path / "sweep.yaml").write_text(json.dumps(small.to_dict()))
    assert (
        main(["sweep", str(tmp_path / "sweep.yaml"), str(tmp_path / "results"), "--jobs", "1"]) == 0
    )
    assert "4 cells" in capsys.readouterr().out
    assert len(sb.experiments.read_results(tmp_path / "results")[0]) == 4
    command = ["sweep", str(tmp_path / "sweep.yaml")]
    assert main([*command, str(tmp_path / "results")]) == 2
    assert "Nothing is overwritten" in capsys.readouterr().err
    (tmp_path / "sweep.yaml").write_text(json.dumps(small.to_dict() | {"seeds": []}))
    assert main(["sweep", str(tmp_path / "sweep.yaml"), str(tmp_path / "other")]) == 2
    assert "sweep.seeds" in capsys.readouterr().err


def test_the_ideal_shift_is_what_a_simulated_reader_finds():
    draws = np.random.default_rng(0).standard_normal(400_000)
    for d_prime, prevalence in ((0.5, 0.8), (2, 0.65), (4, 0.95)):

        def evidence(z, d=d_prime, p=prevalence):
            carrying, plain = np.exp(-((z - d) ** 2) / 2), np.exp(-(z**2) / 2)
            return np.log((p * carrying + (1 - p) * plain) / ((1 - p) * carrying + p * plain))

        simulated = evidence(draws + d_prime).mean() - evidence(draws).mean()
        assert sb.experiments.ideal_shift(d_prime, prevalence) == pytest.approx(simulated, abs=0.03)
    assert sb.experiments.ideal_shift(3, 0.5) == pytest.approx(0, abs=1e-12)
    assert sb.experiments.ideal_shift(30, 0.9) == pytest.approx(2 * np.log(9), rel=1e-6)
    assert sb.experiments.ideal_shift(0, 0.9) == pytest.approx(0, abs=1e-12)
    assert sb.experiments.ideal_shift(1, 0.2) == pytest.approx(-sb.experiments.ideal_shift(1, 0.8))
    for arguments in ((-1, 0.5), (1, 1.0), (1, 0.0)):
        with pytest.raises(sb.SimbaError):
            sb.experiments.ideal_shift(*arguments)


@pytest.fixture(scope="module")
def planted():
    """Networks that follow a known surface: place a takes half at d' = 2, place b nothing."""
    generator, rows = np.random.default_rng(0), []
    for place, level in (("a", -2.0), ("b", -9.0)):
        for d_prime in (0.5, 1, 2, 4):
            for prevalence in (0.5, 0.65, 0.8, 0.95):
                evidence = 2 * np.log(prevalence / (1 - prevalence))
                share = (
                    0
                    if evidence == 0
                    else 1 / (1 + np.exp(-(level + 2 * np.log(d_prime / 2) + 2 * np.log(evidence))))
                )
                shift = share * sb.experiments.ideal_shift(d_prime, prevalence)
                for seed in range(4):
                    logit = -0.1 + shift + generator.normal(0, 0.03)
                    rate = 1 - np.exp(-shift / 4) + generator.normal(0, 0.005)
                    rows.append((place, d_prime, prevalence, seed, logit, rate))
    names = [
        "scenario.bias.region",
        "d_prime.bias",
        "prevalence.bias",
        "seed",
        "twin_logit",
        "twin_rate",
    ]
    return pd.DataFrame(rows, columns=names)


def test_the_surface_finds_planted_parameters_and_thresholds(planted, monkeypatch):
    monkeypatch.setattr(dose_response, "BOOTSTRAPS", 40)
    surface = sb.experiments.fit_surface(planted)
    parameters = surface.parameters
    for name, truth in (
        ("evidence", 2.0),
        ("level a", -2.0),
        ("salience a", 2.0),
        ("log scale", np.log(4)),
    ):
        assert parameters.loc[name, "estimate"] == pytest.approx(truth, abs=0.15)
        assert parameters.loc[name, "low"] - 0.1 <= truth <= parameters.loc[name, "high"] + 0.1
    assert surface.r_squared > 0.98
    estimate, low, high = surface.threshold("a", 2)
    assert low <= estimate <= high
    assert surface.rate("a", 2, estimate) == pytest.approx(0.05, abs=1e-3)
    assert surface.threshold("b", 1)[0] == np.inf
    assert 0 <= surface.uptake("b", 4, 0.95) < 0.1 < surface.uptake("a", 4, 0.95) <= 1
    with pytest.raises(sb.SimbaError, match="known names"):
        surface.shift("c", 1, 0.8)


def test_the_surface_needs_a_control_for_every_cell(planted):
    with pytest.raises(sb.SimbaError, match=r"no control \(prevalence 0\.5\)"):
        sb.experiments.fit_surface(
            planted[(planted["prevalence.bias"] != 0.5) | (planted["seed"] > 0)]
        )
    with pytest.raises(sb.SimbaError, match="Did you mean twin_logits"):
        sb.experiments.fit_surface(planted.rename(columns={"twin_logit": "twin_logits"}))


def test_the_interval_of_the_surface_is_that_of_whole_seeds(planted):
    """A seed that takes more everywhere widens it, however many networks each seed has."""
    lifted = planted.copy()
    biased = (lifted["seed"] == 0) & (lifted["prevalence.bias"] > 0.5)
    lifted.loc[biased, "twin_logit"] *= 1.5
    narrow, wide = (sb.experiments.fit_surface(table).parameters for table in (planted, lifted))
    width = {
        name: (table["high"] - table["low"])["level a"]
        for name, table in (("narrow", narrow), ("wide", wide))
    }
    assert width["wide"] > 2 * width["narrow"] > 0
    alone = sb.experiments.fit_surface(planted[planted["seed"] == 1])
    assert np.isnan(alone.threshold("a", 2)[1:]).all() and np.isfinite(alone.threshold("a", 2)[0])


def test_impossible_places_on_the_surface_are_refused(planted):
    surface = sb.experiments.fit_surface(planted)
    for ask, says in (
        (lambda: surface.uptake("a", 2, 0.3), "prevalence must be above 0.5"),
        (lambda: surface.rate("a", 0, 0.8), "d_prime must be above 0"),
        (lambda: surface.threshold("a", 2, rate=5), "rate must be above 0"),
        (
            lambda: sb.experiments.fit_surface(pd.concat([planted, planted])),
            "more than one control",
        ),
    ):
        with pytest.raises(sb.SimbaError, match=says):
            ask()


def test_the_order_of_axes_does_not_matter_and_two_cannot_set_one_field(scenario):
    strong = {"strong": {"scenario.bias.amplitude_mm": 2.0}}
    whole = {"near": {"scenario.bias": {"region": "Putamen_L", "amplitude_mm": 2.5}}}
    cells = [
        sb.Sweep(scenario, dict(axes), seeds=(0,)).cells()[0].scenario
        for axes in (
            [("prevalence.bias", [0.9]), ("size", strong), ("bias", whole)],
            [("bias", whole), ("size", strong), ("prevalence.bias", [0.9])],
        )
    ]
    assert cells[0] == cells[1]
    assert (
        cells[0].bias.prevalence["disease"] == pytest.approx(0.9)
        and cells[0].bias.amplitude_mm == 2.0
    )
    with pytest.raises(sb.SimbaError, match="no other axis"):
        sb.Sweep(scenario, {"prevalence.bias": [0.9], "group": {"even": {"prevalence.bias": 0.5}}})
