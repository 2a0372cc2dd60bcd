"""A backbone's sender and an ingress's receiver, with nothing between them but delays: every answer arrives as it was
generated, whatever overtakes what."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, suppress
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from deployments.links.parts import Listening, Part
from deployments.links.receiving import Receiver
from deployments.links.sending import Sender
from dlp_core.generation.messages import Delta, Finished, Piece
from tests.support.clock import run

REPLICAS = ("first", "second")
DONE = object()


class Network:
    """Carries what a replica's generator yields to the ingress: in order, each item after a delay of its own."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self.messages = 0

    async def carry(self, sent: Callable[[], AsyncGenerator[Any, None]]) -> AsyncGenerator[Any, None]:
        queue: asyncio.Queue[Any] = asyncio.Queue()

        async def produce() -> None:
            async with aclosing(sent()) as items:
                async for item in items:
                    self.messages += 1
                    queue.put_nowait(item)
            queue.put_nowait(DONE)

        producing = asyncio.create_task(produce())
        try:
            await asyncio.sleep(self._chance.choice([0, 0.003, 0.05]))  # the call is on its way
            while (item := await queue.get()) is not DONE:
                await asyncio.sleep(self._chance.choice([0, 0, 0.001, 0.03]))
                yield item
        finally:
            producing.cancel()
            with suppress(asyncio.CancelledError):
                await producing


@given(
    seed=st.integers(0, 10**6),
    answers=st.integers(1, 12),
    tokens=st.integers(1, 40),
    interval_s=st.sampled_from([0.0, 0.005, 0.1]),
    step_s=st.sampled_from([0.001, 0.007, 0.05]),
)
def test_every_answer_arrives_whole_and_in_order(
    seed: int, answers: int, tokens: int, interval_s: float, step_s: float
) -> None:
    async def main() -> None:
        chance = random.Random(seed)
        network = Network(chance)
        senders = {replica: Sender(replica, interval_s) for replica in REPLICAS}
        steps = {replica: asyncio.Event() for replica in REPLICAS}

        async def engine(replica: str) -> None:
            while True:
                await asyncio.sleep(step_s)
                steps[replica].set()
                steps[replica] = asyncio.Event()

        async def generate(replica: str, request_id: str, said: list[Piece], stream: bool) -> AsyncIterator[Part]:
            with senders[replica].answer(request_id, "ingress", stream=stream) as answer:
                for piece in said:
                    await steps[replica].wait()
                    if part := answer.add(piece):
                        yield part

        def listen(replica: str) -> AsyncGenerator[tuple[Part, ...], None]:
            return network.carry(lambda: senders[replica].listen(Listening(replica, "ingress")))

        receiver = Receiver(listen)

        async def ask(number: int) -> None:
            await asyncio.sleep(chance.choice([0, 0, 0.01, 0.2]))
            request_id, replica, stream = f"id-{number}", chance.choice(REPLICAS), chance.random() < 0.9
            said: list[Piece] = [Delta(f"{number}.{token}") for token in range(tokens)]
            said.append(Finished("stop", 1, tokens, ()))
            leaves_after = chance.choice([None, None, None, 1, tokens // 2])
            call = network.carry(lambda: generate(replica, request_id, said, stream))
            found: list[Piece] = []
            async with aclosing(receiver.receive(request_id, call)) as received:
                async for pieces in received:
                    found += pieces
                    if leaves_after is not None and len(found) >= leaves_after:
                        break
            await call.aclose()
            assert found == said[: len(found)]
            assert leaves_after is not None or found == said

        engines = [asyncio.create_task(engine(replica)) for replica in REPLICAS]
        await asyncio.gather(*(ask(number) for number in range(answers)))
        for one in engines:
            one.cancel()
        await asyncio.sleep(1)  # the links end
        assert not receiver._answers
        assert not receiver._links
        assert not any(sender._links for sender in senders.values())
        assert network.messages <= answers * (tokens + 1)

    run(main())
