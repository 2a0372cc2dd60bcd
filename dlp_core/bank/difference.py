"""What changes from one bank to another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal, TypeVar

from dlp_core.bank.manifest import BankManifest
from dlp_core.together import Pair

K = TypeVar("K")


@dataclass(frozen=True, slots=True)
class BankDiff:
    """The difference between two banks: names of adapters and recipes, pairs that run together, and whether the router
    or base model differ."""

    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...]
    router_changed: bool
    base_changed: bool
    recipes_added: tuple[str, ...] = ()
    recipes_removed: tuple[str, ...] = ()
    recipes_changed: tuple[str, ...] = ()
    pairs_added: tuple[Pair, ...] = ()
    pairs_removed: tuple[Pair, ...] = ()
    """Of those that run together."""
    mixes: Literal["any", "listed"] | None = None
    """What the second bank mixes, any adapters or pairs that it lists; None if the first one did the same."""

    def __bool__(self) -> bool:
        """Whether anything differs."""
        return any(asdict(self).values())


def diff(a: BankManifest, b: BankManifest) -> BankDiff:
    """The changes from `a` to `b`."""
    added, removed, changed = _changes(
        *({adapter.name: adapter.digest for adapter in bank.adapters} for bank in (a, b))
    )
    recipes_added, recipes_removed, recipes_changed = _changes(
        *({recipe.name: recipe.content for recipe in bank.recipes} for bank in (a, b))
    )
    pairs_added, pairs_removed, _ = _changes(*(dict.fromkeys(bank.allowed_together or ()) for bank in (a, b)))
    lists = [bank.allowed_together is not None for bank in (a, b)]
    return BankDiff(
        added=added,
        removed=removed,
        changed=changed,
        router_changed=(a.router and a.router.digest) != (b.router and b.router.digest),
        base_changed=a.base_model != b.base_model,
        recipes_added=recipes_added,
        recipes_removed=recipes_removed,
        recipes_changed=recipes_changed,
        pairs_added=pairs_added,
        pairs_removed=pairs_removed,
        mixes=None if lists[0] == lists[1] else "listed" if lists[1] else "any",
    )


def _changes(old: Mapping[K, object], new: Mapping[K, object]) -> tuple[tuple[K, ...], ...]:
    """The names of what is added, removed and changed."""
    return (
        tuple(name for name in new if name not in old),
        tuple(name for name in old if name not in new),
        tuple(name for name in new if name in old and new[name] != old[name]),
    )
