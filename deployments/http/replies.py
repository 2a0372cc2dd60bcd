"""The JSON objects of the API's responses: OpenAI's shapes, plus `dlp`.

`dlp` says which adapters served which tokens: {"bank", "router", "confidence", "reason", "spans": [{"start",
"end", "mix": [{"adapter", "weight", "digest"}], "recipes", "left_out"}]}, where `recipes` names those that the mix
comes from and `left_out` what may not run with it, if any, and start and end count tokens of the prompt followed by the
completion. With several choices, `spans` belongs to the first and `choices` holds a list of spans for
each. With several prompts, `router`, `confidence` and `reason` belong to the first and `prompts` holds those of each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from dlp_core.adapter.names import AUTO
from dlp_core.decision import Decision, choose
from dlp_core.generation.messages import Completion, Delta, Finished, Logprob, TokenText
from dlp_core.mix import Mix, Span
from dlp_core.router.routing import NONE_THRESHOLD
from dlp_core.text.tools import CallDelta

if TYPE_CHECKING:
    from dlp_core.bank.manifest import BankManifest
    from dlp_core.router import Passage
    from dlp_core.router.explanation import Explanation

OWNER = "dlp"
_IMPOSSIBLE = -9999.0


def weights_json(mix: Mix) -> list[dict[str, Any]]:
    return [{"adapter": part.name, "weight": part.weight} for part in mix.adapters]


def mix_json(mix: Mix, digests: Mapping[str, str]) -> list[dict[str, Any]]:
    return [part | {"digest": digests[part["adapter"]]} for part in weights_json(mix)]


def spans_json(spans: Sequence[Span], digests: Mapping[str, str]) -> list[dict[str, Any]]:
    return [
        {"start": span.start, "end": span.end, "mix": mix_json(span.mix, digests), **remarks_json(span.mix)}
        for span in spans
    ]


def remarks_json(mix: Mix) -> dict[str, Any]:
    """The names of the recipes that a mix comes from, if any, and what was left out of it, each with the pair that may
    not run together."""
    recipes = {"recipes": list(mix.recipes)} if mix.recipes else {}
    left_out = [{"name": one.name, "not_together": list(one.pair)} for one in mix.left_out]
    return {**recipes, **({"left_out": left_out} if left_out else {})}


def dlp_json(decisions: Sequence[Decision], finished: Sequence[Finished]) -> dict[str, Any]:
    """The `dlp` object. `decisions` has one entry per prompt, `finished` one per choice, those of a prompt together."""
    n = len(finished) // len(decisions)
    spans = [spans_json(choice.spans, decisions[index // n].digests) for index, choice in enumerate(finished)]
    why = [
        {"router": decision.router, "confidence": decision.confidence, "reason": decision.reason}
        for decision in decisions
    ]
    return {
        "bank": decisions[0].bank,
        **why[0],
        "spans": spans[0],
        **({"choices": spans} if len(spans) > 1 else {}),
        **({"prompts": why} if len(why) > 1 else {}),
    }


def usage_json(finished: Sequence[Finished], prompts: int) -> dict[str, Any]:
    """`finished` has one entry per choice. A prompt counts once, however many choices it has."""
    n = len(finished) // prompts
    prompt = sum(choice.prompt_tokens for choice in finished[::n])
    completion = sum(choice.completion_tokens for choice in finished)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": sum(choice.cached_tokens for choice in finished[::n])},
    }


def logprob_json(logprob: float | None) -> float | None:
    """A log-probability as JSON, which has no infinity: OpenAI's API has this number for what is impossible."""
    return None if logprob is None else max(_IMPOSSIBLE, logprob)


def chat_logprobs_json(logprobs: Sequence[Logprob]) -> dict[str, Any]:
    def token(token: TokenText) -> dict[str, Any]:
        return {"token": token.text, "logprob": logprob_json(token.logprob), "bytes": list(token.bytes)}

    content = [{**token(entry.token), "top_logprobs": [token(other) for other in entry.top]} for entry in logprobs]
    return {"content": content, "refusal": None}


def message_json(completion: Completion) -> dict[str, Any]:
    """The message of a chat's answer. Without text, one with calls has no content."""
    if not completion.calls:
        return {"role": "assistant", "content": completion.text}
    calls = [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for call in completion.calls
    ]
    return {"role": "assistant", "content": completion.text or None, "tool_calls": calls}


