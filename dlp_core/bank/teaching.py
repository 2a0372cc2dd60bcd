"""What the router of a bank folder can learn of each of its adapters and recipes: from rows, from a description, or
nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from dlp_core.bank.folder import adapter_folders, read_base, read_description
from dlp_core.bank.recipes import read_recipes
from dlp_core.errors import InvalidRequest
from dlp_core.router import Router
from dlp_core.router.growth import add_adapter

_NAMED = 8


@dataclass(frozen=True, slots=True)
class Teaching:
    """The adapters and recipes of a bank folder that rows say nothing about."""

    described: Mapping[str, str]
    """Those with a description, by which they are routed."""
    by_name: tuple[str, ...]
    """Those without. They serve who asks for them by name."""

    def complete(self, router: Router) -> Router:
        """The router, trained on the rows, with the described adapters as well."""
        for name, description in self.described.items():
            router, _ = add_adapter(router, name, [], description=description)
        return router


def plan_teaching(folder: Path, tasks: Iterable[str]) -> Teaching:
    """The adapters and recipes of a bank folder that are none of `tasks`.

    Raises InvalidRequest if a task is no adapter and no recipe of the bank, BankError if it is no bank folder,
    AdapterRefused if a description is no line of text.
    """
    read_base(folder)
    taught = set(tasks)
    paths = {path.name: path for path in adapter_folders(folder)}
    recipes = {recipe.name: recipe.description for recipe in read_recipes(folder)}
    strangers = sorted(taught - paths.keys() - recipes.keys())
    if strangers:
        shown = ", ".join(strangers[:_NAMED]) + (" ..." if len(strangers) > _NAMED else "")
        raise InvalidRequest(f"the rows are of tasks that are no adapters or recipes of {folder}: {shown}")
    told = {name: read_description(path) for name, path in paths.items() if name not in taught}
    told |= {name: description for name, description in recipes.items() if name not in taught}
    return Teaching(
        {name: description for name, description in told.items() if description is not None},
        tuple(name for name, description in told.items() if description is None),
    )
