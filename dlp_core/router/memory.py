"""A few of the prompts a router was trained on, as the network's inputs: what an adapter that is added later must not
take from the others. The sums of embeddings are kept, not the text.

Shape letters: M texts, I inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dlp_core.router.network import Floats

NO_TASK = -1
SIZE = 4096
"""Most texts a router remembers, over all of its tasks."""


@dataclass(frozen=True, slots=True, eq=False)
class Memory:
    """Inputs of M texts, and the number of the adapter each belongs to, NO_TASK for those that fit none."""

    inputs_MI: Floats
    tasks_M: NDArray[np.int16]

    def only(self, kept: Sequence[int]) -> Memory:
        """What belongs to these adapters, renumbered in this order, or to none."""
        numbers = np.full(int(self.tasks_M.max(initial=0)) + 2, NO_TASK - 1, np.int16)  # the last one is NO_TASK's
        numbers[list(kept)] = np.arange(len(kept))
        numbers[NO_TASK] = NO_TASK
        tasks = numbers[self.tasks_M]
        mine = tasks >= NO_TASK
        return Memory(self.inputs_MI[mine], tasks[mine])

    def and_also(self, inputs_MI: Floats, task: int) -> Memory:
        """With texts of a task. The size stays what it was where it was at its limit: each task gives up its share."""
        kept = np.arange(len(self.tasks_M))
        surplus = len(kept) + len(inputs_MI) - SIZE
        if surplus > 0:
            kept = np.delete(kept, np.linspace(0, len(kept) - 1, surplus).astype(np.int64))
        tasks = np.concatenate([self.tasks_M[kept], np.full(len(inputs_MI), task, np.int16)])
        return Memory(np.concatenate([self.inputs_MI[kept], inputs_MI]), tasks)
