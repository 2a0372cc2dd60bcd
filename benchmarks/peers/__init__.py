"""What else runs LoRA adapters over a batch, beside ours on the same weights.

loop.py        what the paper released: a loop over the adapters in each layer
peft.py        PEFT: one adapter, one a row, several for the whole batch, several merged by concatenation
vllm.py        vLLM on CPU as a worker: one adapter for each request
llama_cpp.py   llama.cpp's server: scales of all adapters with each request; gguf_files.py writes what it reads

The first two are passes of a model, timed in turn with ours by decode_step.py and prefill.py; the others are whole
engines, timed by throughput.py.

A peer that is not there is left out, with one line on stderr.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec


def installed(package: str) -> bool:
    """Whether a peer's package can be imported; says so on stderr if not."""
    found = find_spec(package) is not None
    if not found:
        left_out(package, "it is not installed")
    return found


def left_out(peer: str, why: str) -> None:
    """The one line about a peer that takes no part."""
    print(f"{peer} is left out: {why}", file=sys.stderr)
