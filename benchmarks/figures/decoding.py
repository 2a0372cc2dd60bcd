"""Figures of single forward passes: decode steps and prompts."""

from __future__ import annotations

from benchmarks.figures.markdown import Lines, listed, span, table
from benchmarks.figures.sources import Result, Results

SEQUENCES = (1, 4, 16, 64)
TARGETED = (1, 4, 16)
"""Numbers of sequences that have targets."""

PLAIN = "base"
SIDES = {
    "idle": "fusion installed, no adapter active",
    "one": "one adapter for the batch",
    "k=1": "a different adapter for each row",
    "k=2": "a different mix of 2 for each row",
    "k=3": "a different mix of 3 for each row",
    "k=4": "a different mix of 4 for each row",
    "k=3 beside 100": "mixes of 3 of the same 8, 92 more resident",
    "k=3 of 26": "mixes of 3 of 26",
    "k=3 of 100": "mixes of 3 of 100",
    "peft one": "PEFT, one adapter for the batch",
    "peft rows": "PEFT, a different adapter for each row",
    "peft cat": "PEFT, one mix of 3 for the batch, merged (`cat`)",
    "peft active": "PEFT, one mix of 3 for the batch, all active",
    "loop": "the paper's loop, a different mix of 3 for each row",
}

PROMPTS = {
    ("q,v", 8, 128): "128 tokens",
    ("q,v", 8, 512): "512",
    ("q,v", 8, 2048): "2,048",
    ("all-linear", 16, 512): "512, all linear at rank 16",
}
PROMPT_SIDES = {
    "one": "one adapter",
    "k=3": "a mix of 3",
    "three prompts, k=3": "three prompts of this total length, a mix of 3 each",
    "peft one": "PEFT, one adapter",
    "peft rows": "PEFT, a different adapter for each row",
    "peft cat": "PEFT, a mix of 3, merged (`cat`)",
    "peft active": "PEFT, a mix of 3, all active",
    "loop": "the paper's loop, a mix of 3",
}

Cell = tuple[str, str, int]
"""Target modules, ranks, sequences."""
WIDE: Cell = "all-linear", "16", 16


def cells(result: Result) -> dict[Cell, dict[str, Result]]:
    """The rows of a decode step's result, as cell to side to row."""
    by_cell: dict[Cell, dict[str, Result]] = {}
    for row in result["rows"]:
        by_cell.setdefault((row["targets"], row["rank"], row["sequences"]), {})[row["side"]] = row
    return by_cell


def decode_step(results: Results) -> Lines:
    """All sides of a decode step relative to the plain model: q,v at rank 8, and all linear layers at rank 16."""
    measured = cells(results["decode_step"])
    headings = {("q,v", "8", count): _sequences(count) for count in SEQUENCES} | {WIDE: "16, all linear at rank 16"}
    columns = [measured[cell] for cell in headings]
    plain = ["plain model, ms", *(f"{sides[PLAIN]['ms']:.1f}" for sides in columns)]
    rows = [
        [text, *(f"{sides[side]['ratio']:.2f}" if side in sides else "" for sides in columns)]
        for side, text in SIDES.items()
    ]
    return table(["over the plain model", *headings.values()], [plain, *rows])


def decode_grid(results: Results) -> Lines:
    """A mix of 3 for each row at every adapter size, relative to the plain model."""
    by_cell = cells(results["decode_step"])
    sizes = dict.fromkeys((targets, rank) for targets, rank, _ in by_cell)
    rows = [
        [f"{targets.replace('-', ' ')} at {'ranks 4 to 32' if rank == 'mixed' else f'rank {rank}'}"]
        + [f"{by_cell[targets, rank, count]['k=3']['ratio']:.2f}" for count in TARGETED]
        for targets, rank in sizes
    ]
    return table(["a different mix of 3 for each row", *(_sequences(count) for count in TARGETED)], rows)


def decode_mix(results: Results) -> str:
    """A decode step with a different mix of 3 of 8 for each row (q,v at rank 8), relative to the plain model: 1 to 16
    sequences."""
    return span(_ratios(results, "k=3"))


def decode_idle(results: Results) -> str:
    """A decode step with fusion installed and no adapter active, relative to the plain model: 1 to 64 sequences."""
    return span(_ratios(results, "idle", SEQUENCES))


def decode_peft_rows(results: Results) -> str:
    """PEFT's decode step with a different adapter for each row, relative to the plain model: 1 to 16 sequences."""
    return span(_ratios(results, "peft rows"))


def decode_loop(results: Results) -> str:
    """The decode step of the paper's loop, relative to the plain model: 1 to 16 sequences."""
    return span(_ratios(results, "loop"))


def decode_plain_ms(results: Results) -> str:
    """The plain model's decode step in milliseconds, at 1, 4 and 16 sequences."""
    by_cell = cells(results["decode_step"])
    return listed(by_cell["q,v", "8", count][PLAIN]["ms"] for count in TARGETED)


def prefill(results: Results) -> Lines:
    """All sides of a prompt's forward pass, relative to the plain model."""
    by_cell: dict[tuple[str, int, int], dict[str, Result]] = {cell: {} for cell in PROMPTS}
    for row in results["prefill"]["rows"]:
        by_cell[row["targets"], row["rank"], row["tokens"]][row["side"]] = row
    plain = ["plain model, ms", *(f"{sides[PLAIN]['ms']:,.0f}" for sides in by_cell.values())]
    rows = [
        [text, *(f"{sides[side]['ratio']:.2f}" if side in sides else "" for sides in by_cell.values())]
        for side, text in PROMPT_SIDES.items()
    ]
    return table(["over the plain model", *PROMPTS.values()], [plain, *rows])


def _ratios(results: Results, side: str, counts: tuple[int, ...] = TARGETED) -> list[float]:
    by_cell = cells(results["decode_step"])
    return [by_cell["q,v", "8", count][side]["ratio"] for count in counts]


def _sequences(count: int) -> str:
    return "1 sequence" if count == 1 else str(count)
