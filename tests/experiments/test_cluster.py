"""Cohorts and sweeps on another joblib backend: a real Ray cluster of two nodes here."""

import os

import joblib
import numpy as np
import pandas as pd
import pytest

import simba_lab as sb

ray = pytest.importorskip("ray")


@pytest.fixture(scope="module")
def cluster():
    from ray.cluster_utils import Cluster
    from ray.util.joblib import register_ray

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # Nice workers, as Ray has them, would wait for the other tests.
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112
    nodes = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    nodes.add_node(num_cpus=1)
    ray.init(address=nodes.address, log_to_driver=False)
    register_ray()
    yield nodes
    ray.shutdown()
    nodes.shutdown()


def test_two_nodes_give_the_same_bytes(cluster, cohort, tmp_path):
    assert len([node for node in ray.nodes() if node["Alive"]]) == 2
    subjects = cohort.where(np.arange(12))
    with joblib.parallel_backend("ray", n_jobs=2):
        np.testing.assert_array_equal(subjects.arrays(n_jobs=2), subjects.arrays(n_jobs=1))
        sb.save_cohort(subjects, tmp_path / "cluster", n_jobs=2)
    sb.save_cohort(subjects, tmp_path / "alone", n_jobs=1)
    for name in ("manifest.json", "volumes.npy", "subjects.tsv"):
        assert (tmp_path / "cluster" / name).read_bytes() == (
            tmp_path / "alone" / name
        ).read_bytes()


def test_a_sweep_gives_the_same_rows(cluster, scenario, tmp_path):
    sweep = sb.Sweep(
        scenario,
        {"prevalence.bias": [0.5, 0.9]},
        seeds=(0, 1),
        config=sb.FitConfig(epochs=1, threads=1),
        network={"name": "SimBANet", "widths": [4, 8]},
    )
    local = sweep.run(n_jobs=1, cache=tmp_path / "here")
    with joblib.parallel_backend("ray", n_jobs=2):
        distributed = sweep.run(n_jobs=2, cache=tmp_path / "there")
    pd.testing.assert_frame_equal(
        local.drop(columns="seconds"), distributed.drop(columns="seconds")
    )
