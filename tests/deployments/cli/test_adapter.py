"""`dlp adapter`: what `train` writes, and `check` on folders and on S3."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from deployments.cli.adapter import app
from dlp_core.adapter.contents import CONFIG_FILE, WEIGHTS_FILE
from dlp_core.adapter.examination import Verdict
from dlp_core.bank.publish import publish
from dlp_core.errors import AdapterRefused, InvalidRequest, NotFound
from dlp_core.store.opening import open_store
from examples.tiny.model import tiny_backbone
from tests.dlp_core.fusion.test_model_families import adapted, save
from tests.support.families import FAMILIES
from tests.support.tiny import peft_adapter, tiny_llama
from tests.support.trainers import TRAINER_FILES, leave_trainer_files


def check(*args: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        CliRunner().invoke(app, ["check", *args, "--json"], catch_exceptions=False).stdout
    )
    return found


def upload(folder: Path, uri: str) -> str:
    store = open_store(uri)
    for path in folder.iterdir():
        store.put(path.name, path)
    return uri


def test_a_folder_and_a_uri_are_told_the_same(tmp_path: Path, s3: str) -> None:
    folder = peft_adapter(tmp_path / "sql", 1, r=4, rank_pattern={"v_proj": 2})
    local = check(str(folder))
    assert (local["ranks"], local["targets"], local["served"]) == ([2, 4], ["q_proj", "v_proj"], True)
    assert check(upload(folder, f"{s3}sql/")) == local
    assert check(f"file://{folder}") == local


def test_a_bad_adapter_on_s3_is_refused_as_it_would_be_here(tmp_path: Path, s3: str) -> None:
    folder = peft_adapter(tmp_path / "sql", 1)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(AdapterRefused, match=r"adapter_model\.bin is a pickle"):
        check(upload(folder, f"{s3}sql/"))
    with pytest.raises(NotFound, match="there is nothing at s3://"):
        check(f"{s3}nothing/")


def test_what_else_an_adapter_changes_is_said(tmp_path: Path) -> None:
    model = FAMILIES["qwen2"].build()
    folder = save(tmp_path / "a", adapted(model, 1, target_modules=["q_proj", "embed_tokens"], bias="lora_only"))
    found = check(str(folder))
    assert "model.embed_tokens" in found["base_weights"]
    assert (found["targets"], found["biases"]) == (["embed_tokens", "q_proj"], 2)


def test_the_layers_of_a_base_model_are_checked_where_it_is_given(tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path / "tiny-llama")
    folder = peft_adapter(tmp_path / "sql", 1)
    config = json.loads((folder / CONFIG_FILE).read_text())
    (folder / CONFIG_FILE).write_text(json.dumps(config | {"base_model_name_or_path": "org/tiny-llama"}))
    assert check(str(folder), "--base-model", str(tmp_path / "tiny-llama"))["fits"]
    tiny_llama(layers=1).save_pretrained(tmp_path / "small" / "tiny-llama")
    with pytest.raises(AdapterRefused, match="not a layer of the base model"):
        check(str(folder), "--base-model", str(tmp_path / "small" / "tiny-llama"))
    tiny_llama().save_pretrained(tmp_path / "other-7b")
    base = ["--base-model", str(tmp_path / "other-7b")]
    assert "'other-7b' is served" in check(str(folder), *base)["warnings"][0]
    with pytest.raises(AdapterRefused, match="trained on 'org/tiny-llama', and 'other-7b' is served"):
        check(str(folder), *base, "--strict-names")
    assert check(str(folder), *base, "--base-model-name", "x/Tiny-Llama", "--strict-names")["warnings"] == []


def test_the_name_of_the_base_model_is_judged_without_its_folder(tmp_path: Path) -> None:
    folder = peft_adapter(tmp_path / "sql", 1)
    config = json.loads((folder / CONFIG_FILE).read_text())
    (folder / CONFIG_FILE).write_text(json.dumps(config | {"base_model_name_or_path": "/opt/ml/input/data/model"}))
    found = check(str(folder), "--base-model-name", "org/tiny-llama", "--strict-names")
    assert "'/opt/ml/input/data/model' may be 'org/tiny-llama' or not" in found["notes"][0]
    with pytest.raises(InvalidRequest, match="--strict-names needs the served base model"):
        check(str(folder), "--strict-names")


@pytest.mark.parametrize("base", ["unsloth/tiny-llama-bnb-4bit", "/opt/ml/input/data/model", None])
def test_a_base_model_that_is_called_otherwise_is_known_by_its_weights(tmp_path: Path, base: str | None) -> None:
    tiny_llama().save_pretrained(tmp_path / "tiny-llama")
    folder = peft_adapter(tmp_path / "sql", 1)
    config = json.loads((folder / CONFIG_FILE).read_text())
    (folder / CONFIG_FILE).write_text(json.dumps(config | {"base_model_name_or_path": base}))
    found = check(str(folder), "--base-model", str(tmp_path / "tiny-llama"), "--strict-names")
    assert (found["served"], found["warnings"], len(found["notes"])) == (True, [], 1)
    assert "'tiny-llama'" in found["notes"][0]


def test_check_and_publish_give_one_verdict_on_a_trainers_folder(tmp_path: Path) -> None:
    bank = tmp_path / "bank"
    folder = leave_trainer_files(peft_adapter(bank / "adapters" / "sql", 1), tmp_path / "proof")
    tensors = load_file(folder / WEIGHTS_FILE)
    save_file({f"_orig_mod.{key}": tensor for key, tensor in tensors.items()}, folder / WEIGHTS_FILE)
    (bank / "bank.json").write_text('{"base_model": "other/model-7b"}')
    checked = check(str(folder), "--base-model-name", "other/model-7b")
    verdicts: list[Verdict] = []
    publish(open_store(str(tmp_path / "store")), bank, report=verdicts.append)
    (verdict,) = verdicts
    for key in ("notes", "warnings", "left_out"):
        assert checked[key] == list(getattr(verdict, key)), key
    assert checked["notes"]
    assert set(checked["left_out"]) == set(TRAINER_FILES)
    assert not (tmp_path / "proof").exists()


def test_what_a_human_reads(tmp_path: Path) -> None:
    folder = leave_trainer_files(peft_adapter(tmp_path / "sql", 1))
    config = json.loads((folder / CONFIG_FILE).read_text())
    (folder / CONFIG_FILE).write_text(json.dumps(config | {"base_model_name_or_path": "Qwen/Qwen2-7B"}))
    result = CliRunner().invoke(app, ["check", str(folder), "--base-model-name", "org/tiny-llama"])
    assert result.exit_code == 0
    assert "can be served exactly" in result.stdout
    (left_out,) = [line for line in result.stdout.splitlines() if line.startswith("left out:")]
    assert left_out.endswith(" more")
    assert result.stderr == (
        "warning: it was trained on 'Qwen/Qwen2-7B', and 'org/tiny-llama' is served; if they are one model, list the "
        "name in bank.json's aliases (sql)\n"
    )


def test_a_snapshot_in_the_hubs_cache_is_checked(tmp_path: Path) -> None:
    repository = tmp_path / "models--org--sql"
    snapshot = repository / "snapshots" / "c0ffee"
    snapshot.mkdir(parents=True)
    for file in peft_adapter(repository / "blobs", 1).iterdir():
        (snapshot / file.name).symlink_to(Path("../../blobs") / file.name)
    assert check(str(snapshot))["served"]
    (snapshot / CONFIG_FILE).unlink()
    (snapshot / CONFIG_FILE).symlink_to(peft_adapter(tmp_path / "elsewhere", 1) / CONFIG_FILE)
    with pytest.raises(AdapterRefused, match="leads out of its folder"):
        check(str(snapshot))


def test_pickled_weights_are_converted_and_then_served(tmp_path: Path) -> None:
    folder = peft_adapter(tmp_path / "sql", 1)
    expected = check(str(folder))
    torch.save(load_file(folder / WEIGHTS_FILE), folder / "adapter_model.bin")
    (folder / WEIGHTS_FILE).unlink()
    with pytest.raises(AdapterRefused) as refused:
        check(str(folder))
    command = refused.value.message.rpartition("run: dlp adapter ")[2].split()
    converted = CliRunner().invoke(app, [*command, "--json"], catch_exceptions=False)
    assert json.loads(converted.stdout)["written"] == str(folder / WEIGHTS_FILE)
    assert check(str(folder)) == expected | {"left_out": ["adapter_model.bin"]}
    with pytest.raises(InvalidRequest, match="--yes"):
        CliRunner().invoke(app, command, catch_exceptions=False)
    assert "1,792 parameters" in CliRunner().invoke(app, [*command, "--yes"], catch_exceptions=False).stdout


def test_train_then_check_from_the_command_line(tmp_path: Path) -> None:
    base, data, out = tmp_path / "tiny-llama", tmp_path / "rows.jsonl", tmp_path / "x"
    tiny_backbone(base)
    rows = ({"task": "x", "input": f"the adapter of {number}", "output": f"of{number}"} for number in range(20))
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ["--base-model", str(base), "--data", str(data), "--out", str(out), "--rank", "2", "--steps", "2"]
    command = ["train", *options, "--validation-rows", "8", "--json"]
    trained = CliRunner().invoke(app, command, catch_exceptions=False)
    assert json.loads(trained.stdout)["adapter"] == "x"

    checked = check(str(out))
    assert checked["ranks"] == [2]
    assert checked["base_model"] == "tiny-llama"
    assert checked["bytes"] == (out / "adapter_model.safetensors").stat().st_size
    assert checked["alora_invocation_tokens"] == []

    activated = ["train", *options, "--validation-rows", "8", "--init-from", str(out), "--activated", "--json"]
    activated[activated.index(str(out))] = str(tmp_path / "y")
    trained = CliRunner().invoke(app, [*activated, "--lr", "0"], catch_exceptions=False)
    assert json.loads(trained.stdout)["best_step"] == 0, "no later weights were better"
    assert check(str(tmp_path / "y"))["alora_invocation_tokens"]
    assert (tmp_path / "y" / "adapter_model.safetensors").read_bytes() == (out / WEIGHTS_FILE).read_bytes()
    with pytest.raises(InvalidRequest, match="its rank is 2, and --rank is 4"):
        CliRunner().invoke(app, [*activated, "--rank", "4"], catch_exceptions=False)
    with pytest.raises(InvalidRequest, match="add --activated"):
        CliRunner().invoke(app, [*command, "--prefill-only"], catch_exceptions=False)
    (out / "adapter_model.safetensors").write_bytes(b"half")
    with pytest.raises(AdapterRefused, match="'x'"):
        check(str(out))
