import errno
import hashlib
import json
import os
import pickle
import random
import signal
import time

import numpy as np
import pandas as pd
import pytest

import simba_lab as sb
from simba_lab.scans import manifests, saving, stores


@pytest.fixture
def saved(cohort, tmp_path):
    return sb.save_cohort(cohort, tmp_path / "cohort")


def digest(folder):
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
    }


def test_what_comes_back_is_what_was_rendered(cohort, saved, tmp_path):
    opened = sb.open_cohort(tmp_path / "cohort", verify=True)
    np.testing.assert_array_equal(opened.arrays(), cohort.arrays())
    pd.testing.assert_frame_equal(opened.table, cohort.table)
    assert (opened.scenario, opened.seed) == (cohort.scenario, cohort.seed)
    assert opened.lattice == cohort.lattice
    np.testing.assert_array_equal(opened.test.array(0), cohort.test.array(0))


def test_twins_of_a_stored_cohort_are_rendered(cohort, saved):
    np.testing.assert_array_equal(
        saved.twin(without="bias").arrays(), cohort.twin(without="bias").arrays()
    )


def test_a_stored_twin_stays_a_twin(cohort, tmp_path):
    twin = cohort.where(np.arange(6)).twin(without="bias")
    sb.save_cohort(twin, tmp_path / "twin")
    opened = sb.open_cohort(tmp_path / "twin")
    np.testing.assert_array_equal(opened.arrays(), twin.arrays())
    without_effects = twin.twin(without="disease")
    np.testing.assert_array_equal(opened.twin(without="disease").arrays(), without_effects.arrays())


def test_volumes_are_read_not_rendered(cohort, saved, monkeypatch):
    monkeypatch.setattr(
        "simba_lab.synthesis.rendering.renderer.Renderer.volume", lambda *_: pytest.fail("rendered")
    )
    assert saved.array(3).shape == cohort.lattice.shape


def test_manifest_says_what_the_bytes_follow_from(cohort, saved, tmp_path):
    manifest = json.loads((tmp_path / "cohort" / "manifest.json").read_text())
    assert manifest["cohort"] == {"scenario": cohort.scenario.to_dict(), "seed": 0}
    assert {"numpy", "numba", "rendering"} <= set(manifest["versions"])
    expected = hashlib.sha256(cohort.array(5).tobytes()).hexdigest()
    assert manifest["sha256"][5] == expected


def test_saving_again_reads_and_another_cohort_is_refused(cohort, saved, tmp_path):
    before = digest(tmp_path / "cohort")
    for name in (stores.LOCK, stores.PROGRESS):
        (
            tmp_path / "cohort" / name
        ).touch()  # as a process killed right after the manifest leaves them
    sb.save_cohort(cohort, tmp_path / "cohort")
    assert digest(tmp_path / "cohort") == before
    reseeded = sb.synthesise(cohort.scenario, seed=9)
    with pytest.raises(sb.SimbaError, match="this very cohort"):
        sb.save_cohort(reseeded, tmp_path / "cohort")


def killed_after(seconds, cohort, folder):
    """Save in a child process and kill it after a while; True if it was still writing."""
    child = os.fork()
    if child == 0:
        try:
            sb.save_cohort(cohort, folder, n_jobs=1)
        finally:
            os._exit(0)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def test_twenty_kills_leave_the_bytes_of_an_uninterrupted_cohort(cohort, tmp_path, monkeypatch):
    monkeypatch.setattr(
        saving, "BATCH", 2
    )  # many small steps, so that a kill falls between and into them
    sb.save_cohort(cohort, tmp_path / "whole", n_jobs=1)
    moments, kills, folders = random.Random(0), 0, []
    for attempt in range(200):
        folder = (
            tmp_path / f"broken{attempt}"
            if not folders or (folders[-1] / "manifest.json").is_file()
            else folders[-1]
        )
        folders.append(folder)
        kills += killed_after(moments.uniform(0, 0.25), cohort, folder)
        if kills == 20:
            break
    assert kills == 20
    for folder in dict.fromkeys(folders):
        sb.save_cohort(cohort, folder, n_jobs=1)
        assert digest(folder) == digest(tmp_path / "whole")


