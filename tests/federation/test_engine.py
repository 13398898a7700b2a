"""A federation of real processes on this machine, over mutual TLS."""

import contextlib
import json
import multiprocessing
import os
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch

import simba_lab as sb
from simba_lab.core.rng import stream
from simba_lab.federation.clients import LocalClient, VisitConfig
from simba_lab.federation.federated_cohort import hospitals
from simba_lab.federation.flare import processes
from simba_lab.federation.flare.admission import write_job
from simba_lab.federation.ledger import Ledger
from simba_lab.federation.plan import Plan
from simba_lab.federation.privacy import POLICY, guarded, read_policy
from simba_lab.federation.provisioning import provision
from simba_lab.federation.site_stores import save_sites
from simba_lab.federation.sites import Site
from simba_lab.federation.steps import follow
from simba_lab.scans.manifests import digest_of
from simba_lab.scans.stores import checksum_of

pytestmark = pytest.mark.slow
job = pytest.importorskip("simba_lab.federation.flare.job")
submission = pytest.importorskip("simba_lab.federation.flare.submission")

NETWORK = {"name": "SimBANet", "widths": [4, 8]}
WAIT = 240
VISIT = 15  # seconds that a visit may take if a site is lost on purpose; the first may be slow


def free_ports() -> int:
    """Return a port that is free, and whose neighbour is."""
    draws = stream(os.getpid(), "test", "ports")
    while True:
        port = int(draws.integers(20000, 30000))
        with contextlib.suppress(OSError), socket.socket() as first, socket.socket() as second:
            first.bind(("", port))
            second.bind(("", port + 1))
            return port


class Relay:
    """Stands between a site and the server, and keeps what passes."""

    def __init__(self, port: int) -> None:
        self.packets, self.goal = bytearray(), port
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
            while packet := source.recv(65536):
                self.packets += packet
                target.sendall(packet)
        for end in (source, target):
            end.close()


class House:
    """Server and sites as processes."""

    def __init__(self, root: Path) -> None:
        scenario = sb.Scenario(subjects=16, spacing_mm=6, disease=sb.Morphology("Insula_L", 2.5))
        sites = (Site("site-1", 10), Site("site-2", 5, 1.0), Site("site-3", 6))
        self.root, self.federation, self.port = (
            root,
            hospitals(scenario, sites, validation=4, test=4),
            free_ports(),
        )
        self.folders = dict(
            zip(self.federation.names, save_sites(self.federation, root / "stores"), strict=True)
        )
        self.kits = provision(self.federation.names, root / "kits", port=self.port)
        self.processes: dict[str, subprocess.Popen] = {}

        self.ledger = root / "ledger"  # leads to that of the test: the server need not restart
        self.settings: dict[str, dict] = {}

    def start(
        self,
        role: str,
        folder: Path | None = None,
        privacy: str | None = None,
        environment: dict[str, str] | None = None,
    ) -> None:
        # From a folder above its kit, and from the kit itself.
        working = self.kits[role] if role == "site-2" else self.root
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(working)
            for name, value in (environment or {}).items():
                patch.setenv(name, value)
            self.processes[role] = processes.start(
                self.kits[role], folder or self.folders[role], privacy=privacy
            )

    def use(self, ledger: str, *, fresh: bool = False, **changes: dict) -> Path:
        """Let all roles run with a new ledger; start those anew whose settings change.

        All of them if `fresh`: after a test whose job may still be running.
        """
        for role in list(self.processes) if fresh else ():
            self.kill(role)
        folder = self.root / ledger
        folder.mkdir()
        self.ledger.unlink(missing_ok=True)
        self.ledger.symlink_to(folder)
        settings = {name: changes.get(name.replace("-", ""), {}) for name in self.federation.names}
        for role in list(self.processes):
            ended = self.processes[role].poll() is not None
            changed = settings.get(role, {}) != self.settings.get(role, {})
            if ended or changed or role not in ("server", *settings):
                self.kill(role)
        self.settings = settings
        if "server" not in self.processes:
            self.start("server", self.ledger)
            until(lambda: port_answers(self.port))
        for name in settings:
            if name not in self.processes:
                self.start(name, **settings[name])
        return folder

    def family(self, role: str) -> list[psutil.Process]:
        """Return its process and those of its jobs."""
        first = psutil.Process(self.processes[role].pid)
        return [first, *first.children(recursive=True)]

    def kill(self, role: str) -> None:
        family = []
        with contextlib.suppress(psutil.NoSuchProcess):
            family = self.family(role)
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.processes.pop(role).wait(10)
        psutil.wait_procs(family, 10)

    def console(self, role: str) -> str:
        return (self.kits[role] / "console.txt").read_text(errors="replace")

    def plan(self, strategy: str, **options) -> Plan:
        return Plan(strategy, self.federation.names, options, NETWORK)

    def clients(self, plan: Plan) -> list[LocalClient]:
        return [
            LocalClient(name, plan.model(), self.federation.at(name), plan.visit)
            for name in plan.sites
        ]

    def local_weights(self, plan: Plan, steps: int | None = None) -> dict[str, torch.Tensor]:
        return follow(islice(plan.steps(self.clients(plan)), steps)).weights


