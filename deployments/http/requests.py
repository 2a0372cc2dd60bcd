"""The request bodies of the HTTP API: the OpenAI fields this server supports, plus `dlp` and `top_k`.

Three rules hold for every body. null means absent, whatever the field. A field of OpenAI's API that this server lacks
is accepted at its neutral value (`n: 1`, `tools: []`) and rejected by name otherwise. Any other unknown field is
rejected by name, but of a message it is ignored and named in a header: clients pass on what other servers gave them.
Types are strict: no booleans for numbers, no numbers in strings, no NaN.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from dataclasses import fields
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from dlp_core.adapter.names import AUTO
from dlp_core.engine.request import MAX_LOGPROBS, PENALTIES, REPETITION_PENALTIES, Sampling
from dlp_core.errors import InvalidRequest
from dlp_core.generation.messages import Source, TokenIds
from dlp_core.mix import WeightRule
from dlp_core.text.chat import Message, Role, routing_texts

MAX_STOPS = 4
"""Stop strings per request, as in OpenAI's API."""

MAX_CHOICES = 16
"""Completions per prompt (`n`)."""

MAX_PROMPTS = 128
"""Prompts of one completion request, and its completions in all."""


def unsupported(field: str, reason: str) -> PydanticCustomError:
    """The error for an unsupported field of OpenAI's API; from_validation() adds its full path."""
    return PydanticCustomError("unsupported_parameter", reason, {"field": field})


def signed_64(number: int) -> int:
    """The signed integer of the same 64 bits."""
    return (number + 2**63) % 2**64 - 2**63


def _same(left: object, right: object) -> bool:
    """Whether both are equal and of the same type: JSON's true is not 1."""
    return type(left) is type(right) and left == right


class StrictBody(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)

    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {}
    """Fields of OpenAI's API that have no effect at these values and are not supported at others."""

    @model_validator(mode="before")
    @classmethod
    def _drop_neutral_fields(cls, data: object) -> object:
        if not isinstance(data, dict):
            return data
        kept = {}
        for key, value in data.items():
            if value is None:
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
    min_confidence: float | None = Field(default=None, ge=0, le=1)
    granularity: Literal["request", "sentence"] = "request"
    adapters: list[AdapterWeight] | None = None


_TEXT_PART = '{"type": "text", "text": "..."}'


def _text_of(content: object) -> object:
    """Join OpenAI's list of text parts into one string; other values are left to the type check."""
    if not isinstance(content, list):
        return content
    texts = []
    for index, part in enumerate(content):
        if not isinstance(part, dict) or part.get("type") != "text":
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise PydanticCustomError(
                "content_part", "part {index} is {kind}; only text parts are read", {"index": index, "kind": repr(kind)}
            )
        if not isinstance(part.get("text"), str):
            raise PydanticCustomError(
                "content_part",
                "part {index} must be {shape}",
                {"index": index, "shape": _TEXT_PART},
            )
        texts.append(part["text"])
    return "".join(texts)


class ChatMessage(StrictBody):
    model_config = ConfigDict(extra="allow")

    neutral = {
        "refusal": (),
        "annotations": ([],),
        "audio": (),
        "function_call": (),
        "tool_calls": ([],),
    }  # OpenAI's client sends these when a response is passed back as a turn

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, BeforeValidator(_text_of)]
    name: str | None = None  # of the author: no template reads it

    @property
    def ignored(self) -> tuple[str, ...]:
        """Fields that are in no API this server knows."""
        return tuple(self.model_extra or ())

    def message(self) -> Message:
        role: Role = "system" if self.role == "developer" else self.role
        return Message(role, self.content)


class StreamOptions(StrictBody):
    neutral = {"include_obfuscation": (False,)}

    include_usage: bool = False


def _stops_of(stop: object) -> object:
    return [stop] if isinstance(stop, str) else stop


class _RoutedBody(StrictBody):
    """The fields shared by chat, completions and /v1/route: the model and how to mix."""

    model: str = Field(min_length=1)
    dlp: DLPOptions = DLPOptions()

    @property
    @abstractmethod
    def sources(self) -> tuple[Source, ...]:
        """What is to be continued, or only routed. Each is routed by itself."""


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


