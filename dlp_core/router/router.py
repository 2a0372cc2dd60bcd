"""A trained router: a folder with `router.safetensors` (weights) and `router.json` (labels, calibration).

The embedding table is stored as int8 with one scale per row, a quarter of its size; everything else is small. Training
measures and calibrates the stored, rounded weights, so the numbers in router.json hold for the router that is served.
"""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from dlp_core.adapter.names import validate_name
from dlp_core.errors import BankError, InvalidRequest
from dlp_core.router.calibration import Calibration
from dlp_core.router.features import BUCKETS, VERSION, featurise
from dlp_core.router.memory import NO_TASK, Memory
from dlp_core.router.network import Floats, Network, dequantise_rows, quantise_rows, softmax
from dlp_core.router.novelty import PENALTY, Clusters
from dlp_core.router.routing import Routing
from dlp_core.store.disk import disk_errors

WEIGHTS_FILE = "router.safetensors"
CONFIG_FILE = "router.json"
FORMAT = 2

_LAYERS = 4
MAX_LOG_ODDS = 50.0
"""Log-odds are clipped to plus or minus this value."""
_CHUNK = 64  # texts whose features are in memory at once


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Router:
    """Routes texts over the adapters in `labels`. Immutable; may be used from several threads."""

    labels: tuple[str, ...]
    network: Network
    clusters: Clusters
    calibration: Calibration
    memory: Memory
    training: dict[str, Any]
    """What the training measured on held-back rows."""

    def route(self, texts: Sequence[str]) -> list[Routing]:
        """Route each text. Text without visible characters is "none of these". Accepts any text."""
        chunks = (texts[start : start + _CHUNK] for start in range(0, len(texts), _CHUNK))
        return [routing for chunk in chunks for routing in self._route_chunk(chunk)]

    def route_first(self, choices: Sequence[Sequence[str]]) -> list[Routing]:
        """Route each sequence of texts by its first text that fits an adapter, or by its first text if none does. See
        dlp_core.text.chat.routing_texts."""
        routings = self.route([texts[0] for texts in choices])
        for turn in range(1, max(map(len, choices), default=0)):
            undecided = [n for n, texts in enumerate(choices) if turn < len(texts) and not routings[n].fits]
            for n, routing in zip(undecided, self.route([choices[n][turn] for n in undecided]), strict=True):
                if routing.fits:
                    routings[n] = routing
        return routings

    def log_odds(self, texts: Sequence[str], label: str) -> NDArray[np.float64]:
        """Log-odds of one adapter, (B,), exact even where its probability rounds to 1; clipped to MAX_LOG_ODDS."""
        logits, novelty, joined = self._infer(texts)
        scaled = self.calibration.scale_logits(logits[:, :-1], joined).astype(np.float64)
        own = self.labels.index(label)
        others = np.logaddexp.reduce(np.delete(scaled, own, axis=1), axis=1, initial=-np.inf)
        neg_log_share = np.logaddexp(0, others - scaled[:, own])  # share: its probability given that some adapter fits
        none_log_odds = self.calibration.none_log_odds(novelty).astype(np.float64)
        log_probability = -np.logaddexp(0, none_log_odds) - neg_log_share
        log_rest = np.logaddexp(
            others - scaled[:, own] - neg_log_share, -np.logaddexp(0, -none_log_odds) - neg_log_share
        )
        odds: NDArray[np.float64] = np.clip(log_probability - log_rest, -MAX_LOG_ODDS, MAX_LOG_ODDS)
        return odds

    def _route_chunk(self, texts: Sequence[str]) -> list[Routing]:
        logits, novelty, joined = self._infer(texts)
        none = self.calibration.none_probability(novelty)
        probabilities = self.calibration.probabilities(logits[:, :-1], joined)
        probabilities *= (1.0 - none)[:, None]
        return [
            Routing(self.labels, array("f", row.tobytes()), none_probability)
            for row, none_probability in zip(probabilities, none.tolist(), strict=True)
        ]

    def _infer(self, texts: Sequence[str]) -> tuple[Floats, Floats, NDArray[np.bool_]]:
        """Logits (B, N + 1), novelty (B,), and whether each text joins two tasks (B,)."""
        inputs = self.network.embed(featurise(texts))
        hidden, _, logits = self.network.forward(inputs)
        novelty, joined = self.clusters.novelty(hidden, softmax(logits))
        novelty[inputs[:, -1] == 0] = np.inf  # a text without features
        return logits, novelty, joined

    def only(self, labels: Sequence[str]) -> Router:
        """Restrict the router to these adapters, in this order. The hidden layers are shared."""
        kept = [self.labels.index(label) for label in labels]
        rows = [*kept, len(self.labels)]
        return replace(
            self,
            labels=tuple(labels),
            network=self.network.with_outputs(self.network.weights[-1][rows], self.network.biases[-1][rows]),
            clusters=self.clusters.only(kept),
            memory=self.memory.only(kept),
        )

    def save(self, folder: Path) -> None:
        """Write both files, the configuration last: a folder with a router.json is complete.

        Raises InvalidRequest if the folder cannot be written, DiskFull or LocalDiskError if the disk fails.
        """
        tensors = pack(self.network, self.clusters, self.memory)
        config = {
            "format": FORMAT,
            "features": VERSION,
            "labels": list(self.labels),
            "calibration": asdict(self.calibration),
            "training": self.training,
        }
        with disk_errors(f"{folder}: the router cannot be written"):
            folder.mkdir(parents=True, exist_ok=True)
            _write(folder / WEIGHTS_FILE, save(tensors))
            _write(folder / CONFIG_FILE, (json.dumps(config, indent=1, allow_nan=False) + "\n").encode())

    @classmethod
    def load(cls, folder: Path) -> Router:
        """Read a folder written by `save`. Only JSON and safetensors are ever read.

        Raises BankError, naming the file and what to do, if a file is missing, damaged or of another version.
        """
        labels, calibration, training = _read_config(folder / CONFIG_FILE)
        network, clusters, memory = _read_weights(folder / WEIGHTS_FILE, len(labels))
        return cls(
            labels=labels, network=network, clusters=clusters, calibration=calibration, memory=memory, training=training
        )


