"""Every error this library raises deliberately.

    DLPError
    ├── InvalidRequest        400  a field of a request is wrong; `param` names it
    │   └── PromptTooLong     400  prompt and max_tokens do not fit the context window
    ├── UnknownModel          404  no model, adapter or bank of that name
    ├── AdapterRefused        422  an adapter cannot be served exactly
    │   └── DigestMismatch    422  bytes differ from those the bank manifest records
    ├── BankError             422  a bank manifest or its router is malformed or inconsistent
    ├── Conflict              409  another writer changed the pointer first
    ├── EngineFull            429  the queue is full; `retry_after` says when to retry
    ├── RequestAborted        499  the client or an operator ended the request
    ├── EngineFailed          503  the generation loop stopped; the replica is replaced
    │   └── StepFailed        500  it stopped while it computed this request, which may be the reason: not to be retried
    ├── NotFinite             422  the model's output under this mix is infinite or not a number
    ├── RouterUnavailable     503  no router replica answered in time
    ├── AdapterUnavailable    503  an adapter cannot be fetched now; a retry may help
    │   └── AdapterMissing    503  its files are not in the store: publish the bank again, or roll back
    ├── StoreUnavailable      503  the object store did not answer
    ├── NotFound              404  the store has no such object
    ├── LocalDiskError        500  this machine's disk cannot be read or written
    │   └── DiskFull          507  it has no space left
    └── DeadlineExceeded      504  the request timed out

Each message names the adapter, field or object, the limit and the next action. Errors cross process
boundaries, so they must survive pickling: subclasses keep this constructor.
"""

from __future__ import annotations


class DLPError(Exception):
    """Base class. `code` is the machine-readable name sent to clients, `status` the HTTP status."""

    status = 500
    code = "internal_error"

    def __init__(self, message: str, *, param: str | None = None, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.retry_after = retry_after

    @property
    def message(self) -> str:
        return str(self.args[0])


class InvalidRequest(DLPError):
    status = 400
    code = "invalid_value"


class PromptTooLong(InvalidRequest):
    code = "context_length_exceeded"


class UnknownModel(DLPError):
    status = 404
    code = "model_not_found"


class AdapterRefused(DLPError):
    status = 422
    code = "adapter_refused"


class DigestMismatch(AdapterRefused):
    code = "digest_mismatch"


class BankError(DLPError):
    status = 422
    code = "bank_invalid"


class Conflict(DLPError):
    status = 409
    code = "conflict"


class EngineFull(DLPError):
    status = 429
    code = "queue_full"


class RequestAborted(DLPError):
    status = 499
    code = "request_aborted"


class EngineFailed(DLPError):
    status = 503
    code = "engine_failed"


class StepFailed(EngineFailed):
    status = 500
    code = "generation_failed"


class NotFinite(DLPError):
    status = 422
    code = "not_finite"


class RouterUnavailable(DLPError):
    status = 503
    code = "router_unavailable"


class AdapterUnavailable(DLPError):
    status = 503
    code = "adapter_unavailable"


class AdapterMissing(AdapterUnavailable):
    code = "adapter_missing"


class StoreUnavailable(DLPError):
    status = 503
    code = "store_unavailable"


class NotFound(DLPError):
    status = 404
    code = "object_not_found"


class LocalDiskError(DLPError):
    code = "disk_error"


class DiskFull(LocalDiskError):
    status = 507
    code = "disk_full"


class DeadlineExceeded(DLPError):
    status = 504
    code = "deadline_exceeded"
