"""What serves while the router is down: dlp_core/decision.py. The rest of its table is in test_openai_api.py."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from dlp_core.decision import AUTO, Decision, RoutingOptions, decide
from dlp_core.errors import RouterUnavailable
from dlp_core.mix import EMPTY_MIX, Mix

BASE = "org/tiny"


async def nobody_answers(texts: Sequence[str]) -> Any:
    raise RouterUnavailable("no router replica answered within 5 s")


async def decided(fallback: str | None, **changes: Any) -> Decision:
    bank: Any = SimpleNamespace(
        version="b1",
        base_model=SimpleNamespace(id=BASE),
        adapters=[SimpleNamespace(name=name, digest=name) for name in ("sql", "cron")],
        router=SimpleNamespace(version="r1", labels=("sql", "cron")),
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


async def test_a_named_model_needs_no_router() -> None:
    assert (await decided(None, model="sql")).reason == "named"
