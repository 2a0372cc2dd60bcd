"""All figures, by the names used in pages."""

from __future__ import annotations

from benchmarks.figures import decoding, engines, fusing, quality, rollouts, routing, serving, targets
from benchmarks.figures.markdown import Lines
from benchmarks.figures.pages import Figure
from benchmarks.figures.sources import SOURCES, Results


def source(name: str) -> Figure:
    """A figure that shows only the source of a raw result, without a table."""

    def figure(results: Results) -> Lines:
        """The source of the other figures of this result."""
        results[name]
        return []

    return figure


def measurements(results: Results) -> Lines:
    """Every raw result with its command, by machine."""
    return results.measurements()


FIGURES: dict[str, Figure] = {
    figure.__name__: figure
    for figure in (
        targets.headline,
        targets.targets,
        targets.targets_missed,
        decoding.decode_step,
        decoding.decode_grid,
        decoding.decode_mix,
        decoding.decode_idle,
        decoding.decode_plain_ms,
        decoding.decode_peft_rows,
        decoding.decode_loop,
        decoding.prefill,
        engines.throughput,
        engines.throughput_vllm,
        engines.inside_targets,
        engines.inside_vllm,
        engines.inside_vllm_resident,
        engines.attention,
        engines.attention_gain,
        engines.sampling,
        engines.kernels,
        engines.kernel_bytes,
        engines.vllm_starts,
        engines.vllm_lora,
        engines.vllm_plain,
        engines.llama_cpp_plain,
        engines.llama_cpp_mixes,
        engines.over_llama_cpp_mixes,
        engines.arrivals,
        engines.arrivals_requests,
        serving.cold_start,
        serving.cold_added,
        serving.cold_small,
        serving.cold_large,
        serving.cold_loopback,
        serving.cold_fetch,
        serving.cold_pack,
        serving.http,
        serving.http_vllm,
        serving.http_two_threads,
        serving.http_one_thread,
        serving.http_token_ms,
        serving.http_throughput_mode,
        serving.start,
        serving.streams,
        serving.streams_same,
        serving.streams_mixes,
        serving.loads,
        serving.loads_vllm,
        serving.loads_vllm_ratio,
        serving.console_pages,
        serving.console_weight,
        routing.passages,
        routing.router_people,
        routing.router_people_right,
        routing.router_people_refused,
        routing.router_p50,
        routing.router_p99,
        routing.router_growth,
        routing.router_latency,
        routing.affinity,
        routing.autoscaling,
        rollouts.canary,
        rollouts.canary_nulls,
        rollouts.canary_null_runs,
        rollouts.drift,
        quality.demo_quality,
        quality.bigbench_arms,
        quality.bigbench_composites,
        quality.bigbench_tasks,
        quality.bigbench_plain,
        quality.bigbench_oracle,
        quality.bigbench_routed,
        quality.bigbench_routed_less,
        quality.bigbench_right_gain,
        quality.bigbench_random_gain,
        quality.bigbench_joint_loss,
        quality.bigbench_sentence_loss,
        fusing.fusing_composites,
        fusing.fusing_differences,
        fusing.fusing_by_task,
        fusing.fusing_by_request,
        fusing.fusing_by_sentence,
        fusing.fusing_by_part,
        fusing.fusing_apart,
        measurements,
    )
}
FIGURES |= {f"{name}_source": source(name) for name in SOURCES}