def until(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "too long"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(
            "NVFLARE_CLIENT_OUTCOME_WAIT_TIMEOUT", "5"
        )  # for sites that are lost on purpose
        house = House(tmp_path_factory.mktemp("federation"))
        yield house
        for role in list(house.processes):
            house.kill(role)


class Submitted(threading.Thread):
    """A submission that goes on while the test looks."""

    def __init__(self, house: House, plan: Plan, **options) -> None:
        super().__init__(daemon=True)
        self.ended: str | sb.SimbaError | None = None
        self._call = lambda: submission.submit(house.kits["admin"], plan, wait=WAIT, **options)
        self.start()

    def run(self) -> None:
        try:
            self.ended = self._call()
        except sb.SimbaError as error:
            self.ended = error

    def end(self, seconds: float) -> str | sb.SimbaError:
        self.join(seconds)
        assert not self.is_alive(), "too long"
        return self.ended


def same(first, second) -> bool:
    return set(first) == set(second) and all(
        torch.equal(first[name], second[name]) for name in first
    )


def test_deployed_equals_in_process_and_nothing_travels_in_clear(house):
    relay = Relay(house.port)
    config = house.kits["site-1"] / "startup" / "fed_client.json"
    config.write_text(
        config.read_text().replace(f"localhost:{house.port}", f"localhost:{relay.port}")
    )
    house.ledger.symlink_to(ledger := house.root / "fedavg")
    ledger.mkdir()
    plan = house.plan("fedavg", rounds=3)
    with pytest.raises(sb.SimbaError, match=r"server at localhost.* did not answer"):
        submission.submit(house.kits["admin"], plan, patience=2)
    house.start("server", house.ledger)
    until(lambda: port_answers(house.port))
    for name in ("site-1", "site-3"):
        house.start(name)
        until(lambda name=name: f"New client {name}" in house.console("server"))
    with pytest.raises(sb.SimbaError, match=r"Sites did not answer .*: site-2\."):
        submission.submit(house.kits["admin"], plan, patience=15)
    house.start("site-2")
    assert (
        submission.submit(house.kits["admin"], plan, timeout=60, wait=WAIT) == "FINISHED:COMPLETED"
    )
    step = Ledger(ledger, plan).resume()
    weights = step.weights
    assert step.number == 3
    assert same(weights, house.local_weights(plan))
    history = Ledger(ledger, plan).history()
    assert [row["sites"] for row in history] == [house.federation.names] * 3
    assert "got result from site-2" in house.console("server")
    for role in (
        "server",
        *house.federation.names,
    ):  # no weights are fetched afterwards, when no time limit holds
        assert "Downloadable" not in house.console(role)
    assert_not_in_clear(relay.packets, [plan.model().state_dict(), weights])
    for name in house.federation.names:
        count = house.kits[name] / "uploads.json"
        assert json.loads(count.read_text()) == {"uploads": 3, "epsilon": 0.0}
        assert not readable_by_others(house.kits[name])


def assert_not_in_clear(packets: bytes, sent: list[dict[str, torch.Tensor]]) -> None:
    clear = b"".join(value.numpy().tobytes() for weights in sent for value in weights.values())
    pieces = [clear[place : place + 16] for place in range(0, len(clear) - 16, 256)]
    pieces = [piece for piece in pieces if len(set(piece)) > 8]  # zeros and ones are anywhere
    assert len(pieces) > 10
    assert len(packets) > 2 * len(clear)  # they did pass here
    assert not any(piece in packets for piece in pieces)
    assert all(piece in b"in clear they would be found" + clear for piece in pieces)
    counts = np.bincount(np.frombuffer(packets, np.uint8), minlength=256) / len(packets)
    assert (
        -(counts[counts > 0] * np.log2(counts[counts > 0])).sum() > 7.5
    )  # bits a byte: looks like noise


def readable_by_others(folder: Path) -> list[Path]:
    return [path for path in (folder, *folder.rglob("*")) if path.stat().st_mode & 0o077]


def port_answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def admitted(house: House, certificate: Path | None) -> bool:
    """Whether the server keeps talking after a handshake with this certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if certificate:
        context.load_cert_chain(
            certificate / "startup" / "client.crt", certificate / "startup" / "client.key"
        )
    try:
        with (
            socket.create_connection(("127.0.0.1", house.port), 5) as plain,
            context.wrap_socket(plain) as secure,
        ):
            secure.settimeout(3)
            return bool(secure.recv(1))
    except TimeoutError:
        return True  # it waits for us to speak
    except (ssl.SSLError, ConnectionError):
        return False


def test_without_a_certificate_of_this_federation_nobody_is_let_in(house):
    if "server" not in house.processes:
        house.use("door")
    strangers = provision(["site-1"], house.root / "strangers", port=house.port)
    assert admitted(house, house.kits["site-1"])
    assert not admitted(house, strangers["site-1"])
    assert not admitted(house, None)


EVIL = """
from nvflare.collab import collab
open({marker!r}, "a").write(str(__file__))

@collab.publish
def info():
    return {{"subjects": 1}}
"""


def run_job(house: House, job: Path, seconds: float = 90) -> tuple[str, str]:
    """Submit a folder as the administrator, and return the job's number and its end."""
    with submission._session(house.kits["admin"], 60) as session:
        submission._until_present(session, house.federation.names, 60)
        number, status = session.submit_job(str(job)), ""

        def ended() -> bool:
            nonlocal status
            status = session.get_job_status(number) or ""
            return status.startswith(("FINISHED", "FAILED", "ABORTED"))

        until(ended, seconds)
        return number, status


def edit(file: Path, change) -> None:
    values = json.loads(file.read_text())
    change(values)
    file.write_text(json.dumps(values))


def written_job(house: House, name: str, plan: Plan) -> Path:
    (house.root / name).mkdir()
    return write_job(house.root / name, plan.to_dict(), 60)


def test_a_job_that_brings_code_is_refused_by_the_server(house):
    for role in ("server", *house.federation.names):
        local = house.kits[role] / "local"
        rights = json.loads((local / "authorization.json").read_text())["permissions"]
        for name in ("byoc", "shell_commands", "configure_job_log", "configure_site_log"):
            assert {rule[name] for rule in rights.values()} == {"none"}
        assert len(json.loads((local / "resources.json").read_text())["class_allow_list"]) == 2
    if set(house.processes) < {"server", *house.federation.names}:
        house.use("code")
    job = written_job(house, "brings", house.plan("fedavg", rounds=1))
    marker = house.root / "ran"
    (job / "app" / "config" / "evil.py").write_text(EVIL.format(marker=str(marker)))
    _, ended = run_job(house, job)
    assert ended == "FINISHED:FAILED_TO_RUN"
    assert "A job brings its two configurations" in house.console("server")
    assert not any(list(kit.rglob("evil.py")) for kit in house.kits.values())
    assert not marker.exists()


def test_an_administrator_with_the_server_on_his_side_runs_no_code_at_a_site(house):
    """The attack in two jobs: a file stays at the site, then it is named as a module.

    Each site is left with other defences: site-1 has all, site-2 the list of classes, site-3
    only the path of its interpreter.
    """
    marker, saved = house.root / "marker", {}
    wrapper = "nvflare.collab.api.module_wrapper.ModuleWrapper"

    def weaken(role: str, *, classes: bool) -> None:
        file = house.kits[role] / "local" / "resources.json"
        saved[file] = file.read_text()

        def change(values: dict) -> None:
            del values["app_validator"]
            if classes:
                values["class_allow_list"].append(wrapper)

        edit(file, change)

    for role in list(house.processes):
        house.kill(role)
    weaken("server", classes=True)
    weaken("site-2", classes=False)
    weaken("site-3", classes=True)
    try:
        house.use("attack")
        plan = house.plan("travelling", cycles=1)
        job = written_job(house, "attack-job", plan)
        edit(job / "meta.json", lambda values: values.update(min_clients=2))
        evil = job / "app" / "config" / "evil.py"
        evil.write_text(EVIL.format(marker=str(marker)))
        number, _ = run_job(house, job)
        left = {role: list(kit.rglob("evil.py")) for role, kit in house.kits.items()}
        assert not left["site-1"]  # refused
        assert len(left["site-2"]) == len(left["site-3"]) == 1  # the attack's first half
        module = ".".join(left["site-3"][0].relative_to(house.root).with_suffix("").parts)
        found = [sys.executable, "-c", f"import importlib; importlib.import_module({module!r})"]
        subprocess.run(found, cwd=house.root, check=True)  # for Python as it is, it is a module
        assert marker.read_text() == str(left["site-3"][0])
        marker.unlink()

        def name_it(values: dict) -> None:
            values["components"][0].update(path=wrapper, args={"module": module})

        evil.unlink()
        edit(job / "app" / "config" / "config_fed_client.json", name_it)
        for site, reason in (("site-2", "is not in allow_list"), ("site-3", "No module named")):
            target = {"min_clients": 1, "deploy_map": {"app": ["server", site]}}
            edit(job / "meta.json", lambda values, target=target: values.update(target))
            number, ended = run_job(house, job)
            assert ended != "FINISHED:COMPLETED"
            logs = [*(house.kits[site] / number).glob("*.txt"), house.kits[site] / "console.txt"]
            assert any(reason in log.read_text(errors="replace") for log in logs), site
            assert not marker.exists()
    finally:
        for file, text in saved.items():
            file.write_text(text)
        for role in list(house.processes):
            house.kill(role)


THIEF = """
import importlib.abc, importlib.util, sys

class Hook(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "simba_lab.federation.flare.job":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module
        spec.loader.exec_module = lambda module: (load(module), steal(module))[0]
        return spec

def steal(module):
    from nvflare.collab import collab
    train = module.train

    def ask(call):
        try:
            return f"{{type(call()).__name__}} came"
        except Exception as error:
            return str(error).replace(chr(10), " ")

    @collab.publish
    def thief(weights: dict, seed: int, visit: int, rate: float = 1.0, proximal: float = 0.0,
              scanner: int = 0, confusion: float = 0.0):
        calls = [lambda: collab.server(timeout=20.0).info()]
        for client in collab.clients:
            if client.name != "site-1":
                calls.append(lambda client=client: client(timeout=20.0).info())
                calls.append(lambda client=client: client(timeout=20.0).train(
                    weights, seed=0, visit=visit))
        with open({stolen!r}, "a") as file:
            file.writelines(ask(call) + chr(10) for call in calls)
        return train(weights, seed, visit, rate, proximal, scanner, confusion)

    thief.__name__ = "train"
    module.train = thief

sys.meta_path.insert(0, Hook())
"""


def thief_folder(house: House) -> Path:
    """Return a folder that makes a site's process call all others while it trains."""
    folder = house.root / "thief"
    folder.mkdir()
    text = THIEF.format(stolen=str(house.root / "stolen.txt"))
    (folder / "sitecustomize.py").write_text(text)
    return folder


def test_a_scanner_head_travels_as_in_one_process_and_no_site_answers_another(house):
    plan = house.plan("harmonised", cycles=2)
    thief = {"PYTHONPATH": f"{thief_folder(house)}:{os.environ.get('PYTHONPATH', '')}"}
    ledger = Ledger(house.use("harmonised", site1={"environment": thief}), plan)
    assert (
        submission.submit(house.kits["admin"], plan, timeout=60, wait=WAIT) == "FINISHED:COMPLETED"
    )
    step = ledger.resume()
    last = follow(plan.steps(house.clients(plan)))
    assert step.number == last.number == 6
    assert last.head
    assert same(step.weights | step.head, last.weights | last.head)
    answers = (house.root / "stolen.txt").read_text().splitlines()
    assert len(answers) == 2 * 5  # two visits of site-1
    assert all("site-1 called" in answer for answer in answers), answers


POLICY_OF_SITE_2 = (
    "svt: {fraction: 0.1, epsilon: 1, epsilon_release: 200, gamma: 1e-3, tau: 1e-4, budget: 300}"
)


def test_a_site_with_a_policy_sends_filtered_weights_and_no_loss_and_the_others_send_theirs(house):
    plan = house.plan("fedavg", rounds=2)
    ledger = Ledger(house.use("private", site2={"privacy": POLICY_OF_SITE_2}), plan)
    file = house.kits["site-2"] / "uploads.json"
    before = json.loads(file.read_text())["uploads"] if file.exists() else 0
    ended = submission.submit(house.kits["admin"], plan, timeout=60, wait=WAIT)
    assert ended != "FINISHED:COMPLETED"  # the budget covers one upload
    assert "site-2 could not train" in ledger.reason()
    assert "spent 201 of its privacy budget 300" in ledger.reason()
    assert json.loads(file.read_text()) == {"uploads": before + 1, "epsilon": 201.0}
    assert len(ledger.history()) == 1
    mean, begin = ledger.resume().weights, plan.model().state_dict()
    replies = {
        client.name: client.train(begin, seed=plan.seed, visit=1) for client in house.clients(plan)
    }
    losses = ledger.history()[0]["losses"]
    assert np.isnan(losses["site-2"])
    assert all(losses[name] == replies[name]["loss"] for name in ("site-1", "site-3"))
    total = sum(reply["subjects"] for reply in replies.values())

    def sent_by_site_2(name: str) -> np.ndarray:
        """From the mean, if the others sent what they trained."""
        replies_of_others = [
            reply["weights"][name].double() * reply["subjects"]
            for site, reply in replies.items()
            if site != "site-2"
        ]
        return (
            (
                (mean[name].double() * total - sum(replies_of_others))
                / replies["site-2"]["subjects"]
                - begin[name]
            )
            .numpy()
            .ravel()
        )

    names = [name for name, value in begin.items() if value.is_floating_point()]
    sent = np.concatenate([sent_by_site_2(name) for name in names])
    trained = np.concatenate(
        [(replies["site-2"]["weights"][name] - begin[name]).numpy().ravel() for name in names]
    )
    assert (np.abs(trained) > 1e-5).mean() > 0.8
    assert 0.02 < (np.abs(sent) > 1e-5).mean() <= 0.101


def changes(seed: int = 0) -> tuple[dict[str, torch.Tensor], dict]:
    """Return weights and a reply of a site that changed them by about 0.01."""
    before = sb.SimBANet([4, 8], seed=seed).state_dict()
    draws = stream(seed, "test", "changes")
    after = {
        name: value + 0.01 * torch.from_numpy(np.asarray(draws.normal(size=value.shape)))
        for name, value in before.items()
    }
    after = {name: value.to(before[name].dtype) for name, value in after.items()}
    return before, {
        "weights": after | {"temperature": torch.tensor(1.5)},
        "subjects": 7,
        "loss": 0.3,
    }


@pytest.mark.parametrize(
    "text", [POLICY_OF_SITE_2, "percentile: {percentile: 90, gamma: 1e-3}", "svt:"]
)
def test_filters_keep_names_shapes_and_types_and_let_few_changes_out(text):
    before, reply = changes()
    before["temperature"] = torch.tensor(1.0)  # a single number: FLARE's filters would let it pass
    change = job.filter_for(*read_policy(text))
    np.random.seed(3)  # noqa: NPY002
    first = guarded(reply, before, change)
    np.random.seed(3)  # noqa: NPY002
    again = guarded(reply, before, change)
    assert first["subjects"] == 7
    assert np.isnan(first["loss"])
    assert reply["loss"] == 0.3
    assert list(first["weights"]) == list(reply["weights"])
    for name, value in reply["weights"].items():
        assert (first["weights"][name].shape, first["weights"][name].dtype) == (
            value.shape,
            value.dtype,
        )
        assert torch.isfinite(first["weights"][name]).all()
        assert value.is_floating_point() or torch.equal(first["weights"][name], value)
        assert not name.endswith("running_var") or (first["weights"][name] >= 0).all()
    real = [
        name
        for name, value in before.items()
        if value.is_floating_point() and not name.endswith("running_var")
    ]
    out = np.concatenate(
        [(first["weights"][name] - before[name]).double().numpy().ravel() for name in real]
    )
    assert 0.03 < (out != 0).mean() < 0.12
    assert abs(first["weights"]["temperature"] - 1.5) > 0.4
    assert same(first["weights"], again["weights"]) == text.startswith("percentile")
    if text.startswith("percentile"):
        assert np.abs(out).max() == pytest.approx(1e-3, rel=1e-3)


def test_noise_is_as_large_as_declared_and_the_cut_is_at_gamma():
    count, gamma, release = 20_000, 1e-3, 4e7
    fixed = {"came": torch.zeros(count)}
    reply = {"weights": {"came": torch.full((count,), 0.5)}, "subjects": 1, "loss": 0.0}
    policy = (
        f"svt: {{fraction: 0.5, epsilon: 1, epsilon_release: {release}, gamma: {gamma}, tau: 0}}"
    )
    out = (
        guarded(reply, fixed, job.filter_for(*read_policy(policy)))["weights"]["came"]
        .double()
        .numpy()
    )
    out = out[out != 0]
    scale = 2 * gamma * (count / 2) / release  # Laplace: its mean absolute deviation is the scale
    assert np.median(out) == pytest.approx(gamma, abs=scale / 10)
    assert np.abs(out - np.median(out)).mean() == pytest.approx(scale, rel=0.1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "svt: {epsilon: -1}",
            r"SIMBA_LAB_PRIVACY\.svt\.epsilon must be above 0 and up to 100, got -1",
        ),
        ("svt: {fraction: 1.5}", "fraction must be above 0 and up to 1"),
        ("svt: {gamma: .inf}", "gamma must be above 0"),
        ("svt: {gamma: yes}", "gamma must be above 0"),
        ("svt: {tau: 1}", "tau must be up to gamma"),
        ("svt: {epsilonn: 1}", "Did you mean epsilon"),
        ("percentile: {percentile: 101}", "at least 0 and up to 100"),
        ("stv: {}", "Did you mean svt"),
        ("svt: 3", "a mapping of options"),
        ("{svt: {}, percentile: {}}", "one of svt, percentile"),
        ("svt: {", "valid YAML"),
    ],
)
def test_policies_that_cannot_be_followed_are_refused_before_anything_is_trained(
    text, message, monkeypatch, tmp_path
):
    monkeypatch.setenv(POLICY, text)
    with pytest.raises(sb.SimbaError, match=message):
        job.train({}, seed=0, visit=1)
    with pytest.raises(sb.SimbaError, match=message):
        processes.start(tmp_path, tmp_path, privacy=text)
    assert not list(tmp_path.iterdir())


