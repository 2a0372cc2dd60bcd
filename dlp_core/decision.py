"""Which mix serves a request, and why. `/v1/route` and the completions share this code, so they agree.

model                         dlp.adapters   mix                              reason
a name, or base:name          not given      that adapter alone, or recipe    named
the base model's id           not given      none                             base
auto                          not given      top-p of the router              routed
                                             none: no adapter fits            none_of_these
                                             none: below min_confidence       low_confidence
                                             router down: the fallback        router_unavailable
auto, or the base model's id  given          those weights, without a router  explicit

Adapters that the bank does not allow together (dlp_core.together) are never mixed: of a routed mix the less likely one
is left out, an explicit mix of both is refused.

A recipe is a mix that the bank has under a name. It becomes its adapters and weights here (dlp_core.mix.resolve),
before any engine sees it: what it answers is what the same explicit mix answers.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Container, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from dlp_core.adapter.names import AUTO
from dlp_core.errors import InvalidRequest, RouterUnavailable, UnknownModel
from dlp_core.mix import EMPTY_MIX, Activation, Mix, WeightRule, resolve
from dlp_core.together import Together

if TYPE_CHECKING:
    from dlp_core.bank.manifest import BankManifest
    from dlp_core.router import Routing

Reason = Literal["routed", "named", "base", "explicit", "none_of_these", "low_confidence", "router_unavailable"]


@dataclass(frozen=True, slots=True)
class RoutingOptions:
    """One request's adapter options. Filled by the HTTP layer, with defaults and limits already applied."""

    model: str
    top_p: float | None  # None: the router's own
    max_adapters: int
    weights: WeightRule = "renormalise"
    exact_weights: bool = False  # of a routed mix, instead of those on the grid
    min_confidence: float | None = None
    activation: Activation = "always"  # from where on the mix runs
    by_sentence: bool = False  # each sentence gets its own mix, if the router decides
    by_task: bool = False  # beside that, each task of a message is answered on its own, if one answer needs no form
    adapters: tuple[tuple[str, float], ...] | None = None  # explicit (name, weight); None: the model name decides
    allowed: frozenset[str] | None = None  # adapters and recipes this request may use; None: the whole bank
    limit: int | None = None  # adapters of a recipe that the request names; None: any number
    fallback: str | None = None  # the model to use instead of `auto` while the router is down

    @property
    def asks_router(self) -> bool:
        """Whether the text decides: the request names no adapters itself."""
        return self.model == AUTO and self.adapters is None

    def may_use(self, name: str) -> bool:
        return self.allowed is None or name in self.allowed


@dataclass(frozen=True, slots=True)
class Decision:
    """The mix of one request. Of the last seven fields, `turn` is 0 and the others are None if the router was not
    consulted."""

    options: RoutingOptions
    bank: str
    mix: Mix
    digests: Mapping[str, str]  # of the adapters it may use, as listed in the bank's manifest
    reason: Reason
    router: str | None = None
    confidence: float | None = None
    none: float | None = None
    margin: float | None = None
    top_p: float | None = None
    probabilities: Mapping[str, float] | None = None
    turn: int = 0  # which of the request's texts decided

    @property
    def by_sentence(self) -> bool:
        """Whether the request's sentences are routed one by one: requested, and the router chose the adapters."""
        return self.options.by_sentence and self.probabilities is not None


def usable(
    bank: BankManifest, adapters: frozenset[str] | None, *, max_adapters: int | None = None
) -> frozenset[str] | None:
    """The adapters and recipes of a bank that a request may use, None for all: the `adapters` that its caller may use,
    None for all, and recipes of these alone, of at most `max_adapters`. What a request may not use, its router does not
    know: "none of these" then means none of the others."""
    recipes = {
        name
        for name, mix in bank.recipe_mixes.items()
        if (adapters is None or adapters.issuperset(mix.names))
        and (max_adapters is None or len(mix.names) <= max_adapters)
    }
    if adapters is None:
        if len(recipes) == len(bank.recipes):
            return None
        adapters = frozenset(adapter.name for adapter in bank.adapters)
    return adapters | recipes


