"""What the request bodies are made of: the strict base of all of them, and the objects within them."""

from __future__ import annotations

import json
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from dlp_core.mix import Activation, Granularity, WeightRule

Neutral = dict[str, tuple[Any, ...]]
"""Values at which a field that is not supported has no effect, by field."""


def unsupported(field: str, reason: str) -> PydanticCustomError:
    """The error for an unsupported field of OpenAI's API; from_validation() adds its full path."""
    return PydanticCustomError("unsupported_parameter", reason, {"field": field})


def _same(left: object, right: object) -> bool:
    """Whether both are equal and of the same type: JSON's true is not 1."""
    return type(left) is type(right) and left == right


class StrictBody(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)

    neutral: ClassVar[Neutral] = {}
    """Fields of OpenAI's API that have no effect at these values and are not supported at others."""
    nullable: ClassVar[frozenset[str]] = frozenset()
    """Fields of which null is a value; of all others it means absent."""

    @model_validator(mode="before")
    @classmethod
    def _drop_neutral_fields(cls, data: object) -> object:
        if not isinstance(data, dict):
            return data
        kept = {}
        for key, value in data.items():
            if value is None and key not in cls.nullable:
                continue
            if key in cls.neutral:
                if not any(_same(value, neutral) for neutral in cls.neutral[key]):
                    raise unsupported(key, "it is not supported by this server; remove it")
                continue
            kept[key] = value
        return kept


class AdapterWeight(StrictBody):
    """One adapter of an explicit mix. `weight` multiplies the adapter's own scaling."""

    name: str
    weight: float = 1.0


class DLPOptions(StrictBody):
    """The `dlp` field. Absent fields take the server's defaults; `adapters` skips the router."""

    top_p: float | None = Field(default=None, gt=0, le=1)
    max_adapters: int | None = Field(default=None, ge=1)
    weights: WeightRule | None = None
    exact_weights: bool = False
    min_confidence: float | None = Field(default=None, ge=0, le=1)
    granularity: Granularity | None = None
    activation: Activation | None = None
    adapters: list[AdapterWeight] | None = None
    bank: str | None = Field(default=None, min_length=1, max_length=128)
    """A version that is in use: the serving one, the canary or the shadow."""


class StreamOptions(StrictBody):
    neutral: ClassVar[Neutral] = {"include_obfuscation": (False,)}

    include_usage: bool = False


class JsonSchema(StrictBody):
    """The schema of an answer. It is enforced, `strict` or not."""

    name: str | None = None
    description: str | None = None
    json_schema: dict[str, Any] = Field(default_factory=dict, alias="schema")
    strict: bool = True


class ResponseFormat(StrictBody):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _check_schema(self) -> Self:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise PydanticCustomError("schema", 'type "json_schema" and the field json_schema come together')
        return self

    @property
    def schema_text(self) -> str | None:
        """The schema as JSON; None for text."""
        if self.json_schema is not None:
            return json.dumps(self.json_schema.json_schema)
        return '{"type": "object"}' if self.type == "json_object" else None