def test_weights_that_are_not_finite_are_not_hidden_under_noise():
    before, reply = changes()
    reply["weights"]["head.bias"] = torch.tensor([float("nan")])
    with pytest.raises(sb.SimbaError, match=r"After training here head\.bias is not finite"):
        guarded(reply, before, lambda values: values)


def test_a_site_trains_for_one_call_at_a_time(monkeypatch):
    """A visit that took too long goes on at the site, on the network of the next visit."""
    monkeypatch.setattr(job, "collab", SimpleNamespace(site_name="site-2", caller="server"))
    with (
        job._training,
        pytest.raises(sb.SimbaError, match="site-2 is still busy with an earlier visit"),
    ):
        job.train({}, seed=0, visit=2)


def test_a_training_that_is_aborted_does_not_run_empty_to_its_end(tmp_path, monkeypatch):
    plan = Plan("travelling", ("a", "b"), {"cycles": 5, "faults": "skip"}, NETWORK)

    class Gone:
        def __init__(self, name: str) -> None:
            self.name = name

        def __call__(self, timeout: float) -> "Gone":
            return self

        def train(self, weights: dict, **visit: int) -> None:
            raise RuntimeError("run is aborted")

    props = {"plan": plan.to_dict(), "timeout": 5}
    aborted = SimpleNamespace(
        get_app_prop=props.get, clients=[Gone("a"), Gone("b")], is_aborted=True
    )
    monkeypatch.setattr(job, "collab", aborted)
    monkeypatch.setenv(processes.FOLDER, str(tmp_path / "ledger"))
    with pytest.raises(sb.SimbaError, match="aborted after step 0"):
        job.main()
    ledger = Ledger(tmp_path / "ledger", plan)
    assert ledger.resume().number == 0
    assert "aborted after step 0" in ledger.reason()


