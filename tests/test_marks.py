"""A server or a cluster that a test needs is said by a mark, which nobody sets by hand: `make quick` leaves it out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.conftest import CLUSTER_TESTS, S3_FIXTURES

TESTS = Path(__file__).parent
STARTERS = re.compile(r"\bLocalS3\(|\bLocalApp\b|\bray\.init\(|support\.application|support\.replicas|support\.streams")
"""What starts a server or a cluster, or belongs to an application that runs on one."""


def test_who_uses_an_s3_server_or_a_cluster_is_marked(request: pytest.FixtureRequest) -> None:
    for item in request.session.items:
        fixtures, marks = getattr(item, "fixturenames", ()), {mark.name for mark in item.iter_markers()}
        assert "s3" in marks or S3_FIXTURES.isdisjoint(fixtures), item.nodeid
        assert "cluster" in marks or not item.path.is_relative_to(CLUSTER_TESTS), item.nodeid


def test_servers_and_clusters_are_started_by_fixtures_only() -> None:
    """Beside the fixtures and their helpers: the tests of the S3 server itself, which mark themselves, and of a local
    application that is not started."""
    known = {"conftest.py", "test_marks.py", "dlp_core/store/test_local_s3.py", "deployments/local/test_app.py"}
    for path in TESTS.rglob("*.py"):
        name = path.relative_to(TESTS).as_posix()
        if name not in known and not name.startswith(("cluster/", "support/")):
            assert not STARTERS.search(path.read_text()), f"{name} starts a server or a cluster"


@pytest.mark.parametrize("kind", ["s3", "folder"])
def test_a_parameter_called_s3_marks_its_test(request: pytest.FixtureRequest, kind: str) -> None:
    assert (request.node.get_closest_marker("s3") is not None) == (kind == "s3")


def test_an_s3_server_that_nothing_told_of_is_refused(request: pytest.FixtureRequest) -> None:
    with pytest.raises(pytest.fail.Exception, match="needs an S3 server"):
        request.getfixturevalue("s3")
