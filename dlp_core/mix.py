"""Mixes: which adapters serve a span of text, and at what weights. Imports no torch.

Top-p (DLP-LoRA, arXiv 2410.01497, section 3): sort the router's probabilities in descending order, keep the
smallest prefix whose sum reaches p, and weight what is kept by its renormalised probability.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from dlp_core.errors import InvalidRequest
from dlp_core.together import ANY, LeftOut, Together

MAX_WEIGHT = 16.0
"""Largest |weight| accepted in an explicit mix: beyond it a LoRA delta only destroys the output."""

DEFAULT_TOP_P = 0.9

WeightRule = Literal["renormalise", "softmax"]
"""How the kept adapters are weighted: see `select_top_p`."""

GRID = 64
"""A routed mix has weights that are multiples of 1/64, unless a request asks for the exact ones: what is cached under
0.80 would be of no use to 0.81, whose keys and values nearly equal it. Such weights are exact in every dtype."""

Activation = Literal["always", "turn"]
"""From where on a mix runs: from a request's first token, or from the first token of a chat's last user turn. What is
before runs plain."""

Granularity = Literal["request", "sentence", "task"]
"""One mix for a request, one for each of its sentences, or each task of its message answered on its own."""


@dataclass(frozen=True, slots=True)
class WeightedAdapter:
    """One adapter of a mix. `weight` multiplies the adapter's own scaling (alpha/r); it does not replace it."""

    name: str
    weight: float


@dataclass(frozen=True, slots=True)
class Mix:
    """Adapters and weights of one span, heaviest first. The empty mix is the plain backbone.

    Picklable and hashable: it is sent by value from the ingress to the backbone.
    """

    adapters: tuple[WeightedAdapter, ...] = ()
    recipes: tuple[str, ...] = field(default=(), compare=False)
    """The recipes of a bank that these adapters come from, if any: a remark, which changes nothing about the mix."""
    left_out: tuple[LeftOut, ...] = field(default=(), compare=False, repr=False)
    """What was likely enough for a routed mix and may not run with what it has: a remark as well."""

    @classmethod
    def of(cls, weights: Mapping[str, float] | Iterable[tuple[str, float]]) -> Mix:
        """Build a mix from name -> weight. Zero weights are dropped; the order is descending |weight|, then as given.

        Raises InvalidRequest if a weight is not finite or exceeds MAX_WEIGHT, or a name is repeated.
        """
        items = list(weights.items()) if isinstance(weights, Mapping) else list(weights)
        seen: set[str] = set()
        for name, weight in items:
            if not math.isfinite(weight) or abs(weight) > MAX_WEIGHT:
                raise InvalidRequest(
                    f"adapter {name!r}: weight {weight} must be a finite number from {-MAX_WEIGHT:g} to {MAX_WEIGHT:g}",
                    param="dlp.adapters",
                )
            if name in seen:
                raise InvalidRequest(f"adapter {name!r} is named twice; give it one weight", param="dlp.adapters")
            seen.add(name)
        kept = [WeightedAdapter(name, float(weight)) for name, weight in items if weight != 0.0]
        return cls(tuple(sorted(kept, key=lambda part: -abs(part.weight))))

    def on_grid(self) -> Mix:
        """The mix with weights that are multiples of 1/GRID and have the same sum, to the next multiple: the weights
        that lose most are rounded up. What is rounded to 0 is left out."""
        steps = [part.weight * GRID for part in self.adapters]
        rounded = [math.floor(step) for step in steps]
        by_loss = sorted(range(len(steps)), key=lambda index: rounded[index] - steps[index])
        for index in by_loss[: round(sum(steps)) - sum(rounded)]:
            rounded[index] += 1
        on_grid = Mix.of([(part.name, step / GRID) for part, step in zip(self.adapters, rounded, strict=True)])
        return replace(on_grid, left_out=self.left_out) if self.left_out else on_grid

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(part.name for part in self.adapters)

    def __bool__(self) -> bool:
        return bool(self.adapters)

    def __str__(self) -> str:
        """`name=0.80,other=0.20`, or `base` for the empty mix: the format of the x-dlp-adapters header."""
        return ",".join(f"{part.name}={part.weight:.2f}" for part in self.adapters) or "base"


