import hashlib
from contextlib import contextmanager
from dataclasses import replace
from itertools import count

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from torch import nn

import simba_lab as sb
from simba_lab.core.compute import deterministic
from simba_lab.training import trainer
from simba_lab.training.group_routed import GroupRouted
from simba_lab.training.mitigation.objective import Objective, Progress
from simba_lab.training.mitigation.registry import MITIGATIONS, mitigation_from
from simba_lab.training.mitigation.reweighing import cell_weights

# Three steps an epoch: 16, 16 and 8 of 40 subjects.
SMALL = sb.FitConfig(epochs=2, batch_size=16)


def digest(model):
    return hashlib.sha256(
        b"".join(value.numpy().tobytes() for value in model.state_dict().values())
    ).hexdigest()


def net(seed=0, **options):
    return sb.SimBANet((4, 8), seed=seed, **options)


def objective(cohort, mitigation):
    return mitigation_from(mitigation).objective(cohort.train, cohort.validation)


@pytest.mark.parametrize("groups", [2, 3])
def test_weights_make_class_and_group_independent(groups):
    rng = np.random.default_rng(groups)
    cells = torch.from_numpy(rng.choice(2 * groups, 500, p=rng.dirichlet(np.ones(2 * groups))))
    sizes = torch.bincount(cells, minlength=2 * groups).double()

    def dependence(table):
        shares = table.reshape(groups, 2) / table.sum()
        return (
            (shares - shares.sum(0, keepdim=True) * shares.sum(1, keepdim=True)).abs().max().item()
        )

    weighted = sizes * cell_weights(cells, 2 * groups)
    assert dependence(sizes) > 0.01
    assert dependence(weighted) < 1e-6
    for axis in (0, 1):  # as many of each class and of each group as there are
        torch.testing.assert_close(
            weighted.reshape(groups, 2).sum(axis), sizes.reshape(groups, 2).sum(axis)
        )


def test_reweighing_makes_rare_combinations_count_as_much_as_common_ones(cohort):
    reweighed, plain = (
        objective(cohort, "reweighing"),
        Objective(cohort.train, cohort.validation, "bias"),
    )
    sizes = torch.bincount(reweighed.cells)
    rare, common = sizes == sizes.min(), sizes == sizes.max()
    assert rare.sum() == common.sum() == 2

    def cost(objective):
        """What each combination adds to the loss if all its members get the same wrong answer."""
        cells = [(objective.cells == cell).nonzero()[:, 0] for cell in range(4)]
        wrong = [
            objective.loss(nn.Identity(), 1 - 2 * objective.labels[rows], rows, None, None)
            * len(rows)
            for rows in cells
        ]
        return torch.stack(wrong)

    assert cost(plain)[common].min() > 2 * cost(plain)[rare].max()
    torch.testing.assert_close(cost(reweighed)[common], cost(reweighed)[rare])


def expected_draws(objective, name):
    """How often each cell should come in an epoch: as under independence, or all equally often."""
    table = torch.bincount(objective.cells, minlength=4).double().reshape(2, 2)
    independent = table.sum(0, keepdim=True) * table.sum(1, keepdim=True) / table.sum()
    return (
        independent.flatten()
        if name == "resampling"
        else torch.full((4,), len(objective.cells) / 4)
    )


@pytest.mark.parametrize("name", ["resampling", "group_dro"])
def test_each_subject_is_drawn_its_expected_number_of_times(cohort, name):
    drawn_objective = objective(cohort, name)
    expected = (expected_draws(drawn_objective, name) / torch.bincount(drawn_objective.cells))[
        drawn_objective.cells
    ]
    assert expected.min() < 0.7 and expected.max() > 2
    drawn = torch.stack(
        [torch.bincount(drawn_objective.order(0, epoch), minlength=40) for epoch in range(400)]
    )
    assert (drawn >= expected.floor()).all() and (drawn <= expected.ceil()).all()
    # Five standard errors of a share of 400.
    assert (drawn.double().mean(0) - expected).abs().max() < 5 * 0.5 / 400**0.5
    assert (drawn.sum(1) == 40).all()


