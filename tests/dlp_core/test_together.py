"""What may be mixed: a pair that a bank does not allow is in no mix that a decision makes, whatever the router says."""

from __future__ import annotations

from itertools import combinations
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlp_core.adapter.names import AUTO
from dlp_core.decision import RoutingOptions, choose, decide
from dlp_core.errors import InvalidRequest
from dlp_core.mix import Mix, select_top_p
from dlp_core.router import Routing
from dlp_core.together import ANY, LeftOut, Pair, Together, pair_of

NAMES = ("a", "b", "c", "d", "e")
PAIRS = tuple(combinations(NAMES, 2))
RECIPES = {"r": Mix(Mix.of({"a": 0.5, "b": -0.25}).adapters, ("r",))}


def together(*pairs: str, recipes: Any = None) -> Together:
    return Together(sorted(pair_of(*pair) for pair in pairs), recipes or {})


def test_without_a_list_any_may_and_with_one_only_its_pairs() -> None:
    assert ANY.allows("a", "b")
    listed = together("ba", "bc")
    assert [pair for pair in PAIRS if listed.allows(*pair)] == [("a", "b"), ("b", "c")]
    assert listed.allows("c", "b")
    assert listed.allows("d", "d")
    assert not any(together().allows(*pair) for pair in PAIRS)
    assert [pair for pair in PAIRS if not Together(apart=("a", "b")).allows(*pair)] == [("a", "b")]
    assert listed.conflict(["b", "c", "a"]) == ("a", "c")
    assert listed.conflict(["b", "c"]) is None


def test_what_may_not_run_with_a_likelier_one_is_left_out_and_nothing_comes_in_its_place() -> None:
    probabilities = {"a": 0.5, "b": 0.3, "c": 0.15, "d": 0.05}
    mix = select_top_p(probabilities, top_p=0.9, together=together("ac", "ad", "cd"))
    assert [(part.name, part.weight) for part in mix.adapters] == [
        ("a", pytest.approx(0.5 / 0.65)),
        ("c", pytest.approx(0.15 / 0.65)),
    ]
    assert mix.left_out == (LeftOut("b", ("a", "b")),)
    assert select_top_p(probabilities, top_p=0.9, max_adapters=2, together=together("ac")).names == ("a",)
    softened = select_top_p(probabilities, top_p=0.9, weights="softmax", together=together("ac"))
    assert softened.adapters == select_top_p({"a": 0.5, "c": 0.15}, top_p=1.0, weights="softmax").adapters


def test_weights_on_the_grid_keep_what_was_left_out() -> None:
    mix = Routing.of({"a": 0.5, "b": 0.3, "c": 0.2}).mix(top_p=1.0, together=together("ac"))
    assert [(part.name, part.weight * 64) for part in mix.adapters] == [("a", 46), ("c", 18)]
    assert [one.name for one in mix.left_out] == ["b"]
    assert mix == Mix.of({"a": 46 / 64, "c": 18 / 64}), "what was left out is a remark"


def test_a_recipe_is_left_out_whole() -> None:
    recipes = {"r": ("a", "b")}
    kept, left_out = together("ab", "ac", recipes=recipes).chosen(["c", "r", "a"])
    assert (kept, left_out) == (["c", "a"], (LeftOut("r", ("b", "c")),))
    assert together("ab", "ac", "bc", recipes=recipes).chosen(["c", "r", "a"])[0] == ["c", "r", "a"]
    assert together("ac", recipes=recipes).chosen(["r", "c"]) == (["c"], (LeftOut("r", ("a", "b")),))


pairs = st.lists(st.sampled_from(PAIRS), unique=True).map(lambda found: tuple(sorted(found)))
routings = (
    st.lists(st.floats(0.0, 1.0), min_size=len(NAMES) + 1, max_size=len(NAMES) + 1)
    .filter(any)
    .map(
        lambda masses: Routing.of({name: mass / sum(masses) for name, mass in zip((*NAMES, "r"), masses, strict=True)})
    )
)
wishes = st.builds(
    RoutingOptions,
    model=st.just(AUTO),
    top_p=st.floats(0.01, 1.0),
    max_adapters=st.integers(1, 6),
    weights=st.sampled_from(["renormalise", "softmax"]),
    exact_weights=st.booleans(),
)


@given(routing=routings, allowed=pairs, options=wishes)
def test_no_decision_mixes_a_pair_that_is_not_allowed(
    routing: Routing, allowed: tuple[Pair, ...], options: RoutingOptions
) -> None:
    recipes = {name: mix.names for name, mix in RECIPES.items()}
    mix, _ = choose(options, routing, RECIPES, Together(allowed, recipes))
    assert all(pair_of(*pair) in allowed for pair in combinations(mix.names, 2))
    assert len(mix.names) <= options.max_adapters
    free, _ = choose(options, routing, RECIPES, ANY)
    everything, _ = choose(options, routing, RECIPES, Together(PAIRS, recipes))
    assert (everything, everything.left_out) == (free, ()), "a list of all pairs changes nothing"


@given(routing=routings, allowed=pairs, options=wishes)
def test_what_is_kept_is_what_the_likeliest_allows_in_the_proportions_it_had(
    routing: Routing, allowed: tuple[Pair, ...], options: RoutingOptions
) -> None:
    alone = Routing.of({name: routing.probabilities[name] + 1e-3 for name in NAMES})
    mix = alone.mix(top_p=options.top_p, max_adapters=options.max_adapters, exact=True, together=Together(allowed))
    free = alone.mix(top_p=options.top_p, max_adapters=options.max_adapters, exact=True)
    left_out = {one.name for one in mix.left_out}
    assert mix.names == tuple(name for name in free.names if name not in left_out)
    assert mix.names[0] == free.names[0]
    assert sum(part.weight for part in mix.adapters) == pytest.approx(1.0)
    before = {part.name: part.weight for part in free.adapters}
    shares = [part.weight / before[part.name] for part in mix.adapters]
    assert shares == pytest.approx([shares[0]] * len(shares))
    for one in mix.left_out:
        likelier = free.names[: free.names.index(one.name)]
        assert any(other in likelier and other in mix.names for other in one.pair), "for an adapter that is mixed"
        assert one.pair not in allowed


async def never(texts: Any) -> Any:
    raise AssertionError("no text decides")


def bank(allowed: tuple[Pair, ...] | None) -> Any:
    return SimpleNamespace(
        version="b1",
        base_model=SimpleNamespace(id="org/tiny"),
        adapters=[SimpleNamespace(name=name, digest=name) for name in NAMES],
        router=None,
        recipes=(),
        recipe_mixes={},
        together=Together(allowed),
    )


async def test_an_explicit_mix_of_a_pair_that_is_not_allowed_is_refused_by_name() -> None:
    def asked(*names: str, weight: float = 0.5) -> RoutingOptions:
        return RoutingOptions(AUTO, None, 3, adapters=tuple((name, weight) for name in names))

    listed = bank((("a", "c"),))
    with pytest.raises(InvalidRequest, match="adapters 'b' and 'c' may not run together in bank b1") as refused:
        await decide(listed, asked("c", "b"), ("hello",), never)
    assert (refused.value.status, refused.value.param) == (400, "dlp.adapters")
    assert (await decide(listed, asked("c", "a"), ("hello",), never)).mix.names == ("c", "a")
    assert (await decide(listed, asked("c", "b", weight=0.0), ("hello",), never)).mix.names == (), "neither runs"
    assert (await decide(bank(None), asked("c", "b"), ("hello",), never)).mix.names == ("c", "b")
