"""Every instrument on networks of every kind: it works, or one error says what to take instead."""

import numpy as np
import pytest
import torch
from monai.networks.nets import DenseNet121, ResNet, ViT, resnet10
from monai.networks.nets.swin_unetr import SwinTransformer
from torch import nn

import simba_lab as sb


class SwinEncoder(nn.Module):
    """The encoder of SwinUNETR, with the mean of its last maps as features."""

    def __init__(self):
        super().__init__()
        self.swin = SwinTransformer(1, 4, (2, 2, 2), (2, 2, 2), (1, 1, 1, 1), (1, 2, 2, 2))
        self.head = nn.Linear(64, 2)

    def forward(self, x):
        return self.head(self.swin(x)[-1].mean((2, 3, 4)))


class Lightning(nn.Module):
    """Stands for Lightning's module, whose trainer cannot be copied."""

    __module__ = "lightning.pytorch.core.module"

    def __init__(self):
        super().__init__()
        self._trainer = (entry for entry in "x")


class Trained(Lightning):
    __module__ = __name__

    def __init__(self):
        super().__init__()
        self.net, self.loss = sb.SimBANet((4, 8)), nn.BCEWithLogitsLoss()

    def forward(self, x):
        return self.net(x)


def fabric():
    """Return a network as Lightning's Fabric wraps it."""
    fabric = pytest.importorskip("lightning_fabric")
    return fabric.Fabric(accelerator="cpu", devices=1).setup(sb.SimBANet((4, 8)))


class Named(nn.Module):
    """Returns a dictionary."""

    def __init__(self):
        super().__init__()
        self.net = sb.SimBANet((4, 8))

    def forward(self, x):
        return {"score": self.net(x), "mean": x.mean((2, 3, 4))}


def published(name):
    """Return the network in its published size."""
    torch.manual_seed(0)
    if name == "DenseNet121":
        return sb.adapt(DenseNet121(3, 1, 2), target=1, shape=(64, 64, 64), intensity="zscore")
    if name == "ResNet10":
        return sb.adapt(resnet10(n_input_channels=1, num_classes=3), target=2, orientation="LPS")
    if name == "ViT":
        network = ViT(1, 48, 16, classification=True, num_classes=2, post_activation="none")
        return sb.adapt(network, output=0, target=1, shape=(48, 48, 48), intensity="zscore")
    return adapted(name)


def adapted(name):
    """Return a network of this kind that is small enough for the tests."""
    if name in ("ViT", "Swin"):
        pytest.importorskip("einops")
    torch.manual_seed(0)
    if name == "DenseNet121":
        network = DenseNet121(3, 1, 2, init_features=4, growth_rate=2, bn_size=2)
        return sb.adapt(network, target=1, shape=(32, 32, 32), intensity="zscore")
    if name == "ResNet10":
        network = ResNet("basic", [1, 1, 1, 1], [4, 4, 8, 8], n_input_channels=1, num_classes=3)
        return sb.adapt(network, target=2, orientation="LPS", intensity="zscore")
    if name == "ViT":
        network = ViT(
            1, 16, 8, 12, 24, 2, 2, classification=True, num_classes=2, post_activation="none"
        )
        return sb.adapt(network, output=0, target=1, shape=(16, 16, 16))
    if name == "Swin":
        return sb.adapt(SwinEncoder(), target=1, shape=(32, 32, 32))
    if name == "Lightning":
        return sb.adapt(Trained(), intensity="minmax")
    if name == "Fabric":
        return sb.adapt(fabric(), intensity="minmax")
    if name == "compiled":
        return sb.adapt(torch.compile(sb.SimBANet((4, 8)), backend="eager"), orientation="RPI")
    return sb.adapt(Named(), output="score", shape=(24, 24, 24))


NETWORKS = [
    "DenseNet121",
    "ResNet10",
    "ViT",
    "Swin",
    "Lightning",
    "Fabric",
    "compiled",
    "dictionary",
]


def maps(method):
    def explained(model, cohort):
        few = cohort.test.where([0, 1])
        values = sb.attribute(model, few, method, baseline="mean").maps
        assert values.shape == (2, *cohort.lattice.shape)
        return finite(values) and np.abs(values).max() > 0

    return explained


def finite(table):
    values = np.asarray(table, float)
    return bool(values.size and np.isfinite(values).all())


def recorded(model, cohort):
    recording = sb.record(model, cohort.test)
    similar = sb.cka(recording)
    probed = sb.probe(recording, "bias", given="label", permutations=0)
    assert len(recording) - 1 == sb.layers(model, cohort)["default"].sum() <= 12
    return finite(similar["cka"]) and probed["auroc"].between(0, 1).all()


def erased(model, cohort):
    layer = sb.record(model, cohort.test.where([0, 1]), pixels=False)
    edits = sb.erase(model, cohort.test, "bias", layers=list(layer)[-2:-1])
    with sb.edit(model, edits):
        return finite(sb.logits(model, cohort.test))


