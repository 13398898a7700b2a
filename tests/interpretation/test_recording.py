import re
import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import simba_lab as sb
from simba_lab.interpretation import recording as activations
from simba_lab.interpretation import spool
from simba_lab.interpretation.hooks import layer_names

RNG = np.random.default_rng(0)
VOLUMES = list(RNG.random((7, 6, 6, 6), dtype=np.float32))


def net():
    return sb.SimBANet((4, 8), seed=0)


def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv3d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 2)).eval()


def explicit(model, volumes):
    """Activations of the two blocks, by calling them."""
    with torch.no_grad():
        x = torch.from_numpy(np.asarray(volumes))[:, None]
        first = model.block1(x)
        return {"pixels": x, "block1": first, "block2": model.block2(first)}


def gram(activations):
    flat = np.asarray(activations, np.float64).reshape(len(activations), -1)
    return flat @ flat.T


def hooks(model):
    return sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()
    )


@pytest.fixture(scope="module")
def twins(cohort):
    return cohort.test.twin(without="bias")


# -- record --


@pytest.mark.parametrize(
    ("memory_gb", "block"), [(2.0, 32768), (2.0, 100), (1e-9, 32768), (1e-9, 100)]
)
def test_gram_matrices_equal_those_of_the_explicit_features(cohort, monkeypatch, memory_gb, block):
    monkeypatch.setattr(spool, "BLOCK_FEATURES", block)
    files = []
    monkeypatch.setattr(
        Path, "touch", lambda self: (files.append(self), self.open("wb").close())[0]
    )
    model = net().eval()
    grams = sb.record(model, cohort.test, compute=sb.Compute(memory_gb=memory_gb), batch_size=3)
    expected = explicit(model, cohort.test.arrays())
    assert list(grams) == list(expected) and all(
        value[0].numel() > 300 for value in expected.values()
    )
    for name, value in expected.items():
        np.testing.assert_allclose(grams[name], gram(value), rtol=1e-5)
        assert grams[name].dtype == np.float64 and (grams[name] == grams[name].T).all()
    assert len(files) == (0 if memory_gb > 1 else 3) and not any(path.exists() for path in files)


def test_some_layers_in_memory_and_others_in_files_give_the_same(cohort):
    model = net()
    whole = sb.record(model, cohort.test)
    pixels = 4 * len(cohort.test) * cohort.test.array(0).size
    mixed = sb.record(model, cohort.test, compute=sb.Compute(memory_gb=1.1 * pixels / 1e9))
    for name in whole:
        assert whole[name].tobytes() == mixed[name].tobytes()


@pytest.mark.parametrize("memory_gb", [1.0, 6e-6])
def test_features_have_the_shape_of_the_layer_and_their_gram_is_the_gram(memory_gb, monkeypatch):
    """At 6 kB the first layer that runs (3.6 kB) stays in memory, later layers go to files."""
    monkeypatch.setattr(spool, "BLOCK_FEATURES", 50)
    model = small()
    recording = sb.record(
        model,
        VOLUMES,
        activations=["0", "3"],
        layers=["1"],
        pixels=False,
        batch_size=2,
        compute=sb.Compute(memory_gb=memory_gb),
    )
    assert (
        list(recording) == ["1", "0", "3"]
        and list(recording.activations) == ["0", "3"]
        and len(recording) == 3
    )
    assert (
        recording.activations["0"].shape == (7, 2, 4, 4, 4)
        and recording.activations["0"].dtype == np.float32
    )
    with torch.no_grad():
        np.testing.assert_allclose(
            recording.activations["0"],
            model[0](torch.from_numpy(np.stack(VOLUMES))[:, None]),
            atol=1e-6,
        )
    for name in ("0", "3"):
        np.testing.assert_allclose(recording[name], gram(recording.activations[name]), rtol=1e-5)


def test_pixels_are_returned_as_they_are():
    recording = sb.record(small(), VOLUMES, activations=["pixels"], pixels=False)
    assert list(recording) == ["0", "3"]
    np.testing.assert_array_equal(recording.activations["pixels"][:, 0], VOLUMES)


def test_a_recording_says_which_layers_it_has():
    recording = sb.record(small(), VOLUMES, pixels=False)
    assert "0" in recording and "pixels" not in recording
    assert recording.get("pixels") is None and dict(recording) == recording.grams


def test_twins_are_recorded_beside_their_subjects(cohort, twins):
    model, count = net(), len(cohort.test)
    pair = sb.record(model, [cohort.test, twins], activations=["block2"], batch_size=5)
    alone = sb.record(model, cohort.test)
    assert (
        pair["block1"].shape == (2 * count, 2 * count)
        and len(pair.activations["block2"]) == 2 * count
    )
    np.testing.assert_allclose(pair["block1"][:count, :count], alone["block1"], rtol=1e-5)
    np.testing.assert_allclose(
        pair["block2"][count:, count:], sb.record(model, twins)["block2"], rtol=1e-5
    )
    np.testing.assert_array_equal(pair.subjects, np.tile(cohort.test.table.index, 2))
    assert sb.record(model, list(cohort.test.arrays())).subjects is None


