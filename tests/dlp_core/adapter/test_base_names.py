"""Names of base models, as trainers write them."""

from __future__ import annotations

from pathlib import Path

import pytest

from dlp_core.adapter.base_names import BaseNames, Naming, folder_name

SMOL = BaseNames("HuggingFaceTB/SmolLM2-135M-Instruct")
COMMIT = "12fd25f77366fa6b3b4b768ec3050bf629380bac"


@pytest.mark.parametrize(
    "name",
    [
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        "HuggingFaceTB/SmolLM2-135M-Instruct/",
        "huggingfacetb/smollm2-135m-INSTRUCT",
        "unsloth/SmolLM2-135M-Instruct",
        "SmolLM2-135M-Instruct",
        "/models/SmolLM2-135M-Instruct",
        "C:\\models\\SmolLM2-135M-Instruct\\",
        f"/home/ann/.cache/huggingface/hub/models--HuggingFaceTB--SmolLM2-135M-Instruct/snapshots/{COMMIT}",
        f"models--HuggingFaceTB--SmolLM2-135M-Instruct/snapshots/{COMMIT}/",
        "/data/SmolLM2-135M-Instruct/model",
        "./HuggingFaceTB--SmolLM2-135M-Instruct",
        "s3://bucket/models/smollm2-135m-instruct/",
        "https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct/tree/main",
        "HuggingFaceTB/SmolLM2-135M-Instruct@main",
    ],
)
def test_the_same_model(name: str) -> None:
    assert SMOL.naming(name) is Naming.SAME


@pytest.mark.parametrize(
    "suffix",
    ["-bnb-4bit", "-unsloth-bnb-4bit", "-bnb-8bit", "-GPTQ", "-GPTQ-Int4", "-AWQ", "-4bit", "-FP8", "-bf16", "-int8"],
)
def test_a_quantised_copy(suffix: str) -> None:
    assert SMOL.naming(f"unsloth/SmolLM2-135M-Instruct{suffix}") is Naming.EQUIVALENT
    assert BaseNames(f"unsloth/SmolLM2-135M-Instruct{suffix}").naming(SMOL.id) is Naming.EQUIVALENT


def test_metas_models_with_and_without_their_maker() -> None:
    assert BaseNames("meta-llama/Llama-3.1-8B").naming("unsloth/Meta-Llama-3.1-8B-bnb-4bit") is Naming.EQUIVALENT


@pytest.mark.parametrize(
    "name",
    [
        None,
        "",
        "/",
        "/opt/ml/input/data/model",
        "/workspace/llama-sft",
        "../merged",
        "outputs/checkpoint-500",
        "model",
        "base_model",
        "~/ft/run3/final",
        COMMIT,
        "s3://bucket/job-17/output/model/",
        "D:\\training\\base",
        "a/" + "b-4bit" * 10**6,
    ],
)
def test_what_names_no_model(name: str | None) -> None:
    assert SMOL.naming(name) is Naming.NOTHING


@pytest.mark.parametrize(
    "name",
    [
        "Qwen/Qwen2.5-0.5B",
        "HuggingFaceTB/SmolLM2-135M",
        "HuggingFaceTB/SmolLM2-360M-Instruct",
        "gpt2",
        "tiny-llama",
        "/models/Qwen2-7B-Instruct",
        "models--Qwen--Qwen2/snapshots/" + COMMIT,
        "mistralai/Mixtral-8x7B-v0.1",
    ],
)
def test_another_model(name: str) -> None:
    assert SMOL.naming(name) is Naming.OTHER


def test_an_alias_is_the_model_too() -> None:
    names = BaseNames("llama", aliases=("acme/house-model", "Qwen/Qwen2.5-0.5B"))
    assert names.naming("other/House-Model") is Naming.SAME
    assert names.naming("unsloth/qwen2.5-0.5b-bnb-4bit") is Naming.EQUIVALENT
    assert names.naming("Qwen/Qwen2.5-7B") is Naming.OTHER


def test_nothing_contradicts_a_served_model_without_a_name() -> None:
    assert BaseNames("/opt/ml/model").naming("Qwen/Qwen2.5-7B") is Naming.NOTHING
    assert BaseNames("/opt/ml/model").naming("/opt/ml/model") is Naming.SAME


def test_the_name_of_a_folder(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--org--name" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (tmp_path / "linked").symlink_to(snapshot)
    assert folder_name(snapshot) == folder_name(tmp_path / "linked") == "org/name"
    (tmp_path / "served").symlink_to(tmp_path)
    assert folder_name(tmp_path / "served") == "served"
    assert folder_name(tmp_path / "served" / "..") == tmp_path.resolve().parent.name