@pytest.mark.parametrize("name", ["server", "admin", "localhost"])
def test_names_that_are_roles_are_no_names_of_sites(name, tmp_path):
    with pytest.raises(sb.SimbaError, match=f"sites must be other names.*'{name}'"):
        provision(["site-1", name], tmp_path / "kits")
    assert not (tmp_path / "kits").exists()


def assert_path_is_guarded(environment: dict[str, str]) -> None:
    assert environment["PYTHONSAFEPATH"] == "1"
    assert all(Path(entry).is_absolute() for entry in environment["PYTHONPATH"].split(":"))


def test_a_site_that_hangs_is_named_and_goes_on_later_with_the_same_bits(house):
    plan = house.plan("travelling", cycles=12)
    folder = house.use("hanging")
    job = Submitted(house, plan, timeout=VISIT)
    until(lambda: Ledger(folder, plan).resume().number >= 4, WAIT)
    for role in ("server", *house.federation.names):
        for process in house.family(role)[1:]:  # the first is a shell or Python itself
            with contextlib.suppress(psutil.NoSuchProcess):
                assert_path_is_guarded(process.environ())
    for process in house.family("site-2"):
        process.suspend()
    try:
        reason = Ledger(folder, plan).reason
        until(reason, 24 + VISIT)
        assert reason().startswith("site-2 could not train")
        assert f"timed out after {VISIT}" in reason()
        assert job.end(45) in ("FINISHED:EXECUTION_EXCEPTION", "FINISHED:ABNORMAL")
        with pytest.raises(sb.SimbaError, match=r"Sites did not answer .*: site-2\."):
            submission.submit(house.kits["admin"], plan, patience=15)
    finally:
        for process in house.family("site-2"):
            process.resume()
    reached = Ledger(folder, plan).resume().number
    assert 4 <= reached < 36
    with pytest.raises(sb.SimbaError, match=r"site-1 is already running"):
        house.start("site-1")
    assert (
        submission.submit(house.kits["admin"], plan, timeout=60, wait=WAIT) == "FINISHED:COMPLETED"
    )
    step = Ledger(folder, plan).resume()
    assert step.number == 36
    assert Ledger(folder, plan).reason() is None
    assert same(step.weights, house.local_weights(plan))


