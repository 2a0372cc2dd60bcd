"""How many bytes a packed adapter takes. No torch."""

from __future__ import annotations

from collections.abc import Iterable

_ALIGN = 16
"""Alignment of each factor in the buffer, in elements, so that a GPU can read 16 bytes at once."""


def aligned(elements: int) -> int:
    """The elements that a factor of so many takes in the buffer."""
    return -(-elements // _ALIGN) * _ALIGN


def packed_elements(modules: Iterable[tuple[int, int, int]]) -> int:
    """The elements of one adapter's buffer; `modules` has rank, inputs and outputs of each module it changes."""
    return sum(aligned(rank * width) for rank, d_in, d_out in modules for width in (d_in, d_out))


def pinned_bytes(nbytes: int) -> int:
    """What a pinned buffer of so many bytes takes of host memory. torch rounds it up to a power of two."""
    return 1 << (nbytes - 1).bit_length()
