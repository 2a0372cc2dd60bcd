"""`dlp bank` as a user meets it: exit codes, one line for a mistake, JSON for machines."""

from __future__ import annotations

import json
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from deployments.cli import main
from dlp_core.bank.folder import write_pairs
from dlp_core.store.opening import open_store
from tests.support.banks import ADAPTERS, upload, write_adapter, write_bank
from tests.support.trainers import TRAINER_FILES, leave_trainer_files

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def dlp(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Runs `dlp bank ...` on a bank in a folder; returns exit code, stdout, stderr."""
    monkeypatch.setenv("DLP_BANK", str(tmp_path / "store"))

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["dlp", "bank", *arguments])
        with pytest.raises(SystemExit) as end:
            main.main()
        printed = capsys.readouterr()
        return int(end.value.code or 0), printed.out, printed.err

    return run


@pytest.fixture
def published(dlp: Run, tmp_path: Path) -> list[str]:
    """Two versions, the second serves."""
    versions = []
    for seed in range(2):
        code, out, _ = dlp("publish", str(write_bank(tmp_path / f"bank{seed}", seed=seed)), "--json")
        assert code == 0
        versions.append(json.loads(out)["version"])
    return versions


def json_of(result: tuple[int, str, str]) -> Any:
    code, out, err = result
    assert (code, err) == (0, "")
    return json.loads(out)


def test_a_folder_in_a_store_is_published_like_one_here(dlp: Run, tmp_path: Path, s3: str) -> None:
    folder = write_bank(tmp_path / "bank")
    upload(folder, f"{s3}candidate/")
    there = json_of(dlp("publish", f"{s3}candidate/", "--json"))
    assert json_of(dlp("publish", str(folder), "--json")) == there


def test_pin_gc_and_unpin(dlp: Run, tmp_path: Path, published: list[str]) -> None:
    old, new = published
    for seed in (2, 3):
        assert dlp("publish", str(write_bank(tmp_path / f"bank{seed}", seed=seed)))[0] == 0
    assert json_of(dlp("pin", old, "--json"))["pinned"] == [old]
    dry = json_of(dlp("gc", "--keep", "0", "--dry-run", "--json"))
    assert (dry["versions"], dry["dry_run"]) == ([new], True)
    assert {bank["version"] for bank in json_of(dlp("list", "--json"))} >= {old, new}
    done = json_of(dlp("gc", "--keep", "0", "--json"))
    assert (done["versions"], done["objects"], done["size"]) == ([new], dry["objects"], dry["size"])
    listed = {bank["version"]: bank["pinned"] for bank in json_of(dlp("list", "--json"))}
    assert listed[old]
    assert new not in listed
    assert json_of(dlp("unpin", old, "--json"))["pinned"] == []
    code, out, _ = dlp("gc", "--keep", "0")
    assert code == 0
    assert f"- {old}" in out
    assert "kept:" in out
    code, out, err = dlp("unpin", old)
    assert (code, out) == (2, "")
    assert "is not pinned" in err


def test_publish_show_and_list(dlp: Run, tmp_path: Path, published: list[str]) -> None:
    old, new = published
    shown = json_of(dlp("show", "--json"))
    assert shown["version"] == new
    assert [adapter["name"] for adapter in shown["adapters"]] == list(ADAPTERS)
    assert json_of(dlp("show", old, "--json"))["version"] == old
    listed = {bank["version"]: bank for bank in json_of(dlp("list", "--json"))}
    assert (listed[new]["current"], listed[old]["current"]) == (True, False)
    assert listed[new]["adapters"] == 3
    assert dlp("list", "--bank", str(tmp_path / "elsewhere"), "--json")[0] == 2


def test_the_pairs_that_run_together_are_shown_with_what_changes(
    dlp: Run, tmp_path: Path, published: list[str]
) -> None:
    folder = write_bank(tmp_path / "paired")
    write_pairs(folder, [("beta", "alpha")])
    out = dlp("publish", str(folder))[1]
    assert "~ only the pairs of allowed_together are mixed\n+ alpha with beta" in out
    assert "allowed together: alpha with beta" in dlp("show")[1]
    write_pairs(folder, [])
    assert "- alpha with beta" in dlp("publish", str(folder))[1]
    assert "allowed together: no adapters" in dlp("show")[1]
    assert "~ any adapters are mixed" in dlp("publish", str(write_bank(tmp_path / "free")))[1]


def test_diff_and_rollback(dlp: Run, published: list[str]) -> None:
    old, new = published
    assert json_of(dlp("diff", old, new, "--json")) == {
        "added": [],
        "removed": [],
        "changed": list(ADAPTERS),
        "router_changed": True,
        "base_changed": False,
        "recipes_added": [],
        "recipes_removed": [],
        "recipes_changed": [],
        "pairs_added": [],
        "pairs_removed": [],
        "mixes": None,
    }
    assert json_of(dlp("rollback", "--json"))["version"] == old
    assert json_of(dlp("show", "--json"))["version"] == old
    assert json_of(dlp("rollback", new, "--json"))["version"] == new


def test_verify_fails_when_a_file_is_not_as_published(dlp: Run, tmp_path: Path, published: list[str]) -> None:
    assert json_of(dlp("verify", "--json")) | {"size": 0} == {
        "version": published[1],
        "files": 8,
        "size": 0,
        "problems": [],
    }
    store = open_store(str(tmp_path / "store"))
    for info in store.list("adapters/beta/"):
        store.put(info.key, bytes(info.size))
    code, out, _ = dlp("verify", "--json")
    assert code == 1
    assert len(json.loads(out)["problems"]) == 2
    code, out, _ = dlp("verify")
    assert code == 1
    assert out.count("adapters/beta/") == 2


def test_what_a_human_reads(dlp: Run, tmp_path: Path, published: list[str]) -> None:
    old, new = published
    for arguments, says in (
        (["publish", str(tmp_path / "bank1")], new),
        (["show"], "alpha"),
        (["list"], "serves"),
        (["diff", old, new], "~ alpha"),
        (["diff", old, old], "no difference"),
        (["verify"], "all as published"),
        (["rollback"], old),
    ):
        code, out, err = dlp(*arguments)
        assert (code, err) == (0, ""), arguments
        assert says in out, arguments


def test_a_mistake_is_one_line_and_exit_2(dlp: Run, tmp_path: Path) -> None:
    bad = write_bank(tmp_path / "bad")
    write_adapter(bad / "adapters" / "beta", use_dora=True)
    for arguments, says in (
        (["publish", str(bad)], "use_dora"),
        (["publish", str(tmp_path / "none")], "there is no folder"),
        (["show"], "dlp bank publish"),
        (["rollback", "nope"], "dlp bank publish"),
        (["show", "--bank", "ftp://x"], "ftp://x"),
    ):
        code, out, err = dlp(*arguments)
        assert (code, out) == (2, ""), arguments
        assert says in err, arguments
        assert err.count("\n") == 1, err
        assert "Traceback" not in err


@pytest.mark.parametrize(("features", "fits"), [(8, True), (64, False)])
def test_adapters_are_checked_against_the_real_base_model(dlp: Run, tmp_path: Path, features: int, fits: bool) -> None:
    from transformers import LlamaConfig

    LlamaConfig(
        architectures=["LlamaForCausalLM"],
        hidden_size=features,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
        vocab_size=8,
    ).save_pretrained(tmp_path / "base")
    folder = write_bank(tmp_path / "bank")
    code, _, err = dlp("publish", str(folder), "--base-model", str(tmp_path / "base"), "--json")
    assert code == (0 if fits else 2)
    assert ("8 -> 8" in err) is not fits


def test_what_is_said_about_adapters_that_are_served(dlp: Run, tmp_path: Path) -> None:
    """A line for each thing to say, however many adapters it is about; warnings on stderr."""
    folder = write_bank(tmp_path / "bank")
    for name in ADAPTERS:
        write_adapter(folder / "adapters" / name, base_model_name_or_path="org/other-7b")
        (folder / "adapters" / name / "training_args.bin").write_bytes(b"\x80\x04")
    write_adapter(folder / "adapters" / "beta", base_model_name_or_path="unsloth/tiny-base-bnb-4bit")
    (folder / "adapters" / "beta" / "README.md").write_text("made by PEFT")

    code, out, err = dlp("publish", str(folder))
    assert code == 0
    assert err.splitlines() == [
        "warning: it was trained on 'org/other-7b', and 'org/tiny-base' is served; if they are one model, list the "
        "name in bank.json's aliases (alpha, gamma)"
    ]
    assert out.splitlines()[1:] == [
        "note: its base model 'unsloth/tiny-base-bnb-4bit' is another form of 'org/tiny-base' (beta)",
        "left out: training_args.bin (3), README.md (1)",
    ]

    code, out, err = dlp("publish", str(folder), "--json")
    said = json.loads(out)
    assert code == 0
    assert len(err.splitlines()) == 1
    assert [line.partition(":")[0] for line in said["warnings"]] == ["adapter 'alpha'", "adapter 'gamma'"]
    assert [line.partition(":")[0] for line in said["notes"]] == ["adapter 'beta'"]
    assert said["left_out"] == [
        "alpha/training_args.bin",
        "beta/README.md",
        "beta/training_args.bin",
        "gamma/training_args.bin",
    ]

    code, out, err = dlp("publish", str(folder), "--strict-names")
    assert (code, out) == (2, "")
    assert "adapter 'alpha' was trained on 'org/other-7b'" in err
    assert err.count("\n") == 1


def test_a_trainers_folder_in_a_store_is_published_like_one_here(dlp: Run, tmp_path: Path, s3: str) -> None:
    folder = write_bank(tmp_path / "bank")
    leave_trainer_files(folder / "adapters" / "alpha", tmp_path / "proof")
    upload(folder, f"{s3}candidate/")
    there = json_of(dlp("publish", f"{s3}candidate/", "--json"))
    assert json_of(dlp("publish", str(folder), "--json")) == there
    assert len(there["left_out"]) == len(TRAINER_FILES)
    assert not (tmp_path / "proof").exists()


def test_without_a_bank_the_option_is_asked_for(dlp: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DLP_BANK")
    code, _, err = dlp("show")
    assert code == 2
    assert "--bank" in err


def test_a_store_that_is_down_is_exit_1(dlp: Run, aws_free: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    code, _, err = dlp("show", "--bank", "s3://bucket/bank/")
    assert code == 1
    assert "http://127.0.0.1:9" in err
    assert err.count("\n") == 1


def test_a_publish_says_what_it_changes_and_removes_nothing_unasked(dlp: Run, tmp_path: Path) -> None:
    dlp("publish", str(write_bank(tmp_path / "all")))
    fewer = write_bank(tmp_path / "fewer", ADAPTERS[:2])
    write_adapter(fewer / "adapters" / ADAPTERS[0], seed=9)
    code, out, err = dlp("publish", str(fewer))
    assert (code, out) == (2, "")
    assert f"removes {ADAPTERS[2]}, which" in err
    assert "--yes" in err
    assert len(json_of(dlp("show", "--json"))["adapters"]) == len(ADAPTERS), "nothing was published"
    code, out, _ = dlp("publish", str(fewer), "--yes")
    assert code == 0
    assert f"- {ADAPTERS[2]}" in out
    assert f"~ {ADAPTERS[0]}" in out
    again = json_of(dlp("publish", str(fewer), "--json"))
    assert again["changes"] is None
    back = json_of(dlp("publish", str(tmp_path / "all"), "--json"))
    assert back["changes"]["added"] == [ADAPTERS[2]]


@pytest.mark.parametrize("answer", ["y", "n"])
def test_at_a_terminal_it_asks(answer: str, dlp: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dlp("publish", str(write_bank(tmp_path / "all")))
    monkeypatch.setattr("deployments.cli.bank.sys.stdin", Terminal(f"{answer}\n"))
    code, _, err = dlp("publish", str(write_bank(tmp_path / "fewer", ADAPTERS[:2])))
    assert code == (0 if answer == "y" else 2)
    assert ("nothing was changed" in err) == (answer == "n")
    assert len(json_of(dlp("show", "--json"))["adapters"]) == (2 if answer == "y" else 3)


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


def test_what_serves_comes_back_to_a_folder(dlp: Run, tmp_path: Path, published: list[str]) -> None:
    folder = tmp_path / "back"
    pulled = json_of(dlp("pull", str(folder), "--json"))
    assert pulled == {"folder": str(folder), "version": published[1], "adapters": len(ADAPTERS)}
    assert json_of(dlp("publish", str(folder), "--json"))["version"] == published[1]
    assert dlp("pull", str(tmp_path / "old"), "--version", published[0])[0] == 0
    assert json_of(dlp("publish", str(tmp_path / "old"), "--json"))["version"] == published[0]
    code, _, err = dlp("pull", str(folder))
    assert code == 2
    assert "is not empty" in err


def test_a_list_of_nothing_says_so(dlp: Run) -> None:
    code, out, err = dlp("list")
    assert (code, out) == (2, "")
    assert "no bank is published" in err


def test_a_canary_on_the_command_line(dlp: Run, tmp_path: Path, published: list[str]) -> None:
    _, new = published
    write_bank(tmp_path / "next", ADAPTERS[:2], seed=7)
    staged = json_of(dlp("publish", str(tmp_path / "next"), "--stage", "--json"))["version"]
    assert json_of(dlp("show", "--json"))["version"] == new
    started = json_of(dlp("canary", staged, "--share", "0.2", "--sticky-by", "none", "--json"))
    assert (started["serving"]["version"], started["canary"]["version"]) == (new, staged)
    assert (started["canary"]["share"], started["canary"]["sticky_by"]) == (0.2, "none")
    assert json_of(dlp("canary", "--json"))["canary"] == started["canary"]
    listed = {bank["version"]: bank["canary"] for bank in json_of(dlp("list", "--json"))}
    assert listed == {version: version == staged for version in listed}
    code, out, err = dlp("publish", str(tmp_path / "bank0"))
    assert (code, out) == (2, "")
    assert "`dlp bank canary --stop`" in err
    code, out, _ = dlp("canary")
    assert code == 0
    assert "20% of requests" in out
    code, _, err = dlp("promote", "--json")
    assert code == 2
    assert f"this removes {ADAPTERS[2]}" in err
    promoted = json_of(dlp("promote", "--yes", "--json"))
    assert (promoted["serving"]["version"], promoted["canary_end"]["outcome"]) == (staged, "promoted")
    assert "promoted" in dlp("canary")[1]


def test_a_canary_is_stopped_or_rolled_back(dlp: Run, published: list[str]) -> None:
    old, new = published
    for command in (("canary", "--stop"), ("rollback",)):
        assert json_of(dlp("canary", old, "--json"))["canary"]["version"] == old
        assert dlp(*command)[0] == 0
        assert json_of(dlp("canary", "--json"))["canary"] is None
        assert json_of(dlp("show", "--json"))["version"] == new
    for command in (
        ("canary", "--stop"),
        ("promote",),
        ("canary", new),
        ("canary", old, "--stop"),
        ("shadow", "--stop"),
    ):
        code, out, err = dlp(*command)
        assert (code, out, err.count("\n")) == (2, "", 1), command


def test_a_shadow_on_the_command_line(dlp: Run, published: list[str]) -> None:
    old, _ = published
    started = json_of(dlp("shadow", old, "--generate", "--json"))["shadow"]
    assert (started["version"], started["generate"], started["counts"]["mixes"]) == (old, True, 0)
    assert [bank["version"] for bank in json_of(dlp("list", "--json")) if bank["shadow"]] == [old]
    assert "shadow:" in dlp("shadow")[1]
    assert json_of(dlp("shadow", "--stop", "--json"))["shadow"] is None
