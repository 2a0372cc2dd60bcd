"""Triton's interpreter as a backend for CPUs, for vLLM: its second model runner has kernels in Triton and does not
start without. A build of Triton for CPUs has the same place."""

from __future__ import annotations

from pathlib import Path

_SITE = """
from types import SimpleNamespace

from triton.backends import backends

backends["cpu"] = SimpleNamespace(driver=SimpleNamespace(is_active=lambda: True), compiler=None)
"""


def interpreted_triton(site: Path) -> dict[str, str]:
    """Environment variables under which new processes have it, by a file in the folder `site`."""
    site.mkdir(parents=True, exist_ok=True)
    (site / "sitecustomize.py").write_text(_SITE)
    return {"PYTHONPATH": str(site), "TRITON_INTERPRET": "1"}
