"""The engine over vLLM: dlp_core.engine.protocol.Engine, with vLLM's scheduler, cache and kernels.

A mix that changes at a sentence end cannot change inside vLLM. The request is aborted there, the tokens computed too
far are dropped, and it goes on as a new one whose prompt has the tokens so far and whose plan has one span more.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import replace
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from dlp_core.engine.activation import activated
from dlp_core.engine.admission import check_places, token_limit
from dlp_core.engine.config import EngineConfig
from dlp_core.engine.grammar import Grammars
from dlp_core.engine.request import MAX_LOGPROBS, Plan, Sampling, TokenEvent
from dlp_core.engine.stats import EngineStats
from dlp_core.errors import EngineFailed, InvalidRequest, RequestAborted
from dlp_core.mix import EMPTY_MIX, Mix
from dlp_core.residency.movement import Pin, Residency
from dlp_core.residency.sources import AdapterSource
from dlp_core.vllm.causes import Causes
from dlp_core.vllm.device import RemoteDevice
from dlp_core.vllm.events import event_of
from dlp_core.vllm.model import FrozenModel
from dlp_core.vllm.plans import KEY
from dlp_core.vllm.request import Request, check_follower

log = logging.getLogger(__name__)

_CPU_WORKER = "dlp_core.vllm.seam.cpu_worker.CpuMixWorker"
_GPU_WORKER = "dlp_core.vllm.seam.gpu_worker.GpuMixWorker"
_VERSION = 1
"""Of what the seam puts into the model. vLLM keeps compiled code by its configuration, which this is part of."""
_CACHE_CHECK_BYTES = 2**30
"""Given, vLLM does not size the cache by the machine's memory, which others use too. Our count of blocks decides."""


_ENDED_CHECK_S = 1.0


