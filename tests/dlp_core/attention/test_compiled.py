"""The kernels for CUDA devices compile; the compiler needs no GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="the extra `gpu` is not installed")

from tests.support.paths import ROOT

COMPILE = r"""
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from dlp_core.attention.triton_kernels import combine, decode, prefill, store

shape = dict(KEY_HEADS=8, GROUP=4, HEADS=32, SIZE=128, WIDTH=1024, PAGE=32, BLOCK_D=128, BLOCK_L=64, BLOCK=1024)
for capability, name in ((80, "bf16"), (90, "bf16"), (100, "bf16"), (90, "fp32")):
    for kernel, window, extra, splits in (
        (decode, 0, False, 8), (decode, 4096, True, 1), (combine, 0, True, 8), (prefill, 0, False, 1),
        (prefill, 4096, True, 1), (store, 0, False, 1),
    ):
        constants = shape | dict(
            WINDOW=window, SOFTCAP=extra, SINKS=extra, SPLITS=splits, BLOCK_M=64 if kernel is prefill else 16
        )
        types = dict(plan_ptr="*i32", split_ptr="*fp32", scale="fp32", softcap="fp32")
        signature = {
            a: "constexpr" if a in constants else types.get(a, "*" + name if a.endswith("_ptr") else "i32")
            for a in kernel.arg_names
        }
        values = {(i,): constants[a] for i, a in enumerate(kernel.arg_names) if a in constants}
        hints = {(i,): [["tt.divisibility", 16]] for i, a in enumerate(kernel.arg_names) if a.endswith("_ptr")}
        source = ASTSource(kernel, signature, values, hints)
        code = triton.compile(source, target=GPUTarget("cuda", capability, 32)).asm["ptx"]
        products = kernel in (decode, prefill) and name == "bf16"
        assert not products or "mma" in code, "on Tensor Cores"
"""


def test_the_kernels_compile_for_three_generations(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    subprocess.run(
        [sys.executable, "-c", COMPILE], check=True, cwd=ROOT, env=environment | {"TRITON_CACHE_DIR": str(tmp_path)}
    )