async def decide(
    bank: BankManifest,
    options: RoutingOptions,
    texts: Sequence[str],
    route: Callable[[Sequence[str]], Awaitable[Routing]],
) -> Decision:
    """Choose the mix that serves a request. `route` runs the bank's router, restricted to what the request may use, on
    the texts (dlp_core.text.chat.routing_texts); it is awaited only when needed.

    Raises UnknownModel for a name that is not in the bank or that the request may not use: the error does not reveal
    which. Raises InvalidRequest for invalid weights, for adapters that may not run together, and for a recipe of more
    adapters than `options.limit`. If `route` raises RouterUnavailable, `options.fallback` serves; without a fallback
    the error propagates.
    """
    digests = {adapter.name: adapter.digest for adapter in bank.adapters if options.may_use(adapter.name)}
    mixes = {name: mix for name, mix in bank.recipe_mixes.items() if options.may_use(name)}
    base = bank.base_model.id
    named = _named(options.model, base=base, digests=digests, recipes=mixes, bank=bank.version)

    def decision(mix: Mix, reason: Reason) -> Decision:
        return Decision(options, bank.version, mix, digests, reason)

    if options.adapters is not None:
        if named is not None:
            raise InvalidRequest(
                f"model {options.model!r} and dlp.adapters both choose adapters; use model {AUTO!r} with dlp.adapters",
                param="dlp.adapters",
            )
        explicit = _explicit_mix(options.adapters, names=digests, recipes=mixes, bank=bank)
        return decision(explicit, "explicit")
    if named is not None:
        if options.limit is not None and len(named.names) > options.limit:
            raise InvalidRequest(
                f"recipe {options.model!r} mixes {len(named.names)} adapters; at most {options.limit} are mixed",
                param="model",
            )
        return decision(named, "named")
    if options.model == base:
        return decision(EMPTY_MIX, "base")
    if bank.router is None:
        raise UnknownModel(
            f"bank {bank.version} has no router, so model {AUTO!r} cannot choose; name an adapter or {base!r}",
            param="model",
        )
    if not any(options.may_use(label) for label in bank.router.labels):
        return decision(EMPTY_MIX, "none_of_these")
    try:
        routing = await route(texts)
    except RouterUnavailable:
        if options.fallback is None:
            raise
        fallback = _fallback_mix(options.fallback, base=base, digests=digests, recipes=mixes)
        return decision(fallback, "router_unavailable")
    return replace(
        decision(*choose(options, routing, mixes, bank.together)),
        router=bank.router.version,
        confidence=routing.confidence,
        none=routing.none,
        margin=routing.margin,
        top_p=routing.top_p if options.top_p is None else options.top_p,
        probabilities=routing.probabilities,
        turn=routing.turn,
    )


def choose(
    options: RoutingOptions, routing: Routing, recipes: Mapping[str, Mix], together: Together
) -> tuple[Mix, Reason]:
    """The mix that a routing leads to, and the reason. `recipes` are the bank's, and what it allows `together`."""
    names = routing.mix(
        top_p=options.top_p,
        max_adapters=options.max_adapters,
        weights=options.weights,
        exact=options.exact_weights,
        together=together,
    )
    mix = resolve(names, recipes, max_adapters=options.max_adapters)
    if not mix:
        return EMPTY_MIX, "none_of_these"
    if options.min_confidence is not None and routing.confidence < options.min_confidence:
        return EMPTY_MIX, "low_confidence"
    return mix, "routed"


def _named(model: str, *, base: str, digests: Container[str], recipes: Mapping[str, Mix], bank: str) -> Mix | None:
    """The mix of the adapter or recipe that `model` names, or None for `auto` and the base model."""
    if model in (AUTO, base):
        return None
    mix = _mix_of(model.removeprefix(f"{base}:"), digests, recipes)
    if mix is None:
        raise UnknownModel(
            f"model {model!r} does not exist in bank {bank}; GET /v1/models lists the models", param="model"
        )
    return mix


def _mix_of(name: str, digests: Container[str], recipes: Mapping[str, Mix]) -> Mix | None:
    return Mix.of({name: 1.0}) if name in digests else recipes.get(name)


def _fallback_mix(model: str, *, base: str, digests: Container[str], recipes: Mapping[str, Mix]) -> Mix:
    mix = EMPTY_MIX if model == base else _mix_of(model.removeprefix(f"{base}:"), digests, recipes)
    if mix is None:
        raise RouterUnavailable(
            f"no router replica answers, and the fallback {model!r} is not a model of this bank; retry, or name one",
            retry_after=1.0,
        )
    return mix


def _explicit_mix(
    adapters: tuple[tuple[str, float], ...], *, names: Container[str], recipes: Container[str], bank: BankManifest
) -> Mix:
    for name, _ in adapters:
        if name in recipes:
            raise InvalidRequest(
                f"{name!r} is a recipe; name it as the model, or give the weights of its adapters",
                param="dlp.adapters",
            )
        if name not in names:
            raise UnknownModel(
                f"adapter {name!r} does not exist in bank {bank.version}; GET /v1/bank lists the adapters",
                param="dlp.adapters",
            )
    mix = Mix.of(adapters)
    if (pair := bank.together.conflict(mix.names)) is not None:
        raise InvalidRequest(
            f"adapters {pair[0]!r} and {pair[1]!r} may not run together in bank {bank.version}; use one of them "
            "(allowed_together in GET /v1/bank lists the pairs that may)",
            param="dlp.adapters",
        )
    return mix
