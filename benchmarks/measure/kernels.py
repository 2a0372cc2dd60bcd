"""The kernels for CUDA devices, compiled without one: triton's compiler needs no GPU, nor does ptxas, which it brings.

To be imported where TRITON_INTERPRET is not set.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas, sm_arch_from_capability
from triton.compiler import ASTSource

from dlp_core.attention import triton as attention
from dlp_core.attention.triton_kernels import combine, decode, prefill, store
from dlp_core.fusion import triton as fusion
from dlp_core.fusion.triton_kernels import expand, shrink

CAPABILITIES = (80, 90, 100)
_USED = re.compile(r"Used (\d+) registers")
_SPILLED = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")
NAMES = {torch.bfloat16: "bf16", torch.float32: "fp32"}
HEADS, GROUP = (64, 128, 256), 4
"""Sizes of heads, and query heads to a key head."""
SHARED_BYTES = 99 * 1024
"""Of a block, that every device since capability 8.0 has."""


class Kernel(NamedTuple):
    """A kernel as it is launched for one kind of batch."""

    name: str
    variant: str
    function: Any
    constants: dict[str, Any]
    types: dict[str, str]
    """Of arguments that are neither constants nor int32."""
    aligned: frozenset[str]
    """Arguments that are multiples of 16."""
    options: dict[str, int]
    products: bool
    """Whether it multiplies tiles, which are then for Tensor Cores."""


class Resources(NamedTuple):
    """What a thread of a compiled kernel takes."""

    registers: int
    spilled_bytes: int
    """Stored and loaded."""
    shared_bytes: int
    """Of a block of threads."""


def kernels(capability: int, dtype: torch.dtype) -> Iterator[Kernel]:
    """The variants that models of this dtype run."""
    yield from _of_fusion(capability, dtype)
    yield from _of_attention(dtype)


def _of_fusion(capability: int, dtype: torch.dtype) -> Iterator[Kernel]:
    common = {
        "SPLITS": 4, "SPLITS_2": 4, "BLOCK_O": fusion._BLOCK_O, "BLOCK_N": fusion._BLOCK_N, "BLOCK_D": fusion._BLOCK_D,
        "TOKEN_R": fusion._BLOCK_R, "TOKEN_D": fusion._TOKEN_D, "DTYPE": fusion._DTYPES[dtype],
        "PDL": capability >= 90, "ALIGNED": True,
    }  # fmt: skip
    name = NAMES[dtype]
    pointers = {"plan_ptr": "*i32", "modules_ptr": "*i32", "table_ptr": "*i64", "z_ptr": "*fp32", "y_ptr": f"*{name}"}
    sizes = {"d_in", "d_out", "d_out_2", "d_out_3", "start_2", "start_3", "span", "slot_stride", "y_stride"}
    tiles = [(fusion._SMALL_TILE, fusion._BLOCK_R)]
    if dtype != torch.float32:
        tiles.append((fusion._TILE, fusion._MAX_BLOCK_R))
    for tile, ranks in tiles:
        for function, parts, x in ((shrink, 1, name), (shrink, 1, "i64"), (expand, 1, name), (expand, 3, name)):
            ids = x == "i64"
            yield Kernel(
                function.fn.__name__,
                f"tiles of {tile}" + (", token ids" if ids else f", {parts} modules" if parts > 1 else ""),
                function,
                common | {"BLOCK_T": tile, "BLOCK_R": ranks, "PARTS": parts},
                pointers | {"x_ptr": f"*{x}"},
                frozenset(({*sizes, *pointers, "x_ptr"}) - set(function.do_not_specialize)),
                {"num_stages": fusion._STAGES, "num_warps": fusion._WARPS[tile] if function is expand else 4},
                products=not ids,
            )


def _of_attention(dtype: torch.dtype) -> Iterator[Kernel]:
    for size, (function, plain, splits) in product(
        HEADS, ((prefill, True, 1), (prefill, False, 1), (decode, True, 8), (decode, False, 1), (combine, False, 8))
    ):
        launch = attention.prefill_launch(size, dtype)
        if function is decode:
            launch = attention.decode_launch(size, dtype, GROUP)
        window = 0 if plain else 4096
        constants = {
            "KEY_HEADS": 8, "GROUP": GROUP, "HEADS": 8 * GROUP, "SIZE": size, "PAGE": 32, "BLOCK_D": size,
            "BLOCK_L": launch.keys, "BLOCK_M": launch.rows, "SPLITS": splits, "WINDOW": window,
            "SOFTCAP": not plain, "SINKS": not plain,
        }  # fmt: skip
        pointers = {name: f"*{NAMES[dtype]}" for name in function.arg_names if name.endswith("_ptr")}
        blocks = {"num_stages": attention._STAGES, "num_warps": launch.warps}
        yield Kernel(
            function.fn.__name__,
            f"heads of {size}" + ("" if plain else ", window, cap, sinks"),
            function,
            constants,
            pointers | {"plan_ptr": "*i32", "split_ptr": "*fp32", "scale": "fp32", "softcap": "fp32"},
            frozenset(pointers),
            {} if function is combine else blocks,
            products=function is not combine,
        )
    pointers = {name: f"*{NAMES[dtype]}" for name in store.arg_names if name.endswith("_ptr")} | {"plan_ptr": "*i32"}
    yield Kernel("store", "", store, {"WIDTH": 1024, "BLOCK": 1024}, pointers, frozenset(pointers), {}, products=False)


def compile_kernel(kernel: Kernel, capability: int) -> Any:
    """What triton compiles, for a compute capability such as 90. Its `asm` has the code."""
    names = kernel.function.arg_names
    constants = {name: value for name, value in kernel.constants.items() if name in names}
    source = ASTSource(
        kernel.function,
        {name: "constexpr" if name in constants else kernel.types.get(name, "i32") for name in names},
        {(i,): constants[name] for i, name in enumerate(names) if name in constants},
        {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if name in kernel.aligned},
    )
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=kernel.options)


def resources(compiled: Any, capability: int) -> Resources:
    """What ptxas says of it."""
    with TemporaryDirectory() as folder:
        code = Path(folder) / "kernel.ptx"
        code.write_text(compiled.asm["ptx"])
        command = [get_ptxas(capability).path, "-v", f"--gpu-name={sm_arch_from_capability(capability)}", str(code)]
        said = subprocess.run([*command, "-o", str(code.with_suffix(".o"))], capture_output=True, text=True, check=True)
    used, spilled = _USED.search(said.stderr), _SPILLED.search(said.stderr)
    assert used is not None
    assert spilled is not None
    return Resources(int(used[1]), int(spilled[1]) + int(spilled[2]), int(compiled.metadata.shared))
