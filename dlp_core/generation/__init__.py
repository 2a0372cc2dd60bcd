"""Generates text from a prompt and a plan, piece by piece.

messages.py        requests to a generator and its results; no torch
generator.py       Generator: completions of one engine, for the server, evaluations and library users
planning.py        the plan of a request that names adapters of a bank
sentence_mixes.py  one mix per sentence
tool_calls.py      calls of tools, on their way from tokens to pieces
"""
