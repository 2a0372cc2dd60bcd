"""What `args:` in serve_config.yaml may say. Unknown keys are refused; every value is checked before a replica starts.

Replica counts, CPUs, GPUs and queue lengths of the deployments are Ray's business and stand beside
`args:` in serve_config.yaml, not here.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from dlp_core.engine.config import EngineConfig
from dlp_core.mix import WeightRule


class _Args(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class RoutingArgs(_Args):
    """Defaults of a request's `dlp` field, and the most it may ask for."""

    top_p: float = Field(default=0.9, gt=0, le=1)
    default_max_adapters: int = Field(default=3, ge=1)
    weights: WeightRule = "renormalise"
    """Of the kept adapters: their probabilities over their sum, or a softmax over them, as the paper's code has it."""
    min_confidence: float | None = Field(default=None, ge=0, le=1)
    """None: the router's own "none of these" decides alone."""
    max_adapters: int = Field(default=8, ge=1)
    """The most a request may ask for, also with explicit weights."""
    timeout_s: float = Field(default=5.0, gt=0)
    """Longest wait for an answer of the router pool."""
    fallback: str | None = None
    """What serves `auto` when the pool does not answer: the base model's id or an adapter. None: 503."""

    @model_validator(mode="after")
    def _default_within_the_limit(self) -> Self:
        if self.default_max_adapters > self.max_adapters:
            raise ValueError(
                f"default_max_adapters {self.default_max_adapters} is above max_adapters {self.max_adapters}"
            )
        return self


class CacheArgs(_Args):
    """The disk cache of downloaded adapters, one per node."""

    path: Path = Path("~/.cache/dlp/adapters")
    max_bytes: int = Field(default=20 * 1024**3, ge=1)


class LimitArgs(_Args):
    """What one HTTP request may cost."""

    max_body_bytes: int = Field(default=1024**2, ge=1)
    request_timeout_s: float = Field(default=300.0, gt=0)
    default_max_tokens: int = Field(default=512, ge=1)
    """Of a chat completion that names none; less where the prompt leaves less room."""


class AccessArgs(_Args):
    """Where secrets lie, never the secrets themselves (deployments/http/access.py)."""

    admin_token_file: Path | None = None
    """Instead of DLP_ADMIN_TOKEN. Without either there are no admin routes."""
    keys_file: Path | None = None
    """API keys and the adapters each may use. None: everybody may use everything."""


class LogArgs(_Args):
    """What is written about requests (deployments/http/request_log.py)."""

    requests: bool = True
    """One line for each request to a generation route."""
    prompts: bool = False
    """Also its prompt and completion. They are what your users wrote: mind who reads the logs."""


class AppArgs(_Args):
    """Arguments of `deployments.app:build_app`. `bank` and `base_model` default to DLP_BANK and DLP_BASE_MODEL."""

    bank: str = Field(default_factory=lambda: os.environ.get("DLP_BANK", ""), validate_default=True)
    """s3://bucket/prefix/, or a folder that every node has."""
    base_model: str = Field(default_factory=lambda: os.environ.get("DLP_BASE_MODEL", ""), validate_default=True)
    """Folder of the frozen backbone, the same on every node."""
    dtype: Literal["bfloat16", "float32", "float16"] = "bfloat16"
    threads: int | None = Field(default=None, ge=1)
    """torch's CPU threads in a backbone replica. None: one for each of its num_cpus, which Ray sees to."""
    bank_poll_s: float = Field(default=5.0, gt=0)
    """How soon a publish or rollback is noticed, in seconds."""
    engine: EngineConfig = EngineConfig()
    pinned_adapters: tuple[str, ...] = ()
    """Adapters every backbone replica loads at once and never evicts, by their names in the bank."""
    cache: CacheArgs = CacheArgs()
    routing: RoutingArgs = RoutingArgs()
    limits: LimitArgs = LimitArgs()
    access: AccessArgs = AccessArgs()
    log: LogArgs = LogArgs()

    @field_validator("bank", "base_model")
    @classmethod
    def _is_set(cls, value: str, info: ValidationInfo) -> str:
        if not value:
            raise ValueError(f"not set; give it as args.{info.field_name} or as DLP_{str(info.field_name).upper()}")
        return value

    @model_validator(mode="after")
    def _every_mix_fits(self) -> Self:
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
