"""Networks of others as the verbs see them: what goes in, what comes out, and what is refused."""

from collections import namedtuple
from itertools import pairwise

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import NormalizeIntensity, ResizeWithPadOrCrop
from scipy.ndimage import map_coordinates
from torch import nn

import simba_lab as sb
from simba_lab.core.fingerprint import network_fingerprint
from simba_lab.core.layer_naming import names_of_layers

Answer = namedtuple("Answer", ["features", "score"])


class Reads(nn.Module):
    """Sums its input by weights on its own lattice; it has a layer that shows where they are."""

    def __init__(self, weights):
        super().__init__()
        self.spot = nn.Conv3d(1, 1, 1, bias=False)
        nn.init.ones_(self.spot.weight)
        self.register_buffer("weights", torch.as_tensor(weights))
        self.readout = nn.Linear(1, 1, bias=False)
        nn.init.ones_(self.readout.weight)

    def forward(self, x):
        return self.readout((self.spot(x) * self.weights).sum((2, 3, 4)))


class Answers(nn.Module):
    """Gives what a function makes of a small network's logit."""

    def __init__(self, end):
        super().__init__()
        self.net, self.end = sb.SimBANet((2, 4)).double(), end

    def forward(self, x):
        return self.end(self.net(x))


def turned(volume, orientation):
    """Turn a scan by nibabel, which knows nothing of the lab."""
    codes = [nib.orientations.axcodes2ornt(axes) for axes in ("RAS", orientation)]
    image = nib.Nifti1Image(np.asarray(volume, np.float64), np.eye(4))
    return np.asarray(
        image.as_reoriented(nib.orientations.ornt_transform(*codes)).dataobj, np.float64
    )


def padded(volume, shape):
    """Pad or crop by MONAI."""
    return np.asarray(ResizeWithPadOrCrop(shape)(volume[None])[0], np.float64)


def sampled(volume, step, shape):
    """Sample around the middle by SciPy."""
    axes = [
        (np.arange(n) - (n - 1) / 2) * step + (size - 1) / 2
        for n, size in zip(shape, volume.shape, strict=True)
    ]
    points = np.meshgrid(*axes, indexing="ij")
    return map_coordinates(volume, points, order=1, mode="grid-constant", prefilter=False)


def percentiles(volume, low, high):
    low, high = np.percentile(volume, [low, high])
    return np.clip((volume - low) / (high - low), 0, 1)


PREPARATIONS = {
    "as it is": ({}, lambda x: x),
    "LPS": ({"orientation": "LPS"}, lambda x: turned(x, "LPS")),
    "PIR": ({"orientation": "pir"}, lambda x: turned(x, "PIR")),
    "shape": ({"shape": (25, 17, 20)}, lambda x: padded(x, (25, 17, 20))),
    "turned and shape": (
        {"orientation": "SAL", "shape": (16, 27, 23)},
        lambda x: padded(turned(x, "SAL"), (16, 27, 23)),
    ),
    "finer": (
        {"orientation": "LPS", "spacing_mm": 5.0, "shape": (30, 31, 32)},
        lambda x: sampled(turned(x, "LPS"), 5 / 8, (30, 31, 32)),
    ),
    "coarser": ({"spacing_mm": 10.0}, lambda x: sampled(x, 10 / 8, (16, 19, 16))),
    "zscore": (
        {"intensity": "zscore"},
        lambda x: np.asarray(NormalizeIntensity(nonzero=True)(x[None])[0], np.float64),
    ),
    "zscore of all": (
        {"intensity": sb.training.Scaling("zscore", over="volume")},
        lambda x: (x - x.mean()) / x.std(),
    ),
    "minmax": (
        {"intensity": sb.training.Scaling("minmax", onto=(-1, 1))},
        lambda x: 2 * (x - x.min()) / (x.max() - x.min()) - 1,
    ),
    "percentile": ({"intensity": "percentile"}, lambda x: percentiles(x, 1, 99)),
    "own": ({"intensity": lambda x: x / x.max()}, lambda x: x / x.max()),
    "all": (
        {"orientation": "LPI", "shape": (24, 24, 24), "intensity": "zscore"},
        lambda x: np.asarray(
            NormalizeIntensity(nonzero=True)(padded(turned(x, "LPI"), (24,) * 3)[None])[0],
            np.float64,
        ),
    ),
}


