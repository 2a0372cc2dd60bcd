"""Fusion on CPUs for few tokens: one kernel call per group of modules with one input, and one more per module.

Nothing is copied: a table holds the addresses of the active adapters' factors, and a plan says which tokens use which
adapters at what weight. The kernels are in `cpu_kernels`.

Shape letters: T tokens, R rank, S active adapters, M modules in the table, N modules of one call, P parts (one adapter
of one token's mix).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate, chain
from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dlp_core.compiled import LIKE
from dlp_core.fusion.cpu_kernels import D_IN, D_OUT, RANK, compile_for, expand, look_up, shrink
from dlp_core.fusion.op import WholeStep
from dlp_core.fusion.packed import Factors, Resident
from dlp_core.fusion.segments import Segment

Ints = npt.NDArray[np.int64]


class _Plan:
    """Which adapters some tokens use, as the kernels read it. A token is its parts: (position in the table, weight)."""

    def __init__(self, tokens: Sequence[Sequence[tuple[int, float]]], adapters: int) -> None:
        parts = list(chain.from_iterable(tokens))
        lengths = [len(token) for token in tokens]
        self.tokens = len(tokens)
        self.slots: Ints = np.array([slot for slot, _ in parts], np.int64)
        self.weights = np.array([weight for _, weight in parts], np.float32)
        self.row_start: Ints = np.array([0, *accumulate(lengths)], np.int64)
        self.rows: Ints = np.repeat(np.arange(len(tokens)), lengths)
        self.by_slot: Ints = np.argsort(self.slots, kind="stable")
        self.slot_start: Ints = np.searchsorted(self.slots[self.by_slot], np.arange(adapters + 1))


class _Member(NamedTuple):
    """A module that an active adapter changes. `n` is its index in `rows`, the table's rows of the changed modules that
    read the same input."""

    row: int
    n: int
    rows: Ints
    d_in: int
    d_out: int


class _Table:
    """The addresses of the active adapters' factors. Keeps those adapters alive."""

    def __init__(self, residents: tuple[Resident, ...], entries: Ints, rows: Mapping[str, int]) -> None:
        """`entries` [S, M, 6]: see `cpu_kernels`; zeros where an adapter does not change a module. `rows` maps a module
        path to its index in the second dimension."""
        self.residents = residents
        self.entries = entries
        self.members: dict[str, _Member | None] = {}
        """Filled by `look_up`; None for modules that no active adapter changes."""
        self._rows = rows
        self._max_entries: Ints = entries.max(0)
        self.rank = int(self._max_entries[:, RANK].max(initial=0))

    def reuse_members(self, previous: _Table) -> None:
        """Take the members over from a previous table if its adapters change the same modules."""
        if np.array_equal(self._max_entries[:, RANK] > 0, previous._max_entries[:, RANK] > 0):
            self.members = previous.members

    def look_up(self, siblings: tuple[str, ...]) -> None:
        """Look up some modules that share an input."""
        entries = self._max_entries
        changed = [path for path in siblings if path in self._rows and entries[self._rows[path], RANK]]
        rows = np.array([self._rows[path] for path in changed], np.int64)
        self.members |= dict.fromkeys(siblings)
        for n, path in enumerate(changed):
            row = self._rows[path]
            self.members[path] = _Member(row, n, rows, int(entries[row, D_IN]), int(entries[row, D_OUT]))