@lru_cache(maxsize=256)
def restricted(router: Router, allowed: frozenset[str] | None) -> Router:
    """The router for a request that may use only these adapters: it has no output for any other. None allows all.

    Raises ValueError if the router has none of them.
    """
    if allowed is None or allowed.issuperset(router.labels):
        return router
    labels = [label for label in router.labels if label in allowed]
    if not labels:
        raise ValueError("the router has no output for any of the allowed adapters")
    return router.only(labels)


def pack(network: Network, clusters: Clusters, memory: Memory) -> dict[str, NDArray[Any]]:
    """The tensors of router.safetensors."""
    values, scales = quantise_rows(network.table_VD)
    tensors: dict[str, NDArray[Any]] = {"embedding.values": values, "embedding.scales": scales}
    for layer, (weight, bias) in enumerate(zip(network.weights, network.biases, strict=True), start=1):
        tensors[f"layer{layer}.weight"] = weight.astype(np.float16)
        tensors[f"layer{layer}.bias"] = bias
    tensors["clouds.whitening"] = clusters.whitening_KHH.astype(np.float16)
    tensors["clouds.centres"] = clusters.centres_KNH.astype(np.float16)
    tensors["clouds.spreads"] = clusters.spreads_KN
    tensors["clouds.grown"] = clusters.grown_N
    tensors["memory.inputs"] = memory.inputs_MI.astype(np.float16)
    tensors["memory.tasks"] = memory.tasks_M
    return {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}


def unpack(tensors: dict[str, NDArray[Any]]) -> tuple[Network, Clusters, Memory]:
    """The inverse of `pack`: the parts as they are served, with the rounding of `pack`."""
    stored_as_is = ("embedding.values", "memory.tasks", "clouds.grown")
    floats = {name: tensor.astype(np.float32) for name, tensor in tensors.items() if name not in stored_as_is}
    layers = range(1, _LAYERS + 1)
    network = Network(
        dequantise_rows(tensors["embedding.values"], tensors["embedding.scales"]),
        tuple(floats[f"layer{layer}.weight"] for layer in layers),
        tuple(floats[f"layer{layer}.bias"] for layer in layers),
    )
    return (
        network,
        Clusters(
            floats["clouds.whitening"], floats["clouds.centres"], floats["clouds.spreads"], tensors["clouds.grown"]
        ),
        Memory(floats["memory.inputs"], tensors["memory.tasks"]),
    )


