"""Which mix serves a request, and why. `/v1/route` and the completions both ask here, so they agree.

model                         dlp.adapters   mix                              reason
a name, or base:name          not given      that adapter alone               named
the base model's id           not given      none                             base
auto                          not given      top-p of the router              routed
                                             none: no adapter fits            none_of_these
                                             none: below min_confidence       low_confidence
                                             no router answers: the fallback  router_unavailable
auto, or the base model's id  given          those weights, without a router  explicit
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Container, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from dlp_core.adapter.names import AUTO
from dlp_core.errors import InvalidRequest, RouterUnavailable, UnknownModel
from dlp_core.mix import EMPTY_MIX, Mix

if TYPE_CHECKING:
    from dlp_core.bank.manifest import BankManifest
    from dlp_core.router import Routing

Reason = Literal["routed", "named", "base", "explicit", "none_of_these", "low_confidence", "router_unavailable"]


@dataclass(frozen=True, slots=True)
class RoutingOptions:
    """What one request says about adapters. Filled by the HTTP layer, defaults and limits already applied."""

    model: str
    top_p: float
    max_adapters: int
    min_confidence: float | None = None
    by_sentence: bool = False  # each sentence under a mix of its own, where the router decides
    adapters: tuple[tuple[str, float], ...] | None = None  # explicit (name, weight); None lets the model decide
    allowed: frozenset[str] | None = None  # adapters there are for this request; None: all of the bank
    fallback: str | None = None  # the model to use instead of `auto` when no router answers

    def may_use(self, adapter: str) -> bool:
        return self.allowed is None or adapter in self.allowed


@dataclass(frozen=True, slots=True)
class Decision:
    """The mix of one request. The last four fields are None where no router was asked."""

    options: RoutingOptions
    bank: str
    mix: Mix
    digests: Mapping[str, str]  # of the adapters it may use, as the bank promises them
    reason: Reason
    router: str | None = None
    confidence: float | None = None
    none: float | None = None
    probabilities: Mapping[str, float] | None = None

    @property
    def by_sentence(self) -> bool:
        """Whether the request's sentences are routed one by one: asked for, and nobody chose the adapters."""
        return self.options.by_sentence and self.probabilities is not None


async def decide(
    bank: BankManifest,
    options: RoutingOptions,
    texts: Sequence[str],
    route: Callable[[Sequence[str]], Awaitable[Routing]],
) -> Decision:
    """Chooses the mix that serves a request. `route` asks the bank's router, which shall know no adapter that is not
    allowed, about the texts (dlp_core.text.chat.routing_texts), and is awaited only when needed.

    Raises UnknownModel for a name the bank does not have or the request may not use: nothing tells the two apart.
    Raises InvalidRequest for weights that cannot be used. Where `route` raises RouterUnavailable, `options.fallback`
    serves; without one the error is raised.
    """
    digests = {adapter.name: adapter.digest for adapter in bank.adapters if options.may_use(adapter.name)}
    base = bank.base_model.id
    named = _named_adapter(options.model, base=base, names=digests, bank=bank.version)

    def decided(mix: Mix, reason: Reason) -> Decision:
        return Decision(options, bank.version, mix, digests, reason)

    if options.adapters is not None:
        if named is not None:
            raise InvalidRequest(
                f"model {options.model!r} and dlp.adapters both choose adapters; use model {AUTO!r} with dlp.adapters",
                param="dlp.adapters",
            )
        return decided(_explicit_mix(options.adapters, names=digests, bank=bank.version), "explicit")
    if named is not None:
        return decided(Mix.of({named: 1.0}), "named")
    if options.model == base:
        return decided(EMPTY_MIX, "base")
    if bank.router is None:
        raise UnknownModel(
            f"bank {bank.version} has no router, so model {AUTO!r} cannot choose; name an adapter or {base!r}",
            param="model",
        )
    if not any(options.may_use(label) for label in bank.router.labels):
        return decided(EMPTY_MIX, "none_of_these")
    try:
        routing = await route(texts)
    except RouterUnavailable:
        if options.fallback is None:
            raise
        return decided(_fallback_mix(options.fallback, base=base, names=digests), "router_unavailable")
    return replace(
        decided(*choose(options, routing)),
        router=bank.router.version,
        confidence=routing.confidence,
        none=routing.none,
        probabilities=routing.probabilities,
    )


def choose(options: RoutingOptions, routing: Routing) -> tuple[Mix, Reason]:
    """The mix of a text that the router made this of, and why."""
    mix = routing.mix(top_p=options.top_p, max_adapters=options.max_adapters)
    if not mix:
        return EMPTY_MIX, "none_of_these"
    if options.min_confidence is not None and routing.confidence < options.min_confidence:
        return EMPTY_MIX, "low_confidence"
    return mix, "routed"


def _named_adapter(model: str, *, base: str, names: Container[str], bank: str) -> str | None:
    """The adapter `model` names, or None for `auto` and the base model."""
    if model in (AUTO, base):
        return None
    name = model.removeprefix(f"{base}:")
    if name in names:
        return name
    raise UnknownModel(f"model {model!r} does not exist in bank {bank}; GET /v1/models lists what does", param="model")


def _fallback_mix(model: str, *, base: str, names: Container[str]) -> Mix:
    if model == base:
        return EMPTY_MIX
    name = model.removeprefix(f"{base}:")
    if name not in names:
        raise RouterUnavailable(
            f"no router replica answers, and the fallback {model!r} is no model of this bank; retry, or name one",
            retry_after=1.0,
        )
    return Mix.of({name: 1.0})


def _explicit_mix(adapters: tuple[tuple[str, float], ...], *, names: Container[str], bank: str) -> Mix:
    for name, _ in adapters:
        if name not in names:
            raise UnknownModel(
                f"adapter {name!r} does not exist in bank {bank}; GET /v1/bank lists what does",
                param="dlp.adapters",
            )
    return Mix.of(adapters)