def delta_json(delta: Delta) -> dict[str, Any]:
    """The next part of that message."""
    if not delta.calls:
        return {"content": delta.text}
    content = {"content": delta.text} if delta.text else {}
    return {**content, "tool_calls": [call_json(call) for call in delta.calls]}


def call_json(call: CallDelta) -> dict[str, Any]:
    if call.name is None:
        return {"index": call.index, "function": {"arguments": call.arguments}}
    function = {"name": call.name, "arguments": call.arguments}
    return {"index": call.index, "id": call.id, "type": "function", "function": function}


def text_logprobs_json(logprobs: Sequence[Logprob]) -> dict[str, Any]:
    def top(entry: Logprob) -> dict[str, float | None] | None:
        if entry.token.logprob is None:
            return None
        likeliest_last = reversed(entry.top)  # of tokens that read the same, the likeliest counts
        return {other.text: logprob_json(other.logprob) for other in likeliest_last}

    return {
        "tokens": [entry.token.text for entry in logprobs],
        "token_logprobs": [logprob_json(entry.token.logprob) for entry in logprobs],
        "top_logprobs": [top(entry) for entry in logprobs],
        "text_offset": [entry.offset for entry in logprobs],
    }


def route_json(decision: Decision, id: str) -> dict[str, Any]:
    """Which adapters would serve the request, and why."""
    return {
        "id": id,
        "object": "route",
        "model": decision.options.model,
        "bank": decision.bank,
        "router": decision.router,
        "reason": decision.reason,
        "confidence": decision.confidence,
        "none": decision.none,
        "margin": decision.margin,
        "mix": mix_json(decision.mix, decision.digests),
        **remarks_json(decision.mix),
        "probabilities": None if decision.probabilities is None else dict(decision.probabilities),
        "top_p": decision.options.top_p if decision.top_p is None else decision.top_p,
        "max_adapters": decision.options.max_adapters,
        "weights": decision.options.weights,
        "activation": decision.options.activation,
        "min_confidence": decision.options.min_confidence,
        "none_threshold": NONE_THRESHOLD,
    }


def passages_json(decision: Decision, passages: Sequence[Passage], bank: BankManifest) -> dict[str, Any]:
    """What each passage of the request's text would run under, with offsets in characters."""
    recipes, together = bank.recipe_mixes, bank.together

    def passage_json(passage: Passage) -> dict[str, Any]:
        mix, _ = choose(decision.options, passage.routing, recipes, together)
        part = {"start": passage.start, "end": passage.end, "mix": mix_json(mix, decision.digests)}
        return part | remarks_json(mix)

    return {"passages": [passage_json(passage) for passage in passages]}


def explanation_json(explanation: Explanation) -> dict[str, Any]:
    """Which words influenced the decision: `effect` is the log-odds of `explains`, or, if that is null, of any adapter
    fitting, with the word minus those without."""
    return {
        "explains": explanation.adapter,
        "words": [{"text": word.text, "effect": word.effect} for word in explanation.words],
    }


def visible(bank: BankManifest, allowed: frozenset[str] | None) -> BankManifest:
    """The bank restricted to the `allowed` adapters and recipes; None allows all."""
    if allowed is None:
        return bank
    adapters = tuple(adapter for adapter in bank.adapters if adapter.name in allowed)
    recipes = tuple(recipe for recipe in bank.recipes if recipe.name in allowed)
    labels = () if bank.router is None else tuple(label for label in bank.router.labels if label in allowed)
    router = bank.router.model_copy(update={"labels": labels}) if bank.router is not None and labels else None
    pairs = bank.allowed_together and tuple(pair for pair in bank.allowed_together if allowed.issuperset(pair))
    update = {"adapters": adapters, "recipes": recipes, "router": router, "allowed_together": pairs}
    return bank.model_copy(update=update)


def bank_json(bank: BankManifest, allowed: frozenset[str] | None) -> dict[str, Any]:
    """The manifest as far as the caller may see it. What is computed over all adapters, such as the digest of the
    whole, would tell when those change that the caller may not see."""
    of_the_whole: dict[str, Any] = {"digest": True, "router": {"version", "digest", "files", "encoder"}}
    return visible(bank, allowed).model_dump(mode="json", exclude=None if allowed is None else of_the_whole)


