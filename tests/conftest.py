"""Fixtures of the whole suite: a real S3 server, fakes of two clouds, and no setting of a developer's environment.

A test that needs an S3 server or a cluster is marked here, so that nobody can forget to and `make quick` can leave it
out. What runs a model or takes seconds has `model` or `slow` in its file.
"""

from __future__ import annotations

import gc
import os
import uuid
from collections.abc import Generator, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from dlp_core.store.local_s3 import LocalS3
from tests.support.cpu_implementations import CPU_IMPLEMENTATIONS, cpu_implementation
from tests.support.fake_azure import FakeAzure, connection_string
from tests.support.fake_blobs import serving_blobs
from tests.support.fake_gcs import FakeGcs

with suppress(ImportError):  # not every test needs it
    from hypothesis import HealthCheck, settings

    # a busy machine is slow, which says nothing about what is tested
    settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("suite")

if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is imported, by whichever test comes first

BUCKET = "dlp-test"
S3_FIXTURES = {"s3", "s3_server"}
REAL_S3 = "DLP_TEST_S3"
AWS = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
"""Settings of this machine, which reach a test only where DLP_TEST_S3 is set."""
CLUSTER_TESTS = Path(__file__).parent / "cluster"
CLUSTER_SECONDS = 2400
"""After which a test on a cluster hangs: it may be the one that starts the cluster."""


def pytest_collection_finish() -> None:
    """What the tests import stays: the collector, which every engine calls when it stops, need not look at it."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> Generator[None]:
    for item in items:  # before -m looks at the marks
        if not S3_FIXTURES.isdisjoint(getattr(item, "fixturenames", ())) or "s3" in parameters(item):
            item.add_marker("s3")
        if item.path.is_relative_to(CLUSTER_TESTS):
            item.add_marker("cluster")
            item.add_marker(pytest.mark.timeout(CLUSTER_SECONDS))
    yield
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)  # or a worker has one to itself when all else is done


def parameters(item: pytest.Item) -> list[str]:
    """The texts among a test's parameters: fixtures get at S3 by a parameter that says so."""
    call = getattr(item, "callspec", None)
    return [value for value in call.params.values() if isinstance(value, str)] if call else []


@pytest.fixture(scope="session", autouse=True)
def _no_cache_of_a_developer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Base models from stores, and digests of files, are kept for the session alone."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dlp_core.store.weights.MEMORY", folder / "digests.json")
        patch.setattr("dlp_core.store.model_location.MODELS", folder / "models")
        yield


@pytest.fixture(params=CPU_IMPLEMENTATIONS)
def each_cpu_implementation(request: pytest.FixtureRequest) -> Iterator[None]:
    """Runs a test with each of the CPU op's implementations for all batches."""
    with cpu_implementation(request.param):
        yield


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict[str, str]]]:
    """A place in the S3 server of this run, and the variables that reach it.

    SeaweedFS is started for the session. DLP_TEST_S3 names a place in another server (MinIO, AWS) to use instead,
    which the usual AWS_* variables reach.
    """
    if REAL_S3 in os.environ:
        yield os.environ[REAL_S3], AWS
        return
    with LocalS3(tmp_path_factory.mktemp("s3")) as server:
        server.create_bucket(BUCKET)
        yield f"s3://{BUCKET}/", server.environment


@pytest.fixture
def s3(request: pytest.FixtureRequest, aws_free: None, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URI of an empty place in the S3 server, which the environment now points to."""
    if request.node.get_closest_marker("s3") is None:
        pytest.fail("no mark says that this test needs an S3 server; a parameter that is called s3 would")
    place, variables = request.getfixturevalue("s3_server")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return f"{place.rstrip('/')}/{uuid.uuid4().hex}/"


@pytest.fixture
def aws_free(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No AWS setting of this machine reaches the test: no variables, no profile, no instance role."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "no-aws-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "no-aws-credentials"))


@pytest.fixture
def cloud_free(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No setting of this machine for Google Cloud or Azure reaches the test, and no metadata server does."""
    pytest.importorskip("obstore", reason="the clouds extra is not installed")
    for name in list(os.environ):
        if name.startswith(("GOOGLE_", "AZURE_", "AZURITE_", "GCE_", "STORAGE_EMULATOR_HOST", "SSL_CERT_FILE")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))  # gcloud's credentials
    for name in ("GCE_METADATA_HOST", "GCE_METADATA_IP"):
        monkeypatch.setenv(name, "127.0.0.1:9")
    monkeypatch.setenv("AZURE_MSI_ENDPOINT", "http://127.0.0.1:9")


@pytest.fixture(scope="session")
def fake_clouds() -> Iterator[dict[str, str]]:
    """The variables that reach a fake of each cloud, which has a bucket BUCKET."""
    with serving_blobs(FakeGcs, BUCKET) as (google, _), serving_blobs(FakeAzure, BUCKET) as (azure, _):
        yield {"STORAGE_EMULATOR_HOST": google, "AZURE_STORAGE_CONNECTION_STRING": connection_string(azure)}


@pytest.fixture
def gs(cloud_free: None, fake_clouds: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> str:
    """The URI of an empty place in a fake of Google Cloud Storage, which the environment now points to."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", fake_clouds["STORAGE_EMULATOR_HOST"])
    return f"gs://{BUCKET}/{uuid.uuid4().hex}/"


@pytest.fixture
def az(cloud_free: None, fake_clouds: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> str:
    """The URI of an empty place in a fake of Azure Blob Storage, which the environment now points to."""
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", fake_clouds["AZURE_STORAGE_CONNECTION_STRING"])
    return f"az://{BUCKET}/{uuid.uuid4().hex}/"
