"""Which adapters of a bank may run on one token.

Adapters that are harmless alone can spoil each other's answers (arXiv 2603.12681). A bank may therefore list the pairs
that run together; without a list any do. A routed mix is taken from the likeliest adapter down: one that may not run
with an adapter already taken is left out.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

Pair = tuple[str, str]
"""Two adapters, in alphabetical order."""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """An adapter or recipe that a mix does not have, though it was likely enough for it."""

    name: str
    pair: Pair
    """The adapters, one of which it brings, that may not run together."""


@dataclass(frozen=True, slots=True)
class Together:
    """What may be mixed."""

    allowed: Sequence[Pair] | None = None
    """In order. None: any pair."""
    recipes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """The adapters of each recipe."""
    apart: Pair | None = None
    """One pair that may not, whatever is allowed: to see what becomes of a mix without it."""

    def allows(self, one: str, other: str) -> bool:
        """Whether two adapters may run on one token."""
        pair = pair_of(one, other)
        if one == other or (self.allowed is None and self.apart is None):
            return True
        if pair == self.apart:
            return False
        if self.allowed is None:
            return True
        at = bisect_left(self.allowed, pair)
        return at < len(self.allowed) and self.allowed[at] == pair

    def conflict(self, names: Iterable[str]) -> Pair | None:
        """Two of these adapters that may not run together, the first such pair; None if all may."""
        if self.allowed is None and self.apart is None:
            return None
        return next((pair_of(*pair) for pair in combinations(names, 2) if not self.allows(*pair)), None)

    def chosen(self, names: Iterable[str]) -> tuple[list[str], tuple[LeftOut, ...]]:
        """Of adapters and recipes, the likeliest first, those that are mixed, and those that are left out because they
        may not run with one before them. A recipe is mixed whole or not at all."""
        kept: list[str] = []
        adapters: list[str] = []
        left_out: list[LeftOut] = []
        for name in names:
            new = [each for each in self.recipes.get(name, (name,)) if each not in adapters]
            pair = self.conflict([*adapters, *new])
            if pair is None:
                kept.append(name)
                adapters += new
            else:
                left_out.append(LeftOut(name, pair))
        return kept, tuple(left_out)


ANY = Together()


def pair_of(one: str, other: str) -> Pair:
    """The pair of two adapters."""
    return (one, other) if one <= other else (other, one)