class _Generation(_RoutedBody):
    neutral = {
        "logit_bias": ({},),
        "service_tier": ("auto", "default"),
        "store": (False,),
    }

    n: int = Field(default=1, ge=1, le=MAX_CHOICES)
    max_tokens: int | None = Field(default=None, ge=1)
    min_tokens: int = Field(default=0, ge=0)
    temperature: float = Field(default=0.0, ge=0, le=2)  # absent means greedy
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=0)  # 0 keeps every token
    repetition_penalty: float = Field(default=1.0, ge=REPETITION_PENALTIES[0], le=REPETITION_PENALTIES[1])
    presence_penalty: float = Field(default=0.0, ge=PENALTIES[0], le=PENALTIES[1])
    frequency_penalty: float = Field(default=0.0, ge=PENALTIES[0], le=PENALTIES[1])
    ignore_eos: bool = False
    response_format: ResponseFormat | None = None
    add_special_tokens: bool | None = None
    stop: Annotated[list[Annotated[str, Field(min_length=1)]], BeforeValidator(_stops_of)] = Field(
        default_factory=list, max_length=MAX_STOPS
    )
    stream: bool = False
    stream_options: StreamOptions | None = None
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**64)  # 64 bits, signed or not

    cache_salt: str | None = Field(
        default=None, min_length=1, max_length=256
    )  # vLLM's: see deployments/http/sharing.py

    # accepted and ignored: they identify the user and do not affect the completion
    user: str | None = None
    metadata: dict[str, str] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    @property
    def choices(self) -> int:
        """How many answers the request has: `n` for each prompt."""
        return self.n * len(self.sources)

    @property
    def requested_tokens(self) -> int | None:
        """The requested maximum of completion tokens; None for the server's default."""
        return self.max_tokens

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def sampling(self) -> Sampling:
        """The fields of Sampling that the body has by the same name, plus those that OpenAI names differently."""
        shared = {field.name: getattr(self, field.name) for field in fields(Sampling) if field.name in self.__dict__}
        seed = None if self.seed is None else signed_64(self.seed)
        renamed = {
            "max_tokens": self.requested_tokens or None,
            "logprobs": self.requested_logprobs,
            "response_format": None if self.response_format is None else self.response_format.schema_text,
            "seed": seed,
        }
        return Sampling(**shared | renamed)

    @property
    def ignored(self) -> tuple[str, ...]:
        """Paths of unknown fields that were ignored."""
        return ()

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise InvalidRequest("stream_options needs stream: true", param="stream_options")
        if self.requested_tokens is not None and self.min_tokens > self.requested_tokens:
            raise InvalidRequest(
                f"min_tokens is {self.min_tokens}, above the {self.requested_tokens} tokens allowed for the completion",
                param="min_tokens",
            )
        return self

    @property
    @abstractmethod
    def requested_logprobs(self) -> int | None:
        """Alternatives reported with each token; None for no log-probabilities."""