class VllmEngine:
    """One vLLM engine with the adapters of one source in its slots. For use on one event loop."""

    def __init__(
        self,
        model: FrozenModel,
        source: AdapterSource,
        config: EngineConfig,
        *,
        tokenizer: PreTrainedTokenizerBase,
        on_load: Callable[[str, str, float], None] | None = None,
    ) -> None:
        """`on_load` is that of Residency."""
        self._model = model
        self._source = source
        self._config = config
        self._on_load = on_load
        self.vocabulary = model.vocabulary
        self.context = min(model.context, config.cache_tokens)
        self._grammars = Grammars(tokenizer, model.vocabulary, model.eos)
        self._requests: dict[str, Request] = {}
        self._shared_tokens = 0

    async def start(self) -> None:
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        self._causes = Causes()
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        from dlp_core.vllm.seam.blocks import active
        from dlp_core.vllm.seam.gauges import Gauges

        self._gauges = Gauges()
        try:
            arguments = AsyncEngineArgs(**self._arguments())
            self._llm = AsyncLLM.from_engine_args(arguments, stat_loggers=[self._gauges])
            shapes, *_ = await self._call("dlp_shapes")
            max_rank, *_ = await self._call("dlp_max_rank")
            self._by_block = await active(self._llm)
            await self._try()
            if not self._by_block:
                log.warning(
                    "vLLM did not load the plugin dlp: only requests whose mixes are the same all along share cached "
                    "blocks; install dlp-serve with pip in its environment, and let VLLM_PLUGINS name dlp if it is set"
                )
        except Exception as error:
            cause = self._causes.first() or error
            if hasattr(self, "_llm"):
                await asyncio.to_thread(self._llm.shutdown)
            self._causes.close()
            raise EngineFailed(f"vLLM did not start: {cause}") from error
        self._residency = Residency(
            self._source,
            RemoteDevice(
                self._call,
                asyncio.get_running_loop(),
                shapes,
                getattr(torch, self._model.dtype),
                targets=self._config.vllm.targets,
                max_rank=max_rank,
            ),
            self._config.slots,
            slot_bytes=self._config.slot_bytes,
            host_bytes=self._config.host_bytes,
            on_load=self._on_load,
        )

    async def _try(self) -> None:
        """Have vLLM write a token. A model that it loads and cannot compute ends it here, not at the first request."""
        request = Request.of("trial", [0], Plan.of(EMPTY_MIX), Sampling(max_tokens=1), None)
        async for _ in self._llm.generate(*request.to_vllm({}, by_block=self._by_block), request.vllm_id):
            pass

    async def stop(self) -> None:
        await asyncio.to_thread(self._llm.shutdown)
        await asyncio.to_thread(self._residency.close)  # its loads wait for calls on this loop
        self._causes.close()

    async def submit(
        self,
        prompt_ids: Sequence[int],
        mix: Mix | Plan,
        sampling: Sampling,
        *,
        request_id: str,
        prompt_logprobs: int | None = None,
    ) -> AsyncGenerator[TokenEvent, None]:
        plan = mix if isinstance(mix, Plan) else Plan.of(mix)
        if sampling.response_format is not None:  # before anything is looked up that may change meanwhile
            await asyncio.to_thread(self._grammars.guide, sampling.response_format)
        if request_id in self._requests:
            raise InvalidRequest(f"request id {request_id!r} is in use")
        max_tokens = token_limit(prompt_ids, plan, sampling, vocabulary=self.vocabulary, context=self.context)
        if plan.follow is not None:
            check_follower(sampling)
        check_places(len(self._requests), self._config.max_requests)
        self.check_health()
        sampling = replace(sampling, max_tokens=max_tokens)
        plan = activated(plan, prompt_ids, self._residency.invocation)
        request = Request.of(request_id, prompt_ids, plan, sampling, prompt_logprobs)
        self._requests[request_id] = request
        last_event = None
        try:
            async with aclosing(self._answer(request)) as events:
                async for event in events:
                    if event.finish_reason is not None:
                        last_event = event
                        break
                    yield event
        finally:
            del self._requests[request_id]
        assert last_event is not None
        yield last_event  # after everything is released, because the consumer may take its time

    async def keep(self, names: Sequence[str]) -> None:
        await self._residency.keep(names)

    async def preload(self, names: Sequence[str]) -> None:
        await self._residency.preload(names)

    def abort(self, request_id: str) -> None:
        if (request := self._requests.get(request_id)) is not None:
            request.aborted.set()

    def stats(self) -> EngineStats:
        running = [request for request in self._requests.values() if request.running]
        computing = [request for request in running if request.begun]
        return EngineStats(
            running=len(running),
            waiting=len(self._requests) - len(running),
            resident=tuple(self._residency.resident),
            host_adapters=self._residency.host_count,
            pinned=self._residency.pinned_count,
            cache_tokens=self._config.cache_tokens,
            cache_free=1 - self._gauges.cache_use if running else 1.0,  # after an abort no step tells that it is free
            shared_tokens=self._shared_tokens,
            tokens_running=sum(request.tokens for request in computing),
            tokens_waiting=sum(request.limit for request in self._requests.values() if request not in computing),
            adapter_demand=self._residency.demand,
            adapter_wait_s=self._residency.max_wait_s,
        )

    def check_health(self) -> None:
        if self._llm.errored:
            raise EngineFailed("vLLM has ended; this replica is being replaced, try again")
        stalled_s = time.monotonic() - self._gauges.last_step
        running = sum(request.running for request in self._requests.values())
        if running and stalled_s > self._config.stall_seconds:
            raise EngineFailed(
                f"vLLM has finished no step for {stalled_s:.0f} s with {running} requests running (limit "
                f"{self._config.stall_seconds:.0f} s); replace this replica"
            )

    async def _answer(self, request: Request) -> AsyncGenerator[TokenEvent, None]:
        """The events of a request, through all changes of its mix."""
        last = None
        while last is None:
            request.running = False
            async with AsyncExitStack() as stack:
                pins = await stack.enter_async_context(self._residency.pinned(request.names))
                self._begin(request)
                events = await stack.enter_async_context(aclosing(self._stretch(request, pins)))
                async for event in events:
                    if event.finish_reason is not None:
                        last = event
                    elif event.token_ids:
                        yield event
        yield last

    def _begin(self, request: Request) -> None:
        if not any(other.running for other in self._requests.values()):
            self._gauges.last_step = time.monotonic()
        request.running = True

    async def _stretch(self, request: Request, pins: Mapping[str, Pin]) -> AsyncGenerator[TokenEvent, None]:
        """The events up to the next change of the mix or to the end."""
        prompt, parameters = request.to_vllm(pins, by_block=self._by_block)
        began = request.stretch
        first = True
        async with aclosing(self._outputs(request, prompt, parameters)) as outputs:
            async for output in outputs:
                if first:
                    self._shared_tokens += output.num_cached_tokens or 0
                    if not request.stretch:
                        request.cached_tokens = output.num_cached_tokens or 0
                    first = False
                event = self._followed(request, event_of(output, request, self._model.eos))
                yield event
                if event.finish_reason is not None or request.stretch > began:
                    return

    def _followed(self, request: Request, event: TokenEvent) -> TokenEvent:
        """Note the event's tokens up to the first one that another mix applies from, and that mix; return what was
        noted. What does not fit into the slots beside the request's other adapters changes nothing."""
        tokens, logprobs, reason = event.token_ids, event.logprobs, event.finish_reason
        changed = None
        if request.plan.follow is not None:
            followed = event.token_ids[
                : request.limit - 1 - request.tokens
            ]  # all but a last one, which nothing follows
            for count, token in enumerate(followed, start=1):
                mix = request.plan.follow(token)
                if mix is None or mix == request.spans[-1][1]:
                    continue
                if self._residency.can_hold(tuple(dict.fromkeys((*request.names, *mix.names)))):
                    tokens, logprobs, changed = tokens[:count], logprobs[:count], mix
                    break
        request.written += tokens
        if changed is not None:
            request.change(changed)
            reason = None
        return replace(
            event,
            token_ids=tokens,
            logprobs=logprobs,
            finish_reason=reason,
            spans=request.reported(),
            cached_tokens=request.cached_tokens,
        )

    async def _outputs(self, request: Request, prompt: Any, parameters: Any) -> AsyncGenerator[Any, None]:
        """vLLM's outputs, until the request is aborted; then RequestAborted. Closing it aborts in vLLM. Its own errors
        become EngineFailed."""
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        outputs = self._llm.generate(prompt, parameters, request.vllm_id)
        aborted = asyncio.ensure_future(request.aborted.wait())
        step: asyncio.Future[Any] | None = None
        try:
            while True:
                step = asyncio.ensure_future(anext(outputs, None))
                await asyncio.wait({step, aborted}, return_when=asyncio.FIRST_COMPLETED)
                if aborted.done():
                    raise RequestAborted(f"request {request.name} was aborted")
                if (output := step.result()) is None:
                    return
                request.begun = True
                yield output
        except (EngineDeadError, EngineGenerateError) as error:
            raise EngineFailed(f"vLLM has failed ({error}); this replica is being replaced") from error
        finally:
            aborted.cancel()
            if step is not None:
                step.cancel()
                await asyncio.gather(step, return_exceptions=True)
            await outputs.aclose()

    async def _call(self, method: str, *args: Any) -> Any:
        """The answers of all workers. Raises EngineFailed if vLLM has ended, which leaves its own calls waiting."""
        call = asyncio.ensure_future(self._llm.collective_rpc(method, args=args))
        try:
            while not call.done():
                if self._llm.errored:
                    raise EngineFailed("vLLM has ended; this replica is being replaced, try again")
                await asyncio.wait({call}, timeout=_ENDED_CHECK_S)
            return call.result()
        finally:
            call.cancel()

    def _arguments(self) -> dict[str, Any]:
        from vllm.platforms import current_platform

        config, own = self._config, self._config.vllm
        targets = None if own.targets is None else sorted(own.targets)
        return {
            "model": str(self._model.folder),
            "dtype": self._model.dtype,
            "block_size": config.page_tokens,
            "kv_cache_memory_bytes": _CACHE_CHECK_BYTES,
            "num_gpu_blocks_override": -(-config.cache_tokens // config.page_tokens) + 1,  # one is vLLM's own
            "max_num_seqs": config.max_requests,
            "max_num_batched_tokens": max(config.batch_tokens, config.max_requests),
            "max_model_len": self.context,
            "enforce_eager": own.eager,
            "tensor_parallel_size": own.tensor_parallel,
            # or vLLM starts Ray actors for the model where the replica has a placement group
            "distributed_executor_backend": "mp" if own.tensor_parallel > 1 else None,
            "worker_cls": _GPU_WORKER if current_platform.is_cuda() else _CPU_WORKER,
            "additional_config": {KEY: {"version": _VERSION, "targets": targets, "slots": config.slots}},
            "structured_outputs_config": {"backend": "guidance"},
            "max_logprobs": MAX_LOGPROBS,
            "disable_log_stats": True,
        }
