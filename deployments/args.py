"""The schema of `args:` in serve_config.yaml. Unknown keys are rejected; values are checked before a replica starts.

Replica counts, CPUs, GPUs and queue lengths of the deployments are Ray's settings, beside `args:` in
serve_config.yaml.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from dlp_core.engine.config import EngineConfig
from dlp_core.mix import Activation, Granularity, WeightRule

if TYPE_CHECKING:
    from dlp_core.bank.disk_cache import DiskCache
    from dlp_core.bank.manifest import Blob


class _Args(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class RoutingArgs(_Args):
    """Defaults and limits of a request's `dlp` field."""

    top_p: float | None = Field(default=None, gt=0, le=1)
    """None: the router's own, 0.9 unless it was trained for a coverage."""
    default_max_adapters: int = Field(default=3, ge=1)
    """At most so many in a mix, for a request that does not say."""
    weights: WeightRule = "renormalise"
    """Weights of the kept adapters: probabilities over their sum, or a softmax over them as in the paper's code."""
    activation: Activation = "always"
    """From where on a mix runs (docs/caching.md): `turn` leaves the turns before a chat's last user turn to the plain
    backbone, so that all adapters share their cache. Adapters that were not trained for it lose by it."""
    granularity: Granularity = "request"
    """Of messages of several tasks (docs/api.md): `task` answers each of them on its own. A message of one task is
    answered alike by all three."""
    min_confidence: float | None = Field(default=None, ge=0, le=1)
    """None: only the router's "none of these" decides."""
    max_adapters: int = Field(default=8, ge=1)
    """Maximum per request, explicit weights included."""
    timeout_s: float = Field(default=5.0, gt=0)
    """Maximum wait for the router pool."""
    fallback: str | None = None
    """What serves `auto` if the pool does not answer: the base model's id or an adapter. None: respond with 503."""

    @model_validator(mode="after")
    def _check_default(self) -> Self:
        if self.default_max_adapters > self.max_adapters:
            raise ValueError(
                f"default_max_adapters {self.default_max_adapters} is above max_adapters {self.max_adapters}"
            )
        return self


class CacheArgs(_Args):
    """The disk cache of downloaded adapters, one per node, and who shares the engines' cache of prompts."""

    path: Path = Path("~/.cache/dlp/adapters")
    """Its folder."""
    max_bytes: int = Field(default=20 * 1024**3, ge=1)
    """Adapters used longest ago are deleted beyond it."""
    share: Literal["key", "all", "none"] = "key"
    """Whose prompts may share cached blocks: those of one API key, of all, or of none (deployments/http/sharing.py)."""

    def open(self, *, on_fetch: Callable[[Blob, float], None] | None = None) -> DiskCache:
        """The cache; `on_fetch` is DiskCache's."""
        from dlp_core.bank.disk_cache import DiskCache

        return DiskCache(self.path, self.max_bytes, on_fetch=on_fetch)


class LimitArgs(_Args):
    """Limits of one HTTP request."""

    max_body_bytes: int = Field(default=1024**2, ge=1)
    """Of a body."""
    body_timeout_s: float = Field(default=30.0, gt=0)
    """How long a client may take to send a body."""
    min_body_bytes_per_s: int = Field(default=1024, ge=0)
    """How fast it must send, after a grace of BODY_GRACE_S."""
    strict_fields: bool = False
    """Whether an unknown field of a message is refused, as those of a body are, instead of ignored."""
    max_requests_per_key: int = Field(default=256, ge=1)
    """At once, in one ingress replica, whose max_ongoing_requests all keys share. Counts only where there are keys."""
    request_timeout_s: float = Field(default=300.0, gt=0)
    """How long a generation may take, its queue included."""
    default_max_tokens: int = Field(default=512, ge=1)
    """Maximum for a chat completion that sets none; less if the prompt leaves less room."""


class AccessArgs(_Args):
    """Paths of secret files, never the secrets themselves (deployments/http/access.py)."""

    admin_token_file: Path | None = None
    """Replaces DLP_ADMIN_TOKEN. Without either there are no admin routes."""
    keys_file: Path | None = None
    """API keys and the adapters each may use. None: every caller may use every adapter."""
    metrics_token_file: Path | None = None
    """A token that reads /metrics and nothing else, for Prometheus. With it or with keys, others are refused there."""
    cors_origins: tuple[str, ...] = ()
    """Origins of web pages that may call the API from a browser, such as https://chat.example.com; * for all."""


