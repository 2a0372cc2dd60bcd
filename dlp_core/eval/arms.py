"""Arms: ways to choose the adapters that answer a row. The same rows go through all of them.

    plain                the backbone alone
    oracle               the adapter of the row's own task
    top1                 the router's first choice
    top-p=P              what is served: the smallest set that has P of the router's mass, weighted by it
    top-p=P:softmax      the same set, weighted as the paper's released code does
    uniform=P            the same set, all of one weight
    random               any adapter of the router's, drawn with the suite's seed
    adapter=NAME         one and the same for all rows, such as a LoRA trained on all tasks
    sentence=P           top-p for each sentence of its own (dlp_core/generation/sentence_mixes.py)
    left-out=P           top-p of a router that does not know the row's own task
    left-out-forced=P    the same, where "none of these" is no answer

Where the router says "none of these", all that ask it (but the last) leave the backbone alone, as the server does.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from random import Random

from dlp_core.errors import InvalidRequest
from dlp_core.eval.rows import EvalRow
from dlp_core.eval.suite import Suite
from dlp_core.mix import EMPTY_MIX, Mix, WeightRule, select_top_p
from dlp_core.router import Router, Routing

PROBABILITIES = ("top-p", "uniform", "sentence", "left-out", "left-out-forced")
ALONE = ("plain", "oracle", "top1", "random")

SERVED = "top-p=0.9"
"""The arm that is what a server does by default."""

DEFAULT = (
    "plain",
    "oracle",
    "top1",
    *(f"top-p={p}" for p in (0.5, 0.7, 0.8, 0.9, 0.95, 0.99)),
    *(f"top-p={p}:softmax" for p in (0.5, 0.7, 0.8, 0.9, 0.95, 0.99)),
    "uniform=0.9",
    "random",
    "sentence=0.9",
)

_ARM = re.compile(r"(?P<kind>[a-z0-9-]+)(?:=(?P<value>[^:]+?))?(?P<softmax>:softmax)?")


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to choose. Made by `parse`."""

    name: str
    kind: str
    top_p: float = 0.0
    adapter: str = ""
    weights: WeightRule = "renormalise"

    @property
    def by_sentence(self) -> bool:
        return self.kind == "sentence"

    @property
    def asks_the_router(self) -> bool:
        return self.kind in (*PROBABILITIES, "top1")


def parse(text: str) -> Arm:
    """An arm by its name. Raises InvalidRequest."""
    match = _ARM.fullmatch(text.strip())
    kind, value = (match["kind"], match["value"]) if match else ("", None)
    softmax = bool(match and match["softmax"])
    if match and not (softmax and kind != "top-p"):
        if kind in ALONE and value is None:
            return Arm(kind, kind)
        if kind == "adapter" and value:
            return Arm(f"adapter={value}", kind, adapter=value)
        if kind in PROBABILITIES and value is not None and (p := _probability(value)) is not None:
            name = f"{kind}={p:g}" + (":softmax" if softmax else "")
            return Arm(name, kind, top_p=p, weights="softmax" if softmax else "renormalise")
    raise InvalidRequest(
        f"{text!r} is no arm; there are {', '.join(ALONE)}, adapter=NAME, and with a P above 0 and at most 1: "
        f"{', '.join(f'{kind}=P' for kind in PROBABILITIES)}, top-p=P:softmax"
    )


def parse_all(texts: Collection[str]) -> tuple[Arm, ...]:
    """Arms by their names, each once. Raises InvalidRequest."""
    return tuple(dict.fromkeys(parse(text) for text in texts))


@dataclass(frozen=True, slots=True)
class Chooser:
    """Turns arms and rows into mixes, for one bank."""

    suite: Suite
    router: Router | None
    adapters: Collection[str]
    """All of the bank's."""

    def checked(self, names: Collection[str] | None) -> tuple[Arm, ...]:
        """The arms of these names; without any, the standard ones that this bank can have.

        Raises InvalidRequest for what is no arm, and for one that makes no sense for this bank, naming what is missing.
        """
        if names is None:
            return tuple(arm for arm in parse_all(DEFAULT) if self._problem(arm) is None)
        arms = parse_all(names)
        for arm in arms:
            if (problem := self._problem(arm)) is not None:
                raise InvalidRequest(f"arm {arm.name!r} {problem}")
        return arms

    def _problem(self, arm: Arm) -> str | None:
        if self.router is None and (arm.asks_the_router or arm.kind == "random"):
            return "asks the router, and this bank has none; publish it with one"
        if arm.kind == "adapter" and arm.adapter not in self.adapters:
            return f"names an adapter that this bank does not have: {arm.adapter!r}"
        if not any(self.applies(arm, row) for row in self.suite.rows):
            tasks, adapters = (", ".join(sorted(names)[:5]) for names in (self.suite.tasks, self.adapters))
            return (
                "is about tasks that have adapters, and none of the suite's has one in this bank: the tasks are "
                f"{tasks}, the adapters {adapters}"
            )
        return None

    def applies(self, arm: Arm, row: EvalRow) -> bool:
        """Whether the row has an adapter of its own, where the arm is about that."""
        if arm.kind == "oracle":
            return row.task in self.adapters
        if arm.kind in ("left-out", "left-out-forced"):
            return self.router is not None and row.task in self.router.labels and len(self.router.labels) > 1
        return True

    def mix(self, arm: Arm, row: EvalRow, routing: Routing | None) -> Mix:
        """What `arm` answers a row with. `routing` is the router's view of it, of the router `routed_by` gives.

        Of an arm by sentence it is the mix the completion begins with.
        """
        if not arm.asks_the_router:
            name = self._named(arm, row)
            return EMPTY_MIX if name is None else Mix.of({name: 1.0})
        assert routing is not None
        max_adapters = self.suite.settings.max_adapters
        if arm.kind == "top1":
            return routing.mix(max_adapters=1)
        if arm.kind == "left-out-forced":
            return select_top_p(routing.probabilities, top_p=arm.top_p, max_adapters=max_adapters)
        mix = routing.mix(top_p=arm.top_p, max_adapters=max_adapters, weights=arm.weights)
        if arm.kind == "uniform" and mix:
            return Mix.of({name: 1 / len(mix.names) for name in mix.names})
        return mix

    def _named(self, arm: Arm, row: EvalRow) -> str | None:
        """The one adapter of an arm that asks no router; None for the backbone alone."""
        if arm.kind == "random":
            assert self.router is not None
            return Random(f"{self.suite.settings.seed} {row.id}").choice(sorted(self.router.labels))
        return {"plain": None, "oracle": row.task, "adapter": arm.adapter}[arm.kind]

    def routed_by(self, arm: Arm, row: EvalRow) -> Router | None:
        """The router that an arm asks about a row, None if it asks none."""
        if self.router is None or not arm.asks_the_router:
            return None
        if arm.kind in ("left-out", "left-out-forced"):
            return _without(self.router, row.task)
        return self.router


def _without(router: Router, task: str) -> Router:
    from dlp_core.router.router import restricted

    return restricted(router, frozenset(router.labels) - {task})


def _probability(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 < value <= 1 else None