class ChatRequest(_Generation):
    """POST /v1/chat/completions"""

    neutral = _Generation.neutral | {
        "audio": (),
        "function_call": ("none", "auto"),
        "functions": ([],),
        "modalities": (["text"],),
        "moderation": (),
        "parallel_tool_calls": (True, False),
        "prediction": (),
        "prompt_cache_options": (),
        "prompt_cache_retention": (),
        "reasoning_effort": ("none",),
        "tool_choice": ("none", "auto"),
        "tools": ([],),
        "verbosity": ("medium",),
        "web_search_options": (),
    }

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool = False
    top_logprobs: int = Field(default=0, ge=0, le=MAX_LOGPROBS)

    @model_validator(mode="after")
    def _check_user_turn(self) -> Self:
        if not routing_texts(self.sources[0])[0].strip():
            raise InvalidRequest("messages: the last user turn is empty; say something", param="messages")
        return self

    @model_validator(mode="after")
    def _check_one_limit(self) -> Self:
        if self.max_tokens is not None and self.max_completion_tokens not in (None, self.max_tokens):
            raise InvalidRequest("max_tokens and max_completion_tokens differ; give one", param="max_tokens")
        return self

    @model_validator(mode="after")
    def _check_top_logprobs(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise InvalidRequest("top_logprobs needs logprobs: true", param="top_logprobs")
        return self

    @property
    def requested_logprobs(self) -> int | None:
        return self.top_logprobs if self.logprobs else None

    @property
    def sources(self) -> tuple[tuple[Message, ...]]:
        return (tuple(message.message() for message in self.messages),)

    @property
    def ignored(self) -> tuple[str, ...]:
        return tuple(f"messages.{n}.{key}" for n, message in enumerate(self.messages) for key in message.ignored)

    @property
    def requested_tokens(self) -> int | None:
        return self.max_tokens or self.max_completion_tokens


def _is_token_ids(prompt: object) -> bool:
    return isinstance(prompt, list) and all(type(token) is int and 0 <= token < 2**31 for token in prompt)


def _prompts_of(prompt: object) -> tuple[str | TokenIds, ...]:
    """OpenAI's four shapes: a text, its token ids, or a list of either."""
    single = isinstance(prompt, str) or (prompt != [] and _is_token_ids(prompt))
    prompts = [prompt] if single else prompt
    if not isinstance(prompts, list) or not all(isinstance(one, str) or _is_token_ids(one) for one in prompts):
        raise PydanticCustomError("prompt", "a prompt must be text or token ids, or a list of such prompts")
    if not 1 <= len(prompts) <= MAX_PROMPTS:
        raise PydanticCustomError("prompts", "there must be 1 to {most} prompts", {"most": MAX_PROMPTS})
    if any(not one for one in prompts):
        raise PydanticCustomError("prompt", "a prompt must not be empty")
    return tuple(one if isinstance(one, str) else TokenIds(tuple(one)) for one in prompts)


_IDS_SCHEMA = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
_PROMPT_SCHEMA = {
    "anyOf": [
        {"type": "string", "minLength": 1},
        _IDS_SCHEMA,
        {"type": "array", "items": {"type": "string", "minLength": 1}, "minItems": 1, "maxItems": MAX_PROMPTS},
        {"type": "array", "items": _IDS_SCHEMA, "minItems": 1, "maxItems": MAX_PROMPTS},
    ]
}


class CompletionRequest(_Generation):
    """POST /v1/completions"""

    neutral = _Generation.neutral | {
        "best_of": (1,),
        "suffix": ("",),
    }

    prompt: Annotated[tuple[str | TokenIds, ...], PlainValidator(_prompts_of), WithJsonSchema(_PROMPT_SCHEMA)]
    max_tokens: int | None = Field(default=16, ge=0)  # OpenAI's default here; 0 computes the prompt alone
    echo: bool = False
    logprobs: int | None = Field(default=None, ge=0, le=MAX_LOGPROBS)

    @model_validator(mode="after")
    def _check_choices(self) -> Self:
        if self.choices > MAX_PROMPTS:
            raise InvalidRequest(
                f"{len(self.prompt)} prompts with n {self.n} are {self.choices} completions; at most {MAX_PROMPTS}",
                param="n",
            )
        return self

    @property
    def requested_logprobs(self) -> int | None:
        return self.logprobs

    @property
    def sources(self) -> tuple[str | TokenIds, ...]:
        return self.prompt


class TextRequest(_RoutedBody):
    """POST /v1/route with a bare text."""

    text: str

    @property
    def sources(self) -> tuple[str]:
        return (self.text,)


def routed(data: object) -> ChatRequest | CompletionRequest | TextRequest:
    """The body of POST /v1/route: a chat or completion request, or `text` (or `input`); `model` may be left out.

    Raises pydantic's ValidationError, or InvalidRequest unless exactly one of these is given.
    """
    if not isinstance(data, dict):
        return TextRequest.model_validate(data)
    inputs = [key for key in ("messages", "prompt", "text", "input") if key in data]
    if len(inputs) != 1:
        raise InvalidRequest(
            "give exactly one of messages, prompt, text and input", param=inputs[0] if inputs else None
        )
    kind = inputs[0]
    data = {"model": AUTO} | data
    if kind == "messages":
        return ChatRequest.model_validate(data)
    if kind == "prompt":
        return CompletionRequest.model_validate(data)
    return TextRequest.model_validate({"text" if key == "input" else key: value for key, value in data.items()})


AnyRequest = ChatRequest | CompletionRequest | TextRequest
