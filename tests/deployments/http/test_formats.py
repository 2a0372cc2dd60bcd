"""`response_format`: what reaches the backbone, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import BaseModel
from starlette.testclient import TestClient

from tests.support.echo import EchoService, chat, refused

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


@pytest.mark.parametrize(
    ("format_", "schema"),
    [
        (None, None),
        ({"type": "text"}, None),
        ({"type": "json_object"}, {"type": "object"}),
        ({"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA, "strict": True}}, SCHEMA),
        ({"type": "json_schema", "json_schema": {"name": "n", "strict": None, "schema": SCHEMA}}, SCHEMA),
        ({"type": "json_schema", "json_schema": {"name": "n", "description": "d"}}, {}),
    ],
)
def test_a_format_reaches_the_backbone_as_a_schema(
    http: TestClient, service: EchoService, format_: object, schema: object
) -> None:
    assert http.post("/chat/completions", json=chat(response_format=format_)).status_code == 200
    sent = service.asked[0].sampling.response_format
    assert (None if sent is None else json.loads(sent)) == schema


@pytest.mark.parametrize(
    ("format_", "param"),
    [
        ("json", "response_format"),
        ({"type": "xml"}, "response_format.type"),
        ({"type": "json_schema"}, "response_format"),
        ({"type": "json_object", "json_schema": {"schema": SCHEMA}}, "response_format"),
        ({"type": "json_schema", "json_schema": {"schema": 5}}, "response_format.json_schema.schema"),
    ],
)
def test_a_bad_format_is_refused(http: TestClient, format_: object, param: str) -> None:
    refused(http.post("/chat/completions", json=chat(response_format=format_)), 400, param, "invalid_value")


@pytest.mark.parametrize("changes", [{"min_tokens": 2}, {"ignore_eos": True}])
def test_a_field_that_contradicts_it_is_named(http: TestClient, changes: dict[str, Any]) -> None:
    [field] = changes
    body = chat(response_format={"type": "json_object"}, **changes)
    refused(http.post("/chat/completions", json=body), 400, field, "invalid_value")


def test_a_pydantic_model_is_parsed(http: TestClient) -> None:
    """As OpenAI's client sends one; the echo answers with the prompt, so that is the document."""
    import openai

    class Answer(BaseModel):
        a: int

    client = openai.OpenAI(base_url="http://server/v1", api_key="unused", http_client=http, max_retries=0)
    completion = client.chat.completions.parse(
        model="auto", messages=[{"role": "user", "content": '{"a": 5}'}], response_format=Answer
    )
    assert completion.choices[0].message.parsed == Answer(a=5)
