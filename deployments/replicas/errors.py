"""The only place that maps Ray's errors to DLPErrors."""

from __future__ import annotations

from ray.exceptions import RayActorError, RayTaskError, TaskCancelledError
from ray.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    ReplicaUnavailableError,
    RequestCancelledError,
)

from dlp_core.errors import DeadlineExceeded, EngineFailed, EngineFull, RequestAborted


def from_ray(error: Exception) -> Exception:
    """The error a deployment handle raised, as a DLPError if it means something to the client.

    Ray wraps an exception of a replica in a class that is both RayTaskError and the original; the original
    is its `cause`. Any error returned unchanged is a bug and becomes an internal error.
    """
    if isinstance(error, RayTaskError):
        cause = error.cause
        return from_ray(cause) if isinstance(cause, Exception) else error
    mapped: Exception = error
    match error:
        case BackPressureError():
            waiting = error.args[0]
            mapped = EngineFull(
                f"every replica is busy and {waiting} requests are queued; retry later", retry_after=1.0
            )
        case RequestCancelledError():
            mapped = RequestAborted("the request was cancelled")
        case RayActorError() | ReplicaUnavailableError() | TaskCancelledError():
            mapped = EngineFailed(
                "the replica that served this request stopped; retry, another will serve it", retry_after=1.0
            )
        case DeploymentUnavailableError():
            mapped = EngineFailed("a deployment failed to start; `serve status` says which and why")
        case TimeoutError():
            mapped = DeadlineExceeded("a replica did not answer in time; retry")
    return mapped
