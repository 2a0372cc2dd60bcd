"""How the native stores of two clouds are reached: settings from the standard variables of each.

obstore reads most of them: `GOOGLE_APPLICATION_CREDENTIALS`, the file of `gcloud auth application-default login`, and
the metadata server; `AZURE_STORAGE_ACCOUNT_NAME` with an account key, a SAS token, a client secret, a workload identity
or a managed identity. Added here is what it does not read: Google's variable for emulators, Azure's connection strings,
and the names that Azure's command line uses.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, TypeAlias
from urllib.parse import urlsplit

from obstore.store import AzureStore, GCSStore

from dlp_core.errors import StoreUnavailable

if TYPE_CHECKING:
    from obstore.store import AzureConfig, ClientConfig, RetryConfig

CONNECT_SECONDS = 3.0
READ_SECONDS = 20.0
"""Maximum silence: while a body arrives, or from the start of a request to the first byte of its response."""
RETRIES = 3
BACKOFF_SECONDS = 0.5
"""Before the first retry: Google Cloud Storage takes one write a second of the same object."""
RETRY_SECONDS = 600.0
"""After which nothing is tried again, the rest of a download included."""

GOOGLE_EMULATOR, AZURE_CONNECTION = "STORAGE_EMULATOR_HOST", "AZURE_STORAGE_CONNECTION_STRING"

Client: TypeAlias = GCSStore | AzureStore


@dataclass(frozen=True, slots=True)
class Cloud:
    """A cloud, in the words of its users."""

    name: str
    scheme: str
    bucket: str
    """What it calls one."""
    credentials: str
    """How a process gets them."""
    roles: str
    """What they must allow."""
    by_generation: bool
    """Conditions name the generation of an object, not its etag."""
    connect: Callable[[str], tuple[Client, str]]
    """The client for a bucket, and its endpoint. Raises StoreUnavailable, or an error of obstore."""


def _google(bucket: str) -> tuple[Client, str]:
    emulator = os.environ.get(GOOGLE_EMULATOR)
    if not emulator:
        endpoint = "https://storage.googleapis.com"
        return GCSStore(bucket, client_options=_options(endpoint), retry_config=_retries()), endpoint
    endpoint = _checked(emulator if "://" in emulator else f"http://{emulator}", GOOGLE_EMULATOR)
    return (
        # an emulator takes any token; without one, the client would ask the metadata server
        GCSStore(
            bucket,
            config={"base_url": endpoint, "bearer_token": "emulator"},
            client_options=_options(endpoint),
            retry_config=_retries(),
        ),
        endpoint,
    )


def _azure(container: str) -> tuple[Client, str]:
    text = os.environ.get(AZURE_CONNECTION)
    config = _parse_connection(text) if text else _account()
    if config.get("use_emulator"):
        endpoint = os.environ.get("AZURITE_BLOB_STORAGE_URL", "http://127.0.0.1:10000")
    else:
        endpoint = config["endpoint"]
    return (
        AzureStore(container, config=config, client_options=_options(endpoint), retry_config=_retries()),
        endpoint,
    )


def _account() -> AzureConfig:
    """The account and its endpoint, and a key if it has the name that Azure's command line gives it."""
    variables = os.environ
    account = variables.get("AZURE_STORAGE_ACCOUNT_NAME") or variables.get("AZURE_STORAGE_ACCOUNT")
    if not account:
        raise StoreUnavailable(
            f"no storage account is named for az://; set AZURE_STORAGE_ACCOUNT_NAME, or {AZURE_CONNECTION}"
        )
    name = "AZURE_STORAGE_ENDPOINT"
    endpoint = _checked(variables.get(name) or f"https://{account}.blob.core.windows.net", name)
    config: AzureConfig = {"account_name": account, "endpoint": endpoint}
    if key := variables.get("AZURE_STORAGE_KEY"):
        config["account_key"] = key
    return config


def _parse_connection(text: str) -> AzureConfig:
    """The settings in a connection string. Raises StoreUnavailable, without repeating it."""
    parts = dict(part.strip().partition("=")[::2] for part in text.split(";") if part.strip())
    if parts.get("UseDevelopmentStorage", "").lower() == "true":
        return {"use_emulator": True}
    account = parts.get("AccountName")
    if not account:
        raise StoreUnavailable(
            f"{AZURE_CONNECTION} names no account; it must be AccountName=...;AccountKey=..., as "
            "`az storage account show-connection-string` prints it"
        )
    protocol = parts.get("DefaultEndpointsProtocol", "https")
    suffix = parts.get("EndpointSuffix", "core.windows.net")
    endpoint = _checked(parts.get("BlobEndpoint") or f"{protocol}://{account}.blob.{suffix}", AZURE_CONNECTION)
    config: AzureConfig = {"account_name": account, "endpoint": endpoint}
    if key := parts.get("AccountKey"):
        config["account_key"] = key
    if signature := parts.get("SharedAccessSignature"):
        config["sas_key"] = signature
    return config


def _checked(endpoint: str, variable: str) -> str:
    """A URL that the client can use. Raises StoreUnavailable."""
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
        raise StoreUnavailable(f"the endpoint in {variable} is not a plain http:// or https:// URL; correct it")
    return endpoint.rstrip("/")


def _options(endpoint: str) -> ClientConfig:
    return {
        "allow_http": endpoint.startswith("http://"),  # emulators
        "connect_timeout": timedelta(seconds=CONNECT_SECONDS),
        "read_timeout": timedelta(seconds=READ_SECONDS),
        "timeout": timedelta(days=1),  # obstore's 30 s are for a whole download
        "user_agent": "dlp-serve",
    }


def _retries() -> RetryConfig:
    backoff = timedelta(seconds=BACKOFF_SECONDS)
    return {
        "max_retries": RETRIES,
        "retry_timeout": timedelta(seconds=RETRY_SECONDS),
        "backoff": {"init_backoff": backoff, "max_backoff": 8 * backoff, "base": 2},
    }


GOOGLE = Cloud(
    name="Google Cloud Storage",
    scheme="gs",
    bucket="bucket",
    credentials=(
        "set GOOGLE_APPLICATION_CREDENTIALS to the key file of a service account, run `gcloud auth application-default "
        "login`, or attach a service account"
    ),
    roles="roles/storage.objectViewer to read, roles/storage.objectUser to publish",
    by_generation=True,
    connect=_google,
)

AZURE = Cloud(
    name="Azure Blob Storage",
    scheme="az",
    bucket="container",
    credentials=(
        f"set {AZURE_CONNECTION}, AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN, or attach a workload or "
        "managed identity"
    ),
    roles="Storage Blob Data Reader to read, Storage Blob Data Contributor to publish",
    by_generation=False,
    connect=_azure,
)

CLOUDS = {cloud.scheme: cloud for cloud in (GOOGLE, AZURE)}