def models_json(bank: BankManifest, *, created: int) -> list[dict[str, Any]]:
    """Every valid `model`: "auto" if the bank has a router, the base model, each adapter, with its description and its
    invocation if it has them, and each recipe with the mix that it is."""

    def model(name: str, parent: str | None, **more: object) -> dict[str, Any]:
        entry = {"id": name, "object": "model", "created": created, "owned_by": OWNER, "parent": parent}
        return entry | {key: value for key, value in more.items() if value is not None}

    base = bank.base_model.id
    routed = [model(AUTO, base)] if bank.router is not None else []
    adapters = [
        model(
            adapter.name,
            base,
            description=adapter.description,
            alora_invocation_tokens=adapter.alora_invocation_tokens,
        )
        for adapter in bank.adapters
    ]
    recipes = [
        model(recipe.name, base, description=recipe.description, recipe=weights_json(recipe.mix))
        for recipe in bank.recipes
    ]
    return [*routed, model(base, None), *adapters, *recipes]


@dataclass(frozen=True, slots=True)
class Reply:
    """Builds the response to one request, as a chat or text completion, in one object or in chunks."""

    id: str
    created: int
    kind: Literal["chat", "text"]
    decisions: Sequence[Decision]
    """One per prompt, which all have as many choices."""
    with_logprobs: bool = False
    include_usage: bool = False

    def complete(self, completions: Sequence[Completion]) -> dict[str, Any]:
        """The response as one object. Every completion must be finished."""
        finished = [completion.finished for completion in completions if completion.finished is not None]
        choices = []
        for index, (completion, end) in enumerate(zip(completions, finished, strict=True)):
            content = {"message": message_json(completion)} if self.kind == "chat" else {"text": completion.text}
            choices.append(self._choice(index, content, end.finish_reason, completion.logprobs))
        return {
            **self._head("chat.completion" if self.kind == "chat" else "text_completion"),
            "choices": choices,
            "usage": usage_json(finished, len(self.decisions)),
            "dlp": dlp_json(self.decisions, finished),
        }

    def opening(self, choices: int) -> list[dict[str, Any]]:
        """The chunks before any text: one per choice with the role for a chat, none for a text completion."""
        if self.kind == "text":
            return []
        return [self._chunk(index, {"delta": {"role": "assistant", "content": ""}}) for index in range(choices)]

    def delta(self, index: int, delta: Delta) -> dict[str, Any]:
        content = {"delta": delta_json(delta)} if self.kind == "chat" else {"text": delta.text}
        chunk = self._chunk(index, content, None, delta.logprobs)
        return chunk | {"dlp": {"spans": self._spans(delta.spans)}} if delta.spans else chunk

    def ending(self, index: int, finished: Finished, all_finished: Sequence[Finished] | None) -> list[dict[str, Any]]:
        """The chunk with the finish reason of a choice. For the last choice to end, `all_finished` has the ends of all
        choices: then the usage follows if requested, and the very last chunk carries `dlp`."""
        content: dict[str, Any] = {"delta": {}} if self.kind == "chat" else {"text": ""}
        chunks = [self._chunk(index, content, finished.finish_reason)]
        if all_finished is not None:
            if self.include_usage:
                usage = usage_json(all_finished, len(self.decisions))
                chunks.append({**self._chunk_head(), "choices": [], "usage": usage})
            chunks[-1]["dlp"] = dlp_json(self.decisions, all_finished)
        return chunks

    def _spans(self, spans: Sequence[Span]) -> list[dict[str, Any]]:
        return spans_json(spans, self.decisions[0].digests)  # all prompts of a request have the same bank

    def _chunk(
        self, index: int, content: dict[str, Any], reason: str | None = None, logprobs: Sequence[Logprob] = ()
    ) -> dict[str, Any]:
        usage = {"usage": None} if self.include_usage else {}
        return {**self._chunk_head(), "choices": [self._choice(index, content, reason, logprobs)], **usage}

    def _chunk_head(self) -> dict[str, Any]:
        return self._head("chat.completion.chunk" if self.kind == "chat" else "text_completion")

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.decisions[0].options.model}

    def _choice(
        self, index: int, content: dict[str, Any], reason: str | None, logprobs: Sequence[Logprob]
    ) -> dict[str, Any]:
        logprobs_json = None
        if self.with_logprobs:
            logprobs_json = chat_logprobs_json(logprobs) if self.kind == "chat" else text_logprobs_json(logprobs)
        return {"index": index, **content, "logprobs": logprobs_json, "finish_reason": reason}
