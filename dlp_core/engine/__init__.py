"""Runs requests with different mixes in one batch: submit, stream, abort.

request.py   requests, sampling options, token events; no torch
engine.py    FusedEngine: admission, adapters, the token stream of each request
batching.py  transformers' continuous batching with fusion in its step; the only file that touches its internals
timeline.py  which tokens of a request run under which mix
sampling.py  picks a request's tokens
config.py    limits of an engine
stats.py     a snapshot of an engine
sizing.py    how a device is divided, and what fits on it; no torch
loading.py   from a model folder to an engine
"""
