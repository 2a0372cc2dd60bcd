"""The only files that touch vLLM's internals; tests/dlp_core/vllm/test_seam.py names each touch, and
test_tool_parsers.py those of the parsers.

worker.py         in vLLM's worker: the op in its layers, the mixes of each forward pass, the adapters' slots
cpu_worker.py     what of it is for CPUs
gpu_worker.py     what of it is for CUDA devices
gauges.py         in the replica: what the scheduler says of each step
tool_parsers.py   in the replica: vLLM's parsers find the calls of tools in answers
blocks.py         in vLLM's scheduler process: what keys a block of the prefix cache
"""
