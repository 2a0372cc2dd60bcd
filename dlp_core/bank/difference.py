"""What changes from one bank to another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from dlp_core.bank.manifest import BankManifest


@dataclass(frozen=True, slots=True)
class BankDiff:
    """The difference between two banks: names of adapters and recipes, and whether the router or base model differ."""

    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...]
    router_changed: bool
    base_changed: bool
    recipes_added: tuple[str, ...] = ()
    recipes_removed: tuple[str, ...] = ()
    recipes_changed: tuple[str, ...] = ()

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
    return BankDiff(
        added=added,
        removed=removed,
        changed=changed,
        router_changed=(a.router and a.router.digest) != (b.router and b.router.digest),
        base_changed=a.base_model != b.base_model,
        recipes_added=recipes_added,
        recipes_removed=recipes_removed,
        recipes_changed=recipes_changed,
    )


def _changes(old: Mapping[str, object], new: Mapping[str, object]) -> tuple[tuple[str, ...], ...]:
    """The names of what is added, removed and changed."""
    return (
        tuple(name for name in new if name not in old),
        tuple(name for name in old if name not in new),
        tuple(name for name in new if name in old and new[name] != old[name]),
    )
