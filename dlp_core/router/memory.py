"""A sample of a router's training prompts, as its encoder sees them: an adapter that is added later must not claim
them. Vectors are kept, not the text.

Shape letters: M texts, I inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dlp_core.router.encoder import Floats

NO_TASK = -1
MEMORY_SIZE = 4096
"""Maximum number of texts a router remembers, over all its tasks."""


@dataclass(frozen=True, slots=True, eq=False)
class Memory:
    """Inputs of M texts, and the index of each text's adapter, NO_TASK if it fits none."""

    inputs_MI: Floats
    tasks_M: NDArray[np.int16]

    def only(self, kept: Sequence[int]) -> Memory:
        """The texts of these adapters, renumbered in this order, and those of no adapter."""
        last = max([int(self.tasks_M.max(initial=0)), *kept])  # an adapter may have no text here
        new_index = np.full(last + 2, NO_TASK - 1, np.int16)  # the last one is NO_TASK's
        new_index[list(kept)] = np.arange(len(kept))
        new_index[NO_TASK] = NO_TASK
        tasks = new_index[self.tasks_M]
        kept_texts = tasks >= NO_TASK
        return Memory(self.inputs_MI[kept_texts], tasks[kept_texts])

    def with_texts(self, inputs_MI: Floats, task: int) -> Memory:
        """Add texts of a task. At most MEMORY_SIZE remain: every task gives up its share of the older texts."""
        kept = np.arange(len(self.tasks_M))
        surplus = len(kept) + len(inputs_MI) - MEMORY_SIZE
        if surplus > 0:
            kept = np.delete(kept, np.linspace(0, len(kept) - 1, surplus).astype(np.int64))
        tasks = np.concatenate([self.tasks_M[kept], np.full(len(inputs_MI), task, np.int16)])
        return Memory(np.concatenate([self.inputs_MI[kept], inputs_MI]), tasks)
