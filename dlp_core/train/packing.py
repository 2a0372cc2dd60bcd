"""Several examples in one row of tokens, sharing the prefix that all prompts have in common.

Every prompt opens with the same chat header (for SmolLM2 a default system prompt of 22 tokens, a quarter of
a short example). A packed row holds that prefix once, then the rest of each example; the mask lets a token
see the prefix and what precedes it in its own example, and its position counts on from the prefix. The
result equals training on each example alone, without the padding and without the repeated header.

Shape letters: B rows, T tokens of a row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from dlp_core.errors import InvalidRequest
from dlp_core.train.rows import Row

IGNORED = -100
"""Label of a token that carries no loss (PyTorch's default `ignore_index`)."""


@dataclass(frozen=True, slots=True)
class Example:
    """Token ids of one prompt and the answer wanted, the end-of-turn token included."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """What one forward pass takes."""

    input_ids_BT: torch.Tensor
    position_ids_BT: torch.Tensor
    labels_BT: torch.Tensor
    """The token each position must predict (already shifted), IGNORED where there is no loss."""
    mask_B1TT: torch.Tensor
    """bool, True where a query (dim 2) sees a key (dim 3)."""

    def to(self, device: torch.device) -> PackedBatch:
        tensors = (self.input_ids_BT, self.position_ids_BT, self.labels_BT, self.mask_B1TT)
        return PackedBatch(*(tensor.to(device) for tensor in tensors))


def encode(rows: Sequence[Row], tokenizer: Any) -> list[Example]:
    """Tokenises rows the way the server does: one user message through the chat template.

    Raises InvalidRequest if the tokenizer has no chat template.
    """
    if tokenizer.chat_template is None:
        raise InvalidRequest("the base model's tokenizer has no chat template; train on a chat model")
    end = tokenizer.eos_token_id
    return [
        Example(
            prompt=tuple(
                tokenizer.apply_chat_template(
                    [{"role": "user", "content": row.input}], add_generation_prompt=True, return_dict=False
                )
            ),
            answer=(*tokenizer.encode(row.output, add_special_tokens=False), end),
        )
        for row in rows
    ]


def common_prefix(examples: Sequence[Example]) -> int:
    """Number of tokens that all prompts start with, less than the shortest prompt."""
    shortest = min(examples, key=lambda example: len(example.prompt)).prompt
    for index in range(len(shortest) - 1):
        if any(example.prompt[index] != shortest[index] for example in examples):
            return index
    return len(shortest) - 1


def batches(examples: Sequence[Example], *, prefix: int, rows: int, row_tokens: int) -> Iterator[PackedBatch]:
    """Packs examples in their order into batches of `rows` rows of at most `row_tokens` tokens each.

    An example goes into the first row of the open batch with room for it; when there is none, the batch is
    full. Raises InvalidRequest if an example alone does not fit a row.
    """
    open_rows: list[list[Example]] = [[] for _ in range(rows)]
    room = [row_tokens - prefix] * rows
    for example in examples:
        # The last token of an answer is predicted, never fed.
        need = len(example.prompt) - prefix + len(example.answer) - 1
        if need > row_tokens - prefix:
            raise InvalidRequest(
                f"an example has {prefix + need} tokens, a row holds {row_tokens}; raise --row-tokens or shorten it"
            )
        slot = next((index for index in range(rows) if room[index] >= need), None)
        if slot is None:
            yield collate(open_rows, prefix)
            open_rows, room = [[] for _ in range(rows)], [row_tokens - prefix] * rows
            slot = 0
        open_rows[slot].append(example)
        room[slot] -= need
    if any(open_rows):
        yield collate(open_rows, prefix)


def collate(rows: Sequence[Sequence[Example]], prefix: int) -> PackedBatch:
    """Builds the tensors of one batch; empty rows are left out."""
    rows = [row for row in rows if row]
    ids: list[list[int]] = []
    positions: list[list[int]] = []
    labels: list[list[int]] = []
    segments: list[list[int]] = []
    for row in rows:
        header = row[0].prompt[:prefix]
        ids.append(list(header))
        positions.append(list(range(prefix)))
        labels.append([IGNORED] * prefix)
        segments.append([0] * prefix)
        for number, example in enumerate(row, start=1):
            body = [*example.prompt[prefix:], *example.answer[:-1]]
            ids[-1] += body
            positions[-1] += range(prefix, prefix + len(body))
            labels[-1] += [IGNORED] * (len(body) - len(example.answer)) + list(example.answer)
            segments[-1] += [number] * len(body)
    width = max(len(row_ids) for row_ids in ids)

    def padded(lists: list[list[int]], value: int) -> torch.Tensor:
        return torch.tensor([line + [value] * (width - len(line)) for line in lists])

    segments_BT = padded(segments, -1)  # padding is a segment of its own: it sees itself and the prefix
    same_BTT = segments_BT[:, :, None] == segments_BT[:, None, :]
    prefix_B1T = (segments_BT == 0)[:, None, :]
    causal_TT = torch.ones(width, width, dtype=torch.bool).tril()
    return PackedBatch(
        input_ids_BT=padded(ids, 0),
        position_ids_BT=padded(positions, 0),
        labels_BT=padded(labels, IGNORED),
        mask_B1TT=((same_BTT | prefix_B1T) & causal_TT)[:, None],
    )
