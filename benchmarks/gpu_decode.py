"""What adapters cost on a GPU: the forward passes of decoding and of prompts, alone, without Ray and without network.

    python -m benchmarks.gpu_decode [--quick] [--minutes N] [--layers N] [--small] [--out FILE]
    python -m benchmarks.gpu_decode --smoke      a tiny model and a few cells, without a GPU in triton's interpreter

A model with the shape of Llama 3 8B and random weights, in bfloat16, every pass a CUDA graph. Needs torch, triton and
transformers, and nothing else of this project's dependencies; PEFT takes part if it is installed. In each cell of the
grid these take turns (ABBA), in device time:

    base     the plain model
    one      ours: one adapter for all tokens
    mix      ours: every sequence another mix of k of the resident adapters; when decoding, each replay copies its plan
    peft     PEFT with one adapter for all tokens
    loop     what the paper released, a loop over adapters in each layer, without its empty_cache (up to 8 sequences)

Beside each ratio stands the ideal one: the bytes that the mixes' adapters have over those that the base reads.
The table goes to stderr, one JSON object to standard output, or to FILE, which is whole after every cell. Cells of
`--quick` come first, and none is begun when the minutes are over. A cell that fails costs the others nothing; the exit
code is 1 then. Without a CUDA device: one line and exit code 2.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is imported

from transformers import AttentionInterface, LlamaForCausalLM

from benchmarks.measure.gpu import about, random_llama, write
from benchmarks.measure.synthetic import twin
from benchmarks.measure.timing import Timing, host_clock, time_interleaved
from benchmarks.peers.loop import Factors, loop_model
from dlp_core.adapter.weights import Adapter, LoRAWeights
from dlp_core.fusion.layers import Fusion, install
from dlp_core.fusion.segments import Segment
from dlp_core.fusion.triton import Limits, TritonOp

TARGETS = {
    "qv": ("q_proj", "v_proj"),
    "all": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
}
RANKS: dict[str, tuple[int, ...]] = {"8": (8,), "16": (16,), "64": (64,), "mixed": (8, 16, 64)}
CONTEXT = 512
LOOP_SEQUENCES = 8
MAX_SEQUENCES = 64

Run = Callable[[], object]


class Cell(NamedTuple):
    """One row of the table. `prompt` is 0 for decoding; a prompt is one sequence under one mix."""

    targets: str
    ranks: str
    resident: int
    sequences: int
    k: int
    prompt: int = 0


class Limit(NamedTuple):
    cells: Callable[[Cell], bool]
    over: str
    at_most: float


LIMITS = (
    Limit(lambda c: (*c[:3], c.k) == ("qv", "8", 26, 2) and c.sequences in {1, 8, 32} and not c.prompt, "single", 1.05),
    Limit(lambda c: (*c[:3], c.k) == ("qv", "8", 26, 2) and c.sequences in {1, 8, 32} and not c.prompt, "base", 1.05),
    Limit(lambda c: (*c[:3], c.k) == ("all", "16", 26, 2) and not c.prompt, "base", 1.15),
    Limit(lambda c: (*c[:3], c.k) == ("qv", "8", 100, 2) and not c.prompt, "base", 1.08),
)


def grid(quick: bool, smoke: bool) -> list[Cell]:
    """The quick ones first: they are what the limits are about, and time may run out."""
    if smoke:
        return [Cell("all", "8", 3, 2, 2), Cell("qv", "mixed", 3, 1, 3), Cell("qv", "8", 3, 1, 2, prompt=5)]
    return _cells(quick=True) if quick else list(dict.fromkeys(_cells(quick=True) + _cells(quick=False)))


def _cells(*, quick: bool) -> list[Cell]:
    """Cells with the same adapters lie together."""
    sequences = (1, 8, 32) if quick else (1, 4, 8, 16, 32, 64)
    cells = [Cell("all", "16", 26, count, 2) for count in sequences] if quick else []
    for targets in ("qv",) if quick else TARGETS:
        for k, count in product((2,) if quick else (1, 2, 3, 4), sequences):
            cells.append(Cell(targets, "8", 26, count, k))
        for k, length in product((1, 2), (512,) if quick else (128, 512, 2048)):
            cells.append(Cell(targets, "8", 26, 1, k, prompt=length))
        cells += [Cell(targets, "8", resident, count, 2) for resident in (8, 100) for count in sequences]
        for ranks in ("mixed",) if quick else ("16", "64", "mixed"):
            cells += [Cell(targets, ranks, 26, count, 2) for count in sequences]
    return cells


# ---------------------------------------------------------------------- the model


def make_model(device: torch.device, layers: int, small: bool) -> LlamaForCausalLM:
    AttentionInterface.register("unmasked", unmasked)
    return random_llama(device, layers, small=small, attention="unmasked")


def unmasked(layer: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **_: Any) -> tuple[Tensor, None]:
    """What these passes need of attention, by the fastest kernel there is: a mask would make the base slow."""
    y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=q.shape[2] > 1, enable_gqa=True)
    return y.transpose(1, 2).contiguous(), None


class FullCache:
    """A cache that is full but for the last position, where every pass writes: what a graph of one step needs."""

    is_compileable = True

    def __init__(self, config: Any, sequences: int, device: torch.device) -> None:
        size = config.num_hidden_layers, 2, sequences, config.num_key_value_heads, CONTEXT, config.head_dim
        self._kv = torch.randn(size, dtype=torch.bfloat16, device=device)

    @property
    def nbytes(self) -> int:
        return int(self._kv.nbytes)

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        for whole, last in zip(self._kv[layer], (keys, values), strict=True):
            whole[:, :, -1:] = last
        return self._kv[layer, 0], self._kv[layer, 1]

    def get_seq_length(self, *_: Any) -> int:
        return CONTEXT - 1


def decoding(model: Any, sequences: int, cache: FullCache, device: torch.device) -> Run:
    ids = torch.arange(sequences, device=device)[:, None] + 7
    positions = torch.full((sequences, 1), CONTEXT - 1, device=device)
    return lambda: model(input_ids=ids, position_ids=positions, past_key_values=cache, use_cache=True).logits


def prompting(model: Any, length: int, device: torch.device) -> Run:
    ids = torch.arange(length, device=device)[None] % 251
    return lambda: model(input_ids=ids, use_cache=True, logits_to_keep=1).logits


# ---------------------------------------------------------------------- what is timed


def graphed(forward: Run, device: torch.device) -> tuple[Run, Any]:
    """A replay of the pass, and what it leaves its logits in. Without a GPU the pass itself."""
    if device.type != "cuda":
        return forward, None
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            forward()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        logits = forward()
    return graph.replay, logits


def fused(fusion: Fusion, forward: Run, segments: tuple[Segment, ...], rows: list[int], device: torch.device) -> Run:
    with fusion.batch(segments, rows):
        step = fusion.step
        replay, logits = graphed(forward, device)

    def run() -> Any:
        assert step is not None, "a prompt's plan belongs to its step, and its graph reads that very one"
        with fusion.batch(segments, rows):
            result = replay()
        return result if logits is None else logits

    return run


def with_peft(model: Any, targets: str, rank: int) -> Any | None:
    try:
        from peft import LoraConfig, get_peft_model  # noqa: PLC0415
    except ImportError:
        return None
    lora = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=list(TARGETS[targets]), init_lora_weights=False)
    return get_peft_model(twin(model), lora, autocast_adapter_dtype=False).eval()


@dataclass
class Bench:
    """One model and the adapters that are resident in it."""

    device: torch.device
    plain: LlamaForCausalLM
    rounds: int
    repeats: int
    held: tuple[str, str, int] | None = None

    def __post_init__(self) -> None:
        self.model = twin(self.plain)
        self.fusion = install(self.model, TritonOp(self.device, torch.bfloat16))  # `hold` replaces the op

    def hold(self, targets: str, ranks: str, resident: int) -> None:
        """Makes these adapters resident, each in memory of its own."""
        if self.held == (targets, ranks, resident):
            return
        self.held = None
        for slot in list(self.fusion._residents):
            self.fusion.unload(slot)
        widths = {path: shape.d_in for path, shape in self.fusion.shapes.items() if _name(path) in TARGETS[targets]}
        limits = Limits(tokens=MAX_SEQUENCES, slots=resident, modules=widths, groups=self.fusion.groups)
        self.fusion._op = TritonOp(self.device, torch.bfloat16, limits)
        packed = [self.fusion.pack(self.adapter(targets, rank)) for rank in RANKS[ranks]]
        for slot in range(resident):
            self.fusion.place(slot, packed[slot % len(packed)])
        self.held = targets, ranks, resident

    def adapter(self, targets: str, rank: int) -> Adapter:
        modules = {
            path: LoRAWeights(
                torch.randn(rank, shape.d_in) / shape.d_in**0.5, torch.randn(shape.d_out, rank) / rank**0.5, 2.0
            )
            for path, shape in self.fusion.shapes.items()
            if _name(path) in TARGETS[targets]
        }
        return Adapter(f"r{rank}", None, modules)

    def factors(self, slot: int) -> Factors:
        modules = self.fusion._residents[slot].modules
        return {path: (part.a_RD, part.b_RO.T) for path, part in modules.items()}

    def segments(self, cell: Cell, k: int) -> tuple[Segment, ...]:
        """A mix for every sequence, no two alike as far as the adapters reach."""
        length = cell.prompt or 1
        return tuple(
            Segment(length, tuple(((i * k + j) % cell.resident, (j + 1) / k) for j in range(k)))
            for i in range(cell.sequences)
        )

    def sides(self, cell: Cell) -> dict[str, Run]:
        """What takes turns in this cell."""
        self.hold(*cell[:3])
        device, tokens = self.device, cell.sequences * (cell.prompt or 1)
        rows = [tokens - 1] if cell.prompt else list(range(tokens))
        cache = FullCache(self.plain.config, cell.sequences, device)

        def forward(model: Any) -> Run:
            return (
                prompting(model, cell.prompt, device) if cell.prompt else decoding(model, cell.sequences, cache, device)
            )

        def plain(model: Any) -> Run:
            replay, logits = graphed(forward(model), device)
            return lambda: (replay(), logits)[1] if logits is not None else replay()

        mix, one = self.segments(cell, cell.k), (Segment(tokens, ((0, 1.0),)),)
        if not cell.prompt:
            one = (Segment(1, ((0, 1.0),)),) * tokens
        sides = {
            "base": plain(self.plain),
            "one": fused(self.fusion, forward(self.model), one, rows, device),
            "mix": fused(self.fusion, forward(self.model), mix, rows, device),
        }
        if len(RANKS[cell.ranks]) == 1 and (peft := with_peft(self.plain, cell.targets, RANKS[cell.ranks][0])):
            sides["peft"] = plain(peft)
        if cell.sequences <= LOOP_SEQUENCES:
            slots = {slot for segment in mix for slot, _ in segment.parts}
            sides["loop"] = plain(loop_model(self.plain, {slot: self.factors(slot) for slot in slots}, mix))
        return sides

    @torch.inference_mode()
    def measure(self, cell: Cell) -> dict[str, Any]:
        sides = self.sides(cell)
        result: dict[str, Any] = dict(cell._asdict())
        if "loop" in sides:
            ours, theirs = (sides[name]().float().clone() for name in ("mix", "loop"))
            result["error_to_loop"] = float((ours - theirs).abs().max() / theirs.abs().max())
        times = time_interleaved(sides, rounds=self.rounds, calls=self.repeats, clock=self.seconds)
        single = min((name for name in ("one", "peft") if name in times), key=lambda name: times[name].ms)
        result["ms"] = {name: _milliseconds(timing) for name, timing in times.items()}
        result["over"] = {
            "base": {
                name: round(timing.ratio_to(times["base"]), 4) for name, timing in times.items() if name != "base"
            },
            "single": round(times["mix"].ratio_to(times[single]), 4),
        }
        result["ideal_over_base"] = round(1 + self.adapter_bytes(cell) / self.base_bytes(cell), 4)
        result["plan_us"] = round(1e6 * self.plan_seconds(cell), 1)
        result["limits"] = [
            {"over": limit.over, "at_most": limit.at_most, "met": _ratio(result, limit.over) <= limit.at_most}
            for limit in LIMITS
            if limit.cells(cell)
        ]
        return result

    def seconds(self, run: Run, calls: int) -> float:
        """Of the device, for one run."""
        if self.device.type != "cuda":
            return host_clock(run, calls)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(calls):
            run()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / calls / 1000

    def plan_seconds(self, cell: Cell) -> float:
        """Of the host, to enter a batch."""
        segments = self.segments(cell, cell.k)

        def enter() -> None:
            with self.fusion.batch(segments):
                pass

        return host_clock(enter, 20)

    def adapter_bytes(self, cell: Cell) -> int:
        slots = {slot for segment in self.segments(cell, cell.k) for slot, _ in segment.parts}
        return sum(self.fusion._residents[slot].nbytes for slot in slots)

    def base_bytes(self, cell: Cell) -> int:
        weights = sum(p.nbytes for name, p in self.plain.named_parameters() if "embed_tokens" not in name)
        return weights + (
            0 if cell.prompt else FullCache(self.plain.config, cell.sequences, torch.device("meta")).nbytes
        )

    def bandwidth(self) -> float:
        """GB/s that a large copy reads and writes."""
        on_gpu = self.device.type == "cuda"
        source = torch.zeros(2**30 if on_gpu else 2**22, dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        copy = time_interleaved(
            {"copy": lambda: target.copy_(source)}, rounds=5, calls=self.repeats, clock=self.seconds
        )
        return 2 * source.nbytes / median(copy["copy"].seconds) / 1e9


def _name(path: str) -> str:
    return path.rpartition(".")[2]


def _milliseconds(timing: Timing) -> dict[str, float]:
    ms = [1000 * seconds for seconds in timing.seconds]
    return {"median": round(median(ms), 4), "min": round(min(ms), 4), "max": round(max(ms), 4)}


def _ratio(result: dict[str, Any], over: str) -> float:
    return float(result["over"]["single"] if over == "single" else result["over"]["base"]["mix"])


def _line(result: dict[str, Any]) -> str:
    cell = f"{result['targets']:>3} r={result['ranks']:<5} N={result['resident']:<3} k={result['k']} "
    cell += f"prompt={result['prompt']:<4} " if result["prompt"] else f"seqs={result['sequences']:<6} "
    spread = result["ms"]["base"]
    text = cell + f"base {spread['median']:.3f} ms ({spread['min']:.3f}-{spread['max']:.3f}) over base: "
    text += ", ".join(f"{name} {ratio:.3f}" for name, ratio in result["over"]["base"].items())
    text += f", ideal {result['ideal_over_base']:.3f}; mix over single {result['over']['single']:.3f}"
    for limit in result["limits"]:
        text += f"; target <= {limit['at_most']} of {limit['over']}: {'met' if limit['met'] else 'MISSED'}"
    return text


def _measure(bench: Bench, cell: Cell) -> dict[str, Any]:
    try:
        result = bench.measure(cell)
    except Exception as error:
        traceback.print_exc()
        return {**cell._asdict(), "error": f"{type(error).__name__}: {error}"}
    print(_line(result), file=sys.stderr, flush=True)
    return result


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="What adapters cost on a GPU.")
    parser.add_argument("--quick", action="store_true", help="a few cells")
    parser.add_argument(
        "--smoke", action="store_true", help="a tiny model, three cells, on any machine; not a measurement"
    )
    parser.add_argument("--minutes", type=float, default=6, help="when the last cell may begin; default 6")
    parser.add_argument("--small", action="store_true", help="a tiny width")
    parser.add_argument("--layers", type=int, help="default 32, with --smoke 2")
    parser.add_argument("--out", type=Path, help="where the JSON goes instead of standard output")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    began = time.monotonic()
    args = _parse(arguments)
    if not torch.cuda.is_available() and not args.smoke:
        print("no CUDA device here; --smoke runs a tiny model without one", file=sys.stderr)
        return 2
    if args.smoke:
        print("smoke: it runs; its times say nothing", file=sys.stderr)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    layers = args.layers or (2 if args.smoke else 32)
    bench = Bench(
        device,
        make_model(device, layers, args.small or args.smoke),
        rounds=1 if args.smoke else 2 if args.quick else 4,
        repeats=1 if args.smoke else 10,
    )
    cells, result = grid(args.quick, args.smoke), list[dict[str, Any]]()
    report: dict[str, Any] = about(device) | {
        "smoke": args.smoke,
        "layers": layers,
        "parameters": sum(p.numel() for p in bench.plain.parameters()),
        "context": CONTEXT,
        "copy_GBps": round(bench.bandwidth(), 1),
        "planned": len(cells),
        "cells": result,
    }
    for cell in cells:
        if time.monotonic() - began >= 60 * args.minutes:
            print(f"{args.minutes:g} minutes are over: {len(result)} of {len(cells)} cells", file=sys.stderr)
            break
        result.append(_measure(bench, cell))
        if args.out:
            write(report, args.out)
    if not args.out:
        print(json.dumps(report, indent=1))
    return int(any("error" in cell for cell in result))


if __name__ == "__main__":
    sys.exit(main())
