"""Comparisons: equal subjects, equal passes, rates chosen on validation subjects."""

import dataclasses
import random
from pathlib import Path

import numpy as np
import pytest
import torch

import simba_lab as sb
from simba_lab.cli import main
from simba_lab.experiments.comparison import Comparison
from simba_lab.federation.clients import LocalClient, VisitConfig
from simba_lab.federation.steps import follow
from simba_lab.federation.strategies import fedavg
from simba_lab.training.predictions import logits

ROOT = Path(__file__).parents[2]
STORED = ROOT / "data" / "results" / "samples_per_site"


@pytest.fixture(scope="module")
def small() -> Comparison:
    return Comparison(
        sb.Scenario(subjects=16, spacing_mm=8.0, disease=sb.Morphology("Insula_L", 2.5)),
        subjects=12,
        per_site=(1, 3),
        strategies=("central", "travelling", "fedavg", "local"),
        passes=4,
        learning_rates=(0.01, 0.1),
        seeds=(0,),
        network={"name": "SimBANet", "widths": [4, 8], "norm": "group"},
        validation=8,
        test=8,
    )


def test_every_size_has_the_same_subjects_and_both_classes_in_equal_number(small):
    single, triple = (small.federation(size, seed=1).cohort.train for size in (1, 3))
    np.testing.assert_array_equal(single.table.index, triple.table.index)
    assert single["label"].mean() == 0.5
    np.testing.assert_array_equal(single.array(0), triple.array(0))
    sizes = triple.table.groupby("site")["label"].agg(["size", "sum"])
    assert set(sizes["size"]) == {3}
    assert sorted(sizes["sum"]) == [1, 1, 2, 2]


def test_a_row_is_what_a_plain_training_gives_with_the_rate_that_validation_chose(small):
    row = small.row("fedavg", 3, 0)
    federation, scores = small.federation(3, 0), {}
    for rate in small.learning_rates:
        model = sb.SimBANet((4, 8), norm="group", seed=0)
        visit = dataclasses.replace(small.visit, learning_rate=rate)
        clients = [
            LocalClient(name, model, federation.at(name), visit) for name in federation.names
        ]
        model.load_state_dict(follow(fedavg(clients, model.state_dict(), rounds=4, seed=0)).weights)
        scores[rate] = [
            sb.evaluate(logits(model, subjects), subjects, by=None).loc["all", "auroc"]
            for subjects in (federation.validation, federation.test)
        ]
    assert (
        row["validation"]
        == max(score for score, _ in scores.values())
        == scores[row["learning_rate"]][0]
    )
    assert row["auroc"] == scores[row["learning_rate"]][1]


def test_rows_are_kept_and_one_site_is_central(small, tmp_path, monkeypatch):
    table = small.run(n_jobs=1, cache=tmp_path)
    assert list(table["strategy"]) == [name for name in small.strategies for _ in range(2)]
    assert list(table["sites"]) == [1, 1, 12, 4, 12, 4, 12, 4]
    # Sizes 1 and 3, four passes over 12 subjects.
    assert list(table["updates"]) == [48, 16, 48, 16, 4, 4, 4, 4]
    monkeypatch.setattr(Comparison, "row", None)  # nothing is computed again
    assert small.run(n_jobs=1, cache=tmp_path).equals(table)
    assert (
        dataclasses.replace(small, strategies=("local",))
        .run(n_jobs=1, cache=tmp_path)["auroc"]
        .equals(table.loc[table["strategy"] == "local", "auroc"].reset_index(drop=True))
    )


def test_the_control_with_as_many_updates_is_added_where_asked_and_averages_more_often(small):
    comparison = dataclasses.replace(
        small, strategies=("fedavg",), long=(3,), passes=4, learning_rates=(0.1,)
    )
    assert sorted(comparison.cells()) == [("fedavg", 1, 0), ("fedavg", 3, 0), ("fedavg_long", 3, 0)]
    row = comparison.row("fedavg_long", 3, 0)
    # Four sites: four times the four rounds, one update in each.
    assert row["updates"] == 16 == comparison.row("fedavg", 3, 0)["updates"] * 4
    longer = dataclasses.replace(comparison, long=(), passes=16).row("fedavg", 3, 0)
    assert row["auroc"] == longer["auroc"]


def test_a_rate_that_is_too_large_gives_chance_and_not_a_crash(small):
    wild = dataclasses.replace(
        small, visit=VisitConfig(optimiser="sgd", threads=1), learning_rates=(0.99,)
    )
    row = wild.row("travelling", 3, 0)
    assert np.isfinite(row["auroc"])


def test_with_one_batch_a_visit_travelling_by_gradient_descent_is_central_training_in_another_order(
    small,
):
    """Both do the same number of steps, from the same weights, over the same subjects per pass."""
    federation = small.federation(1, 0)
    (central,) = small._train("central", federation, 1, 0, 1e-3)
    (travelled,) = small._train("travelling", federation, 1, 0, 1e-3)
    start = small._model(0).state_dict()
    moved = {name: (central[name] - start[name]).norm() for name in start}
    distances = {name: (central[name] - travelled[name]).norm() for name in start}
    assert sum(moved.values()) > 0
    assert sum(distances.values()) < 0.1 * sum(
        moved.values()
    )  # to first order in the rate, the order does not matter


