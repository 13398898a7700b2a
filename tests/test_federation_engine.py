"""A federation of real processes on this machine, over mutual TLS."""

import contextlib
import multiprocessing
import os
import signal
import socket
import ssl
import subprocess
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import simba_lab as sb
from simba_lab.federation import Ledger, LocalClient, Plan, Site, follow, hospitals, save_sites
from simba_lab.rng import stream

pytestmark = pytest.mark.slow
engine = pytest.importorskip("simba_lab.federation.engine")

NETWORK = {"name": "SimBANet", "widths": [4, 8]}
WAIT = 240


def free_ports() -> int:
    """Return a port that is free, and whose neighbour is."""
    draws = stream(os.getpid(), "test", "ports")
    while True:
        port = int(draws.integers(20000, 30000))
        with contextlib.suppress(OSError), socket.socket() as one, socket.socket() as other:
            one.bind(("", port))
            other.bind(("", port + 1))
            return port


class Relay:
    """Stands between a site and the server, and keeps what passes."""

    def __init__(self, port: int) -> None:
        self.seen, self.goal = bytearray(), port
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self) -> None:
        while True:
            near, _ = self.listener.accept()
            try:
                far = socket.create_connection(("127.0.0.1", self.goal))
            except ConnectionRefusedError:  # no server at this moment
                near.close()
                continue
            for source, target in ((near, far), (far, near)):
                threading.Thread(target=self.carry, args=(source, target), daemon=True).start()

    def carry(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while part := source.recv(65536):
                self.seen += part
                target.sendall(part)
        for end in (source, target):
            end.close()


class House:
    """Server and sites as processes."""

    def __init__(self, root: Path) -> None:
        scenario = sb.Scenario(subjects=16, spacing_mm=6, disease=sb.Morphology("Insula_L", 2.5))
        sites = (Site("site-1", 10), Site("site-2", 3, 1.0), Site("site-3", 6))
        self.root, self.federation, self.port = root, hospitals(scenario, sites, validation=4, test=4), free_ports()
        self.folders = dict(zip(self.federation.names, save_sites(self.federation, root / "stores"), strict=True))
        self.kits = engine.provision(self.federation.names, root / "kits", port=self.port)
        self.processes: dict[str, subprocess.Popen] = {}

    def start(self, role: str, folder: Path | None = None) -> None:
        self.processes[role] = engine.start(self.kits[role], folder or self.folders[role])

    def kill(self, role: str) -> None:
        process = self.processes.pop(role)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)

    def console(self, role: str) -> str:
        return (self.kits[role] / "console.txt").read_text(errors="replace")

    def plan(self, strategy: str, **options) -> Plan:
        return Plan(strategy, self.federation.names, options, NETWORK)

    def here(self, plan: Plan) -> dict[str, torch.Tensor]:
        clients = [LocalClient(name, plan.model(), self.federation.at(name), plan.visit) for name in plan.sites]
        return follow(plan.steps(clients)).weights


