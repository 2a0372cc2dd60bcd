"""Other implementations of LoRA over a batch, compared with ours on the same weights.

loop.py        the paper's released code: a loop over the adapters in each layer
peft.py        PEFT: one adapter, one per row, several for the whole batch, several merged by concatenation
vllm.py        vLLM on CPU as a worker: one adapter per request
llama_cpp.py   llama.cpp's server: scales of all adapters in each request; gguf_files.py writes its files

The first two are forward passes of a model, timed in turn with ours by decode_step.py and prefill.py; the others are
whole engines, timed by throughput.py.

A missing peer is skipped with one line on stderr.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec


def is_installed(package: str) -> bool:
    """Whether a peer's package can be imported; if not, print a line on stderr."""
    available = find_spec(package) is not None
    if not available:
        report_skipped(package, "it is not installed")
    return available


def report_skipped(peer: str, reason: str) -> None:
    """Print a line on stderr about a peer that is skipped."""
    print(f"{peer} is skipped: {reason}", file=sys.stderr)
