"""What serves while the router is down. The rest of the table of dlp_core/decision.py is in http/test_api.py."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from dlp_core.adapter.names import AUTO
from dlp_core.decision import Decision, RoutingOptions, choose, decide, usable
from dlp_core.errors import RouterUnavailable
from dlp_core.mix import EMPTY_MIX, Mix, WeightRule, select_top_p
from dlp_core.router import Routing
from dlp_core.together import ANY

BASE = "org/tiny"


async def nobody_answers(texts: Sequence[str]) -> Any:
    raise RouterUnavailable("no router replica answered within 5 s")


async def decided(fallback: str | None, **changes: Any) -> Decision:
    bank: Any = SimpleNamespace(
        version="b1",
        base_model=SimpleNamespace(id=BASE),
        adapters=[SimpleNamespace(name=name, digest=name) for name in ("sql", "cron")],
        router=SimpleNamespace(version="r1", labels=("sql", "cron")),
        recipes=(),
        recipe_mixes={},
        together=ANY,
    )
    options: dict[str, Any] = {"model": AUTO, "top_p": 0.9, "max_adapters": 3, "fallback": fallback} | changes
    return await decide(bank, RoutingOptions(**options), ("hello",), nobody_answers)


@pytest.mark.parametrize(
    ("fallback", "mix"), [(BASE, EMPTY_MIX), ("cron", Mix.of({"cron": 1.0})), (f"{BASE}:sql", Mix.of({"sql": 1.0}))]
)
async def test_the_fallback_serves_and_the_reason_says_so(fallback: str, mix: Mix) -> None:
    decision = await decided(fallback, by_sentence=True)
    assert (decision.mix, decision.reason) == (mix, "router_unavailable")
    assert (decision.router, decision.confidence, decision.probabilities) == (None, None, None)
    assert not decision.by_sentence


@pytest.mark.parametrize(
    ("fallback", "changes"), [(None, {}), ("gone", {}), ("cron", {"allowed": frozenset({"sql"})})], ids=str
)
async def test_without_a_usable_fallback_the_request_is_refused(fallback: str | None, changes: dict[str, Any]) -> None:
    with pytest.raises(RouterUnavailable):
        await decided(fallback, **changes)


ROUTING = Routing.of({"sql": 0.6, "cron": 0.3, "dates": 0.1}, margin=2.0)


def options(**changes: Any) -> RoutingOptions:
    return RoutingOptions(**({"model": AUTO, "top_p": 0.9, "max_adapters": 3} | changes))


@pytest.mark.parametrize("weights", ["renormalise", "softmax"])
def test_the_mix_is_weighted_as_asked(weights: WeightRule) -> None:
    mix, reason = choose(options(weights=weights, exact_weights=True), ROUTING, {}, ANY)
    assert reason == "routed"
    assert mix == select_top_p(ROUTING.probabilities, top_p=0.9, max_adapters=3, weights=weights)
    mix, _ = choose(options(weights=weights), ROUTING, {}, ANY)
    assert mix == select_top_p(ROUTING.probabilities, top_p=0.9, max_adapters=3, weights=weights).on_grid()
    assert (mix == choose(options(), ROUTING, {}, ANY)[0]) == (weights == "renormalise")


def test_below_the_confidence_asked_for_the_plain_backbone_serves() -> None:
    assert choose(options(min_confidence=0.61), ROUTING, {}, ANY) == (EMPTY_MIX, "low_confidence")
    assert choose(options(min_confidence=0.6), ROUTING, {}, ANY)[1] == "routed"
    assert choose(options(min_confidence=0.61), Routing.of({"sql": 1.0}, margin=-0.8), {}, ANY) == (
        EMPTY_MIX,
        "none_of_these",
    )


async def test_a_named_model_needs_no_router() -> None:
    assert (await decided(None, model="sql")).reason == "named"


# --- recipes

REPORT = Mix(Mix.of({"sql": 0.5, "dates": -0.25}).adapters, ("report",))
WIDE = Mix(Mix.of({"sql": 0.5, "dates": 0.5, "cron": 0.5, "regex": 0.5}).adapters, ("wide",))
RECIPES = {"report": REPORT, "wide": WIDE}


def weights_of(mix: Mix) -> dict[str, float]:
    return {part.name: part.weight for part in mix.adapters}


def test_a_routing_to_a_recipe_leads_to_its_adapters() -> None:
    alone, reason = choose(options(), Routing.of({"report": 0.95, "cron": 0.05}), RECIPES, ANY)
    assert (alone, alone.recipes, reason) == (REPORT, ("report",), "routed")
    mixed, _ = choose(options(top_p=1.0, exact_weights=True), Routing.of({"report": 0.6, "sql": 0.4}), RECIPES, ANY)
    assert weights_of(mixed) == pytest.approx({"sql": 0.6 * 0.5 + 0.4, "dates": -0.6 * 0.25})
    assert mixed.recipes == ("report",)


def test_the_limit_of_adapters_holds_once_recipes_are_adapters() -> None:
    routing = Routing.of({"report": 0.4, "cron": 0.35, "regex": 0.25})
    three, _ = choose(options(top_p=1.0, exact_weights=True), routing, RECIPES, ANY)
    assert set(three.names) == {"sql", "dates", "cron"}  # regex would be the fourth
    assert weights_of(three)["cron"] == pytest.approx(0.35 / 0.75)
    assert weights_of(three)["sql"] == pytest.approx(0.5 * 0.4 / 0.75)
    two, _ = choose(options(top_p=1.0, max_adapters=2), Routing.of({"report": 0.6, "cron": 0.4}), RECIPES, ANY)
    assert two == REPORT
    assert choose(options(max_adapters=2), Routing.of({"wide": 1.0}), RECIPES, ANY) == (EMPTY_MIX, "none_of_these")


def test_who_may_not_use_one_of_its_adapters_may_not_use_a_recipe() -> None:
    adapters = [SimpleNamespace(name=name, digest=name) for name in ("cron", "dates", "regex", "sql")]
    entries = [SimpleNamespace(name=name) for name in RECIPES]
    bank: Any = SimpleNamespace(adapters=adapters, recipes=entries, recipe_mixes=RECIPES, together=ANY)
    assert usable(bank, None) is None
    assert usable(bank, frozenset({"sql", "dates"})) == {"sql", "dates", "report"}
    assert usable(bank, frozenset({"sql", "cron"})) == {"sql", "cron"}
    assert usable(bank, None, max_adapters=3) == {"cron", "dates", "regex", "sql", "report"}
    assert usable(bank, None, max_adapters=4) is None
