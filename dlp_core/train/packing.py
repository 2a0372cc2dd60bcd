"""Pack several examples into one row of tokens, sharing the prefix common to all prompts.

Every prompt starts with the same chat header (for SmolLM2 a default system prompt of 22 tokens, a quarter of a short
example). A packed row holds that prefix once, then the rest of each example. The mask lets a token attend to the prefix
and to earlier tokens of its own example; its position continues from the prefix. The result equals training on each
example alone, without the padding and the repeated header.

Shape letters: B rows, T tokens in a row.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any

import torch

from dlp_core.adapter.invocation import NEVER, Invocation, begins_at
from dlp_core.errors import InvalidRequest
from dlp_core.text.codec import TextCodec
from dlp_core.train.rows import Row

IGNORED = -100
"""Label of a token that does not contribute to the loss (PyTorch's default `ignore_index`)."""


@dataclass(frozen=True, slots=True)
class Example:
    """Token ids of one prompt and its expected answer, including the end-of-turn token."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    begins: int = 0
    """The position in the prompt from which the adapter runs."""
    prefill_only: bool = False
    """Whether it runs to the end of the prompt, and not in the answer."""

    @property
    def active(self) -> range:
        """The positions at which the adapter runs."""
        return range(self.begins, len(self.prompt) + (0 if self.prefill_only else len(self.answer)))


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """Inputs of one forward pass."""

    input_ids_BT: torch.Tensor
    position_ids_BT: torch.Tensor
    labels_BT: torch.Tensor
    """The token each position must predict (already shifted), IGNORED where none contributes to the loss."""
    mask_B1TT: torch.Tensor
    """bool, True where a query (dim 2) attends to a key (dim 3)."""
    active_BT: torch.Tensor
    """bool, True where the adapter runs."""

    def to(self, device: torch.device) -> PackedBatch:
        tensors = (self.input_ids_BT, self.position_ids_BT, self.labels_BT, self.mask_B1TT, self.active_BT)
        return PackedBatch(*(tensor.to(device) for tensor in tensors))


def encode(
    rows: Sequence[Row], tokenizer: Any, *, invocation: Invocation | None = None, prefill_only: bool = False
) -> list[Example]:
    """Tokenise rows as the server does: the conversation before the answer through the chat template. With an
    `invocation`, the adapter begins where an activated one is invoked; with `prefill_only`, it ends with the prompt.

    Raises InvalidRequest if the tokenizer has no chat template, or if a prompt lacks the invocation.
    """
    codec = chat_codec(tokenizer)
    end = tokenizer.eos_token_id
    examples = []
    for row in rows:
        prompt = tuple(codec.encode_chat(row.turns).ids)
        begins = 0 if invocation is None else begins_at(prompt, invocation)
        if begins == NEVER:
            raise InvalidRequest(
                f"the row that ends with {row.turns[-1].content[:60]!r} has no user turn for an activated adapter to "
                "begin at; leave it out, or train without --activated"
            )
        answer = (*tokenizer.encode(row.output, add_special_tokens=False), end)
        examples.append(Example(prompt=prompt, answer=answer, begins=begins, prefill_only=prefill_only))
    return examples


def chat_codec(tokenizer: Any) -> TextCodec:
    """The server's codec, without a limit: `batches` says what is too long. Raises InvalidRequest if the tokenizer has
    no chat template."""
    if tokenizer.chat_template is None:
        raise InvalidRequest("the base model's tokenizer has no chat template; train on a chat model")
    return TextCodec(tokenizer, context=sys.maxsize)


def user_invocation(tokenizer: Any) -> Invocation:
    """The tokens by which the chat template begins a user's turn: they invoke an adapter at the last one. Raises
    InvalidRequest if it has no such tokens."""
    opening = chat_codec(tokenizer).user_opening()
    if not opening:
        raise InvalidRequest(
            "the base model's chat template writes no tokens of its own before a user's turn, so nothing could invoke "
            "an activated adapter; train without --activated"
        )
    return tuple(opening)


def common_prefix(examples: Sequence[Example]) -> int:
    """Length of the longest common prefix of all prompts in tokens, always shorter than the shortest prompt. The
    adapter runs in all of it, or in nothing of it."""
    shortest = min(examples, key=lambda example: len(example.prompt)).prompt
    begins = [example.begins for example in examples]
    most = min(len(shortest) - 1, *begins) if any(begins) else len(shortest) - 1
    for index in range(most):
        if any(example.prompt[index] != shortest[index] for example in examples):
            return index
    return most


def batches(examples: Sequence[Example], *, prefix: int, rows: int, row_tokens: int) -> Iterator[PackedBatch]:
    """Pack examples, in order, into batches of `rows` rows of at most `row_tokens` tokens each.

    An example goes into the first row of the open batch with room for it; if no row has room, the batch is complete.
    Raises InvalidRequest if an example alone does not fit into a row.
    """
    open_rows: list[list[Example]] = [[] for _ in range(rows)]
    room = [row_tokens - prefix] * rows
    for example in examples:
        # The last token of an answer is only predicted, never fed.
        length = len(example.prompt) - prefix + len(example.answer) - 1
        if length > row_tokens - prefix:
            raise InvalidRequest(
                f"an example has {prefix + length} tokens, but a row holds {row_tokens}; raise --row-tokens or shorten "
                "the example"
            )
        row = next((index for index in range(rows) if room[index] >= length), None)
        if row is None:
            yield collate(open_rows, prefix)
            open_rows, room = [[] for _ in range(rows)], [row_tokens - prefix] * rows
            row = 0
        open_rows[row].append(example)
        room[row] -= length
    if any(open_rows):
        yield collate(open_rows, prefix)


class EndlessBatches:
    """Batches over and over, the examples shuffled anew for each epoch; `state` is where it stands."""

    def __init__(self, examples: Sequence[Example], rng: Random, *, prefix: int, rows: int, row_tokens: int) -> None:
        self._examples = examples
        self._rng = rng
        self._pack = partial(batches, prefix=prefix, rows=rows, row_tokens=row_tokens)
        self._epoch: Iterator[PackedBatch] = iter(())
        self._began = rng.getstate()
        self._taken = 0

    def __next__(self) -> PackedBatch:
        batch = next(self._epoch, None)
        if batch is None:
            self._begin()
            batch = next(self._epoch)
        self._taken += 1
        return batch

    def state(self) -> dict[str, Any]:
        """For `restore`: how many batches of an epoch are taken, and the random state that it began with."""
        return {"began": self._began, "taken": self._taken}

    def restore(self, state: dict[str, Any]) -> None:
        self._rng.setstate(state["began"])
        self._taken = 0
        for _ in range(state["taken"]):
            next(self)

    def _begin(self) -> None:
        self._began, self._taken = self._rng.getstate(), 0
        self._epoch = self._pack(self._rng.sample(self._examples, len(self._examples)))


def collate(rows: Sequence[Sequence[Example]], prefix: int) -> PackedBatch:
    """Build the tensors of one batch; empty rows are dropped."""
    rows = [row for row in rows if row]
    ids: list[list[int]] = []
    positions: list[list[int]] = []
    labels: list[list[int]] = []
    segments: list[list[int]] = []
    active: list[list[int]] = []
    for row in rows:
        header = row[0].prompt[:prefix]
        ids.append(list(header))
        positions.append(list(range(prefix)))
        labels.append([IGNORED] * prefix)
        segments.append([0] * prefix)
        active.append([int(row[0].begins == 0)] * prefix)
        for number, example in enumerate(row, start=1):
            tokens = [*example.prompt[prefix:], *example.answer[:-1]]
            ids[-1] += tokens
            positions[-1] += range(prefix, prefix + len(tokens))
            labels[-1] += [IGNORED] * (len(tokens) - len(example.answer)) + list(example.answer)
            segments[-1] += [number] * len(tokens)
            active[-1] += [int(position in example.active) for position in range(prefix, prefix + len(tokens))]
    width = max(len(row_ids) for row_ids in ids)

    def padded(lists: list[list[int]], value: int) -> torch.Tensor:
        return torch.tensor([row + [value] * (width - len(row)) for row in lists])

    segments_BT = padded(segments, -1)  # padding is its own segment: it attends only to itself and the prefix
    same_BTT = segments_BT[:, :, None] == segments_BT[:, None, :]
    prefix_B1T = (segments_BT == 0)[:, None, :]
    causal_TT = torch.ones(width, width, dtype=torch.bool).tril()
    return PackedBatch(
        input_ids_BT=padded(ids, 0),
        position_ids_BT=padded(positions, 0),
        labels_BT=padded(labels, IGNORED),
        mask_B1TT=((same_BTT | prefix_B1T) & causal_TT)[:, None],
        active_BT=padded(active, 0).bool(),
    )
