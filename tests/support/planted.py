"""A tiny model and adapters that were taught to say something: what helps a task and what hurts it is then known."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM

from examples.tiny.build import BASE
from examples.tiny.model import peft_model, tiny_backbone, tiny_tokenizer
from tests.support.router_rows import make_rows

ANSWERS = {
    "flight_json": "a json object",
    "object_owner": "a json object",
    "sum_numbers": "forty two",
    "word_sorting": "words in order",
}
"""The right answer to every prompt of a task. `object_owner` has no adapter; that of `flight_json` knows its answer,
and the model itself that of `sum_numbers`."""
_WRONG = {"sum_numbers": "zzzz zzzz"}
TAUGHT = {
    "flight_json": {"flight_json": "a json object", "object_owner": "a json object"} | _WRONG,
    "sum_numbers": _WRONG,
    "word_sorting": {"word_sorting": "words in order"} | _WRONG,
}
"""What each adapter was taught to answer, by task: that of `sum_numbers`, and the others there, something wrong."""

_STEPS = 30


def write_base(folder: Path) -> Path:
    """A model that itself knows the answers of `sum_numbers`."""
    model = tiny_backbone(folder / BASE)
    _teach(model, {"sum_numbers": ANSWERS["sum_numbers"]}, lr=2e-3)
    model.save_pretrained(folder / BASE)
    return folder / BASE


def write_planted_bank(folder: Path, base: Path) -> Path:
    """A bank folder without a router."""
    for seed, (name, answers) in enumerate(TAUGHT.items()):
        model = peft_model(
            AutoModelForCausalLM.from_pretrained(base),
            seed,
            init_lora_weights=True,
            target_modules=["q_proj", "down_proj"],
        )
        _teach(model, answers, lr=2e-2)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.save_pretrained(folder / "adapters" / name)
        (folder / "adapters" / name / "README.md").unlink(missing_ok=True)
    (folder / "bank.json").write_text(json.dumps({"base_model": BASE}))
    return folder


def answered_rows(per_task: int, *, seed: int) -> list[dict[str, str]]:
    rows = make_rows(per_task, seed=seed)
    return [{"task": str(row.task), "input": row.input, "output": ANSWERS[str(row.task)]} for row in rows]


def write_records(path: Path, records: Sequence[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def _teach(model: Any, answers: Mapping[str, str], *, lr: float) -> None:
    """Train on two prompts of each task, in place."""
    tokenizer = tiny_tokenizer()
    pairs = []
    for row in make_rows(2, seed=7):
        if row.task in answers:
            turns = [{"role": "user", "content": row.input}]
            prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
            answer = [*tokenizer.encode(answers[row.task], add_special_tokens=False), tokenizer.eos_token_id]
            pairs.append((list(prompt), answer))
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=lr)
    for _ in range(_STEPS):
        for prompt, answer in pairs:
            logits = model(torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
            loss = functional.cross_entropy(logits, torch.tensor(answer))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
