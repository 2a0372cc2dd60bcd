"""Bank folders for tests: real PEFT files of a few hundred bytes, written without torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from dlp_core.bank.manifest import BankManifest
from dlp_core.bank.publish import publish
from dlp_core.errors import StoreUnavailable
from dlp_core.router import Router
from dlp_core.router.calibration import Calibration, Curve
from dlp_core.router.features import BUCKETS
from dlp_core.router.memory import Memory
from dlp_core.router.network import Network
from dlp_core.router.novelty import Clusters
from dlp_core.router.vocabulary import Vocabulary
from dlp_core.router.words import WordEncoder
from dlp_core.store.opening import open_store
from dlp_core.store.protocol import AdapterStore

BASE_ID = "org/tiny-base"
ADAPTERS = ("alpha", "beta", "gamma")
TOKENIZER = json.dumps(
    {
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "model": {
            "type": "WordPiece",
            "unk_token": "a",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 50,
            "vocab": {"a": 0, "##a": 1},
        },
    }
)
"""A vocabulary of one letter, as `tokenizers` saves it."""


def write_adapter(folder: Path, *, seed: int = 0, rank: int = 2, **config: Any) -> Path:
    """A LoRA on one q_proj of 8 -> 8 features."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "peft_type": "LORA",
        "base_model_name_or_path": BASE_ID,
        "r": rank,
        "lora_alpha": 4,
        "target_modules": ["q_proj"],
    }
    (folder / "adapter_config.json").write_text(json.dumps(settings | config))
    random = np.random.default_rng(seed)
    name = "base_model.model.model.layers.0.self_attn.q_proj"
    save_file(
        {
            f"{name}.lora_A.weight": random.normal(size=(rank, 8)).astype(np.float32),
            f"{name}.lora_B.weight": random.normal(size=(8, rank)).astype(np.float32),
        },
        folder / "adapter_model.safetensors",
    )
    return folder


def write_bank(folder: Path, names: Sequence[str] = ADAPTERS, *, seed: int = 0, router: bool = True) -> Path:
    """A bank folder with one adapter per name; another seed gives other weights everywhere."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "bank.json").write_text(json.dumps({"base_model": BASE_ID}))
    for number, name in enumerate(names):
        write_adapter(folder / "adapters" / name, seed=1000 * seed + number)
    if router:
        write_router(folder / "router", list(reversed(names)), seed=seed)
    return folder


def publish_bank(store: AdapterStore, folder: Path, seeds: Mapping[str, int], version: str) -> BankManifest:
    """Publishes adapters of these names, of random weights by their seeds, and no router."""
    for name, seed in seeds.items():
        write_adapter(folder / version / "adapters" / name, seed=seed)
    (folder / version / "bank.json").write_text(json.dumps({"base_model": BASE_ID}))
    return publish(store, folder / version, version=version)


def upload(folder: Path, uri: str) -> None:
    """The files of a folder as they are, as `aws s3 sync` would."""
    store = open_store(uri)
    for path in folder.rglob("*"):
        if path.is_file():
            store.put(path.relative_to(folder).as_posix(), path)


def write_router(folder: Path, labels: Sequence[str], *, seed: int = 0) -> None:
    """A router of random weights, as small as a router can be."""
    random = np.random.default_rng(seed)

    def floats(*shape: int) -> Any:
        return random.normal(size=shape).astype(np.float32)

    adapters = len(labels)
    vocabulary = Vocabulary(TOKENIZER, np.zeros(0, np.int32))
    encoder = WordEncoder(vocabulary, floats(vocabulary.size, 1), floats(BUCKETS, 1))
    Router(
        labels=tuple(labels),
        encoder=encoder,
        network=Network(
            weights=(floats(2, encoder.width),),
            biases=(floats(2),),
            output_NH=floats(adapters, 2),
            output_N=floats(adapters),
            grown_N=np.zeros(adapters, np.bool_),
        ),
        clusters=Clusters(floats(2, 2), floats(adapters, 2), floats(adapters), floats(4, 2)),
        calibration=Calibration(1.0, 0.0, 1.0),
        curve=Curve((-1.0, 0.0, 1.0), (), None),
        memory=Memory(floats(8, encoder.width), np.array([-1, 0] * 4, np.int16)),
        training={},
    ).save(folder)


class Spy:
    """A store that counts calls by method and, after `fail_after` writes, fails as if the process had died."""

    def __init__(self, store: AdapterStore, *, fail_after: int | None = None) -> None:
        self._store = store
        self.fail_after = fail_after
        self.calls: list[tuple[str, str]] = []

    @property
    def writes(self) -> list[str]:
        return [key for method, key in self.calls if method == "put"]

    def __getattr__(self, method: str) -> Any:
        target = getattr(self._store, method)
        if not callable(target):
            return target

        def call(key: str = "", *args: Any, **kwargs: Any) -> Any:
            if method == "put" and self.fail_after is not None and len(self.writes) >= self.fail_after:
                raise StoreUnavailable(f"killed before {key}")
            self.calls.append((method, key))
            return target(key, *args, **kwargs)

        return call
