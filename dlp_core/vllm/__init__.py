"""The engine inside vLLM: exact mixes of adapters, in stock vLLM, without its own LoRA. Needs the extra `vllm`.

plans.py    a request's mixes as they travel with it, the cache's salt; no vLLM
seam/       what touches vLLM's internals: the op in its layers, the worker that runs it, the keys of its cache
device.py   the adapters' way from the replica's process into the worker's slots
request.py  a request, and the requests of vLLM that it becomes
events.py   what vLLM puts out, as the engine's events
model.py    what a model folder says before vLLM has loaded it
engine.py   VllmEngine: submit, abort, keep, preload, stats, check_health
causes.py   why vLLM did not start
loading.py  from a model folder to an engine
"""
