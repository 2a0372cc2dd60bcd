"""Folders as trainers leave them: two files are served, others are not opened, and a missing one is found."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from dlp_core.adapter.contents import CONFIG_FILE, FILES, PICKLED_WEIGHTS, WEIGHTS_FILE, left_out
from dlp_core.adapter.hub_cache import link_root
from dlp_core.adapter.weights import read_adapter
from dlp_core.errors import AdapterRefused
from tests.support.banks import write_adapter
from tests.support.trainers import TRAINER_FILES, leave_trainer_files

COMMIT = "12fd25f77366fa6b3b4b768ec3050bf629380bac"


def refusal(folder: Path) -> str:
    with pytest.raises(AdapterRefused, match="adapter 'sql'") as caught:
        read_adapter(folder, name="sql")
    return caught.value.message


def move(folder: Path, *names: str) -> Path:
    """Moves the adapter's files into a folder below."""
    for name in names:
        target = folder / name
        target.mkdir(parents=True)
        for file in FILES:
            shutil.copyfile(folder / file, target / file)
    for file in FILES:
        (folder / file).unlink()
    return folder


def test_what_a_trainer_leaves_is_left_out(tmp_path: Path) -> None:
    folder = leave_trainer_files(write_adapter(tmp_path / "sql"))
    (folder / ".gitattributes").write_text("*.safetensors filter=lfs\n")
    assert read_adapter(folder, name="sql").modules
    assert set(left_out(folder)) == set(TRAINER_FILES)


def test_names_that_act_on_a_terminal_are_escaped(tmp_path: Path) -> None:
    (tmp_path / "a\x1b[2J").write_text("")
    (tmp_path / os.fsdecode(b"\xff")).write_text("")
    assert left_out(tmp_path) == (r"'\udcff'", r"'a\x1b[2J'")


def test_the_newest_checkpoint_is_named(tmp_path: Path) -> None:
    folder = move(write_adapter(tmp_path / "sql"), "checkpoint-90", "checkpoint-500", "checkpoint-1000")
    (folder / "checkpoint-1000" / WEIGHTS_FILE).unlink()
    assert f"{CONFIG_FILE} is missing" in refusal(folder)
    assert "; checkpoint-500 is the newest" in refusal(folder)
    shutil.copyfile(folder / "checkpoint-500" / CONFIG_FILE, folder / CONFIG_FILE)
    assert f"{WEIGHTS_FILE} is missing" in refusal(folder)
    assert "; checkpoint-500 is the newest" in refusal(folder)


def test_an_adapter_with_a_name_or_in_a_cached_repository_is_found(tmp_path: Path) -> None:
    assert "there is an adapter in its folder default:" in refusal(move(write_adapter(tmp_path / "a"), "default"))
    cached = move(write_adapter(tmp_path / "models--a--b"), f"snapshots/{COMMIT}")
    assert f"there is an adapter in its folder snapshots/{COMMIT}:" in refusal(cached)


def test_a_pickle_of_weights_is_refused_with_the_command_that_converts_it(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "it's sql")
    (folder / WEIGHTS_FILE).rename(folder / PICKLED_WEIGHTS)
    assert refusal(folder).endswith(f"""run: dlp adapter convert '{tmp_path}/it'"'"'s sql'""")
    (folder / PICKLED_WEIGHTS).write_bytes(b"")  # as in a copy from a store
    assert refusal(folder).endswith("copy the folder here and run: dlp adapter convert FOLDER")
    (folder / PICKLED_WEIGHTS).rename(folder / "adapter.pth")
    assert "adapter.pth is a pickle and is never opened" in refusal(folder)


def cached(root: Path) -> Path:
    """An adapter as huggingface_hub caches it: a snapshot of links to blobs."""
    repository = root / "models--org--sql"
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for number, file in enumerate(FILES):
        shutil.copyfile(write_adapter(root / "sql") / file, repository / "blobs" / str(number))
        (snapshot / file).symlink_to(Path("../../blobs") / str(number))
    return snapshot


def test_links_of_a_cached_snapshot_lead_into_its_repository_and_no_further(tmp_path: Path) -> None:
    snapshot = cached(tmp_path)
    assert "leads out of its folder" in refusal(snapshot)
    assert read_adapter(snapshot, name="sql", inside=link_root(snapshot)).modules
    (snapshot / CONFIG_FILE).unlink()
    (snapshot / CONFIG_FILE).symlink_to(tmp_path / "sql" / CONFIG_FILE)
    with pytest.raises(AdapterRefused, match="leads out of its folder"):
        read_adapter(snapshot, name="sql", inside=link_root(snapshot))


@pytest.mark.parametrize("path", ["x", "models--a--b", "models--a--b/blobs", "other--a--b/snapshots/c"])
def test_other_folders_have_no_such_links(tmp_path: Path, path: str) -> None:
    assert link_root(tmp_path / path) == tmp_path / path
