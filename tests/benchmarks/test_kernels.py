"""The kernels for CUDA devices compile, for the devices they are for. The interpreter accepts much that the compiler
rejects; the compiler needs no GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="the extra `gpu` is not installed")

from tests.support.paths import ROOT

pytestmark = pytest.mark.slow

COMPILE = r"""
import re, sys, torch
from benchmarks.measure.kernels import SHARED_BYTES, compile_kernel, kernels, resources

capability, dtype = int(sys.argv[1]), getattr(torch, sys.argv[2])
for kernel in kernels(capability, dtype):
    compiled = compile_kernel(kernel, capability)
    code, found, name = compiled.asm["ptx"], resources(compiled, capability), f"{kernel.name}, {kernel.variant}"
    assert found.shared_bytes <= SHARED_BYTES, (name, found)
    assert found.spilled_bytes <= 64, (name, found)
    if kernel.products:
        assert re.search(r"ld\.global\S*\.v4|cp\.async\S* .*, 16", code), f"{name} does not read 16 bytes at a time"
        assert dtype == torch.float32 or "mma" in code, f"{name} does not multiply on Tensor Cores"
    assert ("griddepcontrol.wait" in code) == kernel.constants.get("PDL", False), name
"""


@pytest.mark.parametrize(
    ("capability", "dtype"), [(80, "bfloat16"), (90, "bfloat16"), (100, "bfloat16"), (90, "float32")]
)
def test_they_compile_within_what_a_device_has(capability: int, dtype: str, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", COMPILE, str(capability), dtype]
    subprocess.run(command, check=True, cwd=ROOT, env=environment | {"TRITON_CACHE_DIR": str(tmp_path)})


def test_a_layer_takes_as_many_launches_as_the_pages_say() -> None:
    from benchmarks.kernels import BANKS, launches

    assert [launches(*bank, merged=False) for bank in BANKS.values()] == [3, 11]
    assert [launches(*bank, merged=True) for bank in BANKS.values()] == [2, 8]
