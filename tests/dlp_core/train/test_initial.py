"""A training that begins with the weights of an adapter: which it takes, and what it does with them."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dlp_core.adapter.contents import CONFIG_FILE, WEIGHTS_FILE
from dlp_core.adapter.weights import read_adapter
from dlp_core.errors import AdapterRefused, InvalidRequest
from dlp_core.store.checkpoints import Interrupted
from dlp_core.train.lora import TrainProgress, TrainSettings, train_adapter
from dlp_core.train.packing import user_invocation
from examples.tiny.model import tiny_backbone, tiny_tokenizer
from tests.dlp_core.train.test_train import ROWS, SETTINGS, StopAfter

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    tiny_backbone(folder)
    return folder


@pytest.fixture(scope="module")
def trained(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters") / "first"
    train_adapter(base, ROWS, folder, SETTINGS)
    return folder


def copy(adapter: Path, to: Path, **config: Any) -> Path:
    shutil.copytree(adapter, to)
    changed = json.loads((to / CONFIG_FILE).read_text()) | config
    (to / CONFIG_FILE).write_text(json.dumps(changed))
    return to


def test_it_goes_on_where_the_adapter_is(base: Path, trained: Path, tmp_path: Path) -> None:
    seen: list[TrainProgress] = []
    anew: list[TrainProgress] = []
    settings = replace(SETTINGS, steps=1, lr=0.0)
    train_adapter(base, ROWS, tmp_path / "a", settings, init_from=trained, report=seen.append)
    train_adapter(base, ROWS, tmp_path / "b", settings, report=anew.append)
    assert seen[0].loss < 0.7 * anew[0].loss
    again = replace(SETTINGS, steps=10, lr=1e-3)
    longer = train_adapter(base, ROWS, tmp_path / "c", again, init_from=trained)
    assert longer.best_step == 10
    assert seen[0].validation_loss is not None
    assert longer.validation_loss < seen[0].validation_loss


def test_the_first_weights_are_kept_where_no_later_ones_are_better(base: Path, trained: Path, tmp_path: Path) -> None:
    """And are those of the adapter, so an ordinary one may become an activated one as it is."""
    settings = replace(SETTINGS, steps=4, lr=10.0, validate_every=2, activated=True)
    summary = train_adapter(base, ROWS, tmp_path / "a", settings, init_from=trained)
    assert summary.best_step == 0
    assert (tmp_path / "a" / WEIGHTS_FILE).read_bytes() == (trained / WEIGHTS_FILE).read_bytes()
    assert read_adapter(tmp_path / "a", name="a").invocation == user_invocation(tiny_tokenizer())


def test_an_interrupted_one_ends_as_one_that_was_not(base: Path, trained: Path, tmp_path: Path) -> None:
    settings = replace(SETTINGS, steps=12, validate_every=4, activated=True)
    train_adapter(base, ROWS, tmp_path / "whole", settings, init_from=trained)
    for resume, asked in ((False, 2), (True, 5)):
        with pytest.raises(Interrupted):
            train_adapter(base, ROWS, tmp_path / "a", settings, init_from=trained, resume=resume, stop=StopAfter(asked))
    other = copy(trained, tmp_path / "first", revision="other")
    for init_from in (None, other):
        with pytest.raises(InvalidRequest, match="of another run: --init-from was"):
            train_adapter(base, ROWS, tmp_path / "a", settings, init_from=init_from, resume=True)
    train_adapter(base, ROWS, tmp_path / "a", settings, init_from=trained, resume=True)
    assert (tmp_path / "a" / WEIGHTS_FILE).read_bytes() == (tmp_path / "whole" / WEIGHTS_FILE).read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank": 2}, "its rank is 4, and --rank is 2"),
        ({"alpha": 16.0}, "its alpha is 8, and --alpha is 16"),
        ({"targets": ("q_proj", "k_proj")}, "its targets are q_proj, v_proj, and --targets are k_proj, q_proj"),
    ],
)
def test_an_adapter_of_another_shape_is_refused(
    base: Path, trained: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidRequest, match=message) as raised:
        _train(base, tmp_path, trained, replace(SETTINGS, **change))
    assert f"--init-from {trained}: " in raised.value.message


def test_an_adapter_of_another_base_model_is_refused(base: Path, trained: Path, tmp_path: Path) -> None:
    named = copy(trained, tmp_path / "named", base_model_name_or_path="org/other-7b")
    with pytest.raises(InvalidRequest, match="it was trained on 'org/other-7b', and the base model is 'tiny-llama'"):
        _train(base, tmp_path, named)
    from safetensors.torch import load_file, save_file

    wide = copy(trained, tmp_path / "wide")
    tensors = load_file(wide / WEIGHTS_FILE)
    shaped = {name: torch.ones(len(value), 5) if "lora_A" in name else value for name, value in tensors.items()}
    save_file(shaped, wide / WEIGHTS_FILE)
    with pytest.raises(AdapterRefused, match="it maps 5 -> "):
        _train(base, tmp_path, wide)


def test_an_adapter_on_some_of_the_layers_is_refused(base: Path, trained: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    part = copy(trained, tmp_path / "part")
    tensors = load_file(part / WEIGHTS_FILE)
    save_file({name: value for name, value in tensors.items() if ".layers.0." in name}, part / WEIGHTS_FILE)
    with pytest.raises(InvalidRequest, match=r"it changes 2 modules, and --targets name \d+ of the base model"):
        _train(base, tmp_path, part)


def test_a_folder_without_an_adapter_is_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(AdapterRefused, match=r"adapter 'tiny-llama': adapter_config\.json is missing"):
        _train(base, tmp_path, base)


def _train(base: Path, tmp_path: Path, init_from: Path, settings: TrainSettings = SETTINGS) -> None:
    train_adapter(base, ROWS, tmp_path / "a", settings, init_from=init_from)