EMPTY_MIX = Mix()


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens [start, end) of prompt and completion together, and the mix they ran under."""

    start: int
    end: int
    mix: Mix


def resolve(chosen: Mix, recipes: Mapping[str, Mix], *, max_adapters: int) -> Mix:
    """The mix of adapters that a mix of adapters and recipes stands for. `recipes` maps the name of each to its mix.

    A recipe's weights are multiplied by the weight that it has itself; what several say of one adapter adds up. A
    recipe is used whole or not at all: names are taken from the heaviest down for as long as their adapters together
    are at most `max_adapters`, and keep their shares of what is taken. A recipe that has more adapters than that alone
    is passed over. Without recipes, `chosen` itself is returned.
    """
    if not any(name in recipes for name in chosen.names):
        return chosen
    taken: list[tuple[float, Mix]] = []
    adapters: set[str] = set()
    for part in chosen.adapters:
        mix = recipes.get(part.name, Mix((WeightedAdapter(part.name, 1.0),)))
        if len(mix.names) > max_adapters:
            continue
        if len(adapters | set(mix.names)) > max_adapters:
            break
        adapters |= set(mix.names)
        taken.append((part.weight, mix))
    share = sum(abs(part.weight) for part in chosen.adapters) / (sum(abs(weight) for weight, _ in taken) or 1.0)
    sums: dict[str, float] = {}
    for weight, mix in taken:
        for inner in mix.adapters:
            sums[inner.name] = sums.get(inner.name, 0.0) + share * weight * inner.weight
    recipes_used = tuple(name for _, mix in taken for name in mix.recipes)
    return replace(Mix.of(sums), recipes=recipes_used, left_out=chosen.left_out)


def select_top_p(
    probabilities: Mapping[str, float],
    *,
    top_p: float = DEFAULT_TOP_P,
    max_adapters: int = 3,
    weights: WeightRule = "renormalise",
    together: Together = ANY,
) -> Mix:
    """Select the smallest set of adapters whose probabilities reach `top_p`, at most `max_adapters`. From the likeliest
    down, what may not run `together` with one already taken is left out of that set; nothing less likely comes in its
    place.

    `probabilities` maps adapter name to probability, in bank order: ties break by that order, so the same
    text always gives the same mix. They may sum to less than 1, because "none of these" has the rest;
    top_p is a fraction of their sum.

    `weights="renormalise"` divides the kept probabilities by their sum. `weights="softmax"` applies a second
    softmax to them, as the paper's released code does.

    Raises InvalidRequest if top_p is not in (0, 1] or max_adapters is below 1.
    """
    if not (math.isfinite(top_p) and 0.0 < top_p <= 1.0):
        raise InvalidRequest(f"top_p is {top_p}; it must be above 0 and at most 1", param="dlp.top_p")
    if max_adapters < 1:
        raise InvalidRequest(f"max_adapters is {max_adapters}; it must be at least 1", param="dlp.max_adapters")
    ranked = sorted(((name, p) for name, p in probabilities.items() if p > 0.0), key=lambda item: -item[1])
    target = top_p * sum(p for _, p in ranked)
    kept: list[tuple[str, float]] = []
    cumulative = 0.0
    for name, p in ranked[:max_adapters]:
        kept.append((name, p))
        cumulative += p
        if cumulative >= target - 1e-12:
            break
    if not kept:
        return EMPTY_MIX
    names, left_out = together.chosen(name for name, _ in kept)
    if left_out:
        kept = [(name, p) for name, p in kept if name in names]
    unnormalised = [p for _, p in kept] if weights == "renormalise" else [math.exp(p) for _, p in kept]
    total = sum(unnormalised)
    mix = Mix.of([(name, value / total) for (name, _), value in zip(kept, unnormalised, strict=True)])
    return replace(mix, left_out=left_out) if left_out else mix
