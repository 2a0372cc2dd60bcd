"""The ingress over real Serve handles in one process: what it does when a replica fails."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from ray import serve
from ray.exceptions import ActorDiedError

from deployments.args import AppArgs
from deployments.links.parts import Part
from deployments.replicas.ingress import Ingress
from dlp_core.engine.request import Sampling
from dlp_core.errors import EngineFailed, EngineFull, StepFailed
from dlp_core.generation.messages import Delta, Finished, GenerationRequest, Piece
from dlp_core.mix import EMPTY_MIX, Span

FINISHED = Finished("stop", 1, 2, (Span(0, 3, EMPTY_MIX),))
REQUEST = GenerationRequest("id", "one", EMPTY_MIX, "hello", Sampling(max_tokens=5))


class Replicas:
    """Backbone replicas as one script: each call plays the next line, and an exception in it is raised there."""

    asked: ClassVar[list[str]] = []  # Serve copies what it binds, the class it does not

    def __init__(self, lines: list[list[Any]]) -> None:
        self._lines = lines

    async def generate(self, request: GenerationRequest, ingress: str) -> AsyncGenerator[Part, None]:
        assert ingress
        self.asked.append(request.request_id)
        for position, piece in enumerate(self._lines.pop(0)):
            if isinstance(piece, Exception):
                raise piece
            yield Part("replica", request.request_id, position, (piece,))


class Nothing:
    """A router nobody asks."""


def generate(folder: Path, *lines: list[Any]) -> tuple[list[Any], list[str]]:
    """What the ingress passes on, an exception last, and the request ids that reached a replica."""
    Replicas.asked.clear()
    app = serve.deployment(Ingress).bind(
        AppArgs(bank=str(folder), base_model=str(folder)),
        serve.deployment(Replicas).bind(list(lines)),
        serve.deployment(Nothing).bind(),
    )
    found: list[Any] = []
    together: Iterator[tuple[Piece, ...]] = (
        serve.run(app, _local_testing_mode=True).options(stream=True).generate.remote(REQUEST)
    )
    try:
        for pieces in together:
            found.extend(pieces)
    except Exception as error:
        found.append(error)
    return found, list(Replicas.asked)


def test_pieces_are_passed_on(tmp_path: Path) -> None:
    assert generate(tmp_path, [Delta("a"), FINISHED]) == ([Delta("a"), FINISHED], ["id-1"])


def test_a_replica_that_dies_before_its_first_piece_is_replaced_by_another(tmp_path: Path) -> None:
    found = generate(tmp_path, [ActorDiedError()], [Delta("a"), FINISHED])
    assert found == ([Delta("a"), FINISHED], ["id-1", "id-2"])


def test_a_replica_that_dies_later_is_not(tmp_path: Path) -> None:
    found, asked = generate(tmp_path, [Delta("a"), ActorDiedError()], [Delta("a"), FINISHED])
    assert found[0] == Delta("a")
    assert isinstance(found[1], EngineFailed)
    assert asked == ["id-1"]


def test_three_dead_replicas_are_enough(tmp_path: Path) -> None:
    (found,), asked = generate(tmp_path, *[[ActorDiedError()]] * 3, [FINISHED])
    assert isinstance(found, EngineFailed)
    assert found.retry_after
    assert asked == ["id-1", "id-2", "id-3"]


def test_a_refusal_is_not_retried(tmp_path: Path) -> None:
    (found,), asked = generate(tmp_path, [EngineFull("64 requests wait", retry_after=2.0)], [FINISHED])
    assert isinstance(found, EngineFull)
    assert found.retry_after == 2.0
    assert asked == ["id-1"]


def test_a_request_that_ended_a_replica_is_not_tried_on_another(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (found,), asked = generate(tmp_path, [StepFailed("the step failed (out of memory)")], [FINISHED])
    assert isinstance(found, StepFailed)
    assert asked == ["id-1"]
    assert "request id: the step failed (out of memory); it is not tried on another" in capfd.readouterr().err


def test_one_that_only_waited_there_is(tmp_path: Path) -> None:
    found = generate(tmp_path, [EngineFailed("the generation thread has ended")], [Delta("a"), FINISHED])
    assert found == ([Delta("a"), FINISHED], ["id-1", "id-2"])