def test_sites_that_let_go_of_a_job_at_its_end_are_not_taken_for_copies():
    def rows(**jobs: str | None) -> list[dict[str, str]]:
        sites = (
            {"client_name": name, "job_id": job or "?", "status": "x" if job else "no_jobs"}
            for name, job in jobs.items()
        )
        return [*sites, {"client_name": "lost", "status": "no_reply"}]

    def named(answers: list[list[dict[str, str]]]) -> str | None:
        class Session:
            def get_client_job_status(self) -> list[dict[str, str]]:
                return answers.pop(0)

        watch = submission._Watch(Session(), "job", every=0)
        return [watch.doubled_site() for _ in range(len(answers))][-1]

    begin, work = rows(one=None, two=None), rows(one="job", two="job")
    assert (
        named(
            [
                begin,
                begin,
                rows(one=None, two="job"),
                rows(one=None, two="job"),
                rows(one=None, two="job"),
                work,
            ]
        )
        is None
    )
    assert named([begin, work, rows(one=None, two="job"), *[rows(one=None, two=None)] * 9]) is None
    assert named([begin, work, *[rows(one=None, two="job")] * 5]) == "one"
    assert named([begin, work, *[rows(one=None, two="job"), work] * 5]) is None


def test_a_copy_of_a_kit_that_joins_too_is_named_and_changes_no_bit(house):
    plan = house.plan("travelling", cycles=1000)
    folder = house.use("twice")
    job = Submitted(house, plan, timeout=60)
    until(lambda: Ledger(folder, plan).resume().number >= 2, WAIT)
    house.kits["copy"] = house.root / "elsewhere" / "site-3"
    shutil.copytree(house.kits["site-3"], house.kits["copy"])
    house.start("copy", house.folders["site-3"])
    copy = house.processes["copy"]
    until(lambda: not job.is_alive() or copy.poll() is not None, 90)
    if job.is_alive():  # FLARE may turn the copy away: then no site is there twice
        assert "Login failed" in house.console("copy")
        reached = Ledger(folder, plan).resume().number
        until(lambda: Ledger(folder, plan).resume().number > reached)
        house.kill("server")
        assert "was lost during the training" in str(job.end(WAIT))
    else:
        ended = job.end(WAIT)
        assert isinstance(ended, sb.SimbaError), ended
        assert str(ended).startswith("site-3 answers from two processes, or was restarted.")
        until(Ledger(folder, plan).reason, 30)
    house.kill("copy")
    step = Ledger(folder, plan).resume()
    assert same(step.weights, house.local_weights(plan, step.number))