class FewTokensStep(WholeStep):
    """One forward pass. Made by `FewTokens.begin`, dropped after the pass.

    Called hundreds of times in a step of tens of milliseconds, and evicted from the CPU's caches in between, so
    everything that can be looked up once per table is.
    """

    def __init__(self, dtype: torch.dtype, table: _Table, plan: _Plan, head_plan: _Plan | None) -> None:
        self._dtype = dtype
        self._like = LIKE[dtype]
        self._table = table
        self._plan = plan
        self._head_plan = head_plan
        self._input: Tensor | None = None
        self._input_rows: Ints | None = None
        self._input_plan = plan
        self._z_NPR = np.empty((0, 0, 0), np.float32)

    def add(self, y: Tensor, x: Tensor, path: str, siblings: tuple[str, ...], *, head: bool = False) -> Tensor:
        try:
            member = self._table.members[path]
        except KeyError:
            self._table.look_up(siblings)
            member = self._table.members[path]
        if member is None:
            return y
        if y.dtype != self._dtype:  # a layer kept in another precision than the model's
            return y + self.add(torch.zeros_like(y, dtype=self._dtype), x, path, siblings, head=head)
        if x is not self._input or member.rows is not self._input_rows:
            self._shrink(x, member, head=head)
        y, plan = y.contiguous(), self._input_plan
        if y.numel() != plan.tokens * member.d_out:
            raise RuntimeError(f"{path} gives {tuple(y.shape)}, its adapters {plan.tokens} tokens of {member.d_out}")
        expand(
            self._like, y.data_ptr(), member.d_out, self._table.entries, member.row, plan.slots, plan.row_start,
            self._z_NPR, member.n,
        )  # fmt: skip
        return y

    def _shrink(self, x: Tensor, member: _Member, *, head: bool) -> None:
        ids = not x.is_floating_point()
        self._input, self._input_rows = x, member.rows
        self._input_plan = plan = self._plan_for(x.numel() if ids else x.numel() // member.d_in, head=head)
        if self._z_NPR.shape[:2] != (len(member.rows), len(plan.slots)):
            self._z_NPR = np.empty((len(member.rows), len(plan.slots), self._table.rank), np.float32)
        if ids:
            look_up(
                self._like, x.reshape(-1).numpy(), self._table.entries, member.rows, plan.slots, plan.rows,
                plan.weights, self._z_NPR,
            )  # fmt: skip
            return
        x = x.to(self._dtype).contiguous()
        shrink(
            self._like, x.data_ptr(), plan.tokens, member.d_in, self._table.entries, member.rows,
            plan.rows, plan.weights, plan.by_slot, plan.slot_start, self._z_NPR,
        )  # fmt: skip

    def _plan_for(self, tokens: int, *, head: bool) -> _Plan:
        """The plan for all tokens, or for those that the output head computes."""
        for plan in (self._head_plan, self._plan) if head else (self._plan, self._head_plan):
            if plan is not None and plan.tokens == tokens:
                return plan
        raise RuntimeError(f"a layer sees {tokens} tokens, the batch's segments cover {self._plan.tokens}")


class FewTokens:
    """Makes one step per forward pass, and keeps the table for as long as the same adapters are active."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        compile_for(LIKE[dtype])
        self._rows: dict[str, int] = {}
        self._entries: WeakKeyDictionary[Resident, Ints] = WeakKeyDictionary()
        self._table: _Table | None = None

    def begin(
        self, segments: tuple[Segment, ...], residents: Mapping[int, Resident], head_rows: Sequence[int] | None
    ) -> FewTokensStep:
        position = {slot: index for index, slot in enumerate(residents)}
        tokens: list[list[tuple[int, float]]] = []
        for segment in segments:
            tokens += [[(position[slot], weight) for slot, weight in segment.parts]] * segment.length
        head_plan = None if head_rows is None else _Plan([tokens[row] for row in head_rows], len(position))
        return FewTokensStep(
            self._dtype, self._table_of(tuple(residents.values())), _Plan(tokens, len(position)), head_plan
        )

    def _table_of(self, residents: tuple[Resident, ...]) -> _Table:
        if self._table is None or self._table.residents != residents:
            for path in (path for resident in residents for path in resident.modules if path not in self._rows):
                self._rows[path] = len(self._rows)
            entries = np.stack([self._entries_of(resident) for resident in residents])
            table = _Table(residents, entries, self._rows)
            if self._table is not None:
                table.reuse_members(self._table)
            self._table = table
        return self._table

    def _entries_of(self, resident: Resident) -> Ints:
        entries = self._entries.get(resident)
        if entries is None or len(entries) < len(self._rows):
            entries = np.zeros((len(self._rows), 6), np.int64)
            for path, factors in resident.modules.items():
                entries[self._rows[path]] = _entry(factors)
            self._entries[resident] = entries
        return entries


def _entry(factors: Factors) -> tuple[int, ...]:
    (rank, d_in), d_out = factors.a_RD.shape, factors.b_RO.shape[1]
    return factors.a_RD.data_ptr(), factors.b_RO.data_ptr(), rank, int(factors.has_bias), d_in, d_out
