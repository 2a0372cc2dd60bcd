"""The settings of an application that a benchmark starts on this machine, for deployments.local.app.LocalApp."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.measure.harness import ROOT
from deployments.local.app import load_config


def application_config(work: Path, *, dtype: str = "float32", threads: int = 1) -> dict[str, Any]:
    """serve_config.yaml with the disk cache under `work`, and with replicas that share whatever cores there are.

    `dtype` and `threads` are the backbone's.
    """
    config = load_config(ROOT / "serve_config.yaml")
    application = config["applications"][0]
    application["args"] |= {"dtype": dtype, "threads": threads, "cache": {"path": str(work / "cache")}}
    for deployment in application["deployments"]:
        deployment["ray_actor_options"]["num_cpus"] = 0.1
    return config