@pytest.mark.parametrize("name", ["resampling", "group_dro"])
def test_each_combination_is_drawn_as_often_as_expected_within_one(cohort, name):
    drawn_objective = objective(cohort, name)
    expected = expected_draws(drawn_objective, name)
    assert (torch.bincount(drawn_objective.cells) - expected).abs().max() > 4
    drawn = torch.stack(
        [
            torch.bincount(drawn_objective.cells[drawn_objective.order(seed, epoch)])
            for seed in range(5)
            for epoch in range(5)
        ]
    )
    assert (drawn - expected).abs().max() <= 1 + 1e-6


@pytest.mark.parametrize("name", MITIGATIONS)
def test_the_order_follows_from_seed_and_epoch(cohort, name):
    first, second = objective(cohort, name), objective(cohort, name)
    orders = {
        (seed, epoch): tuple(first.order(seed, epoch).tolist())
        for seed in (0, 1)
        for epoch in (0, 1)
    }
    assert len(set(orders.values())) == 4
    assert all(
        tuple(second.order(*key).tolist()) == order for key, order in reversed(orders.items())
    )


def test_shares_of_group_dro_move_to_the_worst_combination(cohort):
    robust = objective(cohort, sb.training.GroupDRO(step=0.1))
    rows = torch.arange(len(robust.labels))
    signs, worst = 2 * robust.labels - 1, 2
    scores = torch.where(robust.cells == worst, -2 * signs, 2 * signs)
    shares, losses = [], []
    for _ in range(20):
        losses.append(robust.loss(nn.Identity(), scores, rows, None, None).item())
        shares.append(robust.shares.clone())
    shares = torch.stack(shares)
    torch.testing.assert_close(shares.sum(1), torch.ones(20))
    assert (shares[:, worst].diff() > 0).all() and shares[-1, worst] > 0.7
    assert np.diff(losses).min() > 0
    # Equation of the paper: after n steps shares are in proportion to exp(n x step x loss).
    loss = torch.nn.functional.softplus(torch.tensor([-2.0, -2.0, 2.0, -2.0]))
    torch.testing.assert_close(shares[-1], torch.softmax(20 * 0.1 * loss, 0))


def test_group_dro_chooses_the_epoch_by_the_worst_combination(cohort):
    robust, plain = objective(cohort, "group_dro"), Objective(cohort.train, cohort.validation)
    labels = torch.from_numpy(cohort.validation["label"].astype(np.float32))
    fair, unfair = (
        (2 * labels - 1) * 0.5,
        (2 * labels - 1) * torch.where(robust.validation_cells == 1, -0.5, 3.0),
    )
    assert plain.validation_loss(unfair, labels) < plain.validation_loss(fair, labels)
    assert robust.validation_loss(fair, labels) < robust.validation_loss(unfair, labels)


class Reader(nn.Module):
    """A body that gives features if it is asked: the scores and their sign, as two features."""

    def forward(self, x, *, features=False):
        return (x, torch.stack([x, x.sign()], 1)) if features else x


@pytest.mark.parametrize("name", ["group_dro", "unlearning"])
def test_an_objective_that_is_restored_goes_on_the_same(cohort, name):
    rng, rows = np.random.default_rng(0), torch.arange(40)
    batches = [torch.from_numpy(rng.normal(size=40).astype(np.float32)) for _ in range(8)]

    def losses(objective, number):
        return [
            objective.loss(Reader(), batches[i], rows, None, Progress(0, 0, i / 8)).item()
            for i in number
        ]

    uninterrupted, first, second, fresh = (objective(cohort, name) for _ in range(4))
    expected = losses(uninterrupted, range(8))
    assert losses(fresh, range(4, 8)) != expected[4:]  # there is something to restore
    assert losses(first, range(4)) == expected[:4]
    second.restore({key: value.clone() for key, value in first.state().items()})
    assert losses(second, range(4, 8)) == expected[4:]
    final, resumed = uninterrupted.state(), second.state()
    assert final and final.keys() == resumed.keys()
    assert all(torch.equal(final[key], resumed[key]) for key in final)


