"""A step waits for its device once. Tensors without data stand for a GPU's: to ask one for its content raises."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dlp_core.engine import draws, grammar, sampling, step
from dlp_core.engine.grammar import Grammars
from dlp_core.engine.guard import finite_rows
from dlp_core.engine.request import Sampling
from dlp_core.engine.sampling import Picks, Row, Sampler
from dlp_core.mix import Mix
from examples.tiny.model import tiny_tokenizer
from tests.dlp_core.engine.test_engine import NAMES, build, generate, prompt
from tests.support.tiny import peft_adapter

EOS = frozenset({2})
SAMPLINGS = {
    "drawn": Sampling(8, temperature=1.0, seed=1),
    "truncated": Sampling(8, temperature=0.7, top_k=5, top_p=0.9),
    "with log-probabilities": Sampling(8, logprobs=3),
    "drawn with log-probabilities": Sampling(8, temperature=0.7, logprobs=1),
    "repetition": Sampling(8, repetition_penalty=1.2),
    "presence": Sampling(8, temperature=1.0, presence_penalty=0.5, logprobs=0),
    "min_tokens": Sampling(8, min_tokens=4),
    "guided": Sampling(8),
}


@pytest.fixture
def no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (sampling, draws, grammar):
        monkeypatch.setattr(module, "to_device", lambda values, like: torch.as_tensor(values).to(like.device))


def test_these_tensors_tell_nothing() -> None:
    scores = torch.empty(2, 4, device="meta")
    questions = (Tensor.tolist, Tensor.item, bool, Tensor.nonzero, Tensor.cpu, lambda x: x[x > 0])
    for question in questions:
        with pytest.raises((NotImplementedError, RuntimeError)):
            question(scores)
    with pytest.raises(RuntimeError):
        scores + torch.ones(4)  # of the host's


@pytest.mark.usefixtures("no_data")
@pytest.mark.parametrize("names", [*([name] for name in SAMPLINGS), list(SAMPLINGS)], ids=", ".join)
def test_picks_ask_the_device_nothing(names: list[str]) -> None:
    tokenizer = tiny_tokenizer()
    grammars = Grammars(tokenizer, len(tokenizer), EOS)
    rows = []
    for number, name in enumerate(names):
        guide = grammars.guide("{}") if name == "guided" else None
        rows.append(Row(number + 1, Sampler(SAMPLINGS[name], 2, EOS, guide), [5, 6, 7]))
    scores = torch.empty(len(rows) + 2, len(tokenizer), device="meta")
    assert finite_rows(scores).shape == (len(scores),)
    picks = Picks(scores, rows)
    assert picks._failed == {}
    assert picks.tokens_R.shape == (len(rows),)
    assert {tensor.device.type for tensor in picks.tensors} == {"meta"}


@pytest.mark.model
async def test_a_step_waits_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = {"steps": 0, "waits": 0}

    def counted(name: str, call: Any) -> Any:
        def counting(*args: Any) -> Any:
            counts[name] += 1
            return call(*args)

        return counting

    monkeypatch.setattr(step.Steps, "run", counted("steps", step.Steps.run))
    monkeypatch.setattr(step, "to_host", counted("waits", step.to_host))
    engine = await build({name: peft_adapter(tmp_path / name, seed) for seed, name in enumerate(NAMES)})
    try:
        await generate(engine, "r", prompt(0, 5), Mix.of({NAMES[0]: 1.0}), 6, temperature=1.0, logprobs=2)
    finally:
        await engine.stop()
    assert counts["waits"] == counts["steps"] >= 6
