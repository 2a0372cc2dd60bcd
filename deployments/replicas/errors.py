"""The one seam where Ray's errors become ours."""

from __future__ import annotations

from ray.exceptions import RayActorError, RayTaskError, TaskCancelledError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError

from dlp_core.errors import DeadlineExceeded, EngineFailed, EngineFull


def from_ray(error: Exception) -> Exception:
    """What a deployment handle raised, as one of ours where it has a meaning to the client.

    Ray wraps an exception of a replica in a class that is both RayTaskError and the original; the original
    is its `cause`. What is left unchanged is a bug and ends as an internal error.
    """
    if isinstance(error, RayTaskError):
        cause = error.cause
        return from_ray(cause) if isinstance(cause, Exception) else error
    mapped: Exception = error
    match error:
        case BackPressureError():
            waiting = error.args[0]
            mapped = EngineFull(f"every replica is busy and {waiting} requests wait; retry later", retry_after=1.0)
        case RayActorError() | ReplicaUnavailableError() | TaskCancelledError():
            mapped = EngineFailed("the replica that served this stopped; retry, another takes over", retry_after=1.0)
        case DeploymentUnavailableError():
            mapped = EngineFailed("a deployment failed to start; `serve status` says which and why")
        case TimeoutError():
            mapped = DeadlineExceeded("a replica did not answer in time; retry")
    return mapped