def test_sites_that_are_lost_or_send_nonsense_are_skipped_and_named_if_the_plan_says_so(house):
    spoiled = house.root / "spoiled"
    shutil.copytree(house.folders["site-3"], spoiled)
    volumes = np.lib.format.open_memmap(spoiled / "volumes.npy", mode="r+")
    volumes[:] = np.nan

    def signed(values: dict) -> None:  # the site itself finds nothing wrong with its store
        values["sha256"] = [checksum_of(volume) for volume in volumes]
        values["digest"] = digest_of(values)

    edit(spoiled / "manifest.json", signed)
    # Rounds that take their time: the site has to be killed between the first and the last of them.
    slow = VisitConfig(epochs=80)
    plan = Plan("fedavg", house.federation.names, {"rounds": 4, "faults": "skip"}, NETWORK, slow)
    folder = house.use("skipped", fresh=True, site3={"folder": spoiled})
    job = Submitted(house, plan, timeout=VISIT)
    until(lambda: Ledger(folder, plan).resume().number >= 1, WAIT)
    house.kill("site-2")
    assert job.end(WAIT) == "FINISHED:COMPLETED"
    history, step = Ledger(folder, plan).history(), Ledger(folder, plan).resume()
    assert step.number == len(history) == 4
    assert all("not finite" in row["faults"]["site-3"] for row in history)
    lost = ["site-2" in row["faults"] for row in history]
    assert lost == sorted(lost)  # from some round on
    assert lost[-1]
    assert not lost[0]

    class Lost(LocalClient):
        def train(self, weights, **visit):
            if self.name == "site-3" or (lost[visit["visit"] - 1] and self.name == "site-2"):
                raise RuntimeError("lost")
            return super().train(weights, **visit)

    clients = [
        Lost(name, plan.model(), house.federation.at(name), plan.visit) for name in plan.sites
    ]
    assert same(step.weights, follow(plan.steps(clients)).weights)


