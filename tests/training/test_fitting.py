import errno
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import simba_lab as sb
from simba_lab.core.batches import Feed
from simba_lab.core.fingerprint import network_fingerprint
from simba_lab.core.unfinished import one_process
from simba_lab.training import tensor_files, trainer
from simba_lab.training.run import Run

SMALL = sb.FitConfig(epochs=3)


def net(seed=0, **options):
    return sb.SimBANet((4, 8), seed=seed, **options)


def weights(model):
    return tensor_files.digest(model.state_dict())


def assert_equal_runs(first, second):
    assert weights(first.model) == weights(second.model)
    pd.testing.assert_frame_equal(
        first.history.drop(columns="seconds"), second.history.drop(columns="seconds")
    )


def interrupted_fit(monkeypatch, model, cohort, config, checkpoint, steps):
    """Fit until a step is interrupted; progress is written after every step."""
    monkeypatch.setattr(trainer, "CHECKPOINT_SECONDS", -1.0)
    forward, steps_left = type(model).forward, [steps]

    def stopped(self, x):
        if self.training and x.requires_grad is False and torch.is_grad_enabled():
            steps_left[0] -= 1
            if steps_left[0] < 0:
                raise KeyboardInterrupt
        return forward(self, x)

    with monkeypatch.context() as patched:
        patched.setattr(type(model), "forward", stopped)
        with pytest.raises(KeyboardInterrupt):
            sb.fit(model, cohort, config, cache=False, checkpoint=checkpoint)


@pytest.mark.parametrize("steps", [3, 5, 11])
def test_a_fit_that_was_interrupted_goes_on_with_the_same_bits(
    cohort, tmp_path, monkeypatch, steps
):
    """Steps 3 and 11 are in mid-epoch, step 5 starts the second epoch; dropout draws the same."""
    model, uninterrupted = net(dropout=0.5), sb.fit(net(dropout=0.5), cohort, SMALL, cache=False)
    path = tmp_path / "fit.checkpoint"
    interrupted_fit(monkeypatch, model, cohort, SMALL, path, steps)
    _, facts = tensor_files.read(path)
    assert (
        facts["place"]["epoch"] * 5 + facts["place"]["step"] == steps
    )  # 40 subjects in batches of 8
    resumed = sb.fit(model, cohort, SMALL, cache=False, checkpoint=path)
    assert_equal_runs(uninterrupted, resumed)
    assert not path.exists()


KILLED = """
import sys, simba_lab as sb
from simba_lab.training import tensor_files, trainer
trainer.CHECKPOINT_SECONDS = 0.0
cohort = sb.synthesise(sb.Scenario.from_yaml(sys.argv[1]), seed=0)
print("ready", flush=True)
run = sb.fit(sb.SimBANet((4, 8), seed=0), cohort, sb.FitConfig(epochs=40), cache=sys.argv[2])
print(tensor_files.digest(run.model.state_dict()))
"""


def test_a_fit_that_was_killed_goes_on_with_the_same_bits(tmp_path, scenario):
    """Real processes, SIGKILL at a random moment."""
    scenario.to_yaml(tmp_path / "scenario.yaml")

    def start(cache):
        command = [
            sys.executable,
            "-c",
            KILLED,
            str(tmp_path / "scenario.yaml"),
            str(tmp_path / cache),
        ]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    uninterrupted, _ = start("whole").communicate()
    process = start("killed")
    assert process.stdout.readline().strip() == "ready"
    deadline = time.monotonic() + 60
    while not list((tmp_path / "killed").glob("runs/*.checkpoint")) and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(random.uniform(0.0, 0.3))
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert list((tmp_path / "killed").glob("runs/*.checkpoint")), (
        "killed before or after the fit, not in it"
    )
    again, _ = start("killed").communicate()
    assert again.split() == uninterrupted.split()
    assert not [
        path for path in (tmp_path / "killed" / "runs").iterdir() if path.suffix == ".checkpoint"
    ]