def test_a_kill_resumes_instead_of_starting_again(cohort, tmp_path, monkeypatch):
    monkeypatch.setattr(saving, "BATCH", 1)
    rendered = []

    def until_the_fifth(self, index, **options):
        rendered.append(index)
        if len(rendered) == 6:
            raise KeyboardInterrupt
        return original(self, index, **options)

    original = type(cohort).array
    monkeypatch.setattr(type(cohort), "array", until_the_fifth)
    with pytest.raises(KeyboardInterrupt):
        sb.save_cohort(cohort, tmp_path / "cohort", n_jobs=1)
    assert not (tmp_path / "cohort" / "manifest.json").exists()
    with pytest.raises(sb.SimbaError, match="interrupted"):
        sb.open_cohort(tmp_path / "cohort")
    sb.save_cohort(cohort, tmp_path / "cohort", n_jobs=1)
    assert rendered[6:] == list(range(5, len(cohort)))


def test_full_disk_is_one_clear_error_and_nothing_is_lost(cohort, tmp_path, monkeypatch):
    real, calls = os.pwrite, []

    def full(descriptor, data, offset):
        calls.append(offset)
        if len(calls) > 40:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(sb.SimbaError, match="No space left on device; make room and call again"):
        sb.save_cohort(cohort, tmp_path / "cohort", n_jobs=1)
    monkeypatch.setattr(os, "pwrite", real)
    sb.save_cohort(cohort, tmp_path / "cohort", n_jobs=1)
    sb.open_cohort(tmp_path / "cohort", verify=True)


def test_too_little_space_is_said_before_anything_is_written(cohort, tmp_path, monkeypatch):
    usage = saving.shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(saving.shutil, "disk_usage", lambda _: usage)
    says = r"at least [1-9][\d.]+ MB of free space, got 1 kB free at "
    with pytest.raises(sb.SimbaError, match=says):
        sb.save_cohort(cohort, tmp_path / "cohort")
    assert not list(tmp_path.iterdir())
    (tmp_path / "cohort").mkdir()  # somebody's folder stays
    with pytest.raises(sb.SimbaError, match=says):
        sb.save_cohort(cohort, tmp_path / "cohort")
    assert not list((tmp_path / "cohort").iterdir())


@pytest.mark.parametrize("calls", [1, 2])
def test_a_disk_without_room_for_a_volume_is_left_empty(cohort, tmp_path, monkeypatch, calls):
    """The header may find room, or not even that."""
    real, made = os.pwrite, []

    def full(descriptor, data, offset):
        made.append(offset)
        if len(made) >= calls:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(sb.SimbaError, match="No space left on device"):
        sb.save_cohort(cohort, tmp_path / "cohort", n_jobs=1)
    assert not list(tmp_path.iterdir())