@pytest.mark.parametrize("name", ["group_dro", "unlearning"])
def test_a_restored_state_can_be_saved_again_before_the_next_step(cohort, name):
    first, second = objective(cohort, name), objective(cohort, name)
    first.loss(Reader(), torch.linspace(-1, 1, 40), torch.arange(40), None, Progress(0, 0, 0.5))
    saved = first.state()
    second.restore(saved)
    again = second.state()
    assert saved and saved.keys() == again.keys()
    assert all(torch.equal(saved[key], again[key]) for key in saved)


class Knows(nn.Module):
    """A planted network that knows each subject by its number.

    One feature is the group, one is the disease, both are noisy. What it learns is how much of each
    feature it keeps, beside noise that stays, and a free read-out.
    """

    def __init__(self, cohort, seed):
        super().__init__()
        truth = np.stack([2 * cohort["bias"] - 1, 2 * cohort["label"] - 1], 1)
        self.truth = torch.from_numpy(truth).float()
        noise = np.random.default_rng(seed).normal(0, 0.5, truth.shape)
        self.noise = torch.from_numpy(noise).float()
        self.gain, self.readout = nn.Parameter(torch.ones(2)), nn.Linear(2, 1)
        nn.init.zeros_(self.readout.weight)
        nn.init.zeros_(self.readout.bias)

    def features(self, numbers):
        return self.gain * self.truth[numbers] + self.noise[numbers]

    def forward(self, numbers):
        return self.readout(self.features(numbers))


def readable(model, cohort, column):
    """Return how well a regression reads class or group from the features, given the other."""
    with torch.no_grad():
        features = model.features(torch.arange(len(cohort))).numpy()
    areas = []
    for value in (0, 1):
        given = cohort["label" if column == "bias" else "bias"] == value
        x, y = features[given], cohort[column][given]
        areas.append(
            roc_auc_score(
                y, LogisticRegression(class_weight="balanced").fit(x, y).decision_function(x)
            )
        )
    return np.mean(areas)


@pytest.mark.parametrize("seed", [0, 1])
def test_unlearning_hides_the_group_from_who_reads_the_features(cohort, seed):
    models = {}
    for strength in (1e-6, 10.0):
        unlearning = sb.training.AdversarialUnlearning(
            strength=strength, learning_rate=0.05
        ).objective(cohort, cohort)
        model = Knows(cohort, seed)
        body, optimiser = trainer._Body(model), torch.optim.Adam(model.parameters(), lr=0.02)
        assert readable(model, cohort, "bias") > 0.95
        with deterministic(1):
            for step in range(150):
                rows = unlearning.order(seed, step)
                loss = unlearning.loss(body, rows, rows, None, Progress(seed, step, step / 150))
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
        models[strength] = model
    assert readable(models[1e-6], cohort, "bias") > 0.95
    assert readable(models[10.0], cohort, "bias") < 0.8
    assert readable(models[10.0], cohort, "label") > 0.95  # the disease is still there


def test_unlearning_refuses_networks_without_a_read_out(cohort):
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.tensor(1.0))

        def forward(self, x):
            return self.weight * x.mean((1, 2, 3, 4))

    assert len(sb.fit(Plain(), cohort, SMALL, cache=False).history) == 2
    with pytest.raises(
        sb.SimbaError,
        match=r"model must be a network with methods features\(x\) and readout\(features\)",
    ):
        sb.fit(Plain(), cohort, SMALL, mitigation="unlearning", cache=False)


class Spread(nn.Module):
    """A planted network: its logit is linear in the spread of intensities, hence in contrast."""

    def __init__(self, cohort):
        super().__init__()
        spreads = cohort.train.arrays().std((1, 2, 3))
        self.mean, self.sd = float(spreads.mean()), float(spreads.std())
        self.linear = nn.Linear(1, 1)
        nn.init.zeros_(self.linear.weight)

    def forward(self, x):
        return self.linear((x.std((1, 2, 3, 4), correction=0)[:, None] - self.mean) / self.sd)


@pytest.fixture(scope="module")
def bright(scenario):
    bias = sb.Intensity("contrast", 0.3, prevalence={"disease": 0.95, "control": 0.05})
    return sb.synthesise(scenario.replace(subjects=100, bias=bias), seed=0)