def test_half_precision_networks_are_recorded_in_single_precision():
    recording = sb.record(small().bfloat16(), VOLUMES, activations=["0"])
    whole = sb.record(small(), VOLUMES)
    assert recording.activations["0"].dtype == np.float32
    np.testing.assert_allclose(recording["0"], gram(recording.activations["0"]), rtol=1e-5)
    np.testing.assert_allclose(recording["0"], whole["0"], rtol=0.03)
    assert not np.array_equal(recording["0"], whole["0"])
    assert (
        recording["pixels"].tobytes() == whole["pixels"].tobytes()
    )  # volumes do not lose digits to the network


class Sizes(nn.Module):
    """Notes how many volumes come at a time."""

    def __init__(self):
        super().__init__()
        self.layer, self.seen = nn.Conv3d(1, 2, 1), []

    def forward(self, x):
        self.seen.append(len(x))
        return self.layer(x).mean((1, 2, 3, 4))


def test_large_volumes_come_in_batches_that_the_memory_holds(monkeypatch):
    model = Sizes()
    whole = sb.record(model, VOLUMES, batch_size=7)
    assert model.seen == [2, 7]  # first two volumes show which layers can be read
    monkeypatch.setattr(activations, "LARGE_BATCH", 1)
    model.seen.clear()
    # One channel in and two out, four bytes each; three volumes are half of the memory.
    cut = sb.record(
        model, VOLUMES, batch_size=7, compute=sb.Compute(memory_gb=2 * 3.5 * (3 * 4 * 6**3) / 1e9)
    )
    assert max(model.seen) == 3 and model.seen.count(3) == 2
    for name in whole:
        np.testing.assert_allclose(cut[name], whole[name], rtol=1e-6)


def test_batches_do_not_change_the_result(cohort):
    single, batched = (sb.record(net(), cohort.test, batch_size=size) for size in (1, 64))
    for name in single:
        np.testing.assert_allclose(single[name], batched[name], rtol=1e-5)


def test_hooks_are_removed_also_after_an_error(cohort):
    model = net()
    sb.record(model, cohort.test)
    assert hooks(model) == 0
    with pytest.raises(sb.SimbaError):
        sb.record(model, [np.zeros((2, 2, 2), np.float32)] * 3)
    assert hooks(model) == 0
    with pytest.raises(sb.SimbaError, match="Kernel size"):
        sb.record(small_model := small(), [np.zeros((2, 2, 2), np.float32)] * 3)
    assert hooks(small_model) == 0
    with pytest.raises(sb.SimbaError):
        sb.record(small_model, [np.full((6, 6, 6), np.nan, np.float32)] * 3)
    assert hooks(small_model) == 0


def test_only_one_module_registers_hooks():
    package = Path(sb.__file__).parent
    recording = [
        path.name
        for path in package.rglob("*.py")
        if re.search(r"register_\w*hook", path.read_text(encoding="utf-8"))
    ]
    assert recording == ["hooks.py"]


def test_the_network_is_left_in_the_mode_it_was_in():
    model = net().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    sb.record(model, list(RNG.random((3, 8, 8, 8), dtype=np.float32)))
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_parts_that_are_frozen_stay_frozen():
    model = net().train()
    model.block1.eval()
    sb.record(model, list(RNG.random((3, 8, 8, 8), dtype=np.float32)))
    assert model.training and not model.block1.training


def test_any_network_and_any_layer():
    model = nn.Sequential(nn.Conv3d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2))
    model(torch.from_numpy(VOLUMES[0])[None, None])
    assert list(sb.record(model, VOLUMES)) == ["pixels", "0", "3"]
    assert list(sb.record(model, VOLUMES, layers=["1", "[23]"], pixels=False)) == ["1", "2", "3"]
    assert list(sb.record(model, np.stack(VOLUMES))) == ["pixels", "0", "3"]


def test_unknown_layers_suggest_the_nearest():
    with pytest.raises(sb.core.UnknownNameError, match="Did you mean block"):
        layer_names(net(), ["blok1"])
    with pytest.raises(sb.core.UnknownNameError, match="block1"):
        sb.record(net(), VOLUMES, layers=["blok1"])
    with pytest.raises(sb.core.UnknownNameError, match="block2"):
        sb.record(net(), VOLUMES, activations=["blok2"])
    with pytest.raises(sb.core.UnknownNameError, match="pixels"):
        sb.record(small(), VOLUMES)["pixel"]


