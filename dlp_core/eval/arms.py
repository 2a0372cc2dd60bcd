"""Arms: ways to choose the adapters that answer a row. Every arm answers the same rows.

    plain                the backbone alone
    oracle               the adapter of the row's own task, or the recipe
    top1                 the router's first choice
    top-p=P              as served: the smallest set that holds P of the router's probability, weighted by it
    top-p=P:softmax      the same set, weighted as in the paper's released code
    uniform=P            the same set, equally weighted
    random               one of the router's adapters, drawn with the suite's seed
    adapter=NAME         the same adapter or recipe for all rows, such as a LoRA trained on all tasks
    sentence=P           top-p for each sentence separately (dlp_core/generation/sentence_mixes.py)
    left-out=P           top-p of a router that does not know the row's own task
    left-out-forced=P    the same, but the router may not answer "none of these"
    ARM:turn             such an arm with one mix a row, which runs from the last user turn on; before it, the backbone
    ARM:prompt           such an arm whose mix runs in the last user turn alone, and the backbone answers: an experiment

Where the router answers "none of these", every arm that uses it (except the last) uses the backbone alone, as the
server does.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Literal

from dlp_core.errors import InvalidRequest
from dlp_core.eval.rows import EvalRow
from dlp_core.eval.suite import Suite
from dlp_core.mix import EMPTY_MIX, Mix, WeightRule, resolve, select_top_p
from dlp_core.router import Router, Routing
from dlp_core.together import ANY, Together

KINDS_WITH_P = ("top-p", "uniform", "sentence", "left-out", "left-out-forced")
KINDS_WITHOUT_VALUE = ("plain", "oracle", "top1", "random")

SERVED = "top-p=0.9"
"""The arm that matches a server's defaults."""

JudgedActivation = Literal["always", "turn", "prompt"]
"""Where a mix runs: as dlp_core.mix.Activation has it, or from the last user turn to the end of the prompt (arXiv
2605.14217), which no server does: the plain model then writes the answer, at its own speed."""

DEFAULT_ARMS = (
    "plain",
    "oracle",
    "top1",
    *(f"top-p={p}" for p in (0.5, 0.7, 0.8, 0.9, 0.95, 0.99)),
    *(f"top-p={p}:softmax" for p in (0.5, 0.7, 0.8, 0.9, 0.95, 0.99)),
    "uniform=0.9",
    "random",
    "sentence=0.9",
)