def tampered(folder, **changes):
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest |= changes
    # As if it had been written so.
    manifest["digest"] = manifests.digest_of(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def table_with(folder, old, new):
    """A line of the table is another; the manifest knows."""
    content = (folder / "subjects.tsv").read_text()
    header, first, *lines = content.split("\n")
    values = dict(zip(header.split("\t"), first.split("\t"), strict=True)) | {old: new}
    content = "\n".join([header, "\t".join(values.values()), *lines])
    (folder / "subjects.tsv").write_text(content)
    tampered(folder, table_sha256=hashlib.sha256(content.encode()).hexdigest())


def other_seed(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["cohort"]["seed"] = 99
    (folder / "manifest.json").write_text(json.dumps(manifest))


def terabytes(folder):
    tampered(folder, shape=[80, 100000, 100000, 100000])


def truncated(folder):
    data = (folder / "volumes.npy").read_bytes()
    (folder / "volumes.npy").write_bytes(data[: len(data) // 2])


def other_header(folder):
    data = bytearray((folder / "volumes.npy").read_bytes())
    data[20:40] = b"x" * 20
    (folder / "volumes.npy").write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (terabytes, "bytes follow from the manifest"),
        (truncated, "bytes follow from the manifest"),
        (other_header, "header does not fit"),
        (lambda folder: tampered(folder, format="other"), "format"),
        (lambda folder: tampered(folder, subjects=[1, 2]), "do not agree"),
        (lambda folder: tampered(folder, sha256=None), r"manifest\.json.*sha256"),
        (lambda folder: tampered(folder, sha256=["0"] * 80), r"sha256\.0.*got '0'"),
        (lambda folder: tampered(folder, spacing_mm=-8), "spacing_mm.*greater than 0, got -8"),
        (lambda folder: tampered(folder, origin_mm=[0, float("nan"), 0]), r"origin_mm\.1.*finite"),
        (lambda folder: tampered(folder, switches=None), "switches"),
        (lambda folder: tampered(folder, switches={"bias": "banana"}), "switches.bias"),
        (lambda folder: tampered(folder, cohort=None), "cohort"),
        (lambda folder: tampered(folder, cohort={"scenario": None, "seed": 0}), "scenario"),
        (lambda folder: tampered(folder, columns={"nope": "text"}), "no column 'nope'"),
        (lambda folder: tampered(folder, columns={"split": "int64"}), "invalid literal"),
        (lambda folder: tampered(folder, columns={"label": "banana"}), "banana"),
        (lambda folder: (folder / "manifest.json").write_text("[" * 200_000), "valid JSON"),
        (lambda folder: (folder / "manifest.json").write_text("[1]"), "not an object"),
        (other_seed, "its digest is another"),
        (lambda folder: table_with(folder, "label", "7"), r"0\.label.*0 or 1, got 7"),
        (lambda folder: table_with(folder, "split", "tset"), r"0\.split.*got 'tset'"),
        (lambda folder: table_with(folder, "subject", "79"), "not those of the manifest"),
        (lambda folder: (folder / "subjects.tsv").unlink(), "No such file"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "manifest.json"),
        (
            lambda folder: (folder / "subjects.tsv").write_text("subject\tlabel\n1\t0\n"),
            "table has been changed",
        ),
        (lambda folder: (folder / "manifest.json").unlink(), "complete store"),
    ],
)
def test_damaged_stores_are_refused(saved, tmp_path, damage, says):
    damage(tmp_path / "cohort")
    with pytest.raises(sb.SimbaError, match=says):
        sb.open_cohort(tmp_path / "cohort")


def test_changed_volume_is_found_by_its_checksum(saved, tmp_path):
    with (tmp_path / "cohort" / "volumes.npy").open("r+b") as volumes:
        volumes.seek(-20_000, os.SEEK_END)
        volumes.write(b"\x01\x02\x03\x04")
    with pytest.raises(sb.SimbaError, match="Subject 79"):
        sb.open_cohort(tmp_path / "cohort", verify=True)


def test_a_damaged_volume_is_never_fed_to_a_network(cohort, saved, tmp_path):
    row = int(np.flatnonzero(cohort["split"] == "train")[1])
    with (tmp_path / "cohort" / "volumes.npy").open("r+b") as volumes:
        volumes.seek(-4 * 9600 * (len(cohort) - row) + 16_000, os.SEEK_END)
        volumes.write(b"\x01\x02\x03\x04")
    opened = sb.open_cohort(tmp_path / "cohort")
    assert opened.array(row + 1).shape == cohort.lattice.shape
    for _ in range(2):
        with pytest.raises(sb.SimbaError, match=f"Subject {row} has another checksum"):
            opened.array(row)
    model, config = sb.SimBANet((2, 2), seed=0), sb.FitConfig(epochs=1, threads=1)
    for memory_gb in (0.0, 1.0):
        fresh = sb.open_cohort(tmp_path / "cohort")
        with pytest.raises(sb.SimbaError, match="another checksum"):
            sb.fit(model, fresh, config, cache=tmp_path / "cache", memory_gb=memory_gb)
    assert not [path for path in (tmp_path / "cache" / "runs").iterdir() if path.is_dir()]


def test_a_volume_is_checked_once_in_each_process(saved, monkeypatch):
    checked = []
    monkeypatch.setattr(
        stores, "checksum_of", lambda volume: checked.append(1) or checksum_of(volume)
    )
    checksum_of = saving.checksum_of
    for store in (saved.store, pickle.loads(pickle.dumps(saved.store))):
        for _ in range(3):
            store.array(5)
    assert len(checked) == 2


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE])
def test_a_disk_that_fails_while_it_is_read_is_an_error_of_the_lab(saved, monkeypatch, code):
    def fail(*_, **__):
        raise OSError(code, "the reason")

    monkeypatch.setattr(np, "fromfile", fail)
    with pytest.raises(sb.SimbaError, match="cannot be read: the reason"):
        saved.array(0)


