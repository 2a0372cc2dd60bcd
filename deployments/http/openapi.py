"""Adds the request bodies to /openapi.json and /docs: the routes parse them, so FastAPI does not see them."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

_REF = "#/components/schemas/{model}"


def body(*models: type[BaseModel]) -> dict[str, Any]:
    """The `openapi_extra` of a route whose body is one of `models`."""
    choices = [{"$ref": _REF.format(model=model.__name__)} for model in models]
    schema = choices[0] if len(choices) == 1 else {"oneOf": choices}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def query(model: type[BaseModel]) -> dict[str, Any]:
    """The `openapi_extra` of a route whose query is `model`."""
    schema = model.model_json_schema()
    required = schema.get("required", ())
    parameters = [
        {"name": name, "in": "query", "required": name in required, "schema": field}
        for name, field in schema["properties"].items()
    ]
    return {"parameters": parameters}


def describe(api: FastAPI, *models: type[BaseModel]) -> None:
    """Add the schemas that `body` refers to."""
    base_openapi = api.openapi

    def openapi() -> dict[str, Any]:
        schema = base_openapi()
        _, definitions = models_json_schema([(model, "validation") for model in models], ref_template=_REF)
        schema.setdefault("components", {}).setdefault("schemas", {}).update(definitions["$defs"])
        return schema

    api.openapi = openapi  # type: ignore[method-assign]
