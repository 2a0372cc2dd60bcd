"""The plan of a request that names adapters of a bank: one mix for all of it, one per sentence, or a plan for each of
its tasks. No torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from dlp_core.bank.manifest import BankManifest
from dlp_core.bank.source import qualified
from dlp_core.decision import choose
from dlp_core.engine.activation import plain_before
from dlp_core.engine.request import Plan
from dlp_core.generation.messages import GenerationRequest
from dlp_core.generation.sentence_mixes import Divide, SentenceMixes
from dlp_core.generation.tasks import Task, divided
from dlp_core.mix import Mix
from dlp_core.router import Router, Routing, restricted
from dlp_core.router.passages import passages_first
from dlp_core.text.chat import routing_texts

if TYPE_CHECKING:
    from dlp_core.text.codec import Prompt, TextCodec

Planner = Callable[["Prompt"], Plan | tuple[Task, ...]]
"""Maps the model's prompt to the mixes it is processed with, or to the tasks that are answered in its place."""


def planner(
    request: GenerationRequest, bank: BankManifest, router: Router | None, codec: TextCodec, *, max_adapters: int
) -> Planner:
    """The planner of `request` with the adapters of `bank`, by their engine names.

    `router` is the bank's; it is needed if sentences are routed one by one, with at most `max_adapters` for the
    entire request. The planner raises UnknownModel for an adapter the bank does not have.
    """

    def finished(plan: Plan, prompt: Prompt) -> Plan:
        if request.activation == "turn":
            plan = plain_before(plan, prompt.token_at(prompt.last_turn))
        return replace(plan, salt=request.salt)

    options = request.by_sentence
    if options is None or router is None:
        return lambda prompt: finished(Plan.of(qualified(request.mix, bank)), prompt)
    recipes, together = bank.recipe_mixes, bank.together
    divide = partial(passages_first, restricted(router, options.allowed))

    def mix(routing: Routing) -> Mix:
        return qualified(choose(options, routing, recipes, together)[0], bank)

    def by_sentence(prompt: Prompt, divide: Divide = divide) -> Plan:
        texts = routing_texts(request.source) if isinstance(request.source, tuple) else (prompt.text,)
        mixes = SentenceMixes(divide, mix, max_adapters=max_adapters)
        return finished(mixes.plan(prompt, texts, codec.stream(prompt)), prompt)

    source = request.source
    if not options.by_task or not isinstance(source, tuple) or request.tools or request.sampling.response_format:
        return by_sentence

    def by_task(prompt: Prompt) -> Plan | tuple[Task, ...]:
        found = divide(routing_texts(source))
        tasks = divided(source, found, lambda passage: mix(passage.routing))
        if not tasks:
            return by_sentence(prompt, lambda texts: found)
        return tuple(Task(messages, partial(one, own)) for messages, own in tasks)

    def one(mix: Mix, prompt: Prompt) -> Plan:
        return finished(Plan.of(mix), prompt)

    return by_task