class Pair(nn.Module):
    def forward(self, x):
        return x, x


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Conv3d(1, 1, 1)

    def forward(self, x):
        return self.layer(self.layer(x)).mean((1, 2, 3, 4))


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Conv3d(1, 1, 1)

    def forward(self, x):
        return x.mean((1, 2, 3, 4))


@pytest.mark.parametrize(
    ("model", "layers", "says"),
    [
        (nn.Sequential(Pair()), ["0"], "must be a tensor, got 'tuple'"),
        (Twice(), None, "once per volume"),
        (Unused(), None, "ran for 0 volumes of 3"),
    ],
)
def test_layers_that_cannot_be_recorded_are_refused(model, layers, says):
    with pytest.raises(sb.SimbaError, match=says):
        sb.record(model, list(np.ones((3, 4, 4, 4), np.float32)), layers=layers)
    assert hooks(model) == 0


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_activations_are_refused(value):
    with pytest.raises(sb.SimbaError, match="volume of finite numbers"):
        sb.record(Unused(), list(np.full((3, 4, 4, 4), value, np.float32)))
    model = small()
    with torch.no_grad():
        model[0].weight[0] = value
    with pytest.raises(sb.SimbaError, match="activations of 0 must be finite"):
        sb.record(model, VOLUMES, pixels=False)


@pytest.mark.parametrize("batch_size", [0, -1, 2.5, "4"])
def test_bad_batch_sizes_are_refused(batch_size):
    with pytest.raises(sb.SimbaError, match="batch_size must be an integer"):
        sb.record(small(), VOLUMES, batch_size=batch_size)


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_volumes_are_refused(count):
    with pytest.raises(sb.SimbaError, match="at least 2 volumes"):
        sb.record(small(), VOLUMES[:count])


def test_features_that_do_not_fit_in_memory_are_refused():
    with pytest.raises(sb.SimbaError, match="activations of 0 must be at most memory_gb"):
        sb.record(small(), VOLUMES, activations=["0"], compute=sb.Compute(memory_gb=1e-6))


def test_a_full_disk_is_told_before_it_is_full(monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10, 9, 1))
    model = small()
    with pytest.raises(sb.SimbaError, match=r"that are free.*TMPDIR"):
        sb.record(model, VOLUMES, compute=sb.Compute(memory_gb=1e-9))
    assert hooks(model) == 0
    sb.record(model, VOLUMES)  # nothing goes to the disk


# -- edit --


@pytest.mark.parametrize("layer", ["block1", "block2"])
def test_putting_the_twins_activations_in_place_gives_the_twins_logits(cohort, twins, layer):
    model = net()
    with torch.no_grad():
        model.readout.weight *= 50  # twins differ by more than the tolerance
    logits, twin_logits = sb.logits(model, cohort.test), sb.logits(model, twins)
    assert np.abs(logits - twin_logits).max() > 1e-3
    activations = sb.record(model, twins, activations=[layer]).activations[layer]
    with sb.edit(model, {layer: sb.interpretation.replacing(activations)}) as edited:
        assert edited is model
        np.testing.assert_allclose(
            sb.logits(model, cohort.test, batch_size=5), twin_logits, atol=1e-5
        )
    np.testing.assert_array_equal(sb.logits(model, cohort.test), logits)


def test_putting_the_own_activations_in_place_changes_nothing(cohort):
    model = net()
    activations = sb.record(model, cohort.test, activations=["block1", "block2"]).activations
    edits = {
        name: sb.interpretation.replacing(torch.from_numpy(value))
        for name, value in activations.items()
    }
    with sb.edit(model, edits):
        edited = sb.logits(model, cohort.test)
    np.testing.assert_allclose(edited, sb.logits(model, cohort.test), atol=1e-6)


def test_a_used_up_replacement_is_refused():
    model = small()
    x = torch.from_numpy(np.stack(VOLUMES))[:, None]
    values = sb.record(model, VOLUMES, activations=["0"]).activations["0"]
    with torch.no_grad(), sb.edit(model, {"0": sb.interpretation.replacing(values)}):
        model(x)
        with pytest.raises(sb.SimbaError, match=r"from row 7 of 7.*make the edit anew"):
            model(x)
    with (
        torch.no_grad(),
        sb.edit(model, {"0": sb.interpretation.replacing(values[:5])}),
        pytest.raises(sb.SimbaError, match="values"),
    ):
        model(x)
    assert hooks(model) == 0


def test_adding_moves_along_the_direction():
    model, x = small(), torch.from_numpy(np.stack(VOLUMES))[:, None]
    direction = RNG.standard_normal(2)
    with torch.no_grad():
        plain = model(x)
        with sb.edit(model, {"3": sb.interpretation.adding(direction, scale=-2.5)}):
            np.testing.assert_allclose(model(x), plain - 2.5 * direction, atol=1e-6)
        with sb.edit(model, {"2": sb.interpretation.adding(np.ones(128))}):
            np.testing.assert_allclose(model(x), plain + model[3].weight.sum(dim=1), atol=1e-5)