@pytest.mark.parametrize("seed", [0, 1])
def test_twin_consistency_makes_the_answers_to_twins_alike(bright, seed):
    config = sb.FitConfig(epochs=4, learning_rate=0.1, seed=seed)
    effects = {}
    for mitigation in (None, sb.training.TwinConsistency(strength=10.0)):
        run = sb.fit(Spread(bright), bright, config, mitigation=mitigation, cache=False)
        effects[mitigation] = abs(sb.twin_effect(run.model, bright.test).loc["bias", "logit"])
    plain, consistent = effects.values()
    assert plain > 0.5
    assert consistent < plain / 2


def test_the_penalty_of_twins_is_their_squared_difference(cohort):
    consistent = objective(cohort, sb.training.TwinConsistency(strength=3.0))
    rows, scores, twin_scores = (
        torch.arange(4),
        torch.tensor([1.0, -1, 2, 0]),
        torch.tensor([1.0, 1, 0, 0]),
    )
    plain = consistent.per_subject(scores, rows).mean()
    assert consistent.loss(nn.Identity(), scores, rows, scores, None).item() == pytest.approx(
        plain.item()
    )
    assert consistent.loss(nn.Identity(), scores, rows, twin_scores, None).item() == pytest.approx(
        plain.item() + 3 * 2
    )
    np.testing.assert_array_equal(consistent.twins.carriers("bias"), cohort.train["bias"] == 0)


def test_twin_consistency_needs_a_bias(cohort):
    table = cohort.table.assign(hand=np.arange(80) % 2)
    with pytest.raises(
        sb.SimbaError, match=r"mitigation\.by must be one of 1 known names, got 'hand'"
    ):
        sb.fit(
            net(),
            replace(cohort, table=table),
            SMALL,
            mitigation=sb.training.TwinConsistency(by="hand"),
            cache=False,
        )


def test_each_network_of_a_group_learns_from_its_group_alone(cohort):
    run = sb.fit(net(), cohort, SMALL, mitigation="group_models", cache=False)
    assert (
        isinstance(run.model, GroupRouted) and run.model.groups == [0, 1] and run.model.by == "bias"
    )
    assert run.history.groupby("group")["kept"].sum().tolist() == [1, 1]
    before = [digest(network) for network in run.model.networks]
    assert before[0] != before[1]
    for group in (0, 1):
        other_group = cohort["bias"] != group
        label = np.where(other_group, 1 - cohort["label"], cohort["label"])
        turned = replace(cohort, table=cohort.table.assign(label=label))
        after = [
            digest(network)
            for network in sb.fit(
                net(), turned, SMALL, mitigation="group_models", cache=False
            ).model.networks
        ]
        assert after[group] == before[group] and after[1 - group] != before[1 - group]


def test_networks_of_groups_are_saved_and_loaded(cohort, tmp_path):
    run = sb.fit(net(), cohort, SMALL, mitigation="group_models", cache=False)
    run.save(tmp_path / "run")
    again = sb.training.Run.load(tmp_path / "run", net(1))
    assert digest(again.model) == digest(run.model)
    assert (
        again.model.groups == run.model.groups
        and again.model.by == "bias"
        and again.config == run.config
    )
    assert again.provenance == run.provenance
    pd.testing.assert_frame_equal(again.history, run.history, check_exact=True)
    np.testing.assert_array_equal(
        sb.logits(again.model, cohort.test), sb.logits(run.model, cohort.test)
    )


