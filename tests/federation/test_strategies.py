import copy

import numpy as np
import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

import simba_lab as sb
from simba_lab.core.compute import deterministic
from simba_lab.core.rng import stream
from simba_lab.federation.clients import LocalClient, SiteError, VisitConfig
from simba_lab.federation.federated_cohort import hospitals
from simba_lab.federation.harmony import Harmonisation, ScannerHead, initial_head
from simba_lab.federation.journeys import harmonised, local, travelling
from simba_lab.federation.plan import Plan
from simba_lab.federation.sites import Site
from simba_lab.federation.steps import follow
from simba_lab.federation.strategies import fedavg, fedprox, fedtm

SITES = (Site("site-1", 10), Site("site-2", 3, 1.0), Site("site-3", 6))
CONFIG = VisitConfig(epochs=2, batch_size=4)


@pytest.fixture(scope="module")
def federation():
    scenario = sb.Scenario(subjects=16, spacing_mm=6, disease=sb.Morphology("Insula_L", 2.5))
    return hospitals(scenario, SITES, validation=4, test=4)


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return sb.SimBANet((4, 8), seed=0)


@pytest.fixture(scope="module")
def clients(federation, model):
    return [LocalClient(name, model, federation.at(name), CONFIG) for name in federation.names]


def plainly(model, cohort, weights, name, visit, rate=1.0):
    """One visit, written out."""
    network = sb.SimBANet((4, 8), seed=9)
    network.load_state_dict(weights)
    network = network.to(memory_format=torch.channels_last_3d)
    volumes, labels = (
        torch.from_numpy(cohort.arrays())[:, None],
        torch.tensor(cohort["label"], dtype=torch.float32),
    )
    optimiser = torch.optim.AdamW(
        network.parameters(), lr=CONFIG.learning_rate * rate, weight_decay=CONFIG.weight_decay
    )
    draws = stream(5, name, f"visit {visit}")
    draws.integers(2**62)
    with deterministic():
        for _ in range(CONFIG.epochs):
            for rows in torch.from_numpy(draws.permutation(len(labels))).split(CONFIG.batch_size):
                optimiser.zero_grad()
                x = volumes[rows].contiguous(memory_format=torch.channels_last_3d)
                binary_cross_entropy_with_logits(network(x)[:, 0], labels[rows]).backward()
                optimiser.step()
    return {key: value.clone().contiguous() for key, value in network.state_dict().items()}


def same(first, second) -> bool:
    return set(first) == set(second) and all(
        torch.equal(first[name], second[name]) for name in first
    )


def test_fedavg_is_a_plain_loop_bit_for_bit(federation, model, clients):
    averaged = follow(fedavg(clients, model.state_dict(), rounds=2, seed=5)).weights
    weights = model.state_dict()
    for visit in (1, 2):
        replies = [
            plainly(model, federation.at(site.name), weights, site.name, visit) for site in SITES
        ]
        weights = {
            key: sum(
                reply[key].double() * (site.subjects / 19)
                for reply, site in zip(replies, SITES, strict=True)
            )
            for key in replies[0]
        }
        weights = {
            key: (value if replies[0][key].is_floating_point() else value.round()).to(
                replies[0][key].dtype
            )
            for key, value in weights.items()
        }
    assert same(averaged, weights)
    assert not same(averaged, model.state_dict())


def test_travelling_is_a_plain_loop_bit_for_bit(federation, model, clients):
    steps = list(travelling(clients, model.state_dict(), cycles=2, seed=5, decay=0.5))
    weights, visit = model.state_dict(), 0
    for cycle in range(2):
        for place in stream(5, cycle, "order of sites").permutation(3):
            visit += 1
            name = SITES[place].name
            weights = plainly(model, federation.at(name), weights, name, visit, rate=0.5**cycle)
            assert steps[visit - 1].sites == (name,)
            assert same(steps[visit - 1].weights, weights)
    assert len(steps) == 6


def test_every_cycle_visits_every_site_in_an_order_of_its_own(clients, model):
    orders = [step.sites[0] for step in travelling(clients, model.state_dict(), cycles=4, seed=1)]
    cycles = [tuple(orders[start : start + 3]) for start in range(0, 12, 3)]
    assert all(set(cycle) == {"site-1", "site-2", "site-3"} for cycle in cycles)
    assert len(set(cycles)) > 1


