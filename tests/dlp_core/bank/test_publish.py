"""Publishing to stores that do not keep what they are given. The rest of it is in test_bank.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dlp_core.bank.publish import publish
from dlp_core.errors import StoreUnavailable
from dlp_core.store.memory import MemoryStore
from tests.support.banks import write_bank


@pytest.mark.parametrize("frames", ["everything", "manifests"])
def test_a_store_that_alters_what_it_is_given_serves_nothing(frames: str, tmp_path: Path) -> None:
    """As some stores do with the framing of boto3's checksums, which they keep as content."""
    write_bank(tmp_path / "bank", ["a", "b"])

    class Framing(MemoryStore):
        def put(self, key: str, body: bytes | Path, **conditions: Any) -> str:
            data = body if isinstance(body, bytes) else body.read_bytes()
            framed = frames == "everything" or key.startswith("banks/")
            return super().put(key, b"400\r\n" + data + b"\r\n0\r\n" if framed else data, **conditions)

    store = Framing("framing")
    for _ in range(2):
        with pytest.raises(StoreUnavailable, match=r"is not what was written.*AWS_REQUEST_CHECKSUM_CALCULATION"):
            publish(store, tmp_path / "bank")
    assert "current.json" not in [info.key for info in store.list()]
