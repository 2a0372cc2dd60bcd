"""Every internal of transformers' continuous batching the engine relies on. A new version that moves one fails here
first, with the name of what moved."""

from __future__ import annotations

import dataclasses
import inspect
from importlib.metadata import version

from transformers import ContinuousBatchingConfig
from transformers.generation.continuous_batching import continuous_api, requests, scheduler
from transformers.generation.continuous_batching.input_outputs import ContinuousBatchingIOs
from transformers.generation.continuous_batching.model_runner import ModelRunner

from dlp_core.engine import _FusedManager

MANAGER = continuous_api.ContinuousBatchingManager


def test_the_tested_version_is_installed() -> None:
    assert version("transformers").startswith("5.23."), "read engine.py's docstring, then this file, before moving on"


def test_every_overridden_method_exists_with_the_same_arguments() -> None:
    for name in ("_generation_step", "_generation_loop_body", "_run_generation_loop", "_create_batch_processor"):
        theirs, ours = getattr(MANAGER, name), getattr(_FusedManager, name)
        assert ours is not theirs, name
        assert list(inspect.signature(ours).parameters) == list(inspect.signature(theirs).parameters), name
    assert list(inspect.signature(ModelRunner._sample).parameters) == ["self", "scores", "output_ids"]


def test_the_loop_calls_what_is_overridden() -> None:
    assert "self._generation_step()" in inspect.getsource(MANAGER._generation_loop_body)
    assert "self._generation_loop_body(" in inspect.getsource(MANAGER._run_generation_loop)
    assert "self._create_batch_processor()" in inspect.getsource(MANAGER._run_generation_loop)
    assert "self._sample(scores, output_ids)" in inspect.getsource(ModelRunner._forward_process_and_sample)


def test_the_manager_takes_the_calls_the_engine_makes() -> None:
    assert {"input_ids", "request_id", "max_new_tokens", "streaming", "eos_token_id"} <= set(
        inspect.signature(MANAGER.add_request).parameters
    )
    assert {"block", "hard_stop"} <= set(inspect.signature(MANAGER.stop).parameters)
    assert callable(MANAGER.cancel_request)
    assert callable(MANAGER.register_result_handler)


def test_the_records_carry_the_fields_that_are_read() -> None:
    assert {"state", "has_new_token", "query_length"} <= set(requests.FutureRequestState.__slots__)
    assert {"generated_tokens", "error", "status"} <= {f.name for f in dataclasses.fields(requests.GenerationOutput)}
    assert "requests_in_batch" in inspect.getsource(ContinuousBatchingIOs.prepare_batch_tensors)
    source = inspect.getsource(scheduler.Scheduler.reset)
    assert "self.active_requests" in source
    assert "self.waiting_requests" in source


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
        "per_request_processors",
    } <= names
