"""Every internal of vLLM that dlp_core/vllm relies on, by the file that touches it. A version that changes one fails
here first, and the failure names it."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed in this environment")

import vllm
from vllm.config import CompilationConfig, VllmConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.inputs import TokensPrompt
from vllm.model_executor.layers import linear
from vllm.model_executor.layers.attention import MLAAttention
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import SamplingParams, StructuredOutputsParams
from vllm.utils import torch_utils
from vllm.v1.core import block_pool, kv_cache_utils
from vllm.v1.core.sched.output import NewRequestData, SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.cudagraph_dispatcher import CudagraphDispatcher
from vllm.v1.engine import exceptions
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.core import EngineCore, EngineCoreProc
from vllm.v1.engine.core_client import AsyncMPClient
from vllm.v1.executor.multiproc_executor import MultiprocExecutor
from vllm.v1.metrics.loggers import StatLoggerBase
from vllm.v1.metrics.stats import IterationStats, SchedulerStats
from vllm.v1.request import Request
from vllm.v1.worker.cpu_worker import CPUWorker
from vllm.v1.worker.gpu.cudagraph_utils import CudaGraphManager, ModelCudaGraphManager
from vllm.v1.worker.gpu.input_batch import InputBatch as InputBatchV2
from vllm.v1.worker.gpu.model_runner import GPUModelRunner as RunnerV2
from vllm.v1.worker.gpu.model_states.interface import ModelState
from vllm.v1.worker.gpu_input_batch import InputBatch
from vllm.v1.worker.gpu_model_runner import GPUModelRunner
from vllm.v1.worker.gpu_worker import Worker
from vllm.v1.worker.worker_base import WorkerWrapperBase

from dlp_core.engine.config import EngineConfig
from dlp_core.vllm.engine import VllmEngine
from dlp_core.vllm.model import FrozenModel
from dlp_core.vllm.seam import blocks, cpu_worker, worker

pytestmark = pytest.mark.filterwarnings("ignore")  # those of vLLM are its own

SOURCE = Path(vllm.__file__).parent


def parameters(function: Callable[..., Any]) -> list[str]:
    return list(inspect.signature(function).parameters)


def source(thing: Any) -> str:
    """On one line, so that it does not matter where lines break."""
    return re.sub(r"\s+", " ", inspect.getsource(thing))


def fields(record: type) -> set[str]:
    names = {field.name for field in dataclasses.fields(record)} if dataclasses.is_dataclass(record) else set()
    return names | set(getattr(record, "__struct_fields__", ())) | set(getattr(record, "__annotations__", ()))


def test_the_tested_version_is_installed() -> None:
    assert vllm.__version__.startswith("0.32."), "read dlp_core/vllm/seam/, then adapt this file"


def test_only_the_seam_touches_internals() -> None:
    """What else is imported from vLLM is what its own server uses of it."""
    package = Path(worker.__file__).parents[1]
    imports = {
        (path.relative_to(package).as_posix(), name)
        for path in package.rglob("*.py")
        for name in re.findall(r"^\s*from (vllm\S*) import", path.read_text(), flags=re.MULTILINE)
        if path.parent.name != "seam"
    }
    assert imports == {
        ("engine.py", "vllm.engine.arg_utils"),
        ("engine.py", "vllm.platforms"),
        ("engine.py", "vllm.v1.engine.async_llm"),
        ("engine.py", "vllm.v1.engine.exceptions"),
        ("request.py", "vllm.inputs"),
        ("request.py", "vllm.sampling_params"),
    }


# -------------------------------------------------------------------- seam/worker.py: the layers


@pytest.mark.parametrize("layer", worker._LAYERS, ids=lambda layer: layer.__name__)
def test_layers_multiply_in_their_quant_method_before_processes_exchange_anything(layer: type) -> None:
    text = source(layer.forward)
    applied = re.search(
        r"output_parallel = self\.quant_method\.apply\(self, (input_|input_parallel), (bias|bias_)\)", text
    )
    assert applied, text
    for exchange in ("tensor_model_parallel_all_gather", "tensor_model_parallel_all_reduce"):
        assert text.find(exchange) == -1 or text.find(exchange) > applied.end()
    assert parameters(linear.UnquantizedLinearMethod.apply) == ["self", "layer", "x", "bias"]
    assert linear.LinearBase.requires_unquantized_input is False


def test_layers_say_how_they_are_split() -> None:
    """test_layers.py compares it with what their loaders do."""
    column, row, qkv = (
        source(layer.__init__)
        for layer in (linear.ColumnParallelLinear, linear.RowParallelLinear, linear.QKVParallelLinear)
    )
    for text in (column, row):
        assert "self.output_partition_sizes = [" in text
        assert "self.input_size_per_partition =" in text
    assert "divide(output_size, self.tp_size) for output_size in self.output_sizes" in column
    assert "self.num_kv_head_replicas = divide(tp_size, self.total_num_kv_heads)" in qkv
    assert "shard_rank = self.tp_rank // self.num_kv_head_replicas" in source(linear.QKVParallelLinear.weight_loader)
    base = source(linear.LinearBase.__init__)
    for name in ("input_size", "output_size", "tp_rank", "tp_size", "quant_method"):
        assert re.search(rf"self\.{name}\b", base), name


def test_mla_attention_reads_the_weight_of_a_layer_that_it_does_not_call() -> None:
    assert "self.kv_b_proj = kv_b_proj" in source(MLAAttention.__init__)
    readers = {
        path.relative_to(SOURCE).as_posix()
        for path in (SOURCE / "model_executor" / "layers" / "attention").rglob("*.py")
        if "kv_b_proj" in path.read_text()
    }
    assert "model_executor/layers/attention/mla_attention.py" in readers


def test_models_name_the_parts_of_their_layers() -> None:
    from vllm.model_executor.models.llama import LlamaForCausalLM

    assert LlamaForCausalLM.packed_modules_mapping == {
        "qkv_proj": ["q_proj", "k_proj", "v_proj"],
        "gate_up_proj": ["gate_proj", "up_proj"],
    }


def test_an_op_is_registered_and_called_by_the_name_of_its_layer() -> None:
    registered = parameters(torch_utils.direct_register_custom_op)
    assert {"op_name", "op_func", "mutates_args", "fake_impl", "target_lib"} <= set(registered)
    assert torch_utils._resolve_layer_name(torch_utils._encode_layer_name("a.b")) == "a.b"


# -------------------------------------------------------------------- seam/worker.py: the worker


def test_the_worker_has_the_methods_that_are_overridden() -> None:
    assert parameters(CPUWorker.load_model) == ["self", "load_dummy_weights"]
    assert parameters(CPUWorker.execute_model) == ["self", "scheduler_output"]
    assert parameters(CPUWorker.sample_tokens) == ["self", "grammar_output"]
    assert parameters(worker.Mixes.execute_model) == parameters(CPUWorker.execute_model)
    assert parameters(cpu_worker.CpuMixWorker.sample_tokens) == parameters(CPUWorker.sample_tokens)
    assert "self.model_runner.execute_model(" in source(CPUWorker.execute_model)
    assert "resolve_obj_by_qualname( parallel_config.worker_cls )" in source(WorkerWrapperBase.init_worker)


def test_the_scheduler_tells_what_comes_and_goes() -> None:
    assert {"scheduled_new_reqs", "finished_req_ids"} <= fields(SchedulerOutput)
    assert {"req_id", "sampling_params"} <= fields(NewRequestData)
    assert "extra_args" in fields(SamplingParams)


def test_the_forward_pass_of_runner_v1_is_one_method_with_the_batch_in_the_runner() -> None:
    assert parameters(GPUModelRunner._model_forward)[:3] == ["self", "input_ids", "positions"]
    text = source(GPUModelRunner.execute_model)
    assert text.count("self._model_forward(") == 1
    assert "self.model(" not in text
    assert "_model_forward" not in source(GPUModelRunner._dummy_run), "it has requests nobody sent"
    batch = source(InputBatch)
    for name in ("num_reqs", "req_ids", "num_computed_tokens_cpu", "generators"):
        assert re.search(rf"(self\.|def ){name}\b", batch), name
    assert "self.query_start_loc" in source(GPUModelRunner.__init__)
    assert "self.query_start_loc.np[1 : num_reqs + 1] =" in source(GPUModelRunner._prepare_inputs)


def test_the_forward_pass_of_runner_v2_follows_the_preparation_of_its_inputs() -> None:
    assert parameters(ModelState.prepare_inputs) == ["self", "input_batch", "req_states"]
    assert {"scheduler_output", "dummy_run"} <= set(parameters(RunnerV2.execute_model))
    text = source(RunnerV2.execute_model)
    prepared = text.index("**self.model_state.prepare_inputs(input_batch, self.req_states)")
    assert prepared < text.index("self.model(**model_inputs)")
    assert "dummy_run=True" in source(RunnerV2._dummy_run)
    assert "self.model_state = init_model_state(" in source(RunnerV2.load_model)
    assert {"req_ids", "num_computed_tokens_np", "query_start_loc_np", "num_tokens_after_padding"} <= fields(
        InputBatchV2
    )
    assert "self.use_v2_model_runner = vllm_config.use_v2_model_runner" in source(Worker.__init__)
    assert "scheduled_new_reqs.extend(scheduled_resumed_reqs)" in source(Scheduler.schedule), "after a preemption"


def test_generators_are_turned_back_where_a_prompt_goes_on() -> None:
    """CpuMixWorker.sample_tokens is there for this line alone."""
    assert "gen.set_offset(gen.get_offset() - 4)" in source(GPUModelRunner._bookkeeping_sync)
    assert "self.discard_request_mask.np[:num_reqs]" in source(GPUModelRunner._bookkeeping_sync)


def test_an_error_in_one_worker_leaves_the_answers_of_the_others_for_the_next_call() -> None:
    """dlp_place returns its errors because of it."""
    text = source(MultiprocExecutor.collective_rpc)
    assert "for mq in response_mqs:" in text
    assert 'raise RuntimeError( f"Worker failed with error' in text


# -------------------------------------------------------------------- seam/gpu_worker.py


def test_the_worker_for_cuda_devices_is_the_one_that_cpus_have_too() -> None:
    assert issubclass(CPUWorker, Worker)
    assert parameters(Worker.load_model) == parameters(CPUWorker.load_model)
    assert parameters(Worker.execute_model) == parameters(worker.Mixes.execute_model)
    assert "self.device = torch.device(" in source(Worker.init_device)
    assert "current_platform.is_cuda()" in source(VllmEngine._arguments)


def test_the_largest_graph_is_known_when_the_model_is_loaded() -> None:
    assert "max_cudagraph_capture_size" in fields(CompilationConfig)
    assert "self.compilation_config.max_cudagraph_capture_size = valid_max_size" in source(
        VllmConfig._set_cudagraph_sizes
    )
    assert "self._set_cudagraph_sizes()" in source(VllmConfig.__post_init__)
    for text in (source(CudaGraphManager._init_candidates), source(CudagraphDispatcher)):
        assert "cudagraph_capture_sizes" in text


def test_graphs_of_runner_v1_are_captured_past_the_forward_pass_of_batches() -> None:
    """Hence the step that stands between batches."""
    text = source(GPUModelRunner._dummy_run)
    assert "outputs = self.model(" in text
    assert "_model_forward" not in text
    assert "self._dummy_run(" in source(GPUModelRunner._warmup_and_capture)


def test_graphs_of_runner_v2_are_captured_with_other_inputs_and_replayed_after_those_of_batches() -> None:
    capture = source(ModelCudaGraphManager.capture)
    assert "model_state.prepare_dummy_inputs(" in capture
    assert "model_state.prepare_inputs(" not in capture
    text = source(RunnerV2.execute_model)
    prepared = text.index("**self.model_state.prepare_inputs(input_batch, self.req_states)")
    for run in ("self.cudagraph_manager.run_fullgraph(", "self.cudagraph_manager.run_pw_graph("):
        assert prepared < text.index(run)
    assert "self.graphs[desc].replay()" in source(CudaGraphManager.run_fullgraph)
    assert "num_tokens_after_padding = max(num_tokens, batch_desc.num_tokens)" in source(RunnerV2.prepare_inputs)


def test_batches_are_not_split_over_two_forward_passes() -> None:
    """The plan of a step is that of one; vLLM splits where it is asked to."""
    assert not AsyncEngineArgs.enable_dbo
    assert AsyncEngineArgs.speculative_config is None, "nor are some of its tokens guesses"
    assert AsyncEngineArgs.prefill_context_parallel_size == 1


# -------------------------------------------------------------------- seam/blocks.py


def test_blocks_are_keyed_by_one_function_of_which_two_modules_have_the_name() -> None:
    name = "generate_block_hash_extra_keys"
    assert parameters(blocks._library_keys) == ["request", "start_token_idx", "end_token_idx", "start_mm_idx"]
    assert parameters(blocks._keys) == parameters(blocks._library_keys)
    importers = {
        path.relative_to(SOURCE).as_posix() for path in SOURCE.rglob("*.py") if name in path.read_text(errors="ignore")
    }
    assert importers == {
        "v1/core/kv_cache_utils.py",
        "v1/core/block_pool.py",
        "v1/simple_kv_offload/manager.py",  # imported after plugins, and only for an offloading connector
    }
    assert f"{name}( request, start_token_idx, end_token_idx" in source(kv_cache_utils.get_request_block_hasher)
    assert hasattr(block_pool, name)
    assert {"sampling_params", "cache_salt"} <= set(parameters(Request.__init__))


def test_a_salt_is_in_the_first_block_and_every_block_has_the_one_before() -> None:
    assert "if (start_token_idx == 0 and request.cache_salt)" in source(blocks._library_keys)
    assert "hash_function((parent_block_hash, curr_block_token_ids_tuple, extra_keys))" in source(
        kv_cache_utils.hash_block_tokens
    )
    assert 'key[1:] if key[0] == "mm" else key[1]' in source(kv_cache_utils.to_event_extra_keys)


def test_the_engine_core_loads_plugins_and_answers_by_the_name_of_a_method() -> None:
    from vllm import plugins

    assert plugins.DEFAULT_PLUGINS_GROUP == "vllm.general_plugins"
    text = source(EngineCore.__init__)
    assert text.index("load_general_plugins()") < text.index("get_request_block_hasher(")
    assert parameters(AsyncMPClient.call_utility_async) == ["self", "method", "args"]
    assert "(method := getattr(self, method_name))" in source(EngineCoreProc._handle_client_request)


# -------------------------------------------------------------------- engine.py, request.py, events.py


def test_the_engine_is_called_as_vllms_own_server_calls_it() -> None:
    assert parameters(AsyncLLM.generate)[:4] == ["self", "prompt", "sampling_params", "request_id"]
    assert parameters(AsyncLLM.collective_rpc) == ["self", "method", "timeout", "args", "kwargs"]
    assert {"errored", "shutdown", "from_engine_args"} <= set(dir(AsyncLLM))
    assert issubclass(exceptions.EngineDeadError, Exception)
    assert issubclass(exceptions.EngineGenerateError, Exception)


def test_every_argument_of_the_engine_exists() -> None:
    model = FrozenModel(Path("base"), "float32", 320, 4096, frozenset([2]))
    engine = VllmEngine.__new__(VllmEngine)
    engine._model, engine._config, engine.context = model, EngineConfig(kind="vllm"), 4096
    assert set(engine._arguments()) <= fields(AsyncEngineArgs) | set(parameters(AsyncEngineArgs))


def test_requests_and_outputs_have_the_fields_that_are_used() -> None:
    assert {"prompt_token_ids", "cache_salt"} <= set(TokensPrompt.__annotations__)
    assert {
        "max_tokens", "min_tokens", "temperature", "top_p", "top_k", "repetition_penalty", "presence_penalty",
        "frequency_penalty", "seed", "logprobs", "prompt_logprobs", "ignore_eos", "structured_outputs", "detokenize",
        "output_kind", "extra_args",
    } <= fields(SamplingParams)  # fmt: skip
    assert "json" in fields(StructuredOutputsParams)
    assert {"outputs", "prompt_logprobs", "num_cached_tokens"} <= set(parameters(RequestOutput.__init__))
    assert {"token_ids", "logprobs", "finish_reason"} <= fields(CompletionOutput)


# -------------------------------------------------------------------- seam/gauges.py


def test_the_scheduler_reports_each_step_to_a_logger_of_ours() -> None:
    assert "stat_loggers" in parameters(AsyncLLM.from_engine_args)
    assert parameters(StatLoggerBase.record)[1:3] == ["scheduler_stats", "iteration_stats"]
    assert "kv_cache_usage" in fields(SchedulerStats)
    assert "self.num_preempted_reqs = 0" in source(IterationStats.__init__)
    assert "enable_default_loggers=log_stats" in source(AsyncLLM.__init__)
