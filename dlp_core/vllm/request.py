"""One request to the engine, and the requests of vLLM that it becomes: one more with each change of its mix."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from dlp_core.engine.grammar import OPTIONS
from dlp_core.engine.request import Plan, Sampling
from dlp_core.errors import InvalidRequest
from dlp_core.mix import Mix, Span
from dlp_core.residency.movement import Pin
from dlp_core.vllm.plans import KEY, salt_of, to_wire


@dataclass(slots=True)
class Request:
    """A request in flight."""

    name: str
    prompt_ids: list[int]
    plan: Plan
    sampling: Sampling
    """With a limit on the tokens."""
    prompt_logprobs: int | None
    spans: list[tuple[int, Mix]]
    """Where each mix begins, in prompt and completion."""
    written: list[int] = field(default_factory=list)
    stretch: int = 0
    """How often the mix has changed."""
    running: bool = False
    """Whether it is with vLLM, and not waiting for its adapters."""
    begun: bool = False
    """Whether vLLM has answered: until then it may wait there for room."""
    cached_tokens: int = 0
    """Of the prompt, found in the cache."""
    aborted: asyncio.Event = field(default_factory=asyncio.Event)

    @classmethod
    def of(
        cls, name: str, prompt_ids: Sequence[int], plan: Plan, sampling: Sampling, prompt_logprobs: int | None
    ) -> Request:
        return cls(name, list(prompt_ids), plan, sampling, prompt_logprobs, list(plan.spans))

    @property
    def vllm_id(self) -> str:
        return f"{self.name}~{self.stretch}"

    @property
    def tokens(self) -> int:
        """Of prompt and completion so far."""
        return len(self.prompt_ids) + len(self.written)

    @property
    def limit(self) -> int:
        """Of prompt and longest possible completion."""
        return len(self.prompt_ids) + (self.sampling.max_tokens or 0)

    @property
    def names(self) -> tuple[str, ...]:
        """Adapters of all spans so far, without duplicates."""
        return tuple(dict.fromkeys(name for _, mix in self.spans for name in mix.names))

    def reported(self) -> tuple[Span, ...]:
        """The mixes of all tokens so far."""
        ends = [*(start for start, _ in self.spans[1:]), self.tokens]
        return tuple(
            Span(start, min(end, self.tokens), mix)
            for (start, mix), end in zip(self.spans, ends, strict=True)
            if start < self.tokens
        )

    def change(self, mix: Mix) -> None:
        """Go on under `mix`. The last token was picked under the mix before; its keys and values, and what follows, are
        the new one's."""
        start = self.tokens - 1
        if self.spans[-1][0] == start:  # nothing was computed under that one
            self.spans.pop()
        self.spans.append((start, mix))
        self.stretch += 1

    def to_vllm(self, pins: Mapping[str, Pin], *, by_block: bool) -> tuple[Any, Any]:
        """The prompt and the sampling parameters of the next stretch. `by_block` is that of plans.salt_of."""
        from vllm.inputs import TokensPrompt

        wire = to_wire(self.spans, pins)
        prompt = TokensPrompt(
            prompt_token_ids=[*self.prompt_ids, *self.written],
            cache_salt=salt_of(wire, self.plan.salt, by_block=by_block),
        )
        return prompt, _parameters(self._rest(), None if self.stretch else self.prompt_logprobs, wire)

    def _rest(self) -> Sampling:
        """The sampling of what is left to write. Seeds differ by stretch: with the same one, the draws would repeat."""
        if not self.stretch:
            return self.sampling
        seed = self.sampling.seed
        if seed is not None:
            digest = hashlib.blake2b(f"{seed} {len(self.written)}".encode(), digest_size=8).digest()
            seed = int.from_bytes(digest, "little", signed=True)
        return replace(
            self.sampling,
            max_tokens=(self.sampling.max_tokens or 0) - len(self.written),
            min_tokens=max(0, self.sampling.min_tokens - len(self.written)),
            seed=seed,
        )


def check_follower(sampling: Sampling) -> None:
    """Raise InvalidRequest for what a request would lose when its mix changes: vLLM counts and parses a completion from
    where its own request began."""
    for option in ("presence_penalty", "frequency_penalty", "response_format"):
        if getattr(sampling, option):
            raise InvalidRequest(
                f"{option} does not go with a mix for each sentence on engine vllm; leave out one of them", param=option
            )


def _parameters(sampling: Sampling, prompt_logprobs: int | None, wire: Any) -> Any:
    from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams

    schema = sampling.response_format
    return SamplingParams(
        max_tokens=sampling.max_tokens,
        min_tokens=sampling.min_tokens,
        temperature=0.0 if sampling.greedy else sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        repetition_penalty=sampling.repetition_penalty,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        seed=sampling.seed,
        logprobs=sampling.logprobs,
        prompt_logprobs=prompt_logprobs,
        ignore_eos=sampling.ignore_eos,
        structured_outputs=None if schema is None else StructuredOutputsParams(json=_same_grammar(schema)),
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
        extra_args={KEY: wire},
    )


def _same_grammar(schema: str) -> str:
    """The schema with the options that the other engine compiles schemas with, where llguidance looks for them."""
    found = json.loads(schema)
    return json.dumps({**found, "x-guidance": OPTIONS}) if isinstance(found, dict) else schema