def test_any_step_can_be_taken_up_again(clients, model):
    for strategy, options in (
        (fedavg, {"rounds": 3}),
        (travelling, {"cycles": 2, "decay": 0.7}),
        (fedtm, {"rounds": 2, "cycles": 1, "least": 5}),
        (harmonised, {"cycles": 2, "decay": 0.7}),
    ):
        steps = list(strategy(clients, model.state_dict(), seed=2, **options))
        for step in steps[:-1]:
            resumed = list(strategy(clients, step, seed=2, **options))
            assert [step.number for step in resumed] == list(range(step.number + 1, len(steps) + 1))
            assert same(resumed[-1].weights | resumed[-1].head, steps[-1].weights | steps[-1].head)


def test_harmonised_at_strength_0_is_travelling_and_its_head_learns_the_scanners(clients, model):
    plain = follow(travelling(clients, model.state_dict(), cycles=3, seed=5, decay=0.9))
    harmonised_step = follow(
        harmonised(
            clients,
            model.state_dict(),
            cycles=3,
            harmony=Harmonisation(strength=0.0),
            seed=5,
            decay=0.9,
        )
    )
    assert same(harmonised_step.weights, plain.weights)
    first = initial_head(model.state_dict(), 3, width=32, seed=5)
    assert set(harmonised_step.head) == set(first)
    assert not same(harmonised_step.head, first)
    assert not plain.head
    felt = follow(harmonised(clients, model.state_dict(), cycles=3, seed=5, decay=0.9))
    assert not same(felt.weights, plain.weights)


def test_a_harmonised_visit_is_a_plain_loop_bit_for_bit(federation, model, clients):
    """The second cycle, written out: head first, then the network against the head as it is now."""
    steps = list(
        harmonised(
            clients,
            model.state_dict(),
            cycles=2,
            harmony=Harmonisation(strength=2.0, width=8),
            seed=5,
            shuffled=False,
        )
    )
    before, after, name = steps[2], steps[3], "site-1"
    network, head = (
        sb.SimBANet((4, 8), seed=9),
        torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)),
    )
    network.load_state_dict(before.weights)
    head.load_state_dict(
        {key.removeprefix("scanner_head."): value for key, value in before.head.items()}
    )
    network = network.to(memory_format=torch.channels_last_3d)
    cohort = federation.at(name)
    volumes, labels = (
        torch.from_numpy(cohort.arrays())[:, None],
        torch.tensor(cohort["label"], dtype=torch.float32),
    )
    options = {"lr": CONFIG.learning_rate, "weight_decay": CONFIG.weight_decay}
    network_optimiser, head_optimiser = (
        torch.optim.AdamW(module.parameters(), **options) for module in (network, head)
    )
    draws = stream(5, name, "visit 4")
    draws.integers(2**62)
    weight = 2.0 * (2 / (1 + np.exp(-10 * 1 / 2)) - 1)
    with deterministic():
        for _ in range(CONFIG.epochs):
            for rows in torch.from_numpy(draws.permutation(len(labels))).split(CONFIG.batch_size):
                features = network.features(
                    volumes[rows].contiguous(memory_format=torch.channels_last_3d)
                )
                head_optimiser.zero_grad()
                torch.nn.functional.cross_entropy(
                    head(features.detach()), torch.zeros(len(rows), dtype=torch.long)
                ).backward()
                head_optimiser.step()
                network_optimiser.zero_grad()
                even = -torch.log_softmax(head(features), dim=1).mean() - np.log(3)
                (
                    binary_cross_entropy_with_logits(network.readout(features)[:, 0], labels[rows])
                    + weight * even
                ).backward()
                network_optimiser.step()
    assert same(
        after.weights, {key: value.contiguous() for key, value in network.state_dict().items()}
    )
    assert same(
        after.head, {f"scanner_head.{key}": value for key, value in head.state_dict().items()}
    )


def test_confusion_is_least_for_even_guesses_and_does_not_teach_the_head():
    features = torch.from_numpy(
        np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)
    ).requires_grad_()
    weights = initial_head({"readout.weight": torch.zeros(1, 4)}, 3, width=6, seed=0)
    head = ScannerHead(weights)
    head.confusion(features).backward()
    assert features.grad.abs().sum() > 0
    assert all(value.grad is None for value in head.parameters())
    features.grad = None
    head.mistakes(features, 1).backward()
    assert features.grad is None
    assert all(value.grad is not None for value in head.parameters())
    assert head.confusion(features) > 0
    even = ScannerHead({name: value * 0 for name, value in weights.items()})
    assert even.confusion(features).item() == pytest.approx(0, abs=1e-6)
    assert same(head.weights(), weights)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scanners": {"site-1": "old", "site-2": "new"}}, "site-3 has none"),
        (
            {"scanners": dict.fromkeys(("site-1", "site-2", "site-3"), "one")},
            "at least two different",
        ),
        ({"strength": -1.0}, "strength"),
        ({"width": 0}, "width"),
    ],
)
def test_bad_harmonisation_is_refused(clients, model, options, message):
    with pytest.raises(sb.SimbaError, match=message):
        harmony = Harmonisation(**options)
        follow(harmonised(clients, model.state_dict(), cycles=1, harmony=harmony))


