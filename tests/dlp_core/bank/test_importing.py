"""Adapters as teams keep them, brought into a bank folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from dlp_core.adapter.base_names import BaseNames
from dlp_core.bank.discovery import Found, discover
from dlp_core.bank.folder import read_folder
from dlp_core.bank.importing import Outcome, import_adapters, start_bank
from dlp_core.errors import BankError, InvalidRequest, NotFound, StoreUnavailable
from tests.support.banks import BASE_ID, upload, write_adapter
from tests.support.trainers import TRAINER_FILES, leave_trainer_files

BASE = BaseNames(BASE_ID)
TREE = {
    "runs/sql/lora/checkpoint-100": "older",
    "runs/sql/lora/checkpoint-900": "older",
    "runs/sql/lora/checkpoint-1000": "sql",
    "runs/cron": "cron",
    "runs/cron/checkpoint-50": "older",
    "teams/support/final_adapter": "support",
    "teams/eu/triage": "teams-eu-triage",
    "teams/us/triage": "teams-us-triage",
    "My adapters (old)/Übersetzer v2/adapter": "bersetzer-v2",
}
"""Where adapters are, and what each is called; `older` ones are passed over."""
NAMES = sorted(name for name in TREE.values() if name != "older")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for seed, folder in enumerate(TREE):
        leave_trainer_files(write_adapter(tmp_path / "tree" / folder, seed=seed))
    write_adapter(tmp_path / "tree" / ".cache" / "hidden")
    (tmp_path / "tree" / "notes.txt").write_text("not an adapter")
    return tmp_path / "tree"


@pytest.fixture
def bank(tmp_path: Path) -> Path:
    start_bank(tmp_path / "bank", BASE_ID)
    return tmp_path / "bank"


def imported(found: list[Found], bank: Path, *, replace: bool = False) -> dict[str, Outcome]:
    return {outcome.name: outcome for outcome in import_adapters(found, bank, base=BASE, replace=replace)}


def test_a_tree_of_runs_is_taken_with_names_that_say_something(tree: Path, bank: Path) -> None:
    outcomes = imported(discover(str(tree)), bank)
    assert sorted(outcomes) == NAMES
    assert {outcome.result for outcome in outcomes.values()} <= {"taken", "changed"}
    assert outcomes["sql"].location.endswith("checkpoint-1000")
    assert "checkpoint-100, checkpoint-900 are passed over" in outcomes["sql"].said[0]
    assert outcomes["cron"].location.endswith("cron")
    manifest, _ = read_folder(bank)
    assert [adapter.name for adapter in manifest.adapters] == NAMES
    left = {path.name for path in (bank / "adapters").rglob("*") if path.is_file()}
    assert not left & set(TRAINER_FILES), "a trainer's other files are not copied"


def test_a_prefix_in_a_store_is_taken_like_a_folder(tree: Path, tmp_path: Path, bank: Path, s3: str) -> None:
    shutil.rmtree(tree / ".cache")
    upload(tree, f"{s3}loras/")
    here, there = discover(str(tree)), discover(f"{s3}loras/")
    assert [(one.name, one.passed_over) for one in there] == [(one.name, one.passed_over) for one in here]
    first, second = (imported(found, folder) for found, folder in ((here, bank), (there, tmp_path / "other")))
    assert [outcome.result for outcome in first.values()] == [outcome.result for outcome in second.values()]


def test_a_second_import_changes_nothing_and_replaces_only_when_told(tree: Path, bank: Path) -> None:
    found = discover(str(tree / "runs" / "cron"))
    assert [one.name for one in found] == ["cron"], "a single adapter is called after its folder"
    imported(found, bank)
    before = read_folder(bank)[0]
    assert imported(found, bank)["cron"].result == "present"
    write_adapter(tree / "runs" / "cron", seed=99)
    refused = imported(found, bank)["cron"]
    assert refused.result == "refused"
    assert "--replace" in refused.said[0]
    assert read_folder(bank)[0].digest == before.digest
    assert imported(found, bank, replace=True)["cron"].result in ("taken", "changed")
    assert read_folder(bank)[0].digest != before.digest
    assert [path.name for path in (bank / "adapters").iterdir()] == ["cron"]


def test_what_is_refused_says_why_and_leaves_nothing(tmp_path: Path, bank: Path) -> None:
    good = write_adapter(tmp_path / "in" / "good")
    bad = write_adapter(tmp_path / "in" / "bad")
    config = json.loads((bad / "adapter_config.json").read_text())
    (bad / "adapter_config.json").write_text(json.dumps(config | {"use_dora": True}))
    outcomes = imported(discover(str(tmp_path / "in")), bank)
    assert (outcomes["good"].result, outcomes["bad"].result) == ("taken", "refused")
    assert "use_dora" in outcomes["bad"].said[0]
    assert [path.name for path in (bank / "adapters").iterdir()] == [good.name]


@pytest.mark.parametrize("suffix", [".csv", ".yaml"])
def test_a_list_names_and_describes(suffix: str, tmp_path: Path, bank: Path) -> None:
    for seed, name in enumerate("ab"):
        write_adapter(tmp_path / "out" / name / "adapter", seed=seed)
    rows = [
        {"name": "first", "uri": "out/a/adapter", "description": "Writes, among others, verse."},
        {"name": "", "uri": str(tmp_path / "out/b/adapter"), "description": ""},
    ]
    path = tmp_path / f"list{suffix}"
    if suffix == ".csv":
        lines = ["name,uri,description", f'first,out/a/adapter,"{rows[0]["description"]}"', f",{rows[1]['uri']},"]
        path.write_text("\n".join(lines))
    else:
        path.write_text(yaml.safe_dump(rows))
    assert [one.name for one in discover(str(path))] == ["b", "first"]
    imported(discover(str(path)), bank)
    manifest, _ = read_folder(bank)
    assert [(one.name, one.description) for one in manifest.adapters] == [
        ("b", None),
        ("first", rows[0]["description"]),
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name,url\nx,y\n", "row 1: it must have a uri.*found name, url"),
        ("name,uri,weight\nx,y,1\n", "unknown field 'weight'"),
        ("uri,name\na,x\nb,x\n", "names 'x' twice"),
        ("", "must be a list"),
    ],
)
def test_a_list_of_another_shape_is_named_with_its_row(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(InvalidRequest, match=says):
        discover(str(tmp_path / "list.csv"))


def test_a_location_that_is_not_there_is_refused_alone(tmp_path: Path, bank: Path) -> None:
    write_adapter(tmp_path / "good")
    (tmp_path / "list.csv").write_text("uri\ngood\nmissing\n")
    outcomes = imported(discover(str(tmp_path / "list.csv")), bank)
    assert (outcomes["good"].result, outcomes["missing"].result) == ("taken", "refused")


def test_nothing_to_import_is_said(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"no folder in it has adapter_config\.json"):
        discover(str(tmp_path))
    with pytest.raises(NotFound, match="there is no folder"):
        discover(str(tmp_path / "none"))


def test_the_hub_offline_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(StoreUnavailable, match="HF_HUB_OFFLINE is set"):
        discover("hf://org/name")
    with pytest.raises(InvalidRequest, match="hf://"):
        discover("hf://a/b/c/d")


def test_a_folder_is_a_bank_once(tmp_path: Path, bank: Path) -> None:
    with pytest.raises(InvalidRequest, match="is a bank folder already"):
        start_bank(bank, "other")
    with pytest.raises(BankError, match="no adapters"):
        read_folder(bank)