def _write(path: Path, content: bytes) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(content)
    os.replace(partial, path)


def _read(path: Path) -> bytes:
    with disk_errors(f"{path}: cannot be read", mistake=BankError, action="`dlp router train` writes one"):
        return path.read_bytes()


def _read_config(path: Path) -> tuple[tuple[str, ...], Calibration, dict[str, Any]]:
    try:
        config = json.loads(_read(path))
        versions = (config["format"], config["features"])
        if versions != (FORMAT, VERSION):
            raise BankError(
                f"{path}: format {versions[0]} with features {versions[1]}, but this version reads format {FORMAT} "
                f"with features {VERSION}; train the router again"
            )
        labels = tuple(validate_name(name) for name in config["labels"])
        if not labels or len(set(labels)) != len(labels):
            raise BankError(f"{path}: labels must be one or more different adapter names; train the router again")
        values = {field.name: float(config["calibration"][field.name]) for field in fields(Calibration)}
        positive = all(value > 0 for name, value in values.items() if name != "threshold")
        if not (positive and all(map(np.isfinite, values.values()))):
            raise BankError(f"{path}: calibration {values} is out of range; train the router again")
        return labels, Calibration(**values), dict(config["training"])
    except (ValueError, TypeError, KeyError, InvalidRequest) as error:
        raise BankError(f"{path}: not a router configuration ({error}); train the router again") from error


def _read_weights(path: Path, adapters: int) -> tuple[Network, Clusters, Memory]:
    try:
        tensors = load(_read(path))
    except SafetensorError as error:
        raise BankError(f"{path}: not a safetensors file ({error}); train the router again") from error
    try:
        problem = _find_problem(tensors, adapters)
    except (KeyError, ValueError, IndexError) as error:
        problem = f"tensor {error} is missing or has the wrong rank"
    if problem:
        raise BankError(f"{path}: {problem}; train the router again")
    return unpack(tensors)


def _find_problem(tensors: dict[str, NDArray[Any]], adapters: int) -> str | None:
    """What is wrong with the tensors of a router over this many adapters, or None."""
    embedding = tensors["embedding.values"].shape[1]
    widths = [
        3 * embedding + 1,
        *(tensors[f"layer{layer}.weight"].shape[0] for layer in range(1, _LAYERS)),
        adapters + 1,
    ]
    hidden, kinds = widths[2], len(PENALTY)
    expected: dict[str, tuple[tuple[int, ...], str]] = {
        "embedding.values": ((BUCKETS, embedding), "int8"),
        "embedding.scales": ((BUCKETS,), "float16"),
        "clouds.whitening": ((kinds, hidden, hidden), "float16"),
        "clouds.centres": ((kinds, adapters, hidden), "float16"),
        "clouds.spreads": ((kinds, adapters), "float32"),
        "clouds.grown": ((adapters,), "bool"),
        "memory.inputs": ((len(tensors["memory.tasks"]), widths[0]), "float16"),
        "memory.tasks": ((len(tensors["memory.tasks"]),), "int16"),
    }
    for layer, (width_in, width_out) in enumerate(pairwise(widths), start=1):
        skip_width = embedding if layer == _LAYERS else 0
        expected[f"layer{layer}.weight"] = ((width_out, width_in + skip_width), "float16")
        expected[f"layer{layer}.bias"] = ((width_out,), "float32")
    if set(tensors) != set(expected):
        return f"its tensors are {sorted(tensors)}, not {sorted(expected)}"
    for name, (shape, dtype) in expected.items():
        tensor = tensors[name]
        if tensor.shape != shape or tensor.dtype != dtype:
            return f"{name} is {tensor.dtype} {list(tensor.shape)}, {adapters} labels need {dtype} {list(shape)}"
        if not np.isfinite(tensor).all():
            return f"{name} has values that are not finite"
    tasks = tensors["memory.tasks"]
    if tasks.min(initial=NO_TASK) < NO_TASK or tasks.max(initial=NO_TASK) >= adapters:
        return f"memory.tasks has tasks that are not among the {adapters} labels"
    return None
