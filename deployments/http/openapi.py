"""Puts the request bodies into /openapi.json and /docs: the routes read them themselves, so FastAPI sees none."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

_REF = "#/components/schemas/{model}"


def body(*models: type[BaseModel]) -> dict[str, Any]:
    """For a route's `openapi_extra`: its body is one of `models`."""
    choices = [{"$ref": _REF.format(model=model.__name__)} for model in models]
    schema = choices[0] if len(choices) == 1 else {"oneOf": choices}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def describe(api: FastAPI, *models: type[BaseModel]) -> None:
    """Adds what `body` refers to."""
    plain = api.openapi

    def openapi() -> dict[str, Any]:
        schema = plain()
        _, definitions = models_json_schema([(model, "validation") for model in models], ref_template=_REF)
        schema.setdefault("components", {}).setdefault("schemas", {}).update(definitions["$defs"])
        return schema

    api.openapi = openapi  # type: ignore[method-assign]