def test_rates_that_diverge_are_passed_over_and_mistakes_are_not(small, monkeypatch):
    plain = dataclasses.replace(small, learning_rates=(0.01,)).row("fedavg", 3, 0)
    train = LocalClient.train

    def fails(self, weights, **visit):
        reply = train(self, weights, **visit)
        if self.config.learning_rate == 0.1:
            reply["weights"]["readout.bias"].fill_(np.nan)
        return reply

    monkeypatch.setattr(LocalClient, "train", fails)
    row = small.row("fedavg", 3, 0)
    assert row["learning_rate"] == 0.01
    assert row["auroc"] == plain["auroc"]
    with pytest.raises(sb.SimbaError, match=r"learning_rates.*smaller"):
        dataclasses.replace(small, learning_rates=(0.1,)).row("fedavg", 3, 0)
    monkeypatch.setattr(LocalClient, "train", lambda *_, **__: 1 / 0)
    with pytest.raises(sb.SimbaError, match="division by zero"):
        small.row("fedavg", 3, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"per_site": (5,)}, "per_site"),
        ({"per_site": ()}, "per_site"),
        ({"strategies": ("fedavgg",)}, "fedavg"),
        ({"passes": 3}, "passes"),
        ({"seeds": (1, 1)}, "seeds"),
        ({"long": (20,)}, "long"),
        ({"subjects": -240}, r"comparison\.subjects"),
        ({"subjects": 12.0}, "subjects must be an integer"),
        ({"passes": "x"}, "passes"),
        ({"passes": float("nan")}, "passes"),
        ({"learning_rates": ["x"]}, "learning_rates"),
        ({"learning_rates": (0.1, -1.0)}, "learning_rates"),
        ({"learning_rates": 0.1}, "learning_rates must be a sequence"),
        ({"seeds": ["y"]}, "seeds"),
        ({"seeds": "y"}, "seeds must be a sequence"),
        ({"network": [1]}, "network must be a mapping"),
        ({"network": {"name": "SimBANet", "widhts": [4]}}, r"comparison\.network.*widhts"),
        ({"validation": "z"}, "validation"),
        ({"test": 0}, "test"),
    ],
)
def test_bad_comparisons_are_refused(small, change, message):
    with pytest.raises(sb.SimbaError, match=message):
        dataclasses.replace(small, **change)


def test_from_the_command_line_and_unknown_fields(tmp_path):
    text = "scenario: {spacing_mm: 8.0, disease: {region: Insula_L, amplitude_mm: 2.5}}\n"
    text += "subjects: 12\nper_site: [3]\nstrategies: [fedavg]\npasses: 4\n"
    text += "learning_rates: [0.1]\nseeds: [0]\nvalidation: 8\ntest: 8\n"
    (tmp_path / "good.yaml").write_text(text + "network: {name: SimBANet, widths: [4, 8]}\n")
    assert main(["compare", str(tmp_path / "good.yaml"), str(tmp_path / "out"), "--jobs", "1"]) == 0
    table, manifest = sb.experiments.read_results(tmp_path / "out")
    assert len(table) == 1
    assert Comparison.from_yaml(tmp_path / "good.yaml").to_dict() == manifest["comparison"]
    (tmp_path / "bad.yaml").write_text(text + "per_sight: [1]\n")
    with pytest.raises(sb.SimbaError, match="per_site"):
        Comparison.from_yaml(tmp_path / "bad.yaml")


def test_the_stored_table_is_whole_and_of_its_comparison():
    table, manifest = sb.experiments.read_results(STORED)
    comparison = Comparison.from_yaml(ROOT / "data" / "comparisons" / "samples_per_site.yaml")
    assert manifest["comparison"] == comparison.to_dict()
    cells = {(row.strategy, row.per_site, row.seed) for row in table.itertuples()}
    assert cells == set(comparison.cells())
    assert len(table) == manifest["cells"] == len(cells)
    assert not table[["auroc", "validation", "learning_rate", "updates"]].isna().any(axis=None)


def test_a_random_row_of_the_stored_table_comes_out_again():
    """Of the rows that take seconds, with the chosen rate.

    Another kind of processor trains another network: the margin is wider there.
    """
    table, manifest = sb.experiments.read_results(STORED)
    comparison = Comparison.from_yaml(ROOT / "data" / "comparisons" / "samples_per_site.yaml")
    quick = table[(table["per_site"] >= 5) & table["strategy"].isin(comparison.strategies)]
    row = quick.iloc[random.SystemRandom().randrange(len(quick))]
    again = dataclasses.replace(comparison, learning_rates=(float(row["learning_rate"]),))
    repeated = again.row(row["strategy"], int(row["per_site"]), int(row["seed"]))
    assert repeated["updates"] == row["updates"]
    same = manifest.get("instructions") == torch.backends.cpu.get_cpu_capability()
    margin = 0.1 if same else 0.25
    assert repeated["auroc"] == pytest.approx(row["auroc"], abs=margin), row.to_dict()
    assert repeated["validation"] == pytest.approx(row["validation"], abs=margin), row.to_dict()
