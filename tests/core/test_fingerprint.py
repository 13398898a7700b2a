"""Fingerprints: what differs for a forward pass differs in the key, and nothing else does."""

import os
import re
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


BASE = """
import functools, torch
from torch import nn
import torch.nn.functional as F
{above}
class Net(nn.Module):
    {inside}
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(2, 1)
        {state}
    def forward(self, x{argument}):
        x = self.layer(x)
        return {result}
"""
# Networks that differ in the number N alone, which the forward pass reaches in a way of its own.
REACHED = {
    "class attribute": {"inside": "scale = N", "result": "x * self.scale"},
    "property": {"inside": "scale = property(lambda self: N)", "result": "x * self.scale"},
    "default": {"argument": ", scale=N", "result": "x * scale"},
    "constant": {"above": "K = N", "result": "x * K"},
    "constant in a dict": {"above": "K = {'a': [N]}", "result": "x * K['a'][0]"},
    "tensor": {"above": "K = torch.tensor(N)", "result": "x * K"},
    "closure": {
        "above": "def made(k):\n    box = [k]\n    return lambda x: x * box[0]",
        "state": "self.g = made(N)",
        "result": "self.g(x)",
    },
    "partial": {"state": "self.g = functools.partial(torch.mul, other=N)", "result": "self.g(x)"},
    "hook": {"state": "self.layer.register_forward_hook(lambda m, i, o: o * N)"},
    "hook by partial": {
        "above": "def hook(n, module, inputs, output): return output * n",
        "state": "self.layer.register_forward_hook(functools.partial(hook, N))",
    },
    "patched instance": {"state": "self.layer.forward = lambda x: x * N"},
    "decorator": {
        "above": "def double(f):\n    @functools.wraps(f)\n    def g(*a): return N * f(*a)\n"
        "    return g",
        "inside": "scaled = double(lambda self, x: x)",
        "result": "self.scaled(x)",
    },
    "object": {
        "above": "class H:\n    def __call__(self, x): return x * N",
        "state": "self.g = H()",
        "result": "self.g(x)",
    },
    "autograd": {
        "above": "class G(torch.autograd.Function):\n    @staticmethod\n    def forward(c, x):"
        " return x\n    @staticmethod\n    def backward(c, g): return N * g",
        "result": "G.apply(x)",
    },
    "module": {"above": "import other", "result": "other.f(x)"},
    "name of a module": {"above": "from other import f", "result": "f(x)"},
    "import in a call": {
        "inside": "def g(self):\n        from other import f\n        return f",
        "result": "self.g()(x)",
    },
    "function of the library": {"above": "F.softplus = lambda x: x * N", "result": "F.softplus(x)"},
    "method of the library": {
        "above": "nn.Linear.extra = lambda self: N",
        "result": "x * self.layer.extra()",
    },
}


def reaching(monkeypatch, number, *, above="", inside="", state="", argument="", result="x"):
    other = types.ModuleType("other")
    exec(f"def inner(x): return x * {number}\ndef f(x): return inner(x)", vars(other))
    monkeypatch.setitem(sys.modules, "other", other)
    monkeypatch.setattr(nn.functional, "softplus", nn.functional.softplus)
    monkeypatch.setattr(nn.Linear, "extra", None, raising=False)
    parts = {"above": above, "inside": inside, "state": state, "argument": argument}
    text = BASE.format(**parts, result=result)
    space = {"__name__": "somebodys_module"}
    exec(re.sub(r"\bN\b", str(number), text), space)
    return network_fingerprint(space["Net"]())


@pytest.mark.parametrize("way", REACHED)
def test_what_the_forward_pass_reaches_is_in_the_key(monkeypatch, way):
    one, again, two = (reaching(monkeypatch, number, **REACHED[way]) for number in (3, 3, 5))
    assert one == again != two


@pytest.mark.parametrize(
    ("result", "says"),
    [
        ("globals()['K'] * x", "globals"),
        ("eval('x')", "eval"),
        ("__import__('sys').modules['other'].f(x)", "__import__"),
        ("nn.sys.modules['other'].f(x)", "sys.modules"),
        ("x * float(torch.os.environ['K'])", "environ"),
    ],
)
def test_a_network_that_looks_up_what_cannot_be_seen_is_refused(monkeypatch, result, says):
    with pytest.raises(NotFingerprintable, match=f"forward .*it uses {says}"):
        reaching(monkeypatch, 1, result=result)


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
        pytest.raises(sb.SimbaError, match="attribute note"),  # it cannot be copied either
    ):
        sb.fit(model, cohort, config, cache=tmp_path)
    assert not list(tmp_path.iterdir()) and len(key) == 32
