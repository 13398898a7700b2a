"""A ledger believes nothing that was changed, and a disk or a kill costs no step."""

import errno
import json
import multiprocessing
import os

import pytest
import torch

import simba_lab as sb
from simba_lab.federation import ledger as ledger_module
from simba_lab.federation.ledger import Ledger, weights_digest
from simba_lab.federation.plan import Plan
from simba_lab.federation.steps import Step

PLAN = Plan("travelling", ("a", "b"), {"cycles": 2}, {"name": "SimBANet", "widths": [4, 8]})


def step(number: int) -> Step:
    weights = {name: value + number for name, value in PLAN.start().weights.items()}
    return Step(number, "visit", ("a",), weights, {"a": 0.5 * number})


@pytest.fixture
def folder(tmp_path):
    """A ledger of two steps."""
    ledger = Ledger(tmp_path / "ledger", PLAN)
    ledger(step(1))
    ledger(step(2))
    return tmp_path / "ledger"


def reached(folder) -> tuple[int, list[int]]:
    ledger = Ledger(folder, PLAN)
    return ledger.resume().number, [row["number"] for row in ledger.history()]


def test_weights_that_were_written_are_read(folder):
    resumed = Ledger(folder, PLAN).resume()
    assert resumed.number == 2
    assert all(torch.equal(resumed.weights[name], value) for name, value in step(2).weights.items())
    assert reached(folder) == (2, [1, 2])


def test_a_changed_byte_anywhere_in_the_weights_is_found(folder):
    file = folder / "weights.safetensors"
    whole = file.read_bytes()
    for place in (3, 20, 90, len(whole) // 2, len(whole) - 2, len(whole) - 1):
        damaged = bytearray(whole)
        damaged[place] ^= 0x3F
        file.write_bytes(damaged)
        with pytest.raises(sb.SimbaError, match=r"weights\.safetensors is damaged"):
            Ledger(folder, PLAN).resume()
    for content in (b"", whole[:100], whole + b"more"):
        file.write_bytes(content)
        with pytest.raises(sb.SimbaError, match=r"weights\.safetensors is damaged"):
            Ledger(folder, PLAN).resume()
    file.write_bytes(whole)
    assert reached(folder) == (2, [1, 2])


def test_weights_of_another_step_or_plan_are_not_believed(folder, tmp_path):
    file = folder / "weights.safetensors"
    file.write_bytes(file.read_bytes().replace(b'"step":"2"', b'"step":"4"'))
    with pytest.raises(sb.SimbaError, match="damaged"):
        Ledger(folder, PLAN).resume()
    other = Plan.from_dict(PLAN.to_dict() | {"seed": 7})
    Ledger(tmp_path / "other", other)(step(2))
    file.write_bytes((tmp_path / "other" / "weights.safetensors").read_bytes())
    with pytest.raises(sb.SimbaError, match="damaged"):
        Ledger(folder, PLAN).resume()
    first, second = torch.zeros(2, 3), torch.zeros(3, 2)
    digests = {weights_digest({"w": value}, "") for value in (first, second, first.double())}
    assert len(digests) == 3


def test_a_line_of_the_history_that_was_changed_is_left_out_with_a_warning(folder):
    file = folder / "steps.jsonl"
    whole = file.read_text()
    for text in (
        whole.replace("0.5", "9.5"),
        whole.replace('"number": 1', '"number": 0'),
        "nonsense\n" + whole.split("\n", 1)[1],
        "[1]\n" + whole.split("\n", 1)[1],
        "\xff" + whole,
    ):
        file.write_text(text)
        with pytest.warns(UserWarning, match=r"A line of .*steps\.jsonl is damaged"):
            assert reached(folder) == (2, [2])
    file.write_text(whole + '{"number": 3, "pha')  # killed while it wrote: that is no damage
    assert reached(folder) == (2, [1, 2])
    Ledger(folder, PLAN)(step(3))
    assert reached(folder) == (3, [1, 2, 3])


def test_a_plan_that_was_changed_stops_clearly(folder):
    for text in ("", "{", "null", "[]", '{"strategy": "fedavg"}'):
        (folder / "plan.json").write_text(text)
        with pytest.raises(sb.SimbaError, match="ledger"):
            Ledger(folder, PLAN)


def test_what_a_killed_process_left_blocks_nobody(tmp_path, folder):
    for name in ("plan.part", ".plan.json.part", ".plan.json.4711-ab12.part"):
        begun = tmp_path / name
        begun.mkdir()
        (begun / name).write_text("{")
        Ledger(begun, PLAN)(step(1))
        assert reached(begun) == (1, [1])
    (folder / ".weights.safetensors.part").write_text("half")
    (folder / ".weights.safetensors.lock").touch()
    ledger = Ledger(folder, PLAN)
    with ledger.writing():
        ledger(step(3))
    assert reached(folder) == (3, [1, 2, 3])


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.ESTALE])
def test_a_disk_that_fails_costs_the_step_but_not_the_one_before(folder, monkeypatch, code):
    def fail(*arguments, **options):
        raise OSError(code, os.strerror(code))

    for module, name in ((os, "fsync"), (ledger_module, "save_file")):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, fail)
            with pytest.raises(sb.SimbaError, match=os.strerror(code)):
                Ledger(folder, PLAN)(step(3))
        assert reached(folder) == (2, [1, 2])
    Ledger(folder, PLAN)(step(3))
    assert reached(folder) == (3, [1, 2, 3])


def test_a_small_disk_is_an_error_of_the_lab(folder):
    """A limit on the size of files, in place of a full disk, with its true errors."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_write_large, args=(folder, sender))
    process.start()
    process.join(60)
    assert receiver.recv().startswith("SimbaError")
    assert reached(folder) == (2, [1, 2])


def _write_large(folder, sender) -> None:
    import resource
    import signal

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    size = (folder / "weights.safetensors").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, size // 2))
    try:
        Ledger(folder, PLAN)(step(3))
        sender.send("written")
    except Exception as error:
        sender.send(f"{type(error).__name__}: {error}")


def test_two_trainings_of_one_folder_are_refused_at_the_start_of_the_second(folder):
    ledger, second = Ledger(folder, PLAN), Ledger(folder, PLAN)
    with ledger.writing():
        assert second.resume().number == 2  # reading is free
        with pytest.raises(sb.SimbaError, match="Another process trains into"), second.writing():
            pass
    with second.writing():
        second(step(3))
    assert reached(folder) == (3, [1, 2, 3])
    assert not [path for path in folder.iterdir() if path.name.endswith((".part", ".lock"))]


def test_steps_are_lines_of_json_with_a_digest(folder):
    rows = [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]
    assert [row["number"] for row in rows] == [1, 2]
    assert len({row["digest"] for row in rows}) == 2
