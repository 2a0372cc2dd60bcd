"""What a router is trained on: rows, variants of rows as users type them, and texts of no task."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from random import Random
from typing import NamedTuple

import numpy as np

from dlp_core.router.augment import degrade, invented_word, noise
from dlp_core.router.encoder import Floats
from dlp_core.router.slots import Slots
from dlp_core.router.training import everyday
from dlp_core.router.training.examples import Example, by_task
from dlp_core.router.training.progress import Watch
from dlp_core.router.training.soft_labels import Shares
from dlp_core.router.training.teacher import Teacher
from dlp_core.router.training.vocabulary import whole_words

_EMBEDDED = 200  # rows of a task that the teacher embeds
_EMBEDDED_BACKGROUND = 4000
_NOISE = 500
_ALIKE = 0.65  # cosine similarity of teacher embeddings: an everyday request that close to a row may be of its task
_VALUES = 4000


class Sample(NamedTuple):
    """A training text. Variants of a row have its tasks and, as far as it is kept, its meaning."""

    text: str
    tasks: tuple[int, ...]
    """None for a text of no task."""
    meaning: int | None
    """Row of the teacher's embeddings; None if it is not known."""
    shares: Shares | None = None
    """Soft labels, if it has any."""


class Corpus(NamedTuple):
    """The kinds of samples, and the teacher's embeddings."""

    rows: list[Sample]
    degraded: list[Sample]
    """Rows as if typed in a hurry."""
    swapped: list[Sample]
    """Rows with other slot values."""
    background: list[Sample]
    """Rows of no task."""
    everyday: list[Sample]
    """Other texts of no task: everyday requests, and noise."""
    embeddings_ET: Floats
    """The teacher's embeddings, of unit length; (0, 0) without a teacher."""

    def strangers(self, count: int, rng: Random) -> list[Sample]:
        """At most `count` texts of no task, half of them rows if there are enough."""
        own = rng.sample(self.background, min(count // 2, len(self.background)))
        return own + rng.sample(self.everyday, min(count - len(own), len(self.everyday)))

    @property
    def samples(self) -> list[Sample]:
        return [*self.rows, *self.degraded, *self.swapped, *self.background, *self.everyday]

    def meanings(self, samples: Sequence[Sample]) -> Floats:
        """The teacher's embeddings of these samples, (B, T); zeros where they are not known."""
        meanings = np.zeros((len(samples), self.embeddings_ET.shape[1]), np.float32)
        for row, sample in enumerate(samples):
            if sample.meaning is not None:
                meanings[row] = self.embeddings_ET[sample.meaning]
        return meanings


def build(
    examples: Sequence[Example],
    teacher: Teacher | None,
    rng: Random,
    *,
    characters: int | None = None,
    variants: float = 1.0,
    watch: Watch | None = None,
) -> Corpus:
    """Make the corpus of these rows, with this fraction of their variants. The teacher reads so many `characters` of a
    row, or all."""
    embedded, embeddings = _embed(examples, teacher, characters, watch or Watch())
    meaning_of = {index: row for row, index in enumerate(embedded)}
    samples = [
        Sample(example.text, example.tasks, meaning_of.get(index), example.shares)
        for index, example in enumerate(examples)
    ]
    rows = [sample for sample in samples if sample.tasks]
    slots = Slots({task: [example.text for example in own] for task, own in by_task(examples).items()})
    values = slot_values(teacher, rng)
    some = rng.sample(rows, round(variants * len(rows)))
    degraded = [row._replace(text=degrade(row.text, rng)) for row in some]
    swapped = [row._replace(text=slots.swap(row.text, row.tasks, values, rng), meaning=None) for row in some]
    texts = [row.text for row in rows]
    background = [sample for sample in samples if not sample.tasks]
    others = [Sample(noise(texts, rng), (), None) for _ in range(_NOISE)]
    if teacher is None:
        others += [Sample(text, (), None) for text in everyday.requests(everyday.COUNT)]
    else:
        own = embeddings[[row.meaning for row in rows if row.meaning is not None]]
        parts = np.array_split(teacher.everyday_ET, 16)
        alike = np.concatenate([(part @ own.T).max(axis=1) for part in parts])
        first, embeddings = len(embeddings), np.concatenate([embeddings, teacher.everyday_ET])
        others += [Sample(teacher.everyday[n], (), first + n) for n in np.flatnonzero(alike < _ALIKE).tolist()]
    return Corpus(rows, degraded, swapped, background, others, embeddings)


def slot_values(teacher: Teacher | None, rng: Random) -> list[str]:
    """Words to put in the place of others: half of them unlike any word."""
    words = whole_words(teacher.tokenizer) if teacher else []
    return [*rng.sample(words, min(_VALUES, len(words))), *(invented_word(rng) for _ in range(_VALUES))]


def _embed(
    examples: Sequence[Example], teacher: Teacher | None, characters: int | None, watch: Watch
) -> tuple[list[int], Floats]:
    """The indices of the first examples of each task, and the teacher's embeddings of them."""
    if teacher is None:
        return [], np.zeros((0, 0), np.float32)
    chosen: list[int] = []
    counts: dict[tuple[int, ...], int] = {}
    for index, example in enumerate(examples):
        count = counts[example.tasks] = counts.get(example.tasks, 0) + 1
        if count <= (_EMBEDDED if example.tasks else _EMBEDDED_BACKGROUND):
            chosen.append(index)
    texts = [examples[index].text[:characters] for index in chosen]
    encode = partial(teacher.encoder.encode, texts, report=watch.part("encode rows", 0.5, 0.6))
    return chosen, watch.checkpoints.once("rows", encode)