@pytest.mark.parametrize("name", [stores.VOLUMES, stores.TABLE])
def test_files_of_our_names_that_are_not_ours_stay(cohort, tmp_path, name):
    folder = tmp_path / "cohort"
    folder.mkdir()
    (folder / name).write_bytes(b"somebody's years of work" * 9)
    with pytest.raises(sb.SimbaError, match=f"another '{name}'; nothing is overwritten"):
        sb.save_cohort(cohort, folder)
    assert (folder / name).read_bytes() == b"somebody's years of work" * 9


def test_who_comes_second_reads_what_the_first_wrote(cohort, saved, tmp_path, monkeypatch):
    """The other process finishes between the look at the folder and the lock."""
    folder, real = tmp_path / "cohort", saving._locked
    before, hidden = digest(folder), tmp_path / "hidden"
    (folder / stores.MANIFEST).rename(hidden)

    def locked(path):
        hidden.rename(folder / stores.MANIFEST)
        return real(path)

    monkeypatch.setattr(saving, "_locked", locked)
    sb.save_cohort(cohort, folder)
    assert digest(folder) == before


def test_strangers_are_not_overwritten(cohort, tmp_path):
    (tmp_path / "holiday.jpg").write_text("x")
    with pytest.raises(sb.SimbaError, match=r"holiday\.jpg"):
        sb.save_cohort(cohort, tmp_path)
    with pytest.raises(sb.SimbaError, match="existing folder"):
        sb.save_cohort(cohort, tmp_path / "no" / "folder")


def test_one_writer_at_a_time(cohort, tmp_path):
    (tmp_path / "cohort").mkdir()
    with (
        saving.FileLock(tmp_path / "cohort" / stores.LOCK),
        pytest.raises(sb.SimbaError, match="one process at a time"),
    ):
        sb.save_cohort(cohort, tmp_path / "cohort")


class Source:
    """Empty volumes of people who were written down by hand."""

    identity = {"files": "by hand"}  # noqa: RUF012

    def __init__(self, lattice):
        self.lattice = lattice

    def array(self, subject):
        return np.full(self.lattice.shape, subject, np.float32)


def test_text_of_a_table_comes_back_as_it_was(tmp_path):
    """No id becomes a number, no name a missing value, and no cell a formula."""
    ids = ["0001", "NA", "1E5", "=1+1", "'=x", "-", "nan", "", 'a "b"', "ü\tö", "1", "True"]
    table = pd.DataFrame(
        {
            "participant": ids,
            "split": "test",
            "label": [0, 1] * 6,
            "fold": 0,
            "number": [str(number) for number in range(12)],
            "age": [0.1, np.nan, *range(10)],
            "small": np.arange(12, dtype=np.int16),
            "flag": [True, False] * 6,
        }
    )
    lattice = sb.core.Lattice((2, 2, 2), 8.0, (0.0, 0.0, 0.0))
    people = sb.scans.ScanCohort(table, Source(lattice))
    stored = sb.save_cohort(people, tmp_path / "people", n_jobs=1)
    opened = sb.open_cohort(tmp_path / "people")
    for cohort in (stored, opened):
        for name in table:
            assert cohort[name].tolist() == pytest.approx(table[name].tolist(), nan_ok=True)
            assert cohort[name].dtype == table[name].to_numpy().dtype
    text = (tmp_path / "people" / "subjects.tsv").read_text()
    assert "\n=" not in text and "\t=" not in text
    old = json.loads((tmp_path / "people" / "manifest.json").read_text())
    del old["columns"], old["digest"]  # as earlier versions wrote it
    (tmp_path / "people" / "manifest.json").write_text(json.dumps(old))
    assert sb.open_cohort(tmp_path / "people")["participant"].tolist() == ids


def test_subjects_without_numbers_are_refused_before_anything_is_written(tmp_path):
    table = pd.DataFrame({"split": "test", "label": [0, 1]}, index=["a", "b"])
    people = sb.scans.ScanCohort(table, Source(sb.core.Lattice((2, 2, 2), 8.0, (0.0, 0.0, 0.0))))
    with pytest.raises(sb.SimbaError, match="indexed by the numbers"):
        sb.save_cohort(people, tmp_path / "people")
    assert not (tmp_path / "people").exists()
