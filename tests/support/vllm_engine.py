"""Engines over vLLM for tests: a tiny model with adapters of every kind, and what it says with merged weights.

Nothing here imports vLLM before an engine is started.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import DynamicCache

from dlp_core.adapter.weights import read_adapter
from dlp_core.engine.config import EngineConfig, VllmConfig
from dlp_core.engine.request import Plan, Sampling, TokenEvent
from dlp_core.mix import Mix, Span
from dlp_core.residency.sources import FolderSource
from examples.tiny.model import peft_model, tiny_backbone, tiny_model, tiny_tokenizer
from tests.support.paths import ROOT

if TYPE_CHECKING:
    from dlp_core.vllm.engine import VllmEngine

TARGETS = {
    "a": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "b": ["q_proj", "v_proj"],
    "c": ["down_proj", "gate_proj"],
}
"""Of adapters of ranks 2, 5 and 8."""

PAGE = 32
CONFIG = EngineConfig(
    kind="vllm",
    slots=3,
    max_requests=16,
    page_tokens=PAGE,
    cache_tokens=4096,
    batch_tokens=64,
    vllm=VllmConfig(eager=True),
)
NEAR_TIE = 2e-4
"""Between the logits of two tokens: what less is, another order of sums may turn around."""

encode = tiny_tokenizer().encode


def prompt(number: int, repeats: int = 3) -> list[int]:
    """Tokens of a prompt of its own for each number, some 16 for each repeat."""
    return list(encode(f"the user and the assistant speak {number} of the adapter " * repeats))


def save_models(root: Path) -> Path:
    """Saves the model as `base`, the adapters of TARGETS, and one on the embeddings."""
    tiny_backbone(root / "base")
    for seed, (name, targets) in enumerate(TARGETS.items()):
        peft_model(tiny_model(), seed + 3, r=2 + 3 * seed, target_modules=targets).save_pretrained(root / name)
    peft_model(tiny_model(), 9, target_modules=["embed_tokens"]).save_pretrained(root / "embedding")
    return root


@asynccontextmanager
async def running(
    folder: Path,
    config: EngineConfig = CONFIG,
    *,
    adapters: Sequence[str] = (*TARGETS, "embedding"),
    plugin: bool = True,
    environment: Mapping[str, str] | None = None,
) -> AsyncIterator[VllmEngine]:
    """An engine for the model `base` and the `adapters` in a folder, with the plugin that keys blocks by their mixes or
    without, started with more variables in its environment."""
    from dlp_core.vllm.loading import load

    source = FolderSource({name: folder / name for name in adapters})
    with pytest.MonkeyPatch.context() as patch:
        plugins = {} if plugin else {"VLLM_PLUGINS": ""}
        for name, value in ({"VLLM_LOGGING_LEVEL": "WARNING"} | plugins | dict(environment or {})).items():
            patch.setenv(name, value, prepend=os.pathsep if name == "PYTHONPATH" else None)
        if plugin:
            _let_the_plugin_be_found(patch, folder.parent / "site")
        engine = load(folder / "base", source, config, dtype="float32", threads=1).engine
        await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


def _let_the_plugin_be_found(patch: pytest.MonkeyPatch, site: Path) -> None:
    """Write what pip writes of this project's entry points into the folder `site` and put it on the path, of new
    processes too. Where pip has installed the project, nothing is to be done."""
    group = "vllm.general_plugins"
    if entry_points(group=group, name="dlp"):
        return
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    info = site / f"dlp_serve-{project['version']}.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    lines = [f"{name} = {target}" for name, target in project["entry-points"][group].items()]
    (info / "entry_points.txt").write_text("\n".join([f"[{group}]", *lines]))
    patch.setenv("PYTHONPATH", str(site), prepend=os.pathsep)
    patch.syspath_prepend(site)
    assert entry_points(group=group, name="dlp")


@dataclass
class Completion:
    tokens: list[int]
    spans: tuple[Span, ...]


async def generate(engine: VllmEngine, name: str, ids: list[int], mix: Mix | Plan, **sampling: Any) -> list[TokenEvent]:
    settings = Sampling(**{"max_tokens": 16, "ignore_eos": True} | sampling)
    return [event async for event in engine.submit(ids, mix, settings, request_id=name)]


def tokens_of(events: Sequence[TokenEvent]) -> list[int]:
    return [token for event in events for token in event.token_ids]


async def run(engine: VllmEngine, name: str, ids: list[int], mix: Mix | Plan, **sampling: Any) -> Completion:
    events = await generate(engine, name, ids, mix, **sampling)
    assert [event.finish_reason for event in events if event.finish_reason is not None] == ["length"]
    return Completion(tokens_of(events), events[-1].spans)


def assert_nothing_leaked(engine: VllmEngine) -> None:
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
