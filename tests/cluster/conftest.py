"""Ray for the tests that are marked `cluster`: two nodes in processes of this machine, gone at the end in any case."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import corpora
import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    """A `ray.cluster_utils.Cluster` of two nodes (of three CPUs and of two), to which this process is connected."""
    with _head(3) as cluster:
        import ray

        try:
            cluster.add_node(num_cpus=2, object_store_memory=corpora.STORE)
            ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
            yield cluster
        finally:
            ray.shutdown()


@pytest.fixture(scope="module")
def one_node() -> Iterator[Any]:
    """One node for drivers in other processes. It has (on paper) CPUs for many, as what a killed one had is not free at
    once."""
    with _head(64) as cluster:
        yield cluster


@contextmanager
def _head(cpus: int) -> Iterator[Any]:
    pytest.importorskip("ray", reason="Ray is not installed (the extra `cluster`)")
    from ray.cluster_utils import Cluster

    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "cluster")])
    os.environ |= {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_memory_monitor_refresh_ms": "0",  # other processes of the machine are none of its business
        "RAY_worker_niceness": "0",  # as the drivers have, or a busy machine leaves workers no time
        "RAY_AUTH_MODE": "disabled",
        "PYTHONPATH": path,
        "OMP_NUM_THREADS": "1",
    }
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": cpus, "object_store_memory": corpora.STORE, "include_dashboard": False},
    )
    try:
        yield cluster
    finally:
        cluster.shutdown()
