"""Completions that follow a JSON schema: before each pick, tokens that cannot continue a valid document are taken out.

llguidance turns a schema into masks over a tokenizer's vocabulary. Schemas come from clients, so compiling one is
bounded in size here and in work by the library's limits, and runs off the event loop. Masks have limits too: they are
computed on the generation thread.
"""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING

import numpy as np
import torch
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from llguidance.hf import from_tokenizer
from torch import Tensor

from dlp_core.engine.transfer import to_device
from dlp_core.errors import InvalidRequest

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions
    from transformers import PreTrainedTokenizerFast

MAX_SCHEMA_BYTES = 64 * 1024
"""As JSON in UTF-8. A schema of this size compiles in about a second."""

PARAM = "response_format"

_LIMITS = LLParserLimits(
    initial_lexer_fuel=200_000, step_lexer_fuel=100_000, max_lexer_states=20_000, max_grammar_size=50_000
)
OPTIONS: JsonCompileOptions = {
    "whitespace_pattern": r"[ \t\n]{0,16}",  # bounded: a small model may otherwise write nothing else
    "coerce_one_of": True,  # to anyOf: what Pydantic writes for a union with a discriminator
}


class Guide:
    """What one completion may continue with. Used on the generation thread."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    def mask(self, scores_V: Tensor) -> Tensor:
        """`scores_V` with minus infinity for tokens that may not come next. Raises InvalidRequest if the library gives
        up."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()
        allowed_V = torch.from_numpy(np.unpackbits(bits, count=len(scores_V), bitorder="little").view(bool))
        return scores_V.masked_fill(~to_device(allowed_V, scores_V), -torch.inf)

    def accept(self, token_id: int) -> None:
        """Note the token that was picked. Raises InvalidRequest as `mask`."""
        self._matcher.consume_token(token_id)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise _refused(self._matcher.get_error())


class Grammars:
    """Makes the guides of one model. Safe on any thread.

    `vocabulary` is the model's, which may exceed the tokenizer's; `eos` are the tokens that end a completion.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, vocabulary: int, eos: frozenset[int]) -> None:
        self._source = tokenizer
        self._vocabulary = vocabulary
        self._eos = eos
        self._tokenizer: LLTokenizer | None = None
        self._lock = Lock()

    def guide(self, schema: str) -> Guide:
        """The guide of one completion that is to be a document of this JSON schema.

        Raises InvalidRequest for a schema that is not valid, is too large, or has keywords that cannot be enforced.
        """
        size = len(schema.encode())
        if size > MAX_SCHEMA_BYTES:
            raise _refused(f"it has {size} bytes; at most {MAX_SCHEMA_BYTES} are read")
        if not self._eos:
            raise _refused("this model has no end-of-sequence token, so no document would end")
        try:
            grammar = LLMatcher.grammar_from_json_schema(schema, overrides=OPTIONS)
        except ValueError as error:
            raise _refused(str(error)) from None
        matcher = LLMatcher(self._for_masks(), grammar, limits=_LIMITS, log_level=0)
        if matcher.is_error():
            raise _refused(matcher.get_error())
        return Guide(matcher)

    def _for_masks(self) -> LLTokenizer:
        with self._lock:  # a second of work for a large vocabulary
            if self._tokenizer is None:
                self._tokenizer = from_tokenizer(self._source, n_vocab=self._vocabulary, eos_token=sorted(self._eos))
            return self._tokenizer


def _refused(reason: str) -> InvalidRequest:
    first_line = reason.partition("\n")[0][:300]
    return InvalidRequest(f"{PARAM}: the schema cannot be followed: {first_line}", param=PARAM)