@pytest.mark.parametrize("count", [None, 1, 3])
def test_projecting_out_is_an_orthogonal_projection(count):
    shape = (2, 3, 3)
    directions = RNG.standard_normal(shape if count is None else (count, *shape))
    if count == 3:
        directions[2] = directions[0] - 2 * directions[1]  # linearly dependent
    clean, x = (
        sb.interpretation.projecting_out(directions),
        torch.from_numpy(RNG.standard_normal((5, *shape))),
    )
    out = clean(x)
    np.testing.assert_allclose(clean(out), out, atol=1e-12)
    flat = directions.reshape(-1, 18)
    np.testing.assert_allclose(out.reshape(5, -1) @ flat.T, 0, atol=1e-12)
    np.testing.assert_allclose(
        out.reshape(5, -1),
        x.reshape(5, -1).numpy() @ (np.eye(18) - np.linalg.pinv(flat) @ flat),
        atol=1e-12,
    )
    assert torch.allclose(clean(3 * x), 3 * out) and out.dtype == x.dtype
    assert torch.equal(sb.interpretation.projecting_out(np.zeros(shape))(x), x)


def test_projecting_out_the_read_out_makes_logits_constant(cohort):
    model = net()
    shape = sb.record(model, cohort.test, activations=["block2"]).activations["block2"].shape[1:]
    weight = model.readout.weight.detach().numpy()[0]
    direction = np.broadcast_to(weight[:, None, None, None], shape).copy()
    with sb.edit(model, {"block2": sb.interpretation.projecting_out(direction)}):
        np.testing.assert_allclose(
            sb.logits(model, cohort.test), model.readout.bias.item(), atol=1e-5
        )
    assert np.ptp(sb.logits(model, cohort.test)) > 1e-3


def test_edits_take_half_precision():
    model, x = small().bfloat16(), torch.from_numpy(np.stack(VOLUMES))[:, None].bfloat16()
    with (
        torch.no_grad(),
        sb.edit(
            model,
            {
                "3": sb.interpretation.adding(np.ones(2)),
                "0": sb.interpretation.projecting_out(np.ones((2, 4, 4, 4))),
            },
        ),
    ):
        assert model(x).dtype == torch.bfloat16


def test_recording_sees_what_an_edit_did():
    model = small()
    with sb.edit(model, {"0": torch.zeros_like}):
        assert not sb.record(model, VOLUMES, layers=["1"], pixels=False)["1"].any()


@pytest.mark.parametrize(
    ("edits", "says"),
    [
        ({"4": torch.zeros_like}, "layer must be one of"),
        (
            {"0": lambda x: x[:, :1]},
            r"edited activations of 0 must be a tensor of shape \(7, 2, 4, 4, 4\)",
        ),
        ({"0": lambda _: None}, "got 'NoneType'"),
        (
            {"3": sb.interpretation.adding(np.ones(3))},
            r"direction must be of shape \(2,\), got \(3,\)",
        ),
        (
            {"3": sb.interpretation.projecting_out(np.ones(3))},
            r"directions must be of shape \(2,\) or \(k, 2\), got \(3,\)",
        ),
        ({"3": sb.interpretation.projecting_out(np.ones((2, 3)))}, "directions must be"),
        ({"3": sb.interpretation.replacing(np.ones((7, 3)))}, r"values must be of shape \(7, 2\)"),
        ({"3": sb.interpretation.replacing(np.ones((6, 2)))}, "values must be"),
    ],
)
def test_bad_edits_are_refused_and_hooks_removed(edits, says):
    model, x = small(), torch.from_numpy(np.stack(VOLUMES))[:, None]
    with torch.no_grad(), pytest.raises(sb.SimbaError, match=says), sb.edit(model, edits):
        model(x)
    assert hooks(model) == 0


def test_edits_of_layers_without_a_tensor_are_refused():
    model = nn.Sequential(Pair())
    with (
        pytest.raises(sb.SimbaError, match="a tensor of logits"),
        sb.edit(model, {"0": lambda x: x}),
    ):
        model(torch.zeros(1, 1))
    assert hooks(model) == 0


def test_subjects_of_different_seeds_are_no_twins(scenario):
    first, second = (sb.synthesise(scenario, seed=seed).where(np.arange(4)) for seed in (0, 1))
    model = sb.SimBANet((2,), seed=0)
    assert len(set(sb.record(model, [first, second]).subjects)) == 8
    assert len(set(sb.record(model, [first, first.twin(without="bias")]).subjects)) == 4
