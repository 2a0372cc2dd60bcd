"""Runs requests with different mixes in one batch: submit, stream, abort.

request.py   what an engine is asked and what it answers; no torch
engine.py    FusedEngine: admission, adapters, the stream of one request
batching.py  transformers' continuous batching with fusion in its step; the only file that touches its internals
timeline.py  which tokens of a request run under which mix
sampling.py  how a request picks its tokens
config.py    the bounds of an engine
stats.py     one moment of an engine
loading.py   from a model folder to an engine
"""