def test_a_run_of_another_table_is_another_run(cohort, tmp_path):
    """Labels, and columns that somebody added, decide what is learnt as much as volumes do."""
    hands = [
        replace(cohort, table=cohort.table.assign(hand=np.arange(80) // step % 2))
        for step in (1, 2)
    ]
    turned = replace(cohort, table=cohort.table.assign(label=1 - cohort["label"]))
    for mitigation, cohorts in (
        (sb.training.Reweighing(by="hand"), hands),
        (None, (cohort, turned)),
    ):
        fresh, kept = (
            [
                digest(sb.fit(net(), subjects, SMALL, mitigation=mitigation, cache=cache).model)
                for subjects in cohorts
            ]
            for cache in (False, tmp_path)
        )
        assert fresh[0] != fresh[1]
        assert kept == fresh


CASES = {"none": (None, {}), "dropout": (None, {"dropout": 0.5})} | {
    name: (name, {}) for name in MITIGATIONS
}
CASES["unlearning with dropout"] = ("unlearning", {"dropout": 0.5})
UNINTERRUPTED = {}


def uninterrupted(cohort, case):
    if case not in UNINTERRUPTED:
        mitigation, options = CASES[case]
        UNINTERRUPTED[case] = sb.fit(
            net(**options), cohort, SMALL, mitigation=mitigation, cache=False
        )
    return UNINTERRUPTED[case]


def assert_equal_fits(run, expected):
    assert digest(run.model) == digest(expected.model)
    histories = [fitted.history.drop(columns="seconds") for fitted in (run, expected)]
    pd.testing.assert_frame_equal(*histories, check_exact=True)


@contextmanager
def killed_at(monkeypatch, owner, name, call):
    """Interrupt a fit when a function is called for the n-th time, counted from 1."""
    numbers, original = count(1), getattr(owner, name)

    def stops(*arguments, **options):
        if next(numbers) == call:
            raise KeyboardInterrupt
        return original(*arguments, **options)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(owner, name, stops)
        yield


@pytest.mark.parametrize("case", CASES)
def test_fits_with_and_without_mitigation_are_deterministic(cohort, case):
    mitigation, options = CASES[case]
    torch.manual_seed(3)  # nobody else's stream counts
    run = sb.fit(net(**options), cohort, SMALL, mitigation=mitigation, cache=False)
    assert_equal_fits(run, uninterrupted(cohort, case))
    assert digest(run.model) != digest(
        uninterrupted(cohort, "none" if case != "none" else "dropout").model
    )


@pytest.mark.parametrize("case", CASES)
def test_fits_that_were_interrupted_in_an_epoch_go_on_with_the_same_bits(
    cohort, case, tmp_path, monkeypatch
):
    mitigation, options = CASES[case]
    monkeypatch.setattr(trainer, "CHECKPOINT_SECONDS", 0)

    def go_on():
        checkpoint = tmp_path / "checkpoint"
        return sb.fit(
            net(**options), cohort, SMALL, mitigation=mitigation, cache=False, checkpoint=checkpoint
        )

    # In the second epoch. With one network per group (two steps an epoch) first in that of the
    # first network, which has one step left when it goes on, then in that of the second.
    for call in (4, 5) if mitigation == "group_models" else (5,):
        with killed_at(monkeypatch, Objective, "per_subject", call):
            go_on()
        # The first network's checkpoint stays until the run of both is safe.
        kept = 2 if mitigation == "group_models" and call == 5 else 1
        assert len(list(tmp_path.iterdir())) == kept
    taken = count()
    steps = Objective.per_subject
    monkeypatch.setattr(
        Objective, "per_subject", lambda *arguments: (next(taken), steps(*arguments))[1]
    )
    run = go_on()
    # It went on rather than began again; eight steps would be all of two networks.
    assert next(taken) < 8 if mitigation == "group_models" else next(taken) == 2
    assert_equal_fits(run, uninterrupted(cohort, case))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("case", CASES)
def test_fits_that_were_interrupted_twice_go_on_with_the_same_bits(
    cohort, case, tmp_path, monkeypatch
):
    """First between the last step of an epoch and its end, then before the next step."""
    mitigation, options = CASES[case]
    monkeypatch.setattr(trainer, "CHECKPOINT_SECONDS", 0)

    def go_on():
        checkpoint = tmp_path / "checkpoint"
        return sb.fit(
            net(**options), cohort, SMALL, mitigation=mitigation, cache=False, checkpoint=checkpoint
        )

    with killed_at(monkeypatch, trainer.Trainer, "validate", 1):
        go_on()
    with killed_at(monkeypatch, Objective, "per_subject", 1):
        go_on()
    assert_equal_fits(go_on(), uninterrupted(cohort, case))


def test_a_constant_rate_is_taken_up_again(cohort, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "CHECKPOINT_SECONDS", 0)
    config = SMALL.replace(schedule="constant")
    with killed_at(monkeypatch, Objective, "per_subject", 5):
        sb.fit(net(), cohort, config, cache=False, checkpoint=tmp_path / "checkpoint")
    run = sb.fit(net(), cohort, config, cache=False, checkpoint=tmp_path / "checkpoint")
    assert_equal_fits(run, sb.fit(net(), cohort, config, cache=False))


@pytest.mark.parametrize("name", MITIGATIONS)
def test_mitigations_are_made_again_from_what_they_say(name):
    mitigation = mitigation_from(name)
    assert type(mitigation) is MITIGATIONS[name] and mitigation_from(mitigation) is mitigation
    assert mitigation_from(mitigation.to_dict()) == mitigation
    assert mitigation_from({"name": name, "by": "scanner"}).by == "scanner"


def test_none_is_no_mitigation():
    assert (
        mitigation_from("none")
        is mitigation_from(None)
        is mitigation_from({"name": "none"})
        is None
    )


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: mitigation_from("reweihing"), "Did you mean reweighing"),
        (lambda: mitigation_from({"name": "group_d"}), "Did you mean group_dro"),
        (lambda: mitigation_from({"by": "bias"}), "mitigation must be one of"),
        (
            lambda: mitigation_from({"name": "unlearning", "strenth": 2}),
            r"mitigation\.strenth .* Did you mean strength",
        ),
        (lambda: mitigation_from({"name": "reweighing", "strength": 2}), r"mitigation\.strength"),
        (lambda: mitigation_from(3), "mitigation"),
        (
            lambda: sb.training.AdversarialUnlearning(strength=0),
            "strength must be a finite number above 0",
        ),
        (
            lambda: sb.training.AdversarialUnlearning(learning_rate=float("inf")),
            "learning_rate must be a finite number",
        ),
        (
            lambda: sb.training.AdversarialUnlearning(width=2.5),
            "width must be an integer of at least 1",
        ),
        (
            lambda: sb.training.TwinConsistency(strength=-1),
            "strength must be a finite number above 0",
        ),
        (
            lambda: sb.training.TwinConsistency(strength=True),
            "strength must be a finite number above 0",
        ),
        (
            lambda: sb.training.TwinConsistency(strength="1"),
            "strength must be a finite number above 0",
        ),
        (lambda: sb.training.GroupDRO(step=0), "step must be a finite number above 0"),
    ],
)
def test_mitigations_that_cannot_be_made_are_refused(make, says):
    with pytest.raises(sb.SimbaError, match=says):
        make()


