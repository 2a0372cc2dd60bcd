"""The request bodies of the HTTP API: the OpenAI fields this server supports, plus `dlp` and `top_k`.

Three rules hold for every body. null means absent, whatever the field, but for feedback's `adapter`. A field of
OpenAI's API that this server lacks is accepted at its neutral value (`n: 1`, `functions: []`) and rejected by name
otherwise. Any other unknown field is rejected by name, but of a message it is ignored and named in a header: clients
pass on what other servers gave them. Types are strict: no booleans for numbers, no numbers in strings, no NaN.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import fields
from typing import Annotated, ClassVar, Self

from pydantic import BeforeValidator, Field, model_validator

from deployments.http.fields import DLPOptions, Neutral, ResponseFormat, StreamOptions, StrictBody
from deployments.http.messages import ChatMessage
from deployments.http.prompts import MAX_PROMPTS, Prompts
from deployments.http.tools import ToolChoice, ToolList, schema_of
from dlp_core.adapter.names import AUTO
from dlp_core.engine.request import MAX_LOGPROBS, PENALTIES, REPETITION_PENALTIES, Sampling
from dlp_core.errors import InvalidRequest
from dlp_core.generation.messages import Source, TokenIds
from dlp_core.text.chat import Message, routing_texts
from dlp_core.text.tools import Tools

MAX_STOPS = 4
"""Stop strings per request, as in OpenAI's API."""

MAX_CHOICES = 16
"""Completions per prompt (`n`)."""


def signed_64(number: int) -> int:
    """The signed integer of the same 64 bits."""
    return (number + 2**63) % 2**64 - 2**63


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


class _Generation(_RoutedBody):
    neutral: ClassVar[Neutral] = {
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

    user: str | None = None  # stays with one version of the bank while there is a canary

    # accepted and ignored: they identify the user and do not affect the completion
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

    neutral: ClassVar[Neutral] = _Generation.neutral | {
        "audio": (),
        "function_call": ("none", "auto"),
        "functions": ([],),
        "modalities": (["text"],),
        "moderation": (),
        "prediction": (),
        "prompt_cache_options": (),
        "prompt_cache_retention": (),
        "reasoning_effort": ("none",),
        "verbosity": ("medium",),
        "web_search_options": (),
    }

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool = False
    top_logprobs: int = Field(default=0, ge=0, le=MAX_LOGPROBS)
    tools: ToolList = Field(default_factory=list)
    tool_choice: ToolChoice = Field(default_factory=lambda: ("auto", None))
    parallel_tool_calls: bool = True

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

    @model_validator(mode="after")
    def _check_tool_choice(self) -> Self:
        choice, only = self.tool_choice
        if choice == "required" and not self.tools:
            raise InvalidRequest("tool_choice: there are no tools to choose from", param="tool_choice")
        if only is not None and all(tool.function.name != only for tool in self.tools):
            raise InvalidRequest(f"tool_choice: no tool is named {only!r}", param="tool_choice")
        schema = None if self.response_format is None else self.response_format.schema_text
        if self.tools and choice != "none" and schema is not None:
            raise InvalidRequest(
                "response_format leaves no room for calls; leave it out, or send tool_choice: none",
                param="response_format",
            )
        return self

    @property
    def offered(self) -> Tools | None:
        """What the answer may call; None without tools."""
        if not self.tools:
            return None
        choice, only = self.tool_choice
        return Tools(tuple(map(schema_of, self.tools)), choice, only, self.parallel_tool_calls)

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


class CompletionRequest(_Generation):
    """POST /v1/completions"""

    neutral: ClassVar[Neutral] = _Generation.neutral | {
        "best_of": (1,),
        "suffix": ("",),
    }

    prompt: Prompts
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
