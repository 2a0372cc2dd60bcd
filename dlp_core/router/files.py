"""The files of a router: `router.safetensors` (weights, vocabulary) and `router.json` (labels, calibration); for a
router with an encoder of its owner, also the folder `encoder/`.

Tables are stored as int8 with one scale per row, a quarter of their size; everything else is small. Training measures
and calibrates the stored, rounded weights, so the numbers in router.json hold for the router that is served. Only JSON
and safetensors are ever read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, fields
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from dlp_core.adapter.names import validate_name
from dlp_core.errors import BankError, InvalidRequest
from dlp_core.router.calibration import Calibration, Curve
from dlp_core.router.encoder import Encoder
from dlp_core.router.features import BUCKETS, VERSION
from dlp_core.router.memory import NO_TASK, Memory
from dlp_core.router.network import Network, dequantise_rows, quantise_rows
from dlp_core.router.novelty import Clusters
from dlp_core.router.sentence_encoder import Pooling, SentenceEncoder
from dlp_core.router.vocabulary import Vocabulary
from dlp_core.router.words import LENGTHS, WordEncoder
from dlp_core.store.disk import disk_errors
from dlp_core.store.documents import MAX_TENSORS_BYTES, parse_json, read_regular

WEIGHTS_FILE = "router.safetensors"
CONFIG_FILE = "router.json"
ENCODER_FOLDER = "encoder"
FORMAT = 3

Tensors: TypeAlias = Mapping[str, NDArray[Any]]

_AS_THEY_ARE = ("memory.tasks", "output.grown", "vocabulary.tokenizer", "vocabulary.words")


class Config(NamedTuple):
    """What router.json holds."""

    labels: tuple[str, ...]
    calibration: Calibration
    curve: Curve
    training: dict[str, Any]


class Parts(NamedTuple):
    """What router.safetensors holds, and the encoder."""

    encoder: Encoder
    network: Network
    clusters: Clusters
    memory: Memory


def write(folder: Path, config: Config, parts: Parts) -> None:
    """Write the files, the configuration last. Raises InvalidRequest if the folder cannot be written, DiskFull or
    LocalDiskError if the disk fails."""
    content = {
        "format": FORMAT,
        "features": VERSION,
        "pooling": parts.encoder.pooling if isinstance(parts.encoder, SentenceEncoder) else None,
        "labels": list(config.labels),
        "calibration": asdict(config.calibration),
        "curve": asdict(config.curve),
        "training": config.training,
    }
    with disk_errors(f"{folder}: the router cannot be written"):
        folder.mkdir(parents=True, exist_ok=True)
        if isinstance(parts.encoder, SentenceEncoder):
            parts.encoder.save(folder / ENCODER_FOLDER)
        _write(folder / WEIGHTS_FILE, save(dict(pack(parts))))
        _write(folder / CONFIG_FILE, (json.dumps(content, allow_nan=False) + "\n").encode())


def read(folder: Path, encoder: Path | None = None) -> tuple[Config, Parts]:
    """Read what `write` has written; the encoder, if there is one, from another folder if one is given. Raises
    BankError, naming the file and what to do, if a file is missing, damaged or of another version."""
    config, pooling = _read_config(folder / CONFIG_FILE)
    path = folder / WEIGHTS_FILE
    try:
        tensors = load(_read(path))
    except SafetensorError as error:
        raise BankError(f"{path}: not a safetensors file ({error}); train the router again") from error
    opened = None if pooling is None else SentenceEncoder.open(encoder or folder / ENCODER_FOLDER, pooling)
    try:
        problem = _find_problem(tensors, len(config.labels), None if opened is None else opened.width)
        parts = None if problem else unpack(tensors, opened)
    except (KeyError, ValueError, IndexError, AttributeError) as error:
        problem = f"a tensor is missing or wrong: {error}"
    if problem or parts is None:
        raise BankError(f"{path}: {problem}; train the router again")
    return config, parts


def pack(parts: Parts) -> Tensors:
    """The tensors of router.safetensors."""
    network, clusters, memory = parts.network, parts.clusters, parts.memory
    tensors: dict[str, NDArray[Any]] = {}
    if isinstance(parts.encoder, WordEncoder):
        for name, table in (("pieces", parts.encoder.pieces_VD), ("grams", parts.encoder.grams_GE)):
            tensors[f"{name}.values"], tensors[f"{name}.scales"] = quantise_rows(table)
        vocabulary = parts.encoder.vocabulary
        tensors["vocabulary.tokenizer"] = np.frombuffer(vocabulary.tokenizer.encode(), np.uint8)
        tensors["vocabulary.words"] = vocabulary.words
    for layer, (weight, bias) in enumerate(zip(network.weights, network.biases, strict=True), start=1):
        tensors[f"layer{layer}.weight"], tensors[f"layer{layer}.bias"] = weight.astype(np.float16), bias
    tensors["output.weight"], tensors["output.bias"] = network.output_NH.astype(np.float16), network.output_N
    tensors["output.grown"] = network.grown_N
    tensors["clusters.whitening"] = clusters.whitening_KH.astype(np.float16)
    tensors["clusters.centres"] = clusters.centres_NK.astype(np.float16)
    tensors["clusters.spreads"] = clusters.spreads_N
    tensors["clusters.strangers"] = clusters.strangers_SK.astype(np.float16)
    tensors["memory.inputs"], tensors["memory.tasks"] = memory.inputs_MI.astype(np.float16), memory.tasks_M
    return {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}


def unpack(tensors: Tensors, encoder: Encoder | None) -> Parts:
    """The inverse of `pack`: the parts as they are served, with the rounding of `pack`. Without an `encoder`, the
    tensors hold one of words."""
    if encoder is None:
        encoder = WordEncoder(
            _vocabulary(tensors),
            dequantise_rows(tensors["pieces.values"], tensors["pieces.scales"]),
            dequantise_rows(tensors["grams.values"], tensors["grams.scales"]),
        )
    floats = {
        name: tensor.astype(np.float32)
        for name, tensor in tensors.items()
        if name not in _AS_THEY_ARE and not name.startswith(("pieces", "grams"))
    }
    layers = range(1, _layers(tensors) + 1)
    network = Network(
        tuple(floats[f"layer{layer}.weight"] for layer in layers),
        tuple(floats[f"layer{layer}.bias"] for layer in layers),
        floats["output.weight"],
        floats["output.bias"],
        tensors["output.grown"],
    )
    clusters = Clusters(
        floats["clusters.whitening"],
        floats["clusters.centres"],
        floats["clusters.spreads"],
        floats["clusters.strangers"],
    )
    return Parts(encoder, network, clusters, Memory(floats["memory.inputs"], tensors["memory.tasks"]))


def _vocabulary(tensors: Tensors) -> Vocabulary:
    try:
        vocabulary = Vocabulary(tensors["vocabulary.tokenizer"].tobytes().decode(), tensors["vocabulary.words"])
    except KeyError as error:
        raise ValueError(f"vocabulary.words has a piece that the vocabulary lacks: {error}") from error
    except Exception as error:  # tokenizers raises nothing narrower
        raise ValueError(f"vocabulary.tokenizer cannot be read: {error}") from error
    rows = len(tensors["pieces.values"])
    if rows != vocabulary.size:
        raise ValueError(f"pieces.values has {rows} rows for a vocabulary of {vocabulary.size}")
    return vocabulary


def _layers(tensors: Tensors) -> int:
    return sum(name.startswith("layer") and name.endswith(".weight") for name in tensors)


def _write(path: Path, content: bytes) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(content)
    os.replace(partial, path)


def _read(path: Path) -> bytes:
    with disk_errors(f"{path}: cannot be read", mistake=BankError, action="`dlp router train` writes one"):
        return read_regular(path, MAX_TENSORS_BYTES)


def _read_config(path: Path) -> tuple[Config, Pooling | None]:
    try:
        content = parse_json(_read(path))
        versions = (content["format"], content.get("features"))
        if versions != (FORMAT, VERSION):
            raise BankError(
                f"{path}: format {versions[0]} with features {versions[1]}, but this version reads format {FORMAT} "
                f"with features {VERSION}; train the router again"
            )
        labels = tuple(validate_name(name) for name in content["labels"])
        if not labels or len(set(labels)) != len(labels):
            raise BankError(f"{path}: labels must be one or more different adapter names; train the router again")
        values = {field.name: float(content["calibration"][field.name]) for field in fields(Calibration)}
        positive = all(value > 0 for name, value in values.items() if name != "threshold")
        if not (positive and values["top_p"] <= 1 and all(map(np.isfinite, values.values()))):
            raise BankError(f"{path}: calibration {values} is out of range; train the router again")
        pooling = content["pooling"]
        if pooling not in (None, *get_args(Pooling)):
            raise BankError(f"{path}: pooling {pooling!r} is unknown; train the router again")
        return Config(labels, Calibration(**values), Curve.read(content["curve"]), dict(content["training"])), pooling
    except (ValueError, TypeError, KeyError, AttributeError, InvalidRequest) as error:
        raise BankError(f"{path}: not a router configuration ({error}); train the router again") from error


def _find_problem(tensors: Tensors, adapters: int, encoder_width: int | None) -> str | None:
    """What is wrong with the tensors of a router over this many adapters, or None."""
    expected: dict[str, tuple[tuple[int, ...], str]] = {}
    if encoder_width is None:
        for name, rows in (("pieces", tensors["pieces.values"].shape[0]), ("grams", BUCKETS)):
            expected[f"{name}.values"] = ((rows, tensors[f"{name}.values"].shape[1]), "int8")
            expected[f"{name}.scales"] = ((rows,), "float16")
        expected["vocabulary.tokenizer"] = ((len(tensors["vocabulary.tokenizer"]),), "uint8")
        expected["vocabulary.words"] = ((len(tensors["vocabulary.words"]),), "int32")
        encoder_width = len(LENGTHS) + sum(tensors[f"{name}.values"].shape[1] for name in ("pieces", "grams"))
    layers = range(1, _layers(tensors) + 1)
    widths = [encoder_width, *(tensors[f"layer{layer}.weight"].shape[0] for layer in layers)]
    for layer, (width_in, width_out) in zip(layers, pairwise(widths), strict=True):
        expected[f"layer{layer}.weight"] = ((width_out, width_in), "float16")
        expected[f"layer{layer}.bias"] = ((width_out,), "float32")
    hidden, space = widths[-1], tensors["clusters.whitening"].shape[0]
    remembered = len(tensors["memory.tasks"])
    expected |= {
        "output.weight": ((adapters, hidden), "float16"),
        "output.bias": ((adapters,), "float32"),
        "output.grown": ((adapters,), "bool"),
        "clusters.whitening": ((space, hidden), "float16"),
        "clusters.centres": ((adapters, space), "float16"),
        "clusters.spreads": ((adapters,), "float32"),
        "clusters.strangers": ((len(tensors["clusters.strangers"]), space), "float16"),
        "memory.inputs": ((remembered, encoder_width), "float16"),
        "memory.tasks": ((remembered,), "int16"),
    }
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
