"""The HTTP API in front of an echo."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest
from starlette.testclient import TestClient

from deployments.args import RoutingArgs
from deployments.http.access import Access
from deployments.http.app import create_app
from tests.support.echo import LIMITS, EchoService


@pytest.fixture
def service() -> EchoService:
    return EchoService()


@pytest.fixture
def http(service: EchoService) -> Iterator[TestClient]:
    api = create_app(service, routing=RoutingArgs(max_adapters=3), limits=LIMITS, access=Access())
    with TestClient(api, raise_server_exceptions=False, base_url="http://server/v1") as client:
        yield client


@pytest.fixture
def client(http: TestClient) -> openai.OpenAI:
    return openai.OpenAI(base_url="http://server/v1", api_key="unused", http_client=http, max_retries=0)
