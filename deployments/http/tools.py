"""The tools of a chat request, and its choice among them."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, Field, PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from deployments.http.fields import StrictBody
from dlp_core.text.tools import Choice

MAX_TOOLS = 128
"""As in OpenAI's API."""

MAX_TOOLS_BYTES = 256 * 1024
"""Of all of them together, as JSON in UTF-8."""


def _is_object(parameters: dict[str, Any]) -> dict[str, Any]:
    if parameters and parameters.get("type") != "object":
        raise PydanticCustomError("parameters", 'it must be a JSON schema of {"type": "object"}')
    return parameters


class Function(StrictBody):
    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")  # as in OpenAI's API
    description: str | None = None
    parameters: Annotated[dict[str, Any], AfterValidator(_is_object)] | None = None
    strict: bool | None = None  # with tool_choice required or by name, arguments follow the schema in any case


class Tool(StrictBody):
    type: Literal["function"]
    function: Function


def _tools(tools: list[Tool]) -> list[Tool]:
    names = [tool.function.name for tool in tools]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise PydanticCustomError("tools", "two functions are named {name}", {"name": repr(twice)})
    size = len(json.dumps([schema_of(tool) for tool in tools], ensure_ascii=False, allow_nan=False).encode())
    if size > MAX_TOOLS_BYTES:
        raise PydanticCustomError(
            "tools", "they have {size} bytes as JSON; at most {most} are read", {"size": size, "most": MAX_TOOLS_BYTES}
        )
    return tools


ToolList: TypeAlias = Annotated[list[Tool], Field(max_length=MAX_TOOLS), AfterValidator(_tools)]
"""The type of `tools`."""


def schema_of(tool: Tool) -> dict[str, Any]:
    """The tool as templates read it: what was sent, without fields that are null."""
    return tool.model_dump(exclude_unset=True)


def _choice_of(choice: object) -> tuple[Choice, str | None]:
    match choice:
        case "none" | "auto" | "required":
            return choice, None
        case {"type": "function", "function": {"name": str(name), **fields}, **others} if not fields | others:
            return "required", name
    raise PydanticCustomError(
        "tool_choice", 'it must be "none", "auto", "required" or {"type": "function", "function": {"name": "..."}}'
    )


_CHOICE_SCHEMA = {
    "anyOf": [
        {"enum": ["none", "auto", "required"], "type": "string"},
        {
            "type": "object",
            "properties": {
                "type": {"const": "function"},
                "function": {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]},
            },
            "required": ["type", "function"],
        },
    ]
}

ToolChoice: TypeAlias = Annotated[tuple[Choice, str | None], PlainValidator(_choice_of), WithJsonSchema(_CHOICE_SCHEMA)]
"""The type of `tool_choice`: how, and the one function that is named."""
