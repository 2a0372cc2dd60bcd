"""What travels between a backbone replica and its ingress replica while streams are stepped together: messages are
counted where they are sent, and the engine takes its steps when it is told to, so nothing depends on time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks.measure.replicas import inside, replicas
from tests.cluster.application.conftest import QUEUE
from tests.support.application import Application
from tests.support.replicas import wait_until_idle
from tests.support.streams import question, streams
from tests.support.waiting import wait_for

TOKENS = 40


@contextmanager
def stepped() -> Iterator[str]:
    """The id of the backbone replica, whose engine takes no step beyond `engine.allowed` and counts what is sent."""
    [replica_id] = replicas("FusedBackbone")

    def hold(engine: Any) -> None:
        import time

        from deployments.links.sending import Link, Outgoing

        batching, step, add, messages = engine._batching, engine._batching._generation_step, Outgoing.add, Link.messages
        engine.allowed = engine.steps = engine.by_link = engine.by_call = engine.begun = engine.links = 0

        def one_more() -> None:
            while engine.steps >= engine.allowed:
                time.sleep(0.001)
            engine.steps += 1
            step()

        def counted_add(answer: Any, piece: Any) -> Any:
            part = add(answer, piece)
            engine.by_call += part is not None
            engine.begun += part is not None and part.position == 0
            return part

        async def counted_messages(link: Any) -> Any:
            engine.links += 1
            async for parts in messages(link):
                engine.by_link += 1
                yield parts

        batching._generation_step, Outgoing.add, Link.messages = one_more, counted_add, counted_messages
        engine.undo = lambda: (setattr(Outgoing, "add", add), setattr(Link, "messages", messages))

    def release(engine: Any) -> None:
        del engine._batching._generation_step
        engine.allowed = float("inf")
        engine.undo()

    inside(replica_id, hold)
    try:
        yield replica_id
    finally:
        inside(replica_id, release)


def test_a_step_is_one_message_for_all_streams(app: Application) -> None:
    count = QUEUE
    bodies = [question(number, TOKENS, ignore_eos=True) for number in range(count)]
    with streams(app, bodies) as alone:
        pass

    def allow(engine: Any) -> tuple[int, int]:
        engine.allowed += 1
        return engine.begun, engine.links

    def run_on(engine: Any) -> int:
        engine.by_call = engine.by_link = 0
        begun, engine.allowed = engine.steps, float("inf")
        return begun

    def counts(engine: Any) -> tuple[int, int, int]:
        return engine.steps, engine.by_link, engine.by_call

    with stepped() as replica_id:
        with streams(app, bodies) as heard:
            wait_for(lambda: inside(replica_id, lambda engine: engine.stats().running) == count, "running streams")
            wait_for(lambda: inside(replica_id, allow)[0] == count, "first pieces")
            wait_for(lambda: inside(replica_id, lambda engine: engine.links), "link")
            before = inside(replica_id, run_on)
        steps, by_link, by_call = inside(replica_id, counts)
    assert by_call == count, "of each answer, its call sends the last piece alone"
    assert 0 < by_link <= steps - before + 1, "what the last step before them brought may be under way"
    assert [(one.text, one.error, one.done) for one in heard] == [(one.text, None, True) for one in alone]
    wait_until_idle()
    assert not inside(replica_id, lambda engine: engine.stats().running)


def test_answers_that_are_not_streamed_are_one_message(app: Application) -> None:
    with stepped() as replica_id:
        inside(replica_id, lambda engine: setattr(engine, "allowed", float("inf")))
        with streams(app, [question(number, TOKENS, stream=False) for number in range(3)]):
            pass
        assert inside(replica_id, lambda engine: (engine.by_call, engine.by_link, engine.links)) == (3, 0, 0)