@pytest.mark.parametrize("name", MITIGATIONS)
def test_groups_that_lack_a_class_are_refused_by_name(cohort, name):
    for split in ("train", "validation"):
        gone = (cohort["split"] == split) & (cohort["bias"] == 1) & (cohort["label"] == 0)
        says = rf"cohort\.{split}\['bias'\], group 1 must be .* got no members of class 0"
        with pytest.raises(sb.SimbaError, match=says):
            sb.fit(net(), cohort.where(~gone), SMALL, mitigation=name, cache=False)
    with pytest.raises(sb.SimbaError, match=r"of at least two groups .* got 1 group"):
        sb.fit(net(), cohort.where(cohort["bias"] == 1), SMALL, mitigation=name, cache=False)


@pytest.mark.parametrize("name", MITIGATIONS)
def test_a_bias_that_does_not_exist_is_refused(cohort, name):
    with pytest.raises(sb.SimbaError, match="Did you mean bias"):
        sb.fit(net(), cohort, SMALL, mitigation={"name": name, "by": "biass"}, cache=False)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_groups_that_nobody_was_trained_on_are_refused(cohort, split):
    """Validation would count them in another group, or no network would be fitted to them."""
    site = np.where(
        (cohort["split"] == split) & (cohort.table.groupby("split").cumcount() % 3 == 0),
        1,
        2 * cohort["bias"],
    )
    changed = replace(cohort, table=cohort.table.assign(site=site))
    for name in ("group_dro", "group_models") if split == "validation" else ("group_models",):
        with pytest.raises(sb.SimbaError, match="group"):
            sb.fit(net(), changed, SMALL, mitigation={"name": name, "by": "site"}, cache=False)