def test_a_full_disk_costs_no_run_and_no_checkpoint(cohort, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    whole = sb.fit(net(), cohort, SMALL, cache=False)
    with monkeypatch.context() as patched, pytest.warns(UserWarning, match="not kept.*space"):
        patched.setattr(pd.DataFrame, "to_csv", full)
        run = sb.fit(net(), cohort, SMALL, cache=tmp_path)
    assert_equal_runs(run, whole)
    (left,) = (tmp_path / "runs").glob("*.checkpoint")
    assert tensor_files.read(left)[1]["place"]["epoch"] == 2  # only the third is trained again
    assert_equal_runs(sb.fit(net(), cohort, SMALL, cache=tmp_path), whole)
    assert [path.suffix for path in sorted((tmp_path / "runs").iterdir())] == ["", ".lock"]
    with monkeypatch.context() as patched, pytest.warns(UserWarning, match="without a checkpoint"):
        patched.setattr(tensor_files, "atomic_write", full)
        run = sb.fit(net(), cohort, SMALL, cache=False, checkpoint=tmp_path / "checkpoint")
    assert_equal_runs(run, whole)


def test_a_damaged_checkpoint_in_the_cache_is_made_anew(cohort, tmp_path, monkeypatch):
    monkeypatch.setattr(Run, "write", lambda *_: (_ for _ in ()).throw(OSError(5, "lost")))
    with pytest.warns(UserWarning, match="not kept"):
        whole = sb.fit(net(), cohort, SMALL, cache=tmp_path)
    monkeypatch.undo()
    (left,) = (tmp_path / "runs").glob("*.checkpoint")
    left.write_bytes(left.read_bytes().replace(b'"epoch\\": 2', b'"epoch\\": 1', 1))
    with pytest.warns(UserWarning, match="begins anew.*changed since"):
        run = sb.fit(net(), cohort, SMALL, cache=tmp_path)
    assert_equal_runs(run, whole)
    assert not left.exists()


def test_a_checkpoint_that_cannot_be_used_is_refused_before_the_training(cohort, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(sb.SimbaError, match=r"Not a directory|File exists"):
        sb.fit(net(), cohort, SMALL, cache=False, checkpoint=tmp_path / "file" / "checkpoint")
    path = tmp_path / "checkpoint"
    with one_process(path, ""), pytest.raises(sb.SimbaError, match="Another process is fitting"):
        sb.fit(net(), cohort, SMALL, cache=False, checkpoint=path)


@pytest.fixture
def checkpoint(cohort, tmp_path, monkeypatch):
    path = tmp_path / "fit.checkpoint"
    interrupted_fit(monkeypatch, net(), cohort, SMALL, path, 7)
    return path


def test_checkpoints_of_another_fit_are_refused_and_say_what_differs(cohort, checkpoint, scenario):
    noisier = sb.synthesise(scenario.replace(noise=0.02), seed=0)
    for arguments, message in (
        ((sb.SimBANet((4, 16)), cohort, SMALL), "another network"),
        ((net(1), cohort, SMALL), "another network"),
        ((net(), noisier, SMALL), "another cohort"),
        ((net(), cohort, SMALL.replace(learning_rate=1e-3)), "another config"),
    ):
        with pytest.raises(sb.SimbaError, match=message):
            sb.fit(*arguments, cache=False, checkpoint=checkpoint)
    with pytest.raises(sb.SimbaError, match="another mitigation"):
        sb.fit(net(), cohort, SMALL, cache=False, checkpoint=checkpoint, mitigation="reweighing")


def test_damaged_checkpoints_are_refused(cohort, checkpoint):
    content = checkpoint.read_bytes()
    checkpoint.write_bytes(content[: len(content) // 2])
    with pytest.raises(
        sb.SimbaError, match=r"checkpoint must be a file as `fit` wrote it.*cannot be read"
    ):
        sb.fit(net(), cohort, SMALL, cache=False, checkpoint=checkpoint)
    checkpoint.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(sb.SimbaError, match="numbers were changed"):
        sb.fit(net(), cohort, SMALL, cache=False, checkpoint=checkpoint)
    save_file({"weight": torch.zeros(2)}, checkpoint)
    with pytest.raises(sb.SimbaError, match="cannot be read"):
        sb.fit(net(), cohort, SMALL, cache=False, checkpoint=checkpoint)


def test_weights_that_were_tampered_with_are_refused(cohort, tmp_path):
    run = sb.fit(net(), cohort, SMALL, cache=False)
    run.save(tmp_path / "run")
    assert weights(sb.training.Run.load(tmp_path / "run", net(5)).model) == weights(run.model)
    path = tmp_path / "run" / "weights.safetensors"
    tensors = load_file(path)
    with tensor_files.safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors["readout.bias"] += 1
    save_file(tensors, path, metadata=metadata)
    with pytest.raises(sb.SimbaError, match=r"weights\.safetensors was changed"):
        sb.training.Run.load(tmp_path / "run", net())
    with pytest.raises(sb.SimbaError, match="changed since"):
        tensor_files.read(path)
    with pytest.raises(sb.SimbaError, match="nothing exists yet"):
        run.save(tmp_path / "run")


@pytest.mark.parametrize("name", ["history.csv", "run.json", "digests.json"])
def test_every_file_of_a_run_is_held_against_its_digest(cohort, tmp_path, name):
    sb.fit(net(), cohort, SMALL, cache=False).save(tmp_path / "run")
    path = tmp_path / "run" / name
    content = path.read_text()
    path.write_text(content.replace("0", "9", 1))
    with pytest.raises(sb.SimbaError, match="was changed"):
        sb.training.Run.load(tmp_path / "run", net())
    path.unlink()
    with pytest.raises(sb.SimbaError, match=name):
        sb.training.Run.load(tmp_path / "run", net())


def test_patience_stops_a_fit_that_no_longer_improves(cohort):
    config = sb.FitConfig(epochs=60, patience=3, learning_rate=0.05, schedule="constant")
    history = sb.fit(net(), cohort, config, cache=False).history
    assert len(history) < 60
    assert (
        history["kept"].to_numpy().argmax() == len(history) - 4
    )  # three more epochs, none of them better
    assert set(history["learning_rate"]) == {0.05}


def test_volumes_that_do_not_fit_in_memory_are_fed_the_same(cohort):
    kept = sb.fit(net(), cohort, SMALL, cache=False)
    streamed = sb.fit(net(), cohort, SMALL, cache=False, memory_gb=0)
    assert_equal_runs(kept, streamed)
    feed = Feed(cohort, torch.device("cpu"), memory_gb=0)
    rows = [torch.tensor([3, 1]), torch.tensor([0])]
    volumes = cohort.arrays()
    for batch_rows, batch in zip(rows, feed.batches(rows), strict=True):
        np.testing.assert_array_equal(batch[:, 0].numpy(), volumes[batch_rows.numpy()])


class Flat(nn.Module):
    """Somebody's network that cannot have its channels last."""

    def __init__(self):
        super().__init__()
        self.conv, self.linear = nn.Conv3d(1, 2, 3, stride=4), nn.Linear(2 * 5 * 6 * 5, 2)

    def forward(self, x):
        features = self.conv(x)
        return self.linear(features.view(len(x), -1))


@pytest.mark.parametrize(
    "make", [Flat, lambda: sb.training.ResNet3D((4, 8), seed=0), lambda: net(norm="group")]
)
def test_any_network_can_be_fitted(scenario, make):
    cohort = sb.synthesise(scenario.replace(subjects=32), seed=0)
    torch.manual_seed(0)
    model = make()
    run = sb.fit(model, cohort, sb.FitConfig(epochs=2), cache=False)
    assert weights(run.model) != weights(model)
    assert run.provenance["memory_layout"] == ("contiguous" if make is Flat else "channels_last")
    assert np.isfinite(sb.logits(run.model, cohort.test)).all()


def test_a_fit_on_two_devices_gives_the_gradient_of_the_whole_batch(scenario, tmp_path):
    """Group normalisation ignores the batch: two halves give the gradient of the whole batch."""
    script = f"""
import simba_lab as sb
if __name__ == "__main__":
    cohort = sb.synthesise(sb.Scenario.from_yaml({str(tmp_path / "scenario.yaml")!r}), seed=0)
    config = sb.FitConfig(
        epochs=1, accelerator="cpu", threads=1, schedule="constant", learning_rate=1e-3
    )
    model = sb.SimBANet((4, 8), norm="group", seed=0)
    runs = [
        sb.fit(model, cohort, config.replace(devices=devices), cache=False) for devices in (1, 2)
    ]
    alone, shared = (dict(run.model.named_parameters()) for run in runs)
    print(max(float((alone[name] - shared[name]).abs().max()) for name in alone))
    print(max(float((alone[name] - start).abs().max())
              for name, start in sb.SimBANet((4, 8), norm="group", seed=0).named_parameters()))
"""
    scenario.replace(subjects=32).to_yaml(tmp_path / "scenario.yaml")
    (tmp_path / "two.py").write_text(script)
    result = subprocess.run(
        [sys.executable, tmp_path / "two.py"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr[-2000:]
    apart, moved = map(float, result.stdout.split()[-2:])
    assert apart < 0.05 * moved


def test_a_pair_differs_in_the_correlation_alone(cohort):
    pair = sb.fit_pair(net(), cohort, SMALL, cache=False)
    assert weights(pair.biased.model) != weights(pair.control.model)
    control = sb.fit(net(), cohort.unbiased(), SMALL, cache=False)
    assert_equal_runs(pair.control, control)
    assert pair.control.provenance["cohort"]["scenario"]["bias"]["prevalence"] == {
        "control": 0.5,
        "disease": 0.5,
    }


def test_the_fastest_settings_are_measured_ones_that_work(cohort):
    config, table = sb.training.fastest(net(), cohort, SMALL, steps=2)
    working = table.dropna()
    assert len(working) >= 2
    fastest_row = working.loc[working["ms_per_volume"].idxmin()]
    assert (config.precision, config.channels_last) == (
        fastest_row["precision"],
        fastest_row["channels_last"],
    )
    assert config.epochs == SMALL.epochs
    torch.manual_seed(0)
    _, flat = sb.training.fastest(Flat(), cohort, SMALL, steps=2)
    assert (
        flat.set_index(["precision", "channels_last"])["ms_per_volume"].loc[("32-true", True)]
        is not None
    )
    assert np.isfinite(
        flat.set_index(["precision", "channels_last"]).loc[("32-true", False), "ms_per_volume"]
    )


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"schedule": "cosine"}, "schedule must be"),
        ({"precision": "64"}, "precision must be"),
        ({"patience": 0}, "patience must be an integer of at least 1 or None, got 0"),
        ({"epochs": "12"}, "epochs must be an integer of at least 1, got '12'"),
        ({"batch_size": 2**40}, "batch_size must be an integer of at most 1000000"),
        ({"devices": 3}, "multiple of the 3 devices"),
        ({"threads": 0}, "threads must be an integer of at least 1, got 0"),
        ({"threads": 513}, "threads must be an integer of at most 512"),
        ({"seed": -1}, "seed must be an integer of at least 0"),
        ({"learning_rate": True}, "learning_rate must be"),
        ({"weight_decay": float("nan")}, "weight_decay must be"),
    ],
)
def test_bad_settings_are_refused(options, says):
    with pytest.raises(sb.SimbaError, match=says):
        sb.FitConfig(**options)


def test_hardware_that_is_not_there_is_refused(cohort):
    with pytest.raises(sb.SimbaError, match="an accelerator and precision that exist here"):
        sb.fit(net(), cohort, SMALL.replace(accelerator="tpu"), cache=False)
    with pytest.raises(sb.SimbaError, match=r"config\.epoch.*epochs"):
        SMALL.replace(epoch=3)


def test_the_published_network_has_its_shape_and_runs():
    model = sb.SimBANet.paper(seed=0)
    assert model.widths == (32, 64, 128, 256, 512)
    order = [name for name, _ in model.block1.named_children()]
    assert order == ["conv", "norm", "activation", "pool"]
    assert isinstance(model.block3.activation, nn.Sigmoid) and model.dropout.p == 0.2
    assert model.eval()(torch.rand(1, 1, 32, 36, 32)).shape == (1, 1)
    config = sb.FitConfig.paper(epochs=3)
    assert (config.batch_size, config.learning_rate, config.schedule, config.epochs) == (
        2,
        1e-4,
        "constant",
        3,
    )


@pytest.mark.parametrize("make", [sb.SimBANet, sb.training.ResNet3D])
def test_read_out_of_features_is_the_output(make):
    model = make((4, 8), seed=0).eval()
    x = torch.rand(2, 1, 16, 24, 16)
    assert torch.equal(model(x), model.readout(model.features(x)))
    assert model.blocks == ["block1", "block2"]
    assert weights(make((4, 8), seed=0)) == weights(model) != weights(make((4, 8), seed=1))
    with pytest.raises(sb.SimbaError, match="at least 4 voxels"):
        model(torch.rand(1, 1, 3, 8, 8))


class Bent(torch.nn.Module):
    """Its shape says nothing about what it does with its layer."""

    def __init__(self, power):
        super().__init__()
        self.power, self.layer = power, torch.nn.Conv3d(1, 1, 3)

    def forward(self, x):
        return self.layer(x).mean((2, 3, 4)) ** self.power


def test_the_cache_knows_somebodys_own_network_by_its_code_and_attributes():
    def digest(model):
        torch.manual_seed(0)
        return network_fingerprint(model())

    class Other(Bent):
        def forward(self, x):
            return self.layer(x).amax((2, 3, 4))

    first = digest(lambda: Bent(1))
    assert digest(lambda: Bent(1)) == first
    assert len({first, digest(lambda: Bent(2)), digest(lambda: Other(1))}) == 3


def test_what_learns_about_groups_stays_on_one_device(cohort):
    with pytest.raises(sb.SimbaError, match="1 for group_dro"):
        sb.fit(
            sb.SimBANet((4, 8), seed=0),
            cohort,
            sb.FitConfig(epochs=1, devices=2),
            mitigation="group_dro",
            cache=False,
        )


def test_snapshots_are_the_weights_of_every_epoch(cohort, tmp_path):
    config = sb.FitConfig(epochs=3, snapshots=True)
    model = sb.SimBANet((4, 8), seed=0)
    run = sb.fit(model, cohort, config, cache=False)
    kept = int(np.flatnonzero(run.history["kept"])[0])
    for name, value in model.state_dict().items():
        assert torch.equal(run.at(0).state_dict()[name], value)
        assert torch.equal(run.at(kept + 1).state_dict()[name], run.model.state_dict()[name])
    assert not torch.equal(run.at(1).block1.conv.weight, run.at(3).block1.conv.weight)
    plain = sb.fit(model, cohort, config.replace(snapshots=False), cache=False)
    assert torch.equal(plain.model.block1.conv.weight, run.model.block1.conv.weight)
    run.save(tmp_path / "run")
    again = sb.training.Run.load(tmp_path / "run", model)
    assert torch.equal(again.at(2).readout.weight, run.at(2).readout.weight)
    for ask, says in ((lambda: run.at(4), "from 0 to 3"), (lambda: plain.at(0), "snapshots=True")):
        with pytest.raises(sb.SimbaError, match=says):
            ask()


def test_snapshots_survive_an_interruption(cohort, tmp_path, monkeypatch):
    config, model, path = (
        sb.FitConfig(epochs=3, snapshots=True),
        sb.SimBANet((4, 8), seed=0),
        tmp_path / "checkpoint",
    )
    uninterrupted = sb.fit(model, cohort, config, cache=False)
    calls, validate = [], trainer.Trainer.validate

    def dies(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return validate(*arguments)

    monkeypatch.setattr(trainer.Trainer, "validate", dies)
    with pytest.raises(KeyboardInterrupt):
        sb.fit(model, cohort, config, cache=False, checkpoint=path)
    resumed = sb.fit(model, cohort, config, cache=False, checkpoint=path)
    assert len(resumed.snapshots) == 4
    for resumed_weights, expected_weights in zip(
        resumed.snapshots, uninterrupted.snapshots, strict=True
    ):
        assert all(
            torch.equal(resumed_weights[name], expected_weights[name]) for name in resumed_weights
        )
