"""From a prompt and a plan to text, piece by piece.

messages.py        what is asked of a generator and what comes back; no torch
generator.py       Generator: the completions of one engine, for the server, an evaluation and a library's user alike
planning.py        the plan of a request that names adapters of a bank
sentence_mixes.py  a mix for each sentence
"""
