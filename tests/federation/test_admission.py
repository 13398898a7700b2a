"""What a role lets in, and what a site lets out: jobs, calls and counts, without processes."""

import importlib
import json
import stat
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import simba_lab as sb
from simba_lab.federation.clients import LocalClient, SiteError
from simba_lab.federation.federated_cohort import hospitals
from simba_lab.federation.plan import Plan
from simba_lab.federation.privacy import POLICY, read_policy, upload_cost
from simba_lab.federation.provisioning import KIT, authority, provision
from simba_lab.federation.site_stores import save_sites
from simba_lab.federation.sites import Site
from simba_lab.federation.uploads import LEAST, LIMIT, Uploads, Visits, limit

admission = pytest.importorskip("simba_lab.federation.flare.admission")
job = pytest.importorskip("simba_lab.federation.flare.job")

NETWORK = {"name": "SimBANet", "widths": [2, 2]}
PLAN = Plan("travelling", ("north", "south"), {"cycles": 2}, NETWORK)


@pytest.fixture
def app(tmp_path):
    """The folder that a role gets of a job."""
    return admission.write_job(tmp_path, PLAN.to_dict(), 60) / "app"


def change(file, edit) -> None:
    values = json.loads(file.read_text())
    edit(values)
    file.write_text(json.dumps(values))


def test_a_job_of_the_lab_is_taken_and_what_earlier_jobs_brought_is_deleted(tmp_path, app):
    earlier = tmp_path / "kit" / "job-1" / "app_north"
    earlier.mkdir(parents=True)
    (earlier / "evil.py").touch()
    (earlier.parent / "log.txt").touch()
    now = tmp_path / "kit" / "job-2" / "app_north"
    now.parent.mkdir()
    app.rename(now)
    (now / ".__nvfl_sig.json").touch()
    assert admission.OurJobs().validate(str(now)) == ("", {})
    assert not earlier.exists()
    assert (earlier.parent / "log.txt").exists()


@pytest.mark.parametrize(
    "name",
    [
        "config/evil.py",
        "config/package/__init__.py",
        "custom/evil.py",
        "evil.so",
        "config/config_fed_client.conf",
        "config/config_fed_client.yml",
        "config/__pycache__/evil.pyc",
        "config/.hidden.pth",
    ],
)
def test_a_job_with_any_other_file_is_refused(app, name):
    (app / name).parent.mkdir(parents=True, exist_ok=True)
    (app / name).write_text("")
    reason, properties = admission.OurJobs().validate(str(app))
    assert reason.startswith("A job brings its two configurations and no other file")
    assert properties == {}


def first(values: dict) -> dict:
    return values["components"][0]


@pytest.mark.parametrize(
    "edit",
    [
        lambda values: first(values).update(args={"module": "os"}),
        lambda values: first(values).update(path="nvflare.collab.api.module_wrapper.ModuleWrapper"),
        lambda values: values["components"].append({"id": "x", "path": admission.ENGINE}),
        lambda values: values["executors"][0]["executor"]["args"].update(collab_obj_ids=["x"]),
        lambda values: values["executors"][0]["executor"]["args"].update(max_call_threads=1),
        lambda values: values["executors"][0]["executor"].update(path="os.system"),
        lambda values: values["executors"].append(values["executors"][0]),
        lambda values: values.update(handlers=[]),
        lambda values: values.update({"@x": 1}),
        lambda values: values["executors"][0]["executor"]["args"]["props"].update(x=1),
        lambda values: values["executors"][0]["executor"]["args"]["props"]["plan"].update(
            strategy="{$HOME}"
        ),
        lambda values: values.clear(),
        lambda values: values.update(executors=None),
    ],
)
def test_a_job_that_asks_for_anything_else_is_refused(app, edit):
    change(app / admission.SITE, edit)
    assert admission.OurJobs().validate(str(app))[0]


def test_a_job_with_a_broken_or_huge_configuration_is_refused(app):
    for text in ("", "[]", "null", "{" * 5000, " " * 2**21, '{"a": 1, "a": 2}'):
        (app / admission.SITE).write_text(text)
        assert admission.OurJobs().validate(str(app))[0]


