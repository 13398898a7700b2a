"""An edit happens as often as the network runs, and nothing goes past it: else it is an error."""

import pytest
import torch
from torch import nn

import simba_lab as sb


class Paths(nn.Module):
    """Two layers, and a way to use the second."""

    def __init__(self, way):
        super().__init__()
        self.first, self.second = nn.Linear(8, 4), Noting(4, 4)
        self.same, self.readout, self.way = nn.Identity(), nn.Linear(4, 1), way
        self.attention, self.idle = nn.MultiheadAttention(4, 1), nn.Linear(4, 4)

    def forward(self, x):
        x = self.first(x.flatten(1))
        return self.readout(getattr(self, self.way)(x))

    def once(self, x):
        return self.second(x)

    def twice(self, x):
        return self.second(self.second(x))

    def dropped(self, x):
        self.second(x)
        return x + 1

    def noted(self, x):
        self.second(x)
        return self.second.seen

    def both(self, x):
        return self.second(x) + self.second.seen

    def residual(self, x):
        return self.same(x) + self.second(x)

    def attended(self, x):
        return self.attention(x, x, x)[0]


class Noting(nn.Linear):
    """Leaves its output in an attribute as well."""

    def forward(self, x):
        self.seen = super().forward(x)
        return self.seen


VOLUMES = torch.rand(3, 1, 2, 2, 2)


@pytest.mark.parametrize(
    ("way", "layer", "says"),
    [
        ("twice", "second", "called more than once"),
        ("once", "idle", "never called"),
        ("attended", "attention.out_proj", "never called"),
        ("dropped", "second", "changes nothing"),
        ("noted", "second", "changes nothing"),
        ("both", "second", "by another path"),
    ],
)
def test_edits_that_do_not_happen_are_refused(way, layer, says):
    model = Paths(way).eval()
    with (
        pytest.raises(sb.SimbaError, match=rf"layer {layer}.*{says}"),
        torch.no_grad(),
        sb.edit(model, {layer: torch.zeros_like}),
    ):
        model(VOLUMES)
    assert not any(module._forward_hooks for module in model.modules())
    assert not model._forward_pre_hooks


@pytest.mark.parametrize(("way", "layer"), [("once", "second"), ("residual", "same")])
def test_edits_that_happen_do_not_disturb(way, layer):
    model, runs = Paths(way).eval(), []
    state = torch.get_rng_state()
    with torch.no_grad(), sb.edit(model, {layer: lambda x: runs.append(len(x)) or 0 * x}):
        changed = [model(VOLUMES), model(VOLUMES[:2])]
    assert runs == [3, 2]  # the trial run is nobody's
    assert torch.equal(state, torch.get_rng_state())
    with torch.no_grad():
        assert not torch.equal(changed[0], model(VOLUMES))


@pytest.mark.parametrize("compiling", ["in place", "wrapper"])
def test_compiled_networks_are_edited(compiling):
    model = sb.SimBANet((2, 4)).eval()
    volumes = torch.rand(2, 1, 8, 8, 8)
    with torch.no_grad():
        plain = model(volumes)
        if compiling == "in place":
            model.compile(backend="eager")
        else:
            model = torch.compile(model, backend="eager")
        torch.testing.assert_close(model(volumes), plain)  # compiles it without hooks
        with sb.edit(model, {"block1": torch.zeros_like}):
            assert not torch.allclose(model(volumes), plain)
        torch.testing.assert_close(model(volumes), plain)
