"""The error tree: drawn as it is, every error an own code, and all of them the same in another process."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator

import pytest

from dlp_core import errors
from dlp_core.errors import DLPError


def tree(kind: type[DLPError] = DLPError, depth: int = 0) -> Iterator[tuple[int, type[DLPError]]]:
    for below in kind.__subclasses__():
        if below.__module__ == errors.__name__:
            yield depth, below
            yield from tree(below, depth + 1)


KINDS = [kind for _, kind in tree()]


def test_the_drawing_is_the_tree() -> None:
    assert errors.__doc__ is not None
    drawn = re.findall(r"^    ((?:│   |    )*)[├└]── (\w+) +(\d+)  \S", errors.__doc__, re.MULTILINE)
    found = [(len(indent) // 4, name, int(status)) for indent, name, status in drawn]
    assert sorted(found) == sorted((depth, kind.__name__, kind.status) for depth, kind in tree())
    parents: list[str] = []
    for depth, name, _ in found:
        parents[depth:] = [name]
        expected = getattr(errors, name).__mro__[1]
        assert expected is (getattr(errors, parents[depth - 1]) if depth else DLPError), name


def test_every_error_has_a_code_of_its_own() -> None:
    codes = [kind.code for kind in [DLPError, *KINDS]]
    assert len(set(codes)) == len(codes)


@pytest.mark.parametrize("kind", [DLPError, *KINDS])
def test_an_error_survives_the_way_to_another_process(kind: type[DLPError]) -> None:
    error = pickle.loads(pickle.dumps(kind("adapter 'a': no", param="model", retry_after=1.5)))
    assert type(error) is kind
    assert (error.message, error.param, error.retry_after) == ("adapter 'a': no", "model", 1.5)