@pytest.mark.parametrize("role", ["client.admin_commands", "server.server_commands"])
@pytest.mark.parametrize("form", [dict, json.dumps, "file"])
def test_no_setting_of_logs_runs_code(tmp_path, monkeypatch, role, form):
    """A hostile server need not ask the administrator's rights, which forbid such settings."""
    commands = importlib.import_module(f"nvflare.private.fed.{role}")
    made = tmp_path / "made"
    handler = {"()": "os.mkdir", "path": str(made)}
    settings = {"version": 1, "handlers": {"x": handler}, "root": {"handlers": ["x"]}}
    if form == "file":
        (tmp_path / "log.json").write_text(json.dumps(settings))
        data = str(tmp_path / "log.json")
    else:
        data = form(settings)
    workspace = SimpleNamespace(
        get_run_dir=lambda job: str(tmp_path), get_log_config_file_path=lambda: ""
    )
    context = SimpleNamespace(
        get_engine=lambda: SimpleNamespace(get_workspace=lambda: workspace),
        get_job_id=lambda: "job",
        get_prop=lambda *names: workspace,
    )
    says = commands.ConfigureJobLogCommand().process(data, context)
    assert "log levels and built-in log modes" in says
    assert not made.exists()


def test_the_engine_takes_no_module(monkeypatch):
    engine = pytest.importorskip("simba_lab.federation.flare.engine").Engine
    with pytest.raises(TypeError):
        engine(module="os")
    assert {name for name in vars(engine()) if not name.startswith("_")} == {
        "info",
        "main",
        "train",
    }
    assert engine().__getstate__() == {}


# -- calls --


@pytest.fixture(scope="module")
def federation():
    scenario = sb.Scenario(subjects=16, spacing_mm=8, disease=sb.Morphology("Insula_L", 2.5))
    return hospitals(scenario, [Site("north", 6), Site("south", 4)], validation=4, test=4)


@pytest.fixture(scope="module")
def stores(federation, tmp_path_factory):
    folders = save_sites(federation, tmp_path_factory.mktemp("stores") / "stores", n_jobs=1)
    return dict(zip(federation.names, folders, strict=True))


@pytest.fixture
def site(federation, stores, tmp_path, monkeypatch):
    """The job's functions as they run at a site of six subjects."""
    (tmp_path / "kit").mkdir()
    monkeypatch.setenv(KIT, str(tmp_path / "kit"))
    properties = {"plan": PLAN.to_dict()}
    context = SimpleNamespace(site_name="north", caller="server", get_app_prop=properties.get)
    monkeypatch.setattr(job, "collab", context)
    monkeypatch.setattr(job, "_clients", {})
    monkeypatch.setattr(job, "_visits", {})

    def at(name: str) -> None:
        context.site_name = name
        monkeypatch.setenv(job.FOLDER, str(stores[name]))

    at("north")
    start = PLAN.start().weights
    return SimpleNamespace(
        at=at,
        context=context,
        count=tmp_path / "kit" / "uploads.json",
        train=lambda visit, weights=start: job.train(weights, seed=0, visit=visit),
        local=LocalClient("north", PLAN.model(), federation.at("north"), PLAN.visit),
    )


def test_a_site_answers_its_server_alone(site):
    for caller in ("south", "north", "server.x", "", None):
        site.context.caller = caller
        with pytest.raises(SiteError, match=r"called north\. A site answers its server alone"):
            job.info()
        with pytest.raises(SiteError, match="called north"):
            site.train(1)
    site.context.caller = "server"
    assert job.info() == {"subjects": 6}
    assert not site.count.exists()


def test_a_site_trains_for_the_visits_of_the_plan_each_once_and_counts_them(site):
    reply = site.train(2)
    expected = site.local.train(PLAN.start().weights, seed=0, visit=2)
    assert all(
        torch.equal(value, reply["weights"][name]) for name, value in expected["weights"].items()
    )
    assert json.loads(site.count.read_text()) == {"uploads": 1, "epsilon": 0.0}
    for visit in (2, 1, 5, 99, 0, -1, True, 3.0, "3"):
        with pytest.raises(sb.SimbaError, match="visit must be"):
            site.train(visit)
    site.train(3, reply["weights"])
    site.train(4)
    with pytest.raises(SiteError, match="visit must be"):
        site.train(4)
    assert json.loads(site.count.read_text())["uploads"] == 3


def test_a_site_stops_at_its_number_of_uploads_over_all_jobs(site, monkeypatch):
    monkeypatch.setenv(LIMIT, "2")
    site.train(1)
    site.train(2)
    monkeypatch.setattr(job, "_clients", {})
    monkeypatch.setattr(job, "_visits", {})  # as in the process of another job
    with pytest.raises(SiteError, match="has made its 2 uploads"):
        site.train(1)
    monkeypatch.setenv(LIMIT, "3")
    site.train(1)