_ARM = re.compile(r"(?P<kind>[a-z0-9-]+)(?:=(?P<value>[^:]+?))?(?P<softmax>:softmax)?(?::(?P<activation>turn|prompt))?")


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to choose adapters. Created by `parse`."""

    name: str
    kind: str
    top_p: float = 0.0
    adapter: str = ""
    weights: WeightRule = "renormalise"
    activation: JudgedActivation = "always"

    @property
    def by_sentence(self) -> bool:
        return self.kind == "sentence"

    @property
    def uses_router(self) -> bool:
        return self.kind in (*KINDS_WITH_P, "top1")


def parse(text: str) -> Arm:
    """Parse the name of an arm. Raises InvalidRequest if it is not one."""
    match = _ARM.fullmatch(text.strip())
    if match is not None and (arm := _parsed(match)) is not None:
        activation: JudgedActivation = match["activation"] or "always"  # type: ignore[assignment]
        if activation == "always":
            return arm
        if arm.kind != "plain" and not arm.by_sentence:
            return replace(arm, name=f"{arm.name}:{activation}", activation=activation)
    raise InvalidRequest(
        f"{text!r} is not an arm; use {', '.join(KINDS_WITHOUT_VALUE)}, adapter=NAME, or, with 0 < P <= 1, "
        f"{', '.join(f'{kind}=P' for kind in KINDS_WITH_P)} or top-p=P:softmax; all that choose one mix take :turn or "
        ":prompt"
    )


def _parsed(match: re.Match[str]) -> Arm | None:
    """The arm without its activation; None if it is not one."""
    kind, value, softmax = match["kind"], match["value"], match["softmax"] is not None
    if softmax and kind != "top-p":
        return None
    if kind in KINDS_WITHOUT_VALUE and value is None:
        return Arm(kind, kind)
    if kind == "adapter" and value:
        return Arm(f"adapter={value}", kind, adapter=value)
    if kind in KINDS_WITH_P and value is not None and (p := _probability(value)) is not None:
        name = f"{kind}={p:g}" + (":softmax" if softmax else "")
        return Arm(name, kind, top_p=p, weights="softmax" if softmax else "renormalise")
    return None


def parse_all(texts: Collection[str]) -> tuple[Arm, ...]:
    """Parse names of arms and drop duplicates. Raises InvalidRequest."""
    return tuple(dict.fromkeys(parse(text) for text in texts))


def judged_arm(names: Sequence[str]) -> str:
    """The arm that a verdict on the bank is about: what a server runs, or else the next best of `names`."""
    for prefix in (SERVED, "top-p=", "top1", "uniform=", "sentence=", "oracle", "adapter="):
        for name in names:
            if name.startswith(prefix):
                return name
    return names[-1]


@dataclass(frozen=True, slots=True)
class Chooser:
    """Chooses the mix of each arm and row, for one bank."""

    suite: Suite
    router: Router | None
    adapters: Collection[str]
    """Names of all adapters and recipes in the bank."""
    recipes: Mapping[str, Mix] = field(default_factory=dict)
    """The mixes of the recipes."""
    together: Together = ANY
    """What may be mixed."""

    def resolve(self, names: Collection[str] | None) -> tuple[Arm, ...]:
        """The arms with these names; for None, the default arms that this bank supports.

        Raises InvalidRequest for a name that is not an arm, and for an arm that this bank cannot run, naming what is
        missing.
        """
        if names is None:
            return tuple(arm for arm in parse_all(DEFAULT_ARMS) if self._problem(arm) is None)
        arms = parse_all(names)
        for arm in arms:
            if (problem := self._problem(arm)) is not None:
                raise InvalidRequest(f"arm {arm.name!r} {problem}")
        return arms

    def _problem(self, arm: Arm) -> str | None:
        if self.router is None and (arm.uses_router or arm.kind == "random"):
            return "needs a router, and this bank has none; publish the bank with one"
        if arm.kind == "adapter" and arm.adapter not in self.adapters:
            return f"names an adapter that this bank does not have: {arm.adapter!r}"
        if not any(self.applies(arm, row) for row in self.suite.rows):
            tasks, adapters = (", ".join(sorted(names)[:5]) for names in (self.suite.tasks, self.adapters))
            return (
                "needs an adapter for the row's task, and this bank has none for any task of the suite: the tasks are "
                f"{tasks}, the adapters {adapters}"
            )
        return None

    def applies(self, arm: Arm, row: EvalRow) -> bool:
        """Whether `arm` can answer `row`: some arms need an adapter of the row's own task."""
        if arm.kind == "oracle":
            return row.task in self.adapters
        if arm.kind in ("left-out", "left-out-forced"):
            return self.router is not None and row.task in self.router.labels and len(self.router.labels) > 1
        return True

    def mix(self, arm: Arm, row: EvalRow, routing: Routing | None) -> Mix:
        """The mix `arm` answers `row` with; for an arm by sentence, the mix the completion starts with.

        `routing` is the row's routing by `router_for(arm, row)`, None if the arm uses no router.
        """
        if not arm.uses_router:
            name = self._adapter_for(arm, row)
            return EMPTY_MIX if name is None else self.named(name)
        return resolve(self._routed(arm, routing), self.recipes, max_adapters=self.suite.settings.max_adapters)

    def named(self, name: str) -> Mix:
        """The mix of an adapter alone, or of a recipe."""
        return self.recipes.get(name) or Mix.of({name: 1.0})

    def _routed(self, arm: Arm, routing: Routing | None) -> Mix:
        """The adapters and recipes that an arm chooses by a routing."""
        assert routing is not None
        max_adapters = self.suite.settings.max_adapters
        if arm.kind == "top1":
            return routing.mix(max_adapters=1)
        if arm.kind == "left-out-forced":
            return select_top_p(
                routing.probabilities, top_p=arm.top_p, max_adapters=max_adapters, together=self.together
            )
        mix = routing.mix(top_p=arm.top_p, max_adapters=max_adapters, weights=arm.weights, together=self.together)
        if arm.kind == "uniform" and mix:
            return Mix.of({name: 1 / len(mix.names) for name in mix.names})
        return mix

    def _adapter_for(self, arm: Arm, row: EvalRow) -> str | None:
        """The adapter of an arm that uses no router; None for the backbone alone."""
        if arm.kind == "random":
            assert self.router is not None
            return Random(f"{self.suite.settings.seed} {row.id}").choice(sorted(self.router.labels))
        return {"plain": None, "oracle": row.task, "adapter": arm.adapter}[arm.kind]

    def router_for(self, arm: Arm, row: EvalRow) -> Router | None:
        """The router that `arm` uses for `row`; None if it uses none."""
        if self.router is None or not arm.uses_router:
            return None
        if arm.kind in ("left-out", "left-out-forced"):
            return _leave_out(self.router, row.task)
        return self.router


def _leave_out(router: Router, task: str) -> Router:
    from dlp_core.router.router import restricted

    return restricted(router, frozenset(router.labels) - {task})


def _probability(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 < value <= 1 else None
