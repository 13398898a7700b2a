"""Fingerprints: what differs for a forward pass differs in the key, and nothing else does."""

import os
import subprocess
import sys
import threading
import types
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import simba_lab as sb
from simba_lab.core.fingerprint import NotFingerprintable, fingerprint, network_fingerprint

TEXT = '''
import torch, helpers
from torch import nn
SCALE = {scale}

def helper(x):
    """Doc."""
    return x {operator} SCALE

class Net(nn.Module):
    """Doc."""
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.act, self.layer = torch.{act}, nn.Linear(2, 1)
        self.powers, self.table, self.names = [1, 2], {{"a": np.arange(3)}}, {{"x", "y", "z"}}
        self.register_buffer("mask", torch.ones(2), persistent=False)
        self.hidden = [nn.Linear(1, 1)]

    def forward(self, x):
        square = lambda t: t * t
        kept = [f(x, "{word}") for f in (lambda t, word: t,)]
        return self.layer(square(helper(helpers.cut(x)))) if "a" in {{"a", "b"}} else kept
'''
FILLED = {"scale": 2, "operator": "+", "act": "relu", "word": "one"}


def network(cut=1, change=None, text=TEXT, **changes):
    """Return the network of a text, executed anew, after a change."""
    helpers = types.ModuleType("helpers")
    exec(f"def cut(x): return x[:{cut}]", vars(helpers))
    sys.modules["helpers"] = helpers
    space = {"np": np, "__name__": "somebodys_module"}
    exec(text.format(**FILLED | changes), space)
    model = space["Net"]()
    if change is not None:
        change(model)
    return model


def test_the_same_text_gives_the_same_key():
    documented = TEXT.replace('"""Doc."""', '"""Another docstring."""\n    # a comment')
    trained = network().train(False)
    keys = {network_fingerprint(model) for model in (network(), network(text=documented), trained)}
    assert len(keys) == 1


CHANGES = {
    "act": {"act": "tanh"},
    "helper": {"operator": "*"},
    "global": {"scale": 3},
    "helper of a module": {"cut": 2},
    "constant in a comprehension": {"word": "two"},
    "attribute": {"change": lambda net: setattr(net, "act", torch.sigmoid)},
    "list": {"change": lambda net: net.powers.append(3)},
    "dict": {"change": lambda net: net.table.update(b=1)},
    "array": {"change": lambda net: net.table["a"].__setitem__(0, 9)},
    "set": {"change": lambda net: net.names.add("w")},
    "buffer": {"change": lambda net: net.mask.zero_()},
    "frozen": {"change": lambda net: net.layer.requires_grad_(False)},
    "weight": {"change": lambda net: net.layer.weight.data.add_(1)},
    "hidden module": {"change": lambda net: net.hidden[0].weight.data.add_(1)},
    "another hidden module": {"change": lambda net: net.hidden.append(nn.ReLU())},
    "partial": {"change": lambda net: setattr(net, "act", partial(torch.sum, dim=0))},
    "partial of another": {"change": lambda net: setattr(net, "act", partial(torch.sum, dim=1))},
    "hook": {"change": lambda net: net.register_forward_hook(lambda *_: None)},
    "forward": {"change": lambda net: setattr(net, "forward", net.layer.forward)},
    "patched class": {"change": lambda net: setattr(type(net), "forward", lambda net, x: x)},
    "option of a layer": {"change": lambda net: setattr(net.layer, "in_features", 3)},
    "tied": {"change": lambda net: setattr(net, "again", net.layer)},
}


def test_each_thing_that_a_forward_pass_sees_changes_the_key():
    keys = {"as it was": network_fingerprint(network())}
    keys |= {name: network_fingerprint(network(**change)) for name, change in CHANGES.items()}
    assert len(set(keys.values())) == len(keys)


def test_tied_weights_are_not_equal_weights():
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    second.load_state_dict(first.state_dict())
    untied, tied = (
        fingerprint(nn.Sequential(first, second_layer)) for second_layer in (second, first)
    )
    assert untied != tied


SCRIPT = """
import sys, torch
from simba_lab.core.fingerprint import network_fingerprint, fingerprint
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.names = torch.nn.Linear(1, 1), {"a", "b", "c"}
        self.register_forward_hook(lambda *_: None)
        @torch.no_grad()
        def closure(x):
            return self.layer(x)
        self.closure = closure
    def forward(self, x):
        g = lambda t: t * t
        return g(self.layer(x)) if len(self.names & {"a", "b", "d"}) else x
print(network_fingerprint(Net()), fingerprint({"a", "b"}, Net, len, torch.relu, {1: lambda x: x}))
"""


def test_keys_have_no_addresses_and_no_order_of_sets():
    outputs = set()
    for seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": seed}
        command = [sys.executable, "-"]
        outputs.add(
            subprocess.run(
                command, input=SCRIPT, env=environment, text=True, check=True, capture_output=True
            ).stdout
        )
    assert len(outputs) == 1


def generator():
    yield 1


@pytest.mark.parametrize("value", [threading.Lock(), generator(), memoryview(b"x")])
def test_what_does_not_show_its_content_is_refused(value, tmp_path):
    model = network()
    model.state = {"kept": [value]}
    with pytest.raises(NotFingerprintable, match=r"state\.kept\[0\] is of type"):
        network_fingerprint(model)
    with (tmp_path / "x").open("w") as file, pytest.raises(NotFingerprintable):
        fingerprint(file)


def test_values_count_by_type_and_content():
    table = pd.DataFrame({"a": [1, 2], "b": ["x", None]})
    plain = [1, 1.0, True, "1", b"1", None, -0.0, 0.0, int, len, np.tanh, torch.tanh, str.upper]
    collections = [[1], (1,), {1}, {1: 1}, [[1], 1], [1, [1]]]
    numbers = [np.arange(2), np.arange(2.0), np.arange(2).reshape(1, 2), np.float32(1)]
    tensors = [np.float64(1), torch.arange(2), torch.arange(2.0), torch.float32]
    tables = [table, table.assign(a=3), table.set_index("a"), table.astype({"a": float})]
    columns = [table["a"], pd.Categorical(["x"]).codes]
    categories = [pd.Series(list(letters), dtype="category") for letters in ("xy", "yx")]
    settings = [sb.FitConfig(), sb.FitConfig(epochs=1), sb.Morphology("Insula_L", 2.5)]
    generators = [np.random.default_rng(0), np.random.default_rng(1)]
    functions = [lambda: 1, lambda: 2, lambda x=1: x, lambda x=2: x]
    values = [*plain, *collections, *numbers, *tensors, *tables, *columns, *categories]
    values += [*settings, *generators, *functions]
    keys = [fingerprint(value) for value in values]
    assert len(set(keys)) == len(keys)
    cyclic = [1]
    cyclic.append(cyclic)
    assert fingerprint(cyclic) != fingerprint([1, [1]])


def test_a_network_that_cannot_be_told_is_trained_anew_with_a_warning(cohort, tmp_path):
    model = sb.SimBANet((2, 2), seed=0)
    model.lock = threading.Lock
    config = sb.FitConfig(epochs=1, threads=1)
    key = network_fingerprint(model)
    model.note = (entry for entry in ())
    with (
        pytest.warns(UserWarning, match=r"neither kept nor resumed: note is of type 'generator'"),
        pytest.raises(TypeError),  # a network with a generator cannot be copied either
    ):
        sb.fit(model, cohort, config, cache=tmp_path)
    assert not list(tmp_path.iterdir()) and len(key) == 32
