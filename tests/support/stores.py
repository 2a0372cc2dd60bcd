"""Every kind of store, for tests of what must be the same in all of them."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

import pytest

REAL = {"real gs": "DLP_TEST_GS", "real az": "DLP_TEST_AZ"}
"""Variables with the URI of a place in a real cloud, or in an emulator, that the usual variables reach."""

SHARED = ("folder", "s3", "gs", "az", *REAL)
"""Those that several processes can share."""
KINDS = ("memory", *SHARED)


def empty_place(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URI of an empty place in a store of this kind, which the environment now points to.

    A test that uses it has a parameter with the kind's name: by it, those that need an S3 server are marked.
    """
    if kind == "memory":
        return f"memory://{uuid.uuid4().hex}"
    if kind == "folder":
        return str(tmp_path / "store")
    if variable := REAL.get(kind):
        if variable not in os.environ:
            pytest.skip(f"{variable} names no place to test in")
        return f"{os.environ[variable].rstrip('/')}/{uuid.uuid4().hex}/"
    return str(request.getfixturevalue(kind))
