"""What the kernels for CUDA devices take, and how often they are launched. Needs no GPU.

    .venv/bin/python -m benchmarks.kernels [--out FILE]

Registers, spills and shared memory are what ptxas says of the code that triton compiles for three generations of
devices. Launches are counted in a layer of Llama 3 8B, with kernels that do nothing in place of ours. Bytes are those
that a decode step adds to the plain model's in such a layer, bfloat16, each byte once, for mixes of two adapters that
no two tokens share: factors of the adapters, products with A in float32 (written and read), inputs, and outputs (read
and written).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import typer

from benchmarks.measure.harness import report, run
from benchmarks.measure.kernels import CAPABILITIES, NAMES, compile_kernel, kernels, resources
from dlp_core.adapter.weights import LoRAWeights
from dlp_core.fusion import triton as op_module
from dlp_core.fusion.op import Part
from dlp_core.fusion.packed import pack, place
from dlp_core.fusion.reference import Delta
from dlp_core.fusion.segments import Segment
from dlp_core.fusion.triton import Limits, TritonOp

CPU = torch.device("cpu")
HIDDEN, KEYS, INNER = 4096, 1024, 14336
MIX = 2


class Layer(NamedTuple):
    """A linear layer: the width of its input, and its modules, with the widths of their outputs."""

    d_in: int
    modules: Mapping[str, int]


LAYERS = (
    Layer(HIDDEN, {"q_proj": HIDDEN, "k_proj": KEYS, "v_proj": KEYS}),
    Layer(HIDDEN, {"o_proj": HIDDEN}),
    Layer(HIDDEN, {"gate_proj": INNER, "up_proj": INNER}),
    Layer(INNER, {"down_proj": HIDDEN}),
)
BANKS = {
    "q,v at rank 8": (("q_proj", "v_proj"), 8),
    "all linear at rank 16": (tuple(name for layer in LAYERS for name in layer.modules), 16),
}


def taken() -> Iterator[dict[str, Any]]:
    """A row for each kernel and capability."""
    for capability in CAPABILITIES:
        for kernel in kernels(capability, torch.bfloat16):
            found = resources(compile_kernel(kernel, capability), capability)
            yield {
                "kernel": kernel.name,
                "variant": kernel.variant,
                "dtype": NAMES[torch.bfloat16],
                "capability": f"{capability / 10:.1f}",
                **found._asdict(),
            }


@contextmanager
def counted() -> Iterator[list[str]]:
    """Kernels that note that they were launched, and do nothing."""
    names: list[str] = []

    class Counter:
        def __init__(self, name: str) -> None:
            self._name = name

        def __getitem__(self, grid: object) -> Any:
            return lambda *_, **__: names.append(self._name)

    kept = op_module.shrink, op_module.expand
    op_module.shrink, op_module.expand = Counter("shrink"), Counter("expand")
    try:
        yield names
    finally:
        op_module.shrink, op_module.expand = kept


def launches(targets: tuple[str, ...], rank: int, *, merged: bool) -> int:
    """Launches of a layer of the model. `merged`: q, k and v are one layer, and so are gate and up, as in vLLM."""
    used = {name: layer.d_in for layer in LAYERS for name in layer.modules if name in targets}
    widths = {name: d_out for layer in LAYERS for name, d_out in layer.modules.items()}
    deltas = {
        name: Delta(LoRAWeights(torch.zeros(rank, d_in), torch.zeros(widths[name], rank), 1.0))
        for name, d_in in used.items()
    }
    residents = {0: place(pack(deltas, used, dtype=torch.bfloat16, pinned=False), CPU)}
    groups = [tuple(layer.modules) for layer in LAYERS]
    op = TritonOp(CPU, torch.bfloat16, Limits(1, 1, used, groups))
    with counted() as names:
        step = op.begin((Segment(1, ((0, 1.0),)),), residents)
        assert step is not None
        for layer, siblings in zip(LAYERS, groups, strict=True):
            x = torch.zeros(1, layer.d_in, dtype=torch.bfloat16)
            parts, end = [], 0
            for name, d_out in layer.modules.items():
                parts.append(Part(name, end, end := end + d_out))
            y = torch.zeros(1, end, dtype=torch.bfloat16)
            if merged:
                step.add_parts(y, x, parts, siblings)
            else:
                for part in parts:
                    step.add(y[:, part.start : part.end], x, part.path, siblings)
    return len(names)


def added_bytes(targets: tuple[str, ...], rank: int, tokens: int) -> tuple[int, int]:
    """What a step of so many tokens moves beside the plain model's weights, and those, in one layer."""
    added = base = 0
    for layer in LAYERS:
        chosen = {name: d_out for name, d_out in layer.modules.items() if name in targets}
        base += 2 * layer.d_in * sum(layer.modules.values())
        if chosen:
            factors = 2 * MIX * rank * sum(layer.d_in + d_out for d_out in chosen.values())
            products = 2 * 4 * MIX * rank * len(chosen) * op_module._splits(tokens)
            states = 2 * layer.d_in + 2 * 2 * sum(chosen.values())
            added += tokens * (factors + products + states)
    return added, base


def added() -> Iterator[dict[str, Any]]:
    """A row for each bank and number of tokens."""
    for name, (targets, rank) in BANKS.items():
        for tokens in (1, 8, 32):
            more, base = added_bytes(targets, rank, tokens)
            yield {
                "bank": name,
                "sequences": tokens,
                "launches": launches(targets, rank, merged=False),
                "launches_merged": launches(targets, rank, merged=True),
                "added_mb": round(more / 1e6, 3),
                "over_plain": round(more / base, 4),
            }


def main(
    out: Annotated[Path | None, typer.Option(help="Where the JSON goes; standard output by default.")] = None,
) -> None:
    """Registers, spills, launches and bytes of the kernels for CUDA devices."""
    report("kernels", list(taken()), out=out, layer=list(added()))


if __name__ == "__main__":
    run(main)
