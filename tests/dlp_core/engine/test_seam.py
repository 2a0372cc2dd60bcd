"""Every internal of transformers' continuous batching that the engine relies on. A version that changes one fails here
first, and the failure names it."""

from __future__ import annotations

import dataclasses
import inspect
from importlib.metadata import version

import pytest
import torch
from transformers import ContinuousBatchingConfig, masking_utils
from transformers.generation.continuous_batching import (
    cache,
    continuous_api,
    offloading_manager,
    requests,
    scheduler,
)
from transformers.generation.continuous_batching.cache import PagedAttentionCache
from transformers.generation.continuous_batching.cache_allocators.cache_allocator import BlockLedger
from transformers.generation.continuous_batching.cache_allocators.full_attention import FullAttentionCacheAllocator
from transformers.generation.continuous_batching.cache_allocators.sliding_attention import (
    SlidingAttentionCacheAllocator,
)
from transformers.generation.continuous_batching.distributed import DistributedHelper
from transformers.generation.continuous_batching.input_outputs import ContinuousBatchingIOs
from transformers.generation.continuous_batching.model_runner import ModelRunner
from transformers.generation.continuous_batching.offloading_manager import OffloadingManager
from transformers.generation.continuous_batching.utils import CudaGraphBuffer, attn_mask_is_needed
from transformers.utils.generic import is_flash_attention_requested

from dlp_core.engine.batching import Batching
from dlp_core.engine.paged_attention import use_paged_attention
from tests.support.families import FAMILIES

MANAGER = continuous_api.ContinuousBatchingManager


def test_the_tested_version_is_installed() -> None:
    assert version("transformers").startswith("5.23."), "read dlp_core/engine/batching.py, then adapt this file"


def test_every_overridden_method_exists_with_the_same_arguments() -> None:
    for name in ("_generation_step", "_generation_loop_body", "_run_generation_loop", "_create_batch_processor"):
        theirs, ours = getattr(MANAGER, name), getattr(Batching, name)
        assert ours is not theirs, name
        assert list(inspect.signature(ours).parameters) == list(inspect.signature(theirs).parameters), name
    assert list(inspect.signature(ModelRunner._sample).parameters) == ["self", "scores", "output_ids"]
    assert list(inspect.signature(ModelRunner._forward_process_and_sample).parameters)[:3] == [
        "self",
        "model",
        "batch_data",
    ]


def test_the_rows_of_logits_are_chosen_by_the_batch_data() -> None:
    source = inspect.getsource(ModelRunner._forward_process_and_sample)
    assert 'logits_indices = batch_data["logits_indices"]' in source
    assert "model(**batch_data).logits" in source
    assert 'if "logits_to_keep" not in batch_data' in source
    assert "self._forward_process_and_sample" in inspect.getsource(ModelRunner._get_forward_fn)


def test_the_loop_calls_what_is_overridden() -> None:
    assert "self._generation_step()" in inspect.getsource(MANAGER._generation_loop_body)
    assert "self._generation_loop_body(" in inspect.getsource(MANAGER._run_generation_loop)
    assert "self._create_batch_processor()" in inspect.getsource(MANAGER._run_generation_loop)
    assert "self._sample(scores, output_ids)" in inspect.getsource(ModelRunner._forward_process_and_sample)


def test_the_manager_accepts_the_engines_calls() -> None:
    assert {"input_ids", "request_id", "max_new_tokens", "streaming", "eos_token_id"} <= set(
        inspect.signature(MANAGER.add_request).parameters
    )
    assert {"block", "hard_stop"} <= set(inspect.signature(MANAGER.stop).parameters)
    assert callable(MANAGER.cancel_request)
    assert callable(MANAGER.register_result_handler)


def test_the_records_have_the_fields_that_are_read() -> None:
    assert {"state", "has_new_token", "query_length"} <= set(requests.FutureRequestState.__slots__)
    assert {"initial_tokens", "generated_tokens", "position_offset", "_status"} <= {
        f.name for f in dataclasses.fields(requests.RequestState)
    }
    assert {"generated_tokens", "error", "status"} <= {f.name for f in dataclasses.fields(requests.GenerationOutput)}
    assert "requests_in_batch" in inspect.getsource(ContinuousBatchingIOs.prepare_batch_tensors)
    source = inspect.getsource(scheduler.Scheduler.reset)
    assert "self.active_requests" in source
    assert "self.waiting_requests" in source
    assert "self.block_new_requests" in source
    source = inspect.getsource(ContinuousBatchingIOs)
    assert "logits_indices.append(cumulative_seqlens_q[-1] - 1)" in source
    assert "logits_indices=self.logits_indices[:num_sequences]" in source
    # positions have already advanced when the forward pass runs
    assert "state.position_offset += query_length" in inspect.getsource(ContinuousBatchingIOs.prepare_batch_tensors)


def test_a_request_leaves_the_batch_as_a_preempted_one_does() -> None:
    source = inspect.getsource(OffloadingManager.offload_requests)
    for line in (
        "new_state = state.create_equivalent_initial_request()",
        "state._status = RequestStatus.FINISHED",
        "scheduler.finish_request(request_id)",
        "scheduler.add_waiting_request(new_state)",
    ):
        assert line in source
    assert "free_blocks(request_id)" in inspect.getsource(scheduler.Scheduler.finish_request)


