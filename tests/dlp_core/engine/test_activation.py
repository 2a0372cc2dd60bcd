"""Where the adapters of a plan begin, in bookkeeping alone; what the engines make of it is in the engines' contract."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dlp_core.adapter.invocation import Invocation
from dlp_core.adapter.weights import read_adapter
from dlp_core.engine.activation import activated, plain_before
from dlp_core.engine.request import Plan
from dlp_core.fusion.layers import install
from dlp_core.fusion.segments import Segment
from dlp_core.mix import EMPTY_MIX, Mix
from tests.support.tiny import load_peft, peft_adapter, relative_error, tiny_llama

INVOCATIONS: dict[str, Invocation] = {"y": (7,), "z": (8, 9)}
PROMPT = [1, 7, 2, 7, 3, 8, 9, 4]
"""y begins at 3 and z at 5; x is ordinary."""

X, Y, Z = (Mix.of({name: 1.0}) for name in "xyz")


def run(plan: Plan, ids: list[int] | None = None) -> tuple[tuple[int, Mix], ...]:
    return activated(plan, PROMPT if ids is None else ids, INVOCATIONS.get).spans


def test_each_adapter_of_a_mix_begins_at_its_own_invocation_with_its_own_weight() -> None:
    mix = Mix.of({"x": 0.5, "y": 0.3, "z": 0.2})
    assert run(Plan.of(mix)) == ((0, Mix.of({"x": 0.5})), (3, Mix.of({"x": 0.5, "y": 0.3})), (5, mix))


def test_the_spans_still_say_which_recipe_they_come_from() -> None:
    recipe = replace(Mix.of({"x": 0.5, "y": 0.3}), recipes=("blend",))
    assert [mix.recipes for _, mix in run(Plan.of(recipe))] == [("blend",), ("blend",)]


def test_what_is_not_invoked_never_runs() -> None:
    assert run(Plan.of(Y), [1, 2]) == ((0, EMPTY_MIX),)
    assert run(Plan.of(Mix.of({"x": 0.5, "z": 0.5})), [8, 8, 1, 9]) == ((0, Mix.of({"x": 0.5})),)


def test_other_spans_of_a_plan_stay_where_they_are() -> None:
    plan = Plan(((0, X), (2, Y), (4, EMPTY_MIX), (6, Mix.of({"x": 0.5, "z": 0.5})), (8, Y)))
    assert run(plan) == ((0, X), (2, EMPTY_MIX), (3, Y), (4, EMPTY_MIX), (6, Mix.of({"x": 0.5, "z": 0.5})), (8, Y))
    assert run(Plan(((0, EMPTY_MIX), (8, Z)))) == ((0, EMPTY_MIX), (8, Z))


def test_neighbouring_spans_of_one_mix_are_one() -> None:
    """Also the last, which may begin right after the prompt."""
    assert run(Plan(((0, X), (3, X), (8, X)))) == ((0, X),)
    assert run(Plan(((0, EMPTY_MIX), (1, Y), (5, X), (8, X)))) == ((0, EMPTY_MIX), (3, Y), (5, X))


def test_mixes_that_a_completion_comes_to_have_only_what_the_prompt_invoked() -> None:
    plan = Plan(((0, X),), {1: Mix.of({"y": 0.5, "z": 0.5}), 2: None, 7: Z}.get, salt="team")
    found = activated(plan, [7, 1], INVOCATIONS.get)
    assert (found.spans, found.salt) == (((0, X),), "team")
    assert found.follow is not None
    assert [found.follow(token) for token in (1, 2, 7)] == [Mix.of({"y": 0.5}), None, EMPTY_MIX]


def test_an_unknown_adapter_is_an_error_before_anything_runs() -> None:
    with pytest.raises(KeyError):
        activated(Plan.of(X), PROMPT, INVOCATIONS.__getitem__)


PLANS = st.lists(st.tuples(st.integers(1, 12), st.sampled_from([X, Y, Z, EMPTY_MIX])), max_size=4).map(
    lambda spans: Plan(((0, X), *sorted(dict(spans).items())))
)


def mix_at(plan: Plan, position: int) -> Mix:
    return [mix for start, mix in plan.spans if start <= position][-1]


@given(plan=PLANS, ids=st.lists(st.integers(6, 9), min_size=12, max_size=12), until=st.integers(0, 12))
def test_every_position_has_the_mix_that_the_rules_say(plan: Plan, ids: list[int], until: int) -> None:
    found = activated(plain_before(plan, until), ids, INVOCATIONS.get)
    replace(found, follow=None).check(len(ids))
    assert all(first != second for (_, first), (_, second) in pairwise(found.spans))
    last = {name: max((at for at in range(12) if tuple(ids[at : at + len(INVOCATIONS[name])]) == INVOCATIONS[name]),
                      default=99) for name in INVOCATIONS}  # fmt: skip
    for position in range(13):
        mix = EMPTY_MIX if position < until else mix_at(plan, position)
        expected = Mix(tuple(part for part in mix.adapters if last.get(part.name, 0) <= position))
        assert mix_at(found, position) == expected


@pytest.mark.model
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")  # PEFT's, of the head
@pytest.mark.parametrize(
    "lora",
    [{}, {"target_modules": "all-linear", "use_rslora": True, "r": 5}, {"target_modules": ["down_proj", "lm_head"]}],
    ids=["q_v", "all_rslora", "down_head"],
)
@pytest.mark.parametrize("at", [(0,), (3, 9), (17,), (18,), (19,), ()], ids=str)
@torch.no_grad()
def test_every_logit_of_a_model_under_such_a_plan_equals_pefts(
    tmp_path: Path, lora: dict[str, Any], at: tuple[int, ...]
) -> None:
    """The invocation has two tokens, so at the last of the 20 there is room for one of them alone."""
    folder = peft_adapter(tmp_path / "a", 3, alora_invocation_tokens=[90, 91], task_type="CAUSAL_LM", **lora)
    ids = list(range(5, 25))
    for place in at:
        ids[place : place + 2] = [90, 91][: 20 - place]
    adapter, model = read_adapter(folder, name="a"), tiny_llama()
    fusion = install(model)
    fusion.load(0, adapter)
    spans = activated(Plan.of(Mix.of({"a": 1.0})), ids, lambda name: adapter.invocation).spans
    ends = [*(start for start, _ in spans[1:]), 20]
    segments = tuple(
        Segment(end - start, tuple((0, part.weight) for part in mix.adapters))
        for (start, mix), end in zip(spans, ends, strict=True)
    )
    with fusion.batch(segments):
        found = model(torch.tensor([ids])).logits
    oracle = load_peft(folder)
    assert relative_error(found, oracle(input_ids=torch.tensor([ids])).logits) <= 1e-5
    assert relative_error(found, tiny_llama()(torch.tensor([ids])).logits) > 1e-2 or at in ((), (19,))
