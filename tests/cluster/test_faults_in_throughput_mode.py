"""Faults as Kubernetes has them: behind HAProxy and in Serve's throughput mode, by the variables of the manifests.

Ray reads them when it is imported, so these tests of test_faults.py run again in a process of their own.
"""

from __future__ import annotations

import os
import subprocess
import sys

from deployments.fleet import haproxy
from tests.support.manifests import ray_containers
from tests.support.paths import ROOT

AGAIN = "before_the_first or leaves or full_queue"


def test_faults_in_throughput_mode() -> None:
    _, head, _ = next(ray_containers("base"))
    variables = {
        entry["name"]: entry["value"]
        for entry in head["env"]
        if entry["name"].startswith("RAY_SERVE_") and entry["name"] != haproxy.VARIABLE  # a path of the image
    }
    assert variables["RAY_SERVE_ENABLE_HA_PROXY"] == variables["RAY_SERVE_THROUGHPUT_OPTIMIZED"] == "1"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "tests/cluster/test_faults.py", "-k", AGAIN],
        cwd=ROOT,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    assert "5 passed" in done.stdout