def test_a_network_without_a_read_out_cannot_be_harmonised(clients):
    with pytest.raises(sb.SimbaError, match="readout"):
        follow(harmonised(clients, {"weight": torch.zeros(3)}, cycles=1))


@pytest.mark.parametrize("faults", ["stop", "skip"])
def test_a_site_that_cannot_say_its_size_ends_fedtm_by_name(clients, model, faults):
    class Lost(type(clients[0])):
        def info(self):
            raise ConnectionError("gone")

    lost = copy.copy(clients[1])
    lost.__class__ = Lost
    remaining = [clients[0], lost, *clients[2:]]
    with pytest.raises(
        sb.SimbaError, match=f"{lost.name} did not say its number of subjects: Conn.*gone"
    ):
        next(fedtm(remaining, model.state_dict(), rounds=1, cycles=1, least=1, faults=faults))


def test_plans_with_options_that_their_strategy_does_not_have_are_refused():
    Plan("travelling", ("a", "b"), {"cycles": 3, "faults": "skip"})
    with pytest.raises(
        sb.SimbaError, match=r"plan\.options must be options of travelling.*'cycle'"
    ):
        Plan("travelling", ("a", "b"), {"cycle": 3})
    with pytest.raises(sb.SimbaError, match=r"plan\.options must be options of fedavg.*'rounds'"):
        Plan("fedavg", ("a", "b"))


def test_fedtm_averages_large_sites_and_then_visits_all(clients, model):
    steps = list(fedtm(clients, model.state_dict(), rounds=2, cycles=1, least=5))
    assert [step.phase for step in steps] == ["round"] * 2 + ["visit"] * 3
    assert steps[0].sites == ("site-1", "site-3")
    assert {step.sites[0] for step in steps[2:]} == {"site-1", "site-2", "site-3"}
    with pytest.raises(sb.SimbaError, match="at most 10"):
        list(fedtm(clients, model.state_dict(), rounds=1, cycles=1, least=11))


def test_the_proximal_term_keeps_sites_near_what_they_were_sent(clients, model):
    def moved(steps):
        after = follow(steps).weights
        before = model.state_dict()
        return sum(
            float(((after[name] - before[name]) ** 2).sum()) for name, _ in model.named_parameters()
        )

    free = moved(fedavg(clients, model.state_dict(), rounds=1))
    held = moved(fedprox(clients, model.state_dict(), rounds=1, proximal=100.0))
    assert held < 0.9 * free


def test_one_client_with_all_is_central_training(federation, model, clients):
    alone = local(clients, model.state_dict(), cycles=1, seed=3)
    assert set(alone) == {"site-1", "site-2", "site-3"}
    central = LocalClient("all", model, federation.pooled, CONFIG)
    before = model.state_dict()
    losses = [step.losses["all"] for step in travelling([central], before, cycles=20, seed=3)]
    assert np.mean(losses[-5:]) < np.mean(losses[:5])


class Broken:
    """A site that answers something else."""

    def __init__(self, client, spoil):
        self.name, self.info, self._client, self._spoil = client.name, client.info, client, spoil

    def train(self, weights, **visit):
        return self._spoil(self._client.train(weights, **visit))


def unfinite(reply):
    reply["weights"]["readout.bias"][:] = float("nan")
    return reply


def reshaped(reply):
    reply["weights"]["readout.bias"] = torch.zeros(2)
    return reply


def dead(reply):
    raise ConnectionError("no answer")


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (unfinite, "site-2 replied with weights that are not finite"),
        (reshaped, r"site-2: readout.bias must be of shape \(1,\)"),
        (dead, "site-2 could not train: ConnectionError. no answer"),
        (lambda reply: {"weights": {}}, "site-2 did not reply with weights, subjects and loss"),
        (lambda reply: reply | {"subjects": 0}, "subjects must be an integer of at least 1"),
        (lambda reply: reply | {"weights": {}}, "other weights than it was sent"),
    ],
)
def test_a_site_that_fails_is_named_or_skipped_by_policy(clients, model, spoil, match):
    broken = [clients[0], Broken(clients[1], spoil), clients[2]]
    with pytest.raises(SiteError, match=match):
        follow(fedavg(broken, model.state_dict(), rounds=1))
    with pytest.raises(SiteError, match=match):
        follow(travelling(broken, model.state_dict(), cycles=1))
    step = follow(fedavg(broken, model.state_dict(), rounds=1, faults="skip"))
    assert step.sites == ("site-1", "site-3")
    assert list(step.faults) == ["site-2"]
    assert same(
        step.weights, follow(fedavg([clients[0], clients[2]], model.state_dict(), rounds=1)).weights
    )
    visits = list(travelling(broken, model.state_dict(), cycles=1, faults="skip", shuffled=False))
    assert same(visits[1].weights, visits[0].weights)
    assert visits[1].sites == ()