def _submit(kit: Path, plan: Plan) -> None:
    submission.submit(kit, plan, timeout=VISIT, wait=WAIT)


def test_killed_site_and_killed_server_are_taken_up_again_with_the_same_bits(house):
    plan = house.plan("travelling", cycles=30)
    folder = house.use("travelling", fresh=True)

    def reached_step() -> int:
        return Ledger(folder, plan).resume().number

    job = Submitted(house, plan, timeout=VISIT)
    until(lambda: reached_step() >= 6, WAIT)
    house.kill("site-2")
    assert job.end(WAIT) != "FINISHED:COMPLETED"
    reached = reached_step()
    assert 6 <= reached < 90
    assert Ledger(folder, plan).reason().startswith("site-2 could not train")
    house.start("site-2")

    job = multiprocessing.get_context("spawn").Process(
        target=_submit, args=(house.kits["admin"], plan)
    )
    job.start()
    until(lambda: reached_step() > reached + 6, WAIT)
    house.kill("server")
    job.kill()
    reached = reached_step()
    assert reached < 90
    house.start("server", house.ledger)
    until(lambda: port_answers(house.port))

    assert (
        submission.submit(house.kits["admin"], plan, timeout=60, wait=WAIT) == "FINISHED:COMPLETED"
    )
    step = Ledger(folder, plan).resume()
    assert step.number == 90
    assert [row["number"] for row in Ledger(folder, plan).history()] == list(range(1, 91))
    assert same(step.weights, house.local_weights(plan))