def until(what, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "too long"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    house = House(tmp_path_factory.mktemp("federation"))
    yield house
    for role in list(house.processes):
        house.kill(role)


def same(one, other) -> bool:
    return set(one) == set(other) and all(torch.equal(one[name], other[name]) for name in one)


def test_deployed_equals_in_process_and_nothing_travels_in_clear(house):
    relay = Relay(house.port)
    config = house.kits["site-1"] / "startup" / "fed_client.json"
    config.write_text(config.read_text().replace(f"localhost:{house.port}", f"localhost:{relay.port}"))
    ledger, plan = house.root / "fedavg", house.plan("fedavg", rounds=3)
    with pytest.raises(sb.SimbaError, match="server must be running"):
        engine.submit(house.kits["admin"], plan, patience=2)
    house.start("server", ledger)
    until(lambda: port_answers(house.port))
    for name in ("site-1", "site-3"):
        house.start(name)
    with pytest.raises(sb.SimbaError, match=r"sites must be running.*\['site-2'\]"):
        engine.submit(house.kits["admin"], plan, patience=5)
    house.start("site-2")
    assert engine.submit(house.kits["admin"], plan, timeout=60, wait=WAIT) == "FINISHED:COMPLETED"
    weights, done = Ledger(ledger, plan).resume()
    assert done == 3
    assert same(weights, house.here(plan))
    history = Ledger(ledger, plan).history()
    assert [row["sites"] for row in history] == [house.federation.names] * 3
    assert_not_in_clear(relay.seen, [plan.model().state_dict(), weights])


def assert_not_in_clear(seen: bytes, sent: list[dict[str, torch.Tensor]]) -> None:
    clear = b"".join(value.numpy().tobytes() for weights in sent for value in weights.values())
    pieces = [clear[place : place + 16] for place in range(0, len(clear) - 16, 256)]
    pieces = [piece for piece in pieces if len(set(piece)) > 8]  # zeros and ones are anywhere
    assert len(pieces) > 10
    assert len(seen) > 2 * len(clear)  # they did pass here
    assert not any(piece in seen for piece in pieces)
    assert all(piece in b"in clear they would be found" + clear for piece in pieces)
    counts = np.bincount(np.frombuffer(seen, np.uint8), minlength=256) / len(seen)
    assert -(counts[counts > 0] * np.log2(counts[counts > 0])).sum() > 7.5  # bits a byte: looks like noise


def port_answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def admitted(house: House, certificate: Path | None) -> bool:
    """Whether the server keeps talking after a handshake with this certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if certificate:
        context.load_cert_chain(certificate / "startup" / "client.crt", certificate / "startup" / "client.key")
    try:
        with socket.create_connection(("127.0.0.1", house.port), 5) as plain, context.wrap_socket(plain) as secure:
            secure.settimeout(3)
            return bool(secure.recv(1))
    except TimeoutError:
        return True  # it waits for us to speak
    except (ssl.SSLError, ConnectionError):
        return False


def test_without_a_certificate_of_this_federation_nobody_is_let_in(house):
    if "server" not in house.processes:
        house.start("server", house.root / "door")
        until(lambda: port_answers(house.port))
    strangers = engine.provision(["site-1"], house.root / "strangers", port=house.port)
    assert admitted(house, house.kits["site-1"])
    assert not admitted(house, strangers["site-1"])
    assert not admitted(house, None)


def _submit(kit: Path, plan: Plan) -> None:
    engine.submit(kit, plan, timeout=15, wait=WAIT)


def test_killed_site_and_killed_server_are_taken_up_again_with_the_same_bits(house):
    for role in list(house.processes):
        house.kill(role)
    folder, plan = house.root / "travelling", house.plan("travelling", cycles=30)
    house.start("server", folder)
    until(lambda: port_answers(house.port))
    for name in house.federation.names:
        house.start(name)
    spawn = multiprocessing.get_context("spawn")

    def submitted():
        process = spawn.Process(target=_submit, args=(house.kits["admin"], plan))
        process.start()
        return process

    def done() -> int:
        return Ledger(folder, plan).resume()[1]

    job = submitted()
    until(lambda: done() >= 6, WAIT)
    house.kill("site-2")
    job.join(WAIT)
    assert not job.is_alive()
    reached = done()
    assert 6 <= reached < 90
    assert Ledger(folder, plan).reason().startswith("site-2 must be able to train")
    house.start("site-2")

    job = submitted()
    until(lambda: done() > reached + 6, WAIT)
    house.kill("server")
    job.kill()
    reached = done()
    assert reached < 90
    house.start("server", folder)
    until(lambda: port_answers(house.port))

    assert engine.submit(house.kits["admin"], plan, timeout=60, wait=WAIT) == "FINISHED:COMPLETED"
    weights, last = Ledger(folder, plan).resume()
    assert last == 90
    assert [row["number"] for row in Ledger(folder, plan).history()] == list(range(1, 91))
    assert same(weights, house.here(plan))