def test_blocks_are_matched_and_marked_through_the_two_wrapped_calls_only() -> None:
    assert "search_prefix_match(state.request_id, state.remaining_prefill_tokens)" in inspect.getsource(
        scheduler.Scheduler._infer_request_tokens
    )
    source = inspect.getsource(continuous_api.ContinuousBatchProcessor.update_batch)
    assert source.count("self.cache.mark_complete_blocks(state, future_state.complete_blocks)") == 2
    mark = inspect.getsource(PagedAttentionCache.mark_complete_blocks)
    assert "token_ids = state.initial_tokens + state.generated_tokens" in mark
    for module in (continuous_api, scheduler, cache, offloading_manager):
        assert "compute_block_hash" not in inspect.getsource(module)
    assert {"cached_blocks"} <= set(vars(BlockLedger()))


def test_the_settings_exist() -> None:
    names = {field.name for field in dataclasses.fields(ContinuousBatchingConfig)}
    assert {
        "page_size",
        "num_blocks",
        "max_batch_tokens",
        "max_requests_per_batch",
        "allow_block_sharing",
        "use_async_batching",
        "use_cuda_graph",
    } <= names


def test_the_cache_has_what_attention_reads() -> None:
    config = FAMILIES["gemma2"].config()  # layers of both kinds
    settings = ContinuousBatchingConfig(page_size=8, num_blocks=8, max_batch_tokens=16, max_memory_percent=0.5)
    paged = PagedAttentionCache(config, settings, torch.device("cpu"), DistributedHelper(None, 60), torch.float32)
    for layer, allocator in paged.layer_to_allocator.items():
        assert layer in allocator.layer_indices
        assert allocator.block_physical_stride % allocator.tokens_per_page == 0
        assert allocator.num_key_value_heads == config.num_key_value_heads
        assert allocator.block_table == {}
        for view in allocator._kv_token_views[layer]:
            assert view.shape[1:] == (config.num_key_value_heads, config.head_dim)
            assert view.is_contiguous()
    assert paged.cache_allocators["sliding_attention"].sliding_window == config.sliding_window
    # rows as SlidingAttentionCacheAllocator and its parent compute them
    source = inspect.getsource(SlidingAttentionCacheAllocator._token_indices_to_physical_indices)
    assert "ring_idx = token_idx % self.sliding_window" in source
    assert "block_table[page_idx] * self.block_physical_stride + page_offset" in source
    assert "block_table[b] * self.block_physical_stride" in inspect.getsource(
        FullAttentionCacheAllocator.get_write_indices
    )


def test_indices_are_made_by_the_one_call_that_is_replaced() -> None:
    source = inspect.getsource(ContinuousBatchingIOs.prepare_batch_tensors)
    assert source.count("self.cache.extend_read_and_write_indices(") == 1
    assert "cache=self.cache," in inspect.getsource(ContinuousBatchingIOs.get_model_kwargs)


def test_masks_are_left_out_by_the_name_of_the_attention() -> None:
    source = inspect.getsource(masking_utils._preprocess_mask_arguments)
    assert "if config._attn_implementation not in ALL_MASK_ATTENTION_FUNCTIONS._global_mapping:" in source
    for family in FAMILIES.values():
        model = family.build()
        use_paged_attention(model)
        assert not attn_mask_is_needed(model.config.get_text_config())
        assert is_flash_attention_requested(model.config.get_text_config())
        assert not is_flash_attention_requested(model.config.get_text_config(), version=[2, 3, 4])
        with pytest.raises(RuntimeError, match="belongs to an engine"):
            model(torch.tensor([[3, 4, 5]]))


def test_graphs_are_taken_by_what_a_step_sets() -> None:
    init = inspect.getsource(ModelRunner.__init__)
    assert "self.use_cuda_graph_decode = self.cb_config.cuda_graph_booleans" in init
    assert "use_cuda_graph = self.use_cuda_graph_decode" in inspect.getsource(ModelRunner._get_forward_fn)
    assert {"num_q_tokens", "max_kv_read", "use_decode_fast_path"} <= set(
        inspect.signature(ModelRunner.maybe_pad_inputs).parameters
    )
    prepare = inspect.getsource(ContinuousBatchingIOs.prepare_batch_tensors)
    assert "self.use_block_table = use_decode_fast_path and self.block_table.numel() > 0" in prepare
    assert "self.cache.fill_block_table(" in prepare
    source = inspect.getsource(scheduler.Scheduler._process_candidates)
    assert "decode_fast_path = self.cache.max_blocks_per_request > 0" in source
    assert "state.position_offset < self.cache.max_decode_fast_path_length" in source
    assert list(inspect.signature(ContinuousBatchingIOs._get_num_sequences).parameters) == ["self", "use_padding"]
    assert "_storage" in inspect.getsource(CudaGraphBuffer.__init__)
    assert list(inspect.signature(requests.create_warmup_future_states).parameters) == [
        "num", "status", "num_q_tokens", "max_kv_read", "cache",
    ]  # fmt: skip
    # a key of the number of tokens alone: a graph serves all mixes and lengths
    assert "if self.use_block_table:\n            return (self.num_q_tokens,)" in inspect.getsource(
        ContinuousBatchingIOs._get_graph_key
    )