def test_what_cannot_be_counted_is_not_sent(site):
    site.count.write_text("{}")
    with pytest.raises(sb.SimbaError, match="does not say how much this site has sent"):
        site.train(1)
    site.count.write_text('{"uploads": -3, "epsilon": 0}')
    with pytest.raises(sb.SimbaError, match="does not say how much this site has sent"):
        site.train(1)
    site.count.unlink()
    site.count.parent.rmdir()  # as good as a disk that cannot be written
    with pytest.raises(sb.SimbaError, match=r"file must be .*uploads\.json"):
        site.train(1)


def test_a_small_site_sends_nothing_unless_it_says_so(site, monkeypatch):
    site.at("south")
    for call in (job.info, lambda: site.train(1)):
        with pytest.raises(SiteError, match="south has 4 subjects; it sends nothing of fewer than"):
            call()
    for text in ("0", "-1", "x", "1.5", ""):
        monkeypatch.setenv(LEAST, text)
        with pytest.raises(sb.SimbaError, match=f"{LEAST} must be an integer of at least 1"):
            job.info()
    monkeypatch.setenv(LEAST, "4")
    assert job.info() == {"subjects": 4}


def test_the_label_of_a_single_subject_shows_in_the_change_and_the_default_forbids_it(site):
    """Why there is a least number: the sign of one change is the label."""
    model = sb.SimBANet((2, 2), norm="group", seed=0)
    cohort = site.local.cohort
    signs = []
    for row in range(len(cohort)):
        client = LocalClient("north", model, cohort.where(np.arange(len(cohort)) == row))
        reply = client.train(model.state_dict(), seed=0, visit=1)["weights"]
        signs.append(reply["readout.bias"].item() > model.state_dict()["readout.bias"].item())
    assert signs == [label == 1 for label in cohort["label"]]
    assert limit(LEAST) == 5
    assert limit(LIMIT) == 1000


def test_a_privacy_budget_is_spent_once_over_all_jobs(site, monkeypatch):
    text = "svt: {fraction: 0.1, epsilon: 1, epsilon_release: 10, gamma: 1e-3, budget: 25}"
    monkeypatch.setenv(POLICY, text)
    site.train(1)
    site.train(2)
    assert json.loads(site.count.read_text()) == {"uploads": 2, "epsilon": 22.0}
    with pytest.raises(SiteError, match="spent 22 of its privacy budget 25, an upload costs 11"):
        site.train(3)
    weights = {"real": torch.zeros(95), "whole": torch.zeros(50, dtype=torch.int64)}
    assert upload_cost(*read_policy("svt:"), weights) == pytest.approx(0.1 + 10 * 0.1)
    assert upload_cost(*read_policy("percentile:"), weights) == 0


def test_rounds_then_visits_may_begin_at_one_again_but_no_call_is_answered_twice():
    plan = Plan("fedtm", ("north", "south"), {"rounds": 2, "cycles": 2, "least": 3}, NETWORK)
    assert plan.phases() == [2, 4]
    visits, weights = Visits(plan.phases()), [{"w": torch.tensor(float(n))} for n in range(6)]
    for number, visit in enumerate((1, 2, 2, 4)):
        visits.admit(visit, weights[number])
        with pytest.raises(SiteError, match="visit must be"):
            visits.admit(visit, weights[number])
    for visit in (1, 4, 5):
        with pytest.raises(SiteError, match="visit must be"):
            visits.admit(visit, weights[5])


def test_uploads_are_counted_before_they_are_made_and_kept(tmp_path):
    uploads = Uploads(tmp_path / "uploads.json", most=3, budget=1.0)
    uploads.add(epsilon=0.75)
    with pytest.raises(SiteError, match="privacy budget"):
        uploads.add(epsilon=0.5)
    again = Uploads(tmp_path / "uploads.json", most=3, budget=1.0)
    assert (again.count, again.epsilon) == (1, 0.75)


# -- kits --


def test_what_provisioning_writes_is_for_its_owner_alone(tmp_path):
    tmp_path.chmod(0o755)
    kits = provision(["north"], tmp_path / "kits", port=8702)
    paths = [tmp_path / "kits", *(tmp_path / "kits").rglob("*")]
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in paths}
    assert {mode & 0o077 for mode in modes.values()} == {0}
    state = authority(tmp_path / "kits") / "cert.json"
    assert "root_pri_key" in json.loads(state.read_text())
    assert modes[state] == 0o600
    for role in ("server", "north"):
        script = (kits[role] / "startup" / "sub_start.sh").read_text()
        assert "umask 077" in script
        assert "python3 -P" in script
        assert "python3 -u" not in script
        assert "/local/custom" not in script
