"""`dlp_core` as a library of its own: what it shows to the outside, and its example."""

from __future__ import annotations

import re
import subprocess
import sys

import dlp_core
from tests.support.paths import ROOT

PUBLIC = set(
    "Adapter AdapterSource DLPError EMPTY_MIX EngineConfig FolderSource FusedEngine Fusion LoRAWeights Message Mix "
    "Plan Prompt Residency Router Routing Sampling Segment SentenceMixes Span TextCodec TokenEvent TokenLogprob "
    "Completion Delta Finished Generator check_base check_fits install read_adapter select_top_p".split()
)


def test_the_public_surface_is_what_the_documentation_names() -> None:
    assert set(dlp_core.__all__) == PUBLIC == set(dir(dlp_core))
    for name in PUBLIC:
        assert getattr(dlp_core, name).__doc__, name
    page = (ROOT / "docs/library.md").read_text().split("## Public surface")[1].split("\n## ")[0]
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == PUBLIC


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(dlp_core, "nothing")


def test_light_modules_need_no_torch_and_nothing_needs_ray() -> None:
    code = (
        "import sys; sys.modules['torch'] = sys.modules['ray'] = sys.modules['fastapi'] = None\n"
        "import dlp_core, dlp_core.decision, dlp_core.bank.manifest\n"
        "dlp_core.Mix, dlp_core.Router, dlp_core.EngineConfig"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_the_example_is_short_and_uses_the_public_surface_only() -> None:
    source = (ROOT / "examples/library.py").read_text()
    assert len(source.splitlines()) < 40
    assert set(re.findall(r"\bdlp\.(\w+)", source)) <= PUBLIC
    assert "from dlp_core" not in source
