"""Turns of chats on a tiny model: what the cache holds follows from the tokens, so it can be counted."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.turns import ANSWER, SIDES, TURN, Chats, Turn, serving, summary, targets_of
from examples.tiny.model import tiny_backbone

pytestmark = pytest.mark.model

HISTORY, CHATS, PAGE = 128, 3, 32


async def test_activated_adapters_find_the_history_whatever_ran_before(tmp_path: Path) -> None:
    tiny_backbone(tmp_path / "tiny")
    found = {}
    async with serving(tmp_path / "tiny", 16_384, CHATS) as engine:
        sides = [Chats(engine, side, count=CHATS, history=HISTORY, seed=seed) for seed, side in enumerate(SIDES)]
        turns = [[await chats.turn() for chats in sides] for _ in range(3)]
        found = {side.name: list(taken) for side, taken in zip(SIDES, zip(*turns, strict=True), strict=True)}
    lengths = [HISTORY + TURN + turn * (TURN + ANSWER) for turn in range(3)]
    for turns in found.values():
        assert [turn.prompts for turn in turns] == [CHATS * length for length in lengths]
        assert all(len(turn.first) == CHATS and min(turn.first) > 0 for turn in turns)
        assert turns[0].shared == 0
    assert sum(turn.shared for turn in found["ordinary"]) == 0
    for name in ("activated", "activated k=2"):
        # in turn 2 the first turn runs plain for the first time, in turn 3 the second
        assert [turn.shared for turn in found[name][1:]] == [
            CHATS * (begin // PAGE) * PAGE for begin in (HISTORY, HISTORY + TURN + ANSWER)
        ]
    rows = {row["side"]: row for row in summary(HISTORY, found)}
    assert rows["ordinary"]["speedup"] == pytest.approx(1.0, abs=0.05)
    assert rows["activated"]["hits"] < rows["plain"]["hits"] < 1


def test_targets_are_of_activated_adapters_at_the_longest_history() -> None:
    def turns(first: float, shared: int) -> list[Turn]:
        return [Turn([9.0] * 4, 100, 0, 9.0), *[Turn([first] * 4, 100, shared, 2.0)] * 2]

    rows = []
    for history, speedup, shared in ((8, 2.0, 10), (64, 6.0, 96)):
        sides = {"ordinary": turns(3.0, 0), "activated": turns(3.0 / speedup, shared)}
        rows += summary(history, sides)
    assert [row["tokens_per_s"] for row in rows] == [2 * 4 * ANSWER / 4.0] * 4
    speed, hits = targets_of(rows)
    assert (speed.ratio, speed.met, hits.ratio, hits.met) == (6.0, True, 0.96, True)
