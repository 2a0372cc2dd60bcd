"""Recipes in a bank folder: each is a small file, `recipes/NAME.json`.

    {"adapters": [{"adapter": "cron", "weight": 0.71, "digest": "sha256:..."}, ...],
     "description": "...", "fitted": {"rows": 64, ...}}

A recipe is a mix of the bank's adapters under a name of its own: fitted by `dlp mix fit`, or written by hand, with
weights alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from pydantic import Field, ValidationError

from dlp_core.adapter.names import validate_name
from dlp_core.bank.manifest import AdapterEntry, Description, RecipeEntry, RecipeFit, RecipePart
from dlp_core.errors import BankError, InvalidRequest, UnknownModel
from dlp_core.store.disk import disk_errors
from dlp_core.store.records import Record, first_problem

RECIPES_FOLDER = "recipes"

_CONTENT = 'a recipe is {"adapters": [{"adapter": "<name>", "weight": <number>}, ...]}'


class _RecipeFile(Record):
    adapters: tuple[RecipePart, ...] = Field(min_length=1)
    description: Description | None = None
    fitted: RecipeFit | None = None


def recipe_path(folder: Path, name: str) -> Path:
    """Where a bank folder has the recipe of that name. Raises InvalidRequest if it is no name."""
    return folder / RECIPES_FOLDER / f"{validate_name(name)}.json"


def read_recipes(folder: Path) -> list[RecipeEntry]:
    """The recipes of a bank folder, by name, as if a router knew them all. Raises BankError, naming the file."""
    return [_read(path) for path in sorted((folder / RECIPES_FOLDER).glob("[!.]*.json"), key=lambda path: path.stem)]


def write_recipe(folder: Path, recipe: RecipeEntry, *, replace: bool = False) -> Path:
    """Write a recipe into a bank folder; it appears complete or not at all.

    Raises InvalidRequest if the folder has one of that name, unless `replace`, or an adapter of that name.
    """
    path = recipe_path(folder, recipe.name)
    if (folder / "adapters" / recipe.name).is_dir():
        raise InvalidRequest(f"{recipe.name!r} is an adapter of {folder}; give the recipe another name")
    if path.exists() and not replace:
        raise InvalidRequest(f"{path} exists; --replace writes another recipe in its place")
    partial = path.with_name(f".{path.name}.part")
    with disk_errors(f"{path} cannot be written"):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.write_text(recipe_text(recipe), "utf-8")
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    return path


def remove_recipe(folder: Path, name: str) -> None:
    """Remove a recipe from a bank folder. Raises UnknownModel if it has none of that name."""
    path = recipe_path(folder, name)
    if not path.exists():
        raise UnknownModel(f"there is no recipe {name!r} in {folder}")
    with disk_errors(f"{path} cannot be removed"):
        path.unlink()
        with suppress(OSError):  # others are left
            path.parent.rmdir()


def recipe_text(recipe: RecipeEntry) -> str:
    """The text of a recipe's file."""
    return json.dumps(recipe.content, ensure_ascii=False, indent=2) + "\n"


def refitted(recipes: Sequence[RecipeEntry], adapter: AdapterEntry) -> tuple[str, ...]:
    """A warning for each recipe whose weight of this adapter was fitted with another version of it."""
    return tuple(
        f"recipe {recipe.name!r} was fitted with another version of it; fit it again, or judge it with `dlp eval gate`"
        for recipe in recipes
        for part in recipe.adapters
        if part.adapter == adapter.name and part.digest not in (None, adapter.digest)
    )


def entry_of(
    name: str,
    weights: Mapping[str, float],
    digests: Mapping[str, str],
    *,
    description: str | None = None,
    fitted: RecipeFit | None = None,
) -> RecipeEntry:
    """The recipe of these weights; `digests` are of the adapters that they were fitted with. Raises InvalidRequest."""
    try:
        return RecipeEntry(
            name=name,
            adapters=tuple(
                RecipePart(adapter=adapter, weight=weight, digest=digests.get(adapter))
                for adapter, weight in weights.items()
            ),
            routed=False,
            description=description,
            fitted=fitted,
        )
    except ValidationError as error:
        raise InvalidRequest(f"recipe {name!r}: {first_problem(error)}") from None


def _read(path: Path) -> RecipeEntry:
    try:
        name = validate_name(path.stem)
        with disk_errors(f"{path} cannot be read", mistake=BankError, action=_CONTENT):
            read = _RecipeFile.model_validate_json(path.read_bytes())
        return RecipeEntry(name=name, adapters=read.adapters, description=read.description, fitted=read.fitted)
    except InvalidRequest as error:
        raise BankError(f"{path}: {error.message}") from None
    except ValidationError as error:
        raise BankError(f"{path}: {_CONTENT}: {first_problem(error)}") from None