@pytest.mark.parametrize("name", PREPARATIONS)
def test_logits_equal_those_of_volumes_prepared_by_hand(cohort, name):
    settings, by_hand = PREPARATIONS[name]
    few, model = cohort.test.where(np.arange(3)), sb.SimBANet((2, 4)).double().eval()
    prepared = np.stack([by_hand(np.asarray(volume, np.float64)) for volume in few.volumes()])
    with torch.no_grad():
        expected = model(torch.from_numpy(prepared)[:, None])[:, 0].numpy()
    found = sb.logits(sb.adapt(model, cohort=few, **settings), few)
    # MONAI's z-scores are in single precision.
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


PLACES = ["as it is", "LPS", "PIR", "shape", "turned and shape", "finer", "coarser"]
METHODS = ["saliency", sb.attribution.IntegratedGradients(2), sb.attribution.GradCAM("spot")]


@pytest.mark.parametrize("name", PLACES)
def test_maps_land_on_the_voxel_and_side_that_the_network_reads(cohort, name):
    settings, by_hand = PREPARATIONS[name]
    one = cohort.test.where([0])
    brain = np.argwhere(one.array(0) > 0.5)
    voxel = tuple(brain[np.argmax(brain @ [3, 1, 1])])  # far to the right
    assert voxel[0] >= cohort.lattice.shape[0] // 2
    mark = np.zeros(cohort.lattice.shape)
    mark[voxel] = 1
    weights = by_hand(mark)
    weights = np.where(weights == weights.max(), weights, 0).astype(np.float32)
    model = sb.adapt(Reads(weights), cohort=one, **settings)
    for method in METHODS:
        if isinstance(method, sb.attribution.GradCAM):
            model.network.spot.register_forward_hook(lambda _m, _x, y: y * model.network.weights)
        values = np.abs(sb.attribute(model, one, method).maps[0])
        assert values.shape == cohort.lattice.shape
        brightest = np.unravel_index(np.argmax(values), values.shape)
        # Of coarser voxels the middle may lie nearer to the neighbour.
        assert np.abs(np.subtract(brightest, voxel)).max() <= (name == "coarser"), method
        assert values[: voxel[0] - 1].max() == 0


def test_regions_are_exchanged_where_the_network_sees_them(cohort):
    test, weights = cohort.test.where(np.arange(4)), np.zeros(cohort.lattice.shape, np.float32)
    weights[test.changed(0, "bias")] = 1
    theirs = padded(turned(weights, "LPS"), (25, 25, 25)).astype(np.float32)
    plain = sb.interchange(Reads(weights), test, by="region", layers=["spot"])
    model = sb.adapt(Reads(theirs), orientation="LPS", shape=(25, 25, 25))
    adapted = sb.interchange(model, test, by="region", layers=["spot"])
    columns = ["effect", "share", "indirect", "total"]
    np.testing.assert_allclose(adapted[columns], plain[columns], rtol=1e-4, atol=1e-6)
    assert adapted.loc[("spot", "bias"), "share"] > 0.8


# -- what comes out --

