"""A tiny model with adapters of every kind, engines that run it, and what it says with merged weights."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache

from dlp_core.adapter.weights import read_adapter
from dlp_core.engine.config import EngineConfig
from dlp_core.engine.protocol import Engine
from dlp_core.engine.request import Plan, Sampling, TokenEvent
from dlp_core.mix import Mix, Span
from examples.tiny.model import peft_model, tiny_backbone, tiny_model, tiny_tokenizer

TARGETS = {
    "a": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "b": ["q_proj", "v_proj"],
    "c": ["down_proj", "gate_proj"],
}
"""Of adapters of ranks 2, 5 and 8."""

ACTIVATED = {"m": " assistant", "n": " user and"}
"""Activated adapters (aLoRA) by what invokes them, which every `prompt` has once for each repeat."""

PAGE = 32
LIMITS = EngineConfig(slots=3, max_requests=16, page_tokens=PAGE, cache_tokens=4096, batch_tokens=64)
NEAR_TIE = 2e-4
"""Between the logits of two tokens: what less is, another order of sums may turn around."""

encode = tiny_tokenizer().encode


def prompt(number: int, repeats: int = 3) -> list[int]:
    """Tokens of a prompt of its own for each number, some 16 for each repeat."""
    return list(encode(f"the user and the assistant speak {number} of the adapter " * repeats))


def save_models(root: Path) -> Path:
    """Saves the model as `base`, the adapters of TARGETS and ACTIVATED, and one on the embeddings."""
    tiny_backbone(root / "base")
    for seed, (name, targets) in enumerate(TARGETS.items()):
        peft_model(tiny_model(), seed + 3, r=2 + 3 * seed, target_modules=targets).save_pretrained(root / name)
    for seed, (name, words) in enumerate(ACTIVATED.items()):
        lora = {"r": 3 + seed, "alora_invocation_tokens": encode(words), "task_type": "CAUSAL_LM"}
        peft_model(tiny_model(), seed + 20, target_modules=TARGETS["a"], **lora).save_pretrained(root / name)
    embedding = peft_model(tiny_model(), 9, target_modules=["embed_tokens"])
    embedding.save_pretrained(root / "embedding", save_embedding_layers=True)
    return root


@dataclass
class Completion:
    tokens: list[int]
    spans: tuple[Span, ...]
    cached_tokens: int


async def generate(engine: Engine, name: str, ids: list[int], mix: Mix | Plan, **sampling: Any) -> list[TokenEvent]:
    settings = Sampling(**{"max_tokens": 16, "ignore_eos": True} | sampling)
    return [event async for event in engine.submit(ids, mix, settings, request_id=name)]


def tokens_of(events: Sequence[TokenEvent]) -> list[int]:
    return [token for event in events for token in event.token_ids]


async def run(engine: Engine, name: str, ids: list[int], mix: Mix | Plan, **sampling: Any) -> Completion:
    events = await generate(engine, name, ids, mix, **sampling)
    assert [event.finish_reason for event in events if event.finish_reason is not None] == ["length"]
    return Completion(tokens_of(events), events[-1].spans, events[-1].cached_tokens)


def assert_nothing_leaked(engine: Engine) -> None:
    stats = engine.stats()
    assert (stats.running, stats.waiting, stats.pinned, stats.tokens_running) == (0, 0, 0, 0)


class Reference:
    """The model itself, in transformers, with the weights of each mix merged by hand."""

    def __init__(self, folder: Path) -> None:
        """Of adapters in `folder`, which are not to change."""
        self._folder = folder
        self._models: dict[frozenset[tuple[str, float]], Any] = {}
        self._deltas = cache(self._read)

    def model(self, mix: Mix) -> Any:
        key = frozenset((part.name, part.weight) for part in mix.adapters)
        if key not in self._models:
            self._models[key] = model = tiny_model()
            modules = dict(model.named_modules())
            with torch.no_grad():
                for name, weight in key:
                    for path, delta in self._deltas(name).items():
                        modules[path].weight += weight * delta
        return self._models[key]

    def tokens_of_peft(self, ids: Sequence[int], name: str, tokens: int = 16) -> list[int]:
        """What PEFT's own `generate` says with one adapter, which decides itself where an activated one begins."""
        from peft import PeftModel

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT and transformers deprecate each other's calls
            model = PeftModel.from_pretrained(tiny_model(), self._folder / name).eval()
            said = model.generate(
                input_ids=torch.tensor([ids]),
                attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                max_new_tokens=tokens,
                do_sample=False,
            )
        return [int(token) for token in said[0, len(ids) :]]

    def _read(self, name: str) -> Mapping[str, torch.Tensor]:
        modules = read_adapter(self._folder / name, name=name).modules
        return {path: lora.scaling * (lora.b_OR.float() @ lora.a_RD.float()) for path, lora in modules.items()}

    @torch.no_grad()
    def greedy(self, ids: Sequence[int], mix: Mix | Plan, tokens: int) -> tuple[list[int], int]:
        """The `tokens` that the model says after `ids`, and how many there are before the first whose runner-up was as
        likely. The keys and values of each position are those of the mix of its span."""
        plan = mix if isinstance(mix, Plan) else Plan.of(mix)
        last = len(ids) + tokens - 1  # whose own keys and values nobody needs
        states, said, position, sure = DynamicCache(config=tiny_model().config), list(ids), 0, tokens
        for (_, span_mix), (until, _) in zip(plan.spans, [*plan.spans[1:], (last, None)], strict=True):
            while position < min(until, last):
                end = min(until, last, len(said))
                logits = self.model(span_mix)(torch.tensor([said[position:end]]), past_key_values=states).logits[0, -1]
                position = end
                if position == len(said):
                    best, second = logits.topk(2).values.tolist()
                    sure = min(sure, tokens if best - second >= NEAR_TIE else len(said) - len(ids))
                    said.append(int(logits.argmax()))
        return said[len(ids) :], sure

    def tokens(self, ids: Sequence[int], mix: Mix | Plan, tokens: int = 16) -> list[int]:
        """Those of `greedy`, for prompts that leave no doubt about them."""
        said, sure = self.greedy(ids, mix, tokens)
        assert sure == tokens, f"after {sure} tokens two are as likely; take another prompt"
        return said


def spans_of(spans: Sequence[Span]) -> Plan:
    """The plan that has the spans of a reply."""
    return Plan(tuple((span.start, span.mix) for span in spans))