def test_bad_input_is_refused(clients, model):
    weights = model.state_dict()
    with pytest.raises(SiteError, match="Two clients are called site-1"):
        follow(fedavg([clients[0], clients[0]], weights, rounds=1))
    with pytest.raises(sb.SimbaError, match="rounds must be"):
        follow(fedavg(clients, weights, rounds=0))
    with pytest.raises(sb.SimbaError, match="decay must be above 0"):
        follow(travelling(clients, weights, cycles=1, decay=0))
    with pytest.raises(sb.SimbaError, match="stop, skip"):
        follow(fedavg(clients, weights, rounds=1, faults="ignore"))
    with pytest.raises(sb.SimbaError, match="proximal must be"):
        fedprox(clients, weights, rounds=1, proximal=0)
    with pytest.raises(sb.SimbaError, match="at least one"):
        follow(travelling([], weights, cycles=1))
    with pytest.raises(sb.SimbaError, match=r"config.learning_rate"):
        VisitConfig(learning_rate=0)
    broken = [Broken(client, dead) for client in clients]
    with pytest.raises(sb.SimbaError, match="none of 3 sites could train"):
        follow(fedavg(broken, weights, rounds=1, faults="skip"))


def test_weights_that_were_sent_are_not_changed(clients, model):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    follow(travelling(clients, model.state_dict(), cycles=1))
    assert same(before, model.state_dict())


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"channels_last": "banana"}, "channels_last must be True or False, got 'banana'"),
        ({"channels_last": 1}, "True or False"),
        ({"learning_rate": True}, "learning_rate must be a finite number"),
        ({"learning_rate": float("nan")}, "learning_rate must be a finite number"),
        ({"weight_decay": "0"}, "weight_decay must be a finite number"),
        ({"weight_decay": float("nan")}, "weight_decay must be a finite number"),
        ({"epochs": 1.5}, "epochs must be an integer"),
        ({"epochs": 0}, "at least 1"),
        ({"optimiser": ["sgd"]}, "optimiser"),
    ],
)
def test_settings_of_a_visit_are_checked(change, match):
    with pytest.raises(sb.SimbaError, match=match):
        VisitConfig(**change)


def test_numbers_of_numpy_are_taken_and_can_be_sent():
    visit = VisitConfig(epochs=np.int64(2), learning_rate=np.float32(0.5), weight_decay=np.int8(0))
    plan = Plan("fedavg", ("a",), {"rounds": 1}, visit=visit)
    assert plan.to_dict()["visit"]["learning_rate"] == 0.5


@pytest.mark.parametrize(
    ("strategy", "options", "match"),
    [
        (fedavg, {"rounds": 1, "proximal": -5}, "proximal must be"),
        (fedavg, {"rounds": 1, "proximal": float("nan")}, "proximal must be"),
        (fedavg, {"rounds": 1, "seed": -1}, "seed must be"),
        (fedavg, {"rounds": 0}, "rounds must be"),
        (fedprox, {"rounds": 1, "proximal": 0}, "proximal must be"),
        (travelling, {"cycles": 0}, "cycles must be"),
        (travelling, {"cycles": 1, "decay": True}, "decay must be"),
        (travelling, {"cycles": 1, "shuffled": "no"}, "shuffled must be"),
        (harmonised, {"cycles": 1, "decay": 0}, "decay must be"),
        (fedtm, {"rounds": -1, "cycles": 1, "least": 1}, "rounds must be"),
        (fedtm, {"rounds": 1, "cycles": 1, "least": "all"}, "least must be"),
        (fedtm, {"rounds": 1, "cycles": 1, "least": 1, "faults": "pass"}, "faults"),
    ],
)
def test_options_are_checked_at_the_call_and_not_at_the_first_step(
    strategy, options, match, clients, model
):
    with pytest.raises(sb.SimbaError, match=match):
        strategy(clients, model.state_dict(), **options)
    with pytest.raises(sb.SimbaError):
        strategy([], {}, **options)


def test_a_client_refuses_a_rate_or_a_proximal_term_that_is_none(clients, model):
    for options in ({"rate": -1.0}, {"rate": float("nan")}, {"proximal": -5}, {"confusion": "x"}):
        with pytest.raises(sb.SimbaError, match=f"{next(iter(options))} must be"):
            clients[0].train(model.state_dict(), seed=0, visit=1, **options)