THREE = torch.tensor([[0.5, -1.0, 2.0]], dtype=torch.float64)
OUTPUTS = {
    "tuple": (lambda y: (y.repeat(1, 2), y), {"output": 1}, lambda y: y),
    "list": (lambda y: [y, -y, 2 * y], {"output": -1}, lambda y: 2 * y),
    "dict": (lambda y: {"a": y, "b": -y}, {"output": "b"}, lambda y: -y),
    "fields": (lambda y: Answer(y, 3 * y), {"output": "score"}, lambda y: 3 * y),
    "two columns": (lambda y: torch.cat([y, -y], 1), {}, lambda y: -2 * y),
    "first of two": (lambda y: torch.cat([y, -y], 1), {"target": 0}, lambda y: 2 * y),
    "column of a tensor": (lambda y: torch.cat([y, -y], 1), {"output": 1}, lambda y: -2 * y),
    "class of three": (
        lambda y: THREE * y,
        {"target": 2},
        lambda y: torch.logit(torch.softmax(THREE * y, 1)[:, 2:]),
    ),
    "axes of one": (lambda y: (THREE * y)[..., None, None, None], {"target": np.int64(1)}, None),
    "probability": (torch.sigmoid, {"target": "probability"}, lambda y: y),
    "softmax": (
        lambda y: torch.softmax(torch.cat([-y, y], 1), 1),
        {"target": "probability"},
        lambda y: 2 * y,
    ),
    "softmax of three": (
        lambda y: torch.softmax(THREE * y, 1),
        {"target": sb.training.Target(0, scale="probability")},
        lambda y: torch.logit(torch.softmax(THREE * y, 1)[:, :1]),
    ),
    "several labels": (
        lambda y: torch.sigmoid(torch.cat([y, y, y], 1)),
        {"target": sb.training.Target(0, scale="probability")},
        lambda y: y,
    ),
    "number": (lambda y: 70 + y, {"target": "number"}, lambda y: 70 + y),
    "number in [0, 1]": (torch.sigmoid, {"target": "number"}, torch.sigmoid),
    "number of several": (
        lambda y: torch.cat([y, 40 + y], 1),
        {"target": sb.training.Target(1, scale="number")},
        lambda y: 40 + y,
    ),
    "no axis": (torch.squeeze, {}, lambda y: y),
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_what_is_asked_of_an_answer_is_taken(cohort, name):
    end, settings, expected = OUTPUTS[name]
    few, model = cohort.test.where(np.arange(3)), Answers(end)
    inner = torch.from_numpy(sb.logits(model.net, few))[:, None]
    adapted = sb.adapt(model, cohort=few, **settings)
    if expected is None:
        expected = lambda y: torch.logit(torch.softmax(THREE * y, 1)[:, 1:2])  # noqa: E731
    for batch_size in (1, 2):
        found = sb.logits(adapted, few, batch_size=batch_size)
        np.testing.assert_allclose(found, expected(inner)[:, 0], rtol=1e-9, atol=1e-9)


def test_certain_probabilities_are_the_largest_logits_and_keep_their_order():
    target = sb.training.Target(scale="probability")
    found = target(torch.tensor([0.0, 1e-30, 0.5, 1 - 1e-6, 1.0]))
    assert torch.isfinite(found).all()
    assert (found[1:] >= found[:-1]).all()
    assert found[2] == 0
    # Two columns know small shares of either class.
    pair = target(torch.tensor([[1e-20, 1.0], [1.0, 1e-20]]))
    torch.testing.assert_close(pair, torch.tensor([46.0517, -46.0517]))


REFUSED = {
    "no such element": (lambda y: (y, y), {"output": 2}, r"output .*from 0 to 1.*got 2"),
    "no such key": (lambda y: {"score": y, "b": y}, {"output": "scor"}, "Did you mean score"),
    "not said": (lambda y: (y, y), {}, r"tuple of 2.*adapt\(model, output=...\)"),
    "no tensor": (lambda y: (y, "x"), {"output": 1}, r"element that is a tensor.*which is str"),
    "one tensor": (lambda y: y, {"output": "score"}, "single tensor"),
    "class out of range": (lambda y: THREE * y, {"target": 3}, "from 0 to 2.*got 3"),
    "class not said": (lambda y: THREE * y, {}, r"3 columns.*adapt\(model, target=...\)"),
    "one logit": (lambda y: y, {"target": 1}, "None for one number per volume"),
    "logits for probabilities": (lambda y: 5 * y - 9, {"target": "probability"}, r"in \[0, 1\]"),
    "probabilities for logits": (torch.sigmoid, {}, r"got probabilities.*target='probability'"),
    "shares for classes": (
        lambda y: torch.softmax(THREE * y, 1),
        {"target": 0},
        "got probabilities.*Target",
    ),
    "an image": (lambda y: torch.ones(len(y), 1, 4, 4, 4) * 1.0, {}, "a row for each volume"),
    "NaN": (lambda y: y * torch.nan, {}, "logits must be finite"),
    "class below 0": (lambda y: THREE * y, {"target": -1}, "target .*got -1"),
    "no such scale": (lambda y: y, {"target": "probabilty"}, "Did you mean probability"),
    "orientation": (lambda y: y, {"orientation": "LLS"}, "orientation .*R or L.*got 'LLS'"),
    "shape": (lambda y: y, {"shape": (20, 0, 20)}, r"shape\[1\].*got 0"),
    "shape of two": (lambda y: y, {"shape": (20, 20)}, "shape must be"),
    "spacing": (lambda y: y, {"spacing_mm": -1.0}, "spacing_mm .*got -1"),
    "too small": (lambda y: y, {"shape": (2, 2, 2)}, "at least 4 voxels"),
    "no such intensity": (lambda y: y, {"intensity": "z-score"}, "Did you mean zscore"),
    "function that fails": (lambda y: y, {"intensity": lambda x: x @ x}, "intensity .*one that"),
    "function of shapes": (lambda y: y, {"intensity": lambda x: x[1:]}, r"shape \[19, 24, 20\]"),
    "function of arrays": (lambda y: y, {"intensity": lambda x: x.numpy()}, "gives ndarray"),
    "function of NaN": (lambda y: y, {"intensity": lambda x: x / (x * 0)}, "gives NaN or infinity"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused_at_the_call_or_the_first_volume(cohort, name):
    end, settings, says = REFUSED[name]
    few = cohort.test.where([0, 1])
    with pytest.raises(sb.SimbaError, match=says):
        sb.adapt(Answers(end), cohort=few, **settings)
    with pytest.raises(sb.SimbaError, match=says if "spacing" not in name else "spacing_mm"):
        sb.logits(sb.adapt(Answers(end), **settings), few)


def test_networks_and_scans_that_do_not_fit_each_other_are_refused(cohort):
    few, empty = cohort.test.where([0]), np.zeros(cohort.lattice.shape, np.float32)
    channels = nn.Sequential(nn.Conv3d(3, 1, 3), nn.Flatten(), nn.LazyLinear(1))
    channels(torch.zeros(1, 3, 20, 24, 20))
    with pytest.raises(sb.SimbaError, match=r"shape \(1, 1, 20, 24, 20\).*3 channels"):
        sb.adapt(channels, cohort=few)
    with pytest.raises(sb.SimbaError, match="a cohort, whose voxel size is known"):
        sb.adapt(sb.SimBANet((2, 4)), spacing_mm=2.0)
    fine = sb.adapt(sb.SimBANet((2, 4)), spacing_mm=4.0, cohort=few)
    with pytest.raises(sb.SimbaError, match=r"shape \(20, 24, 20\), the lattice"):
        sb.logits(fine, [np.ones((8, 8, 8), np.float32)])
    with pytest.raises(sb.SimbaError, match="images that vary, for 'zscore'"):
        sb.logits(sb.adapt(sb.SimBANet((2, 4)), intensity="zscore"), [empty])
    with pytest.raises(sb.SimbaError, match="one network for all subjects"):
        sb.adapt(sb.training.GroupRouted([sb.SimBANet((2, 4))], "bias", [0]))
    with pytest.raises(sb.SimbaError, match=r"\(N, 1, X, Y, Z\)"):
        fine(torch.zeros(1, 20, 24, 20))


@pytest.mark.parametrize("baseline", [0.0, 0.3])
def test_a_blank_baseline_of_a_scaled_network_is_refused(cohort, baseline):
    few = cohort.test.where([0, 1])
    model = sb.adapt(sb.SimBANet((2, 4)), intensity="zscore")
    with pytest.raises(sb.SimbaError, match=r"baseline .*baseline='mean', or twins"):
        sb.attribute(model, few, baseline=baseline)
    with pytest.raises(sb.SimbaError, match="Take saliency"):
        sb.attribution.faithfulness(model, few)
    assert np.abs(sb.attribute(model, few, baseline="mean").maps).max() > 0


@pytest.mark.parametrize("value", [40.0, -5.0])
def test_a_baseline_unlike_any_scan_is_refused(cohort, value):
    with pytest.raises(sb.SimbaError, match=r"baseline .*near the intensities.*'mean', or twins"):
        sb.attribute(sb.SimBANet((2, 4)), cohort.test.where([0]), baseline=value)


# -- names and wrappers --


class Module(nn.Module):
    """As Lightning's modules are: with a trainer that cannot be copied, and losses."""

    __module__ = "lightning.pytorch.core.module"

    def __init__(self):
        super().__init__()
        self._trainer = (entry for entry in "x")

    def forward(self, *arguments):
        return super().forward(*arguments)


class WithForward(Module):
    __module__ = __name__

    def __init__(self):
        super().__init__()
        self.net, self.loss = sb.SimBANet((2, 4)), nn.BCEWithLogitsLoss()

    def forward(self, x):
        return self.net(x)


class WithoutForward(Module):
    __module__ = __name__

    def __init__(self):
        super().__init__()
        self.net, self.loss = sb.SimBANet((2, 4)), nn.BCEWithLogitsLoss()


class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = sb.SimBANet((2, 4))

    def forward(self, x):
        return {"score": self.net(x), "other": self.net(-x)}


WRAPPED = {
    "plain": lambda: sb.SimBANet((2, 4)),
    "DataParallel": lambda: nn.DataParallel(sb.SimBANet((2, 4))),
    "compiled": lambda: torch.compile(sb.SimBANet((2, 4)), backend="eager"),
    "averaged": lambda: torch.optim.swa_utils.AveragedModel(sb.SimBANet((2, 4))),
    "Lightning": WithForward,
    "Lightning without forward": WithoutForward,
    "adapted": lambda: sb.adapt(sb.SimBANet((2, 4))),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_wrappers_come_off_and_layers_keep_their_names(cohort, name):
    few, model = cohort.test.where(np.arange(3)), WRAPPED[name]()
    adapted = sb.adapt(model, shape=(24, 24, 24), cohort=few)
    assert sb.layers(adapted, few).index[:2].tolist() == ["block1", "block1.conv"]
    assert sb.layers(adapted, few).query("default").index.tolist() == ["block1", "block2"]
    recording = sb.record(adapted, few)
    assert list(recording) == ["pixels", "block1", "block2"]
    named = sb.record(adapted, few, layers=["*.conv"], pixels=False)
    assert list(named) == ["block1.conv", "block2.conv"]
    padded_volumes = [padded(volume, (24,) * 3).astype(np.float32) for volume in few.volumes()]
    expected = sb.record(sb.SimBANet((2, 4)), padded_volumes, pixels=False)
    np.testing.assert_allclose(recording["block2"], expected["block2"], rtol=1e-5)
    assert np.abs(sb.attribute(adapted, few.where([0]), "saliency").maps).max() > 0


def test_a_module_of_lightning_that_says_nothing_is_refused():
    with pytest.raises(sb.SimbaError, match="module without forward, with no network"):
        sb.adapt(Module())


def test_nested_names_are_those_of_the_network(cohort):
    adapted = sb.adapt(Nested(), output="score")
    names = names_of_layers(adapted)
    assert names[adapted.network.net.block1] == "block1"
    plain = nn.Sequential(nn.Sequential(nn.Conv3d(1, 2, 3), nn.ReLU()), nn.Flatten())
    plain.append(nn.Linear(2 * 18 * 22 * 18, 1))
    index = sb.layers(sb.adapt(plain), cohort.test).index.tolist()
    assert index == ["0", "0.0", "0.1", "1", "2"]


# -- what follows from the settings --


def settings():
    yield from (
        {"orientation": "LPS"},
        {"shape": (24, 24, 24)},
        {"target": "number"},
        {"target": "probability"},
        {"target": 0},
        {"output": 0},
        {"output": "x"},
        {"intensity": "zscore"},
        {"intensity": sb.training.Scaling("zscore", over="volume")},
        {"intensity": lambda x: x + 1},
        {"intensity": lambda x: x + 2},
    )


def test_fingerprints_follow_from_all_settings(cohort):
    model = sb.SimBANet((2, 4))
    plain = [network_fingerprint(sb.adapt(model)), network_fingerprint(model)]
    found = [network_fingerprint(sb.adapt(model, **chosen)) for chosen in settings()]
    finer = network_fingerprint(sb.adapt(model, spacing_mm=4.0, cohort=cohort))
    assert len({*plain, *found, finer}) == 2 + len(found) + 1
    assert network_fingerprint(sb.adapt(model, shape=(24, 24, 24))) == found[1]


def test_a_cached_run_is_not_given_to_another_network(cohort):
    config, model = sb.FitConfig(epochs=1, threads=1), sb.SimBANet((2, 4))
    runs = [
        sb.fit(sb.adapt(model, **chosen), cohort, config)
        for chosen in ({"intensity": "zscore"}, {"intensity": "minmax"}, {"intensity": "zscore"})
    ]
    weights = [run.model.network.readout.weight for run in runs]
    assert not torch.equal(weights[0], weights[1])
    assert torch.equal(weights[0], weights[2])
    assert torch.equal(model.readout.weight, sb.SimBANet((2, 4)).readout.weight)


def test_numbers_have_effects_in_their_unit_and_no_rates(cohort):
    years = sb.adapt(Answers(lambda y: 70 + 10 * y), target="number", cohort=cohort)
    table = sb.twin_effect(years, cohort.test, control=years)
    logits = sb.twin_effect(years.network.net, cohort.test)
    assert not [name for name in table if "rate" in name or "flips" in name or "logit" in name]
    assert table["number"].item() == pytest.approx(10 * logits["logit"].item(), rel=1e-3)
    assert table["excess"].item() == 0
    assert sb.interchange(years, cohort.test)["total"].iloc[0] == pytest.approx(
        table["number"].item(), rel=1e-3
    )
    for verb in (sb.evaluate, sb.disparity, sb.training.calibration):
        with pytest.raises(sb.SimbaError, match=r"a network that gives a number.*no rates"):
            verb(years, cohort.test)
    with pytest.raises(sb.SimbaError, match="training to tell two classes"):
        sb.fit(years, cohort, sb.FitConfig(epochs=1), cache=False)
    with pytest.raises(sb.SimbaError, match="control"):
        sb.twin_effect(years, cohort.test, control=sb.SimBANet((2, 4)))


# -- layers --


class Sized(nn.Module):
    """A chain of blocks of two layers each; blocks are never called through their container."""

    def __init__(self, blocks):
        super().__init__()
        layers = [nn.Sequential(nn.Conv3d(1, 1, 1), nn.Conv3d(1, 1, 1)) for _ in range(blocks)]
        self.chain, self.unused = nn.ModuleList(layers), nn.Linear(2, 2)
        self.twice, self.end = nn.Conv3d(1, 1, 1), nn.AdaptiveAvgPool3d(1)

    def forward(self, x):
        x = self.twice(self.twice(x))
        for block in self.chain:
            x = block(x)
        return self.end(x).flatten(1)


@pytest.mark.parametrize(
    ("blocks", "default"),
    [
        (3, [f"chain.{block}.{layer}" for block in range(3) for layer in (0, 1)]),
        (7, [f"chain.{block}" for block in range(7)]),
        (13, [f"chain.{block}" for block in range(13)]),
    ],
)
def test_the_default_is_the_deepest_level_of_at_most_twelve_layers(cohort, blocks, default):
    few, model = cohort.test.where([0, 1]), Sized(blocks)
    table = sb.layers(model, few)
    assert table.query("default").index.tolist() == default
    assert list(sb.record(model, few, pixels=False)) == default
    assert table.loc["twice", "calls"] == 2
    assert table.index[0] == "twice"
    assert table.index[-1] == "unused"
    assert table.loc["unused", ["calls", "shape"]].tolist() == [0, None]
    assert table.loc["chain.0", "parameters"] == 4
    assert table.loc["end", "shape"] == (1, 1, 1, 1)
    order = [table.index.get_loc(f"chain.{block}") for block in range(blocks)]
    assert all(first < second for first, second in pairwise(order))


def test_our_own_networks_keep_their_default(cohort):
    few = cohort.test.where([0, 1])
    for model in (sb.SimBANet((4, 8)), sb.training.ResNet3D((4, 8))):
        assert sb.layers(model, few).query("default").index.tolist() == model.blocks
        assert list(sb.record(model, few, pixels=False)) == model.blocks
