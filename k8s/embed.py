"""Puts serve_config.yaml into the RayServices, word for word but for the values set here, and as it is into the
package, where an installed `dlp` reads it.

    python -m k8s.embed

tests/k8s/test_manifests.py fails while they differ.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent

Values = Mapping[str, Any]
"""By place: keys joined by dots, items of `deployments` by their names."""

_ARGS, _DEPLOYMENTS = "applications.dlp.args", "applications.dlp.deployments"
_BACKBONE = f"{_DEPLOYMENTS}.FusedBackbone"

# In every RayService: a router pod that is lost takes no more than this along, and Secrets are mounted files. API keys
# are on: the Secret dlp-keys has a first one (k8s/base/first_key.yaml).
EVERYWHERE: Values = {
    f"{_ARGS}.access.admin_token_file": "/etc/dlp-admin/token",
    f"{_ARGS}.access.keys_file": "/etc/dlp/keys.yaml",
    f"{_DEPLOYMENTS}.Ingress.max_replicas_per_node": 1,
    f"{_DEPLOYMENTS}.Router.max_replicas_per_node": 2,
}

# An 8B model in bfloat16 on a GPU of 40 GB or more: docs/operations.md does the sum.
GPU: Values = {
    f"{_ARGS}.engine.slots": 64,
    f"{_ARGS}.engine.host_bytes": 16 * 1024**3,
    f"{_ARGS}.engine.max_requests": 256,
    f"{_ARGS}.engine.slot_bytes": 6 * 1024**3,
    f"{_ARGS}.engine.memory_fraction": 0.9,
    f"{_ARGS}.engine.batch_tokens": 2048,
    f"{_BACKBONE}.max_ongoing_requests": 260,
    f"{_BACKBONE}.max_queued_requests": 512,
    f"{_BACKBONE}.autoscaling_config.target_ongoing_requests": 64,
    f"{_BACKBONE}.ray_actor_options.num_gpus": 1,
}

VLLM: Values = {
    **GPU,
    f"{_ARGS}.engine.kind": "vllm",
    f"{_ARGS}.engine.cache_tokens": 65_536,
    f"{_ARGS}.engine.memory_fraction": "null",
}

# Sizes of GPUs (k8s/components): what `dlp k8s size` computes, for the models that their kustomization.yaml names.
_FEW_REQUESTS: Values = {
    f"{_ARGS}.engine.max_requests": 64,
    f"{_BACKBONE}.max_ongoing_requests": 68,
    f"{_BACKBONE}.max_queued_requests": 128,
    f"{_BACKBONE}.autoscaling_config.target_ongoing_requests": 16,
}
GPU_24: Values = {
    **_FEW_REQUESTS,
    f"{_ARGS}.engine.slots": 16,
    f"{_ARGS}.engine.slot_bytes": 1_409_286_144,
    f"{_ARGS}.engine.host_bytes": 8 * 1024**3,
}
GPU_40: Values = {f"{_ARGS}.engine.slot_bytes": 5_435_817_984}
GPU_80: Values = {
    **_FEW_REQUESTS,
    f"{_ARGS}.engine.slots": 8,
    f"{_ARGS}.engine.slot_bytes": 2_214_592_512,
    f"{_ARGS}.engine.host_bytes": 32 * 1024**3,
}
_CACHE_TOKENS = f"{_ARGS}.engine.cache_tokens"

# One pod of each kind on a laptop. float32, because on CPUs answers in bfloat16 vary with what else is in the batch.
LOCAL: Values = {
    f"{_ARGS}.dtype": "float32",
    f"{_ARGS}.engine.max_requests": 16,
    f"{_ARGS}.engine.host_bytes": 256 * 1024**2,
    f"{_ARGS}.engine.cache_tokens": 8192,
    f"{_ARGS}.cache.max_bytes": 1024**3,
    f"{_DEPLOYMENTS}.Ingress.autoscaling_config.max_replicas": 1,
    f"{_DEPLOYMENTS}.Router.autoscaling_config.max_replicas": 2,
    f"{_BACKBONE}.max_ongoing_requests": 17,
    f"{_BACKBONE}.max_queued_requests": 32,
    f"{_BACKBONE}.autoscaling_config.max_replicas": 1,
}

_VALUES: Mapping[Path, Values] = {
    ROOT / "k8s/base/rayservice.yaml": {},
    ROOT / "k8s/overlays/gpu/serve.yaml": GPU,
    ROOT / "k8s/overlays/vllm/serve.yaml": VLLM,
    ROOT / "k8s/overlays/local/serve.yaml": LOCAL,
    ROOT / "k8s/components/gpu-24gb/serve.yaml": {**GPU, **GPU_24},
    ROOT / "k8s/components/gpu-40gb/serve.yaml": {**GPU, **GPU_40},
    ROOT / "k8s/components/gpu-80gb/serve.yaml": {**GPU, **GPU_80},
    ROOT / "k8s/components/vllm-24gb/serve.yaml": {**VLLM, **GPU_24, _CACHE_TOKENS: 20_480},
    ROOT / "k8s/components/vllm-40gb/serve.yaml": {**VLLM, **GPU_40, _CACHE_TOKENS: 113_664},
    ROOT / "k8s/components/vllm-80gb/serve.yaml": {**VLLM, **GPU_80, _CACHE_TOKENS: 27_648},
}

MANIFESTS: Mapping[Path, Values] = {path: {**EVERYWHERE, **values} for path, values in _VALUES.items()}

PACKAGED = "deployments/local/serve_config.yaml"

_BLOCK = re.compile(r"(?<=^  serveConfigV2: \|\n)(?: {4}.*\n|\n)*", flags=re.MULTILINE)


def with_values(text: str, values: Values) -> str:
    """The config with other values at some places; everything else, comments included, stays. Raises KeyError for a
    place the config does not have."""
    places = dict(_scalars(yaml.compose(text)))
    for place in sorted(values, key=lambda place: places[place].start_mark.index, reverse=True):
        node = places[place]
        text = text[: node.start_mark.index] + str(values[place]) + text[node.end_mark.index :]
    return text


def embedded(manifest: str) -> str:
    """The serve config inside a RayService."""
    [block] = _BLOCK.findall(manifest)
    return re.sub(r"^ {4}", "", block, flags=re.MULTILINE)


def embed(manifest: str, config: str) -> str:
    """A RayService with this serve config inside."""
    return _BLOCK.sub(lambda _: re.sub(r"^(?=.)", "    ", config, flags=re.MULTILINE), manifest)


def _scalars(node: yaml.Node, place: tuple[str, ...] = ()) -> Iterator[tuple[str, yaml.ScalarNode]]:
    if isinstance(node, yaml.ScalarNode):
        yield ".".join(place), node
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield from _scalars(value, (*place, key.value))
    elif isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            names = {key.value: value.value for key, value in item.value} if isinstance(item, yaml.MappingNode) else {}
            yield from _scalars(item, (*place, names.get("name", str(number))))


def main() -> None:
    config = (ROOT / "serve_config.yaml").read_text(encoding="utf-8")
    (ROOT / PACKAGED).write_text(config, encoding="utf-8")
    for path, values in MANIFESTS.items():
        path.write_text(embed(path.read_text(encoding="utf-8"), with_values(config, values)), encoding="utf-8")


if __name__ == "__main__":
    main()
