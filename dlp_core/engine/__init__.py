"""Runs requests with different mixes in one batch: submit, stream, abort.

engine.py    FusedEngine: admission, adapters, the stream of one request
batching.py  transformers' continuous batching with fusion in its step; the only file that touches its internals
timeline.py  which tokens of a request run under which mix
sampling.py  how a request picks its tokens
loading.py   from a model folder to an engine
"""

from dlp_core.engine.engine import EngineStats, FinishReason, FusedEngine, TokenEvent
from dlp_core.engine.sampling import Sampling, TokenLogprob
from dlp_core.engine.timeline import Plan

__all__ = ["EngineStats", "FinishReason", "FusedEngine", "Plan", "Sampling", "TokenEvent", "TokenLogprob"]
