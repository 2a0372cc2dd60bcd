"""A router with an encoder of its owner, in a bank: stored by digest, fetched with the router, kept by revisions."""

from __future__ import annotations

import uuid
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import pytest

from dlp_core.bank.disk_cache import DiskCache
from dlp_core.bank.manifest import BankManifest
from dlp_core.bank.publish import publish
from dlp_core.bank.reading import load_manifest
from dlp_core.bank.retention import collect
from dlp_core.bank.revision import with_adapter
from dlp_core.bank.source import read_router
from dlp_core.router import Router
from dlp_core.router.calibration import Calibration, Curve
from dlp_core.router.memory import Memory
from dlp_core.router.network import Network
from dlp_core.router.novelty import Clusters
from dlp_core.router.sentence_encoder import FILES, SentenceEncoder
from dlp_core.store.opening import open_store
from dlp_core.store.protocol import AdapterStore
from tests.support.banks import write_adapter, write_bank
from tests.support.encoders import write_encoder

pytestmark = pytest.mark.model

TEXTS = ["pay my bill", "book a flight to oslo, please", "what is the weather like in oslo today"]


@cache
def router() -> Router:
    """Random weights behind a tiny encoder."""
    encoder = SentenceEncoder.load(write_encoder(Path(mkdtemp()) / "encoder", TEXTS))
    random = np.random.default_rng(0)

    def floats(*shape: int) -> np.ndarray:
        return random.normal(size=shape).astype(np.float32)

    return Router(
        labels=("alpha", "beta"),
        encoder=encoder,
        network=Network((floats(4, 32),), (floats(4),), floats(2, 4), floats(2), np.zeros(2, np.bool_)),
        clusters=Clusters(floats(3, 4), floats(2, 3), floats(2), floats(5, 3)),
        calibration=Calibration(1.0, 5.0, 1.0),
        curve=Curve((-1.0, 0.0, 1.0), (), None),
        memory=Memory(encoder.encode(TEXTS * 3), np.array([0, 1, -1] * 3, np.int16)),
        training={},
    )


def published(tmp_path: Path) -> tuple[AdapterStore, BankManifest]:
    folder = write_bank(tmp_path / "bank", ["alpha", "beta"], router=False)
    router().save(folder / "router")
    store = open_store(f"memory://{uuid.uuid4().hex}")
    return store, publish(store, folder)


def test_it_is_published_by_digest_and_fetched_with_the_router(tmp_path: Path) -> None:
    store, bank = published(tmp_path)
    assert bank.router is not None
    assert bank.router.encoder is not None
    assert {key for key, _ in bank.objects() if key.startswith("encoders/")} == {
        f"encoders/{bank.router.encoder.version}/{name}" for name in FILES
    }
    fetched = read_router(store, DiskCache(tmp_path / "cache", 1 << 30), bank)
    assert fetched.route(TEXTS) == Router.load(tmp_path / "bank/router").route(TEXTS)


def test_a_revision_keeps_it_as_it_is(tmp_path: Path) -> None:
    store, bank = published(tmp_path)
    assert bank.router is not None
    folder = write_adapter(tmp_path / "new")
    (folder / "description.txt").write_text("Tells the weather.\n")
    after = with_adapter(store, "weather", folder, examples=[TEXTS[2]])
    assert after.router is not None
    assert after.router.labels == ("alpha", "beta", "weather")
    assert after.router.encoder == bank.router.encoder
    assert {adapter.name: adapter.description for adapter in after.adapters}["weather"] == "Tells the weather."
    assert load_manifest(store) == after


def test_garbage_collection_keeps_what_a_kept_bank_needs(tmp_path: Path) -> None:
    store, bank = published(tmp_path)
    assert bank.router is not None
    assert bank.router.encoder is not None
    store.put("encoders/stray/config.json", tmp_path / "bank/bank.json")
    collect(store, keep=1)
    keys = {info.key for info in store.list("encoders/")}
    assert keys == {f"encoders/{bank.router.encoder.version}/{name}" for name in FILES}