def exchanged(by):
    def call(model, cohort):
        layers = list(sb.record(model, cohort.test.where([0, 1]), pixels=False))[1:2]
        few = cohort.test.where(np.arange(2))
        return finite(sb.interchange(model, few, by=by, layers=layers)["effect"])

    return call


def used(model, cohort):
    layers = sb.layers(model, cohort).query("default").index.tolist()[-2:-1]
    audience = sb.synthesise(cohort.scenario, seed=1).test
    table = sb.encoding_and_use(model, audience, cohort.where(np.arange(4)), layers=layers)
    # Without untrained networks there is no floor.
    return finite(table.drop(columns=["floor", "above_floor"]))


def tcav(model, cohort):
    layers = list(sb.record(model, cohort.test.where([0, 1]), pixels=False))[-2:-1]
    train, test = cohort.test.where(np.arange(8)), cohort.test.where(np.arange(8, 12))
    return finite(sb.interventions.tcav(model, train, test, "bias", layers=layers)["effect"])


def sane(model, cohort):
    names = sb.layers(model, cohort).query("default").index.tolist()
    few = cohort.test.where([0, 1])
    table = sb.attribution.sanity_checks(model, few, "saliency", layers=names[-1:])
    return finite(table["correlation"])


def faithful(model, cohort):
    few = cohort.test.where([0])
    return finite(sb.attribution.faithfulness(model, few, "saliency", draws=2))


INSTRUMENTS = {
    "logits": lambda model, cohort: finite(sb.evaluate(model, cohort.test)["auroc"]),
    "twin_effect": lambda model, cohort: finite(sb.twin_effect(model, cohort.test)["logit"]),
    "record, cka, probe": recorded,
    "erase, edit": erased,
    "interchange by block": exchanged("block"),
    "interchange by channels": exchanged(sb.interventions.Channels(2)),
    "interchange by region": exchanged("region"),
    "encoding_and_use": used,
    "tcav": tcav,
    "sanity_checks": sane,
    "faithfulness": faithful,
    "integrated_gradients": maps(sb.attribution.IntegratedGradients(4, tolerance=None)),
    "saliency": maps("saliency"),
    "input_x_gradient": maps("input_x_gradient"),
    "smooth_grad": maps(sb.attribution.SmoothGrad(2)),
    "deep_lift": maps("deep_lift"),
    "guided_backprop": maps("guided_backprop"),
    "grad_cam": maps("grad_cam"),
    "guided_grad_cam": maps("guided_grad_cam"),
    "occlusion": maps(sb.attribution.Occlusion(80)),
    "shapley": maps(sb.attribution.Shapley(1)),
}
# What is not defined for a network, by what the error says; everything else works.
NO_RULE = "take integrated_gradients"
DEFINED = {
    ("deep_lift", "Lightning"): NO_RULE,
    ("deep_lift", "Fabric"): NO_RULE,
    ("deep_lift", "ResNet10"): NO_RULE,
    ("deep_lift", "DenseNet121"): NO_RULE,
    ("deep_lift", "ViT"): NO_RULE,
    ("deep_lift", "Swin"): NO_RULE,
    ("guided_backprop", "ViT"): "use saliency",
    ("guided_grad_cam", "ViT"): "use saliency",
    ("guided_backprop", "Swin"): "use saliency",
    ("guided_grad_cam", "Swin"): "use saliency",
    ("interchange by region", "ViT"): "name a layer before it is flattened",
}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_instrument_works_or_says_what_to_take_instead(cohort, name):
    few = cohort.where(np.r_[np.flatnonzero(cohort["split"] == "test")])
    model = adapted(name)
    for instrument, call in INSTRUMENTS.items():
        says = DEFINED.get((instrument, name))
        if says is None:
            assert call(model, few), instrument
        else:
            with pytest.raises(sb.SimbaError, match=says):
                call(model, few)


class Mapped(torch.nn.Module):
    """Four maps of a volume, with the channels first, or last as transformers have them."""

    def __init__(self, *, last):
        super().__init__()
        torch.manual_seed(0)
        self.coarse = torch.nn.AvgPool3d(3)
        self.maps = torch.nn.Linear(1, 4) if last else torch.nn.Conv3d(1, 4, 1)
        weight, bias = torch.randn(4), torch.randn(4)
        with torch.no_grad():
            self.maps.weight.copy_(weight.reshape(self.maps.weight.shape))
            self.maps.bias.copy_(bias)
        self.last, self.answer = last, 1000 * torch.randn(4)

    def forward(self, x):
        x = self.coarse(x)
        y = self.maps(x.movedim(1, -1)).movedim(-1, 1) if self.last else self.maps(x)
        return (y.relu().mean((2, 3, 4)) * self.answer).sum(1)


@pytest.mark.parametrize("by", [sb.interventions.Channels(None), "region"])
def test_channels_may_come_last(cohort, by):
    few = cohort.test.where(np.arange(4))
    first, last = (
        sb.interchange(Mapped(last=last), few, by=by, layers=["maps"]) for last in (False, True)
    )
    assert first["effect"].abs().max() > 1e-4
    assert first.index.equals(last.index)
    np.testing.assert_allclose(first["effect"], last["effect"], atol=1e-4)
