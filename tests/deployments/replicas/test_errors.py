"""What a Ray handle raises becomes one of our errors, and an error of ours arrives as it was raised."""

from __future__ import annotations

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, GetTimeoutError, RayTaskError, TaskCancelledError
from ray.serve._private.common import DeploymentID
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError

from deployments.replicas.errors import from_ray
from dlp_core.errors import DeadlineExceeded, EngineFailed, EngineFull


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (BackPressureError(7, 5), EngineFull),
        (ActorDiedError(), EngineFailed),
        (ActorUnavailableError("gone", None), EngineFailed),
        (ReplicaUnavailableError("r"), EngineFailed),
        (TaskCancelledError(), EngineFailed),
        (DeploymentUnavailableError(DeploymentID("d", "a")), EngineFailed),
        (GetTimeoutError(), DeadlineExceeded),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_a_handle_raises_becomes_ours(error: Exception, kind: type[Exception]) -> None:
    assert type(from_ray(error)) is kind


def test_an_error_of_a_replica_arrives_as_it_was_raised() -> None:
    raised = EngineFull("64 requests wait", retry_after=2.0)
    wrapped = RayTaskError("generate", "Traceback ...", raised).as_instanceof_cause()
    found = from_ray(wrapped)
    assert isinstance(found, EngineFull)
    assert (found.message, found.retry_after) == ("64 requests wait", 2.0)


def test_a_bug_stays_a_bug() -> None:
    wrapped = RayTaskError("generate", "Traceback ...", KeyError("x")).as_instanceof_cause()
    assert isinstance(from_ray(wrapped), KeyError)