class LogArgs(_Args):
    """What is logged about requests (deployments/http/request_log.py)."""

    requests: bool = True
    """One line per request to a generation route."""
    prompts: bool = False
    """Also log prompts and completions, and keep what was routed (see FeedbackArgs). They are your users' text:
    restrict access to the logs and to the bank's store."""


class FeedbackArgs(_Args):
    """What the bank's store keeps about requests: feedback, and where log.prompts is on, the requests that were routed
    (deployments/http/keeping.py). Counts are of one ingress replica."""

    keep: bool = True
    """Whether anything is kept. False: there is no feedback."""
    request_share: float = Field(default=1.0, ge=0, le=1)
    """The share of routed requests that is kept, where log.prompts is on."""
    requests_per_day: int = Field(default=2000, ge=0)
    """At most so many requests are kept a day."""
    retention_days: int = Field(default=30, ge=1)
    """Older records are deleted, once a day."""
    batch: int = Field(default=64, ge=1)
    """Records that are written together, ..."""
    delay_s: float = Field(default=5.0, gt=0)
    """... or as soon as the oldest has waited so long. A replica that is killed loses what waits."""
    most_waiting: int = Field(default=1000, ge=1)
    """Records in memory, of each kind, while the store does not take them. Further ones are dropped."""

    @model_validator(mode="after")
    def _check_batch(self) -> Self:
        if self.batch > self.most_waiting:
            raise ValueError(f"batch {self.batch} is above most_waiting {self.most_waiting}")
        return self


class AppArgs(_Args):
    """Arguments of `deployments.app:build_app`. `bank` and `base_model` default to DLP_BANK and DLP_BASE_MODEL."""

    bank: str = Field(default_factory=lambda: os.environ.get("DLP_BANK", ""), validate_default=True)
    """s3://bucket/prefix/ (or gs://, az://), or a folder available on every node."""
    base_model: str = Field(default_factory=lambda: os.environ.get("DLP_BASE_MODEL", ""), validate_default=True)
    """Folder of the frozen backbone, the same on every node."""
    dtype: Literal["bfloat16", "float32", "float16"] = "bfloat16"
    """What the backbone and the adapters are loaded in."""
    threads: int | None = Field(default=None, ge=1)
    """torch's CPU threads in a backbone replica. None: Ray sets them to its num_cpus."""
    bank_poll_s: float = Field(default=5.0, gt=0)
    """Interval between polls of the pointer, in seconds: the delay until a publish or rollback is noticed."""
    stream_interval_ms: float = Field(default=20.0, ge=0, le=1000)
    """Least time between two messages of a backbone replica to an ingress replica, which carry the text of all answers
    between them. The first token of an answer and its end never wait."""
    engine: EngineConfig = EngineConfig()
    """The engine of a backbone replica."""
    pinned_adapters: tuple[str, ...] = ()
    """Adapters that every backbone replica preloads and never evicts, by their names in the bank."""
    cache: CacheArgs = CacheArgs()
    """The disk cache of adapters, and who shares cached prompts."""
    routing: RoutingArgs = RoutingArgs()
    """How a mix is chosen."""
    limits: LimitArgs = LimitArgs()
    """Limits of one HTTP request."""
    access: AccessArgs = AccessArgs()
    """Who may call."""
    log: LogArgs = LogArgs()
    """What is logged about requests."""
    feedback: FeedbackArgs = FeedbackArgs()
    """What the bank's store keeps about requests."""
    console_url: str | None = Field(default=None, pattern=r"^(https?://|/)\S+$")
    """Where operators have a console for this server, if anywhere: GET / links it."""

    @field_validator("bank", "base_model")
    @classmethod
    def _require_value(cls, value: str, info: ValidationInfo) -> str:
        if not value:
            raise ValueError(
                f"not set: set args.{info.field_name} in the config, or DLP_{str(info.field_name).upper()} where Ray "
                "was started (`ray start`), whose processes build the application; the shell of `serve run` is not read"
            )
        return value

    @model_validator(mode="after")
    def _check_slots(self) -> Self:
        if self.routing.max_adapters > self.engine.slots:
            raise ValueError(
                f"routing.max_adapters {self.routing.max_adapters} is above engine.slots {self.engine.slots}: "
                "such a mix could never be resident"
            )
        if len(self.pinned_adapters) + self.routing.max_adapters > self.engine.slots:
            raise ValueError(
                f"{len(self.pinned_adapters)} pinned_adapters and routing.max_adapters {self.routing.max_adapters} "
                f"together are above engine.slots {self.engine.slots}: some mixes could never be resident"
            )
        return self
