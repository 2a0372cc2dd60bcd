"""Fitting a mix: the weights that rows were drawn under are found again, and nothing else."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

from dlp_core.adapter.weights import Adapter
from dlp_core.errors import InvalidRequest, NotFinite, UnknownModel
from dlp_core.residency.sources import FolderSource
from dlp_core.text.codec import TextCodec
from dlp_core.train.mixes import MIN_ROWS, Fit, FitProgress, FitSettings, fit_mix
from examples.tiny.build import write_adapter
from examples.tiny.model import tiny_model
from tests.support.known_mix import ADAPTERS, answered_under, word_tokenizer, write_choir

pytestmark = [pytest.mark.model, pytest.mark.slow]

KNOWN = {"alto": 0.7, "treble": -0.4}
SETTINGS = FitSettings(steps=40)
Load = Callable[[str], Adapter]


@pytest.fixture(scope="module")
def choir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("choir")
    write_choir(folder)
    return folder


@pytest.fixture(scope="module")
def load(choir: Path) -> Load:
    return FolderSource({name: choir / "adapters" / name for name in ADAPTERS}).load


@pytest.fixture(scope="module")
def progress() -> list[FitProgress]:
    return []


@pytest.fixture(scope="module")
def fitted(choir: Path, load: Load, progress: list[FitProgress]) -> Fit:
    rows = answered_under(choir, KNOWN, 48)
    return fit_mix(choir / "base", rows, ADAPTERS, load, SETTINGS, dtype="float32", report=progress.append)


def test_the_weights_that_rows_were_drawn_under_are_found_and_no_others(fitted: Fit) -> None:
    found = {part.name: part.weight for part in fitted.mix.adapters}
    assert found == {name: pytest.approx(weight, abs=0.1) for name, weight in KNOWN.items()}
    assert fitted.beats
    assert (fitted.rows, fitted.held_back, fitted.best) == (48, 12, "alto")
    assert fitted.loss < fitted.best_loss < fitted.plain_loss
    assert fitted.over_best.mean == pytest.approx(fitted.best_loss - fitted.loss)
    assert list(fitted.looked_through) == sorted(ADAPTERS, key=fitted.looked_through.__getitem__)


def test_progress_counts_every_step_and_ends_with_no_time_left(fitted: Fit, progress: list[FitProgress]) -> None:
    steps = [state for state in progress if state.phase == "fit"]
    assert [state.done for state in steps] == list(range(1, 61))
    assert {state.total for state in steps} == {60}
    assert steps[-1].seconds_left == 0.0
    assert {state.phase for state in progress[: -len(steps)]} == {
        "look through the adapters",
        "answer a few rows with each",
    }


def test_of_two_the_larger_stays_where_one_is_allowed(choir: Path, load: Load) -> None:
    rows = answered_under(choir, KNOWN, 32)
    fit = fit_mix(choir / "base", rows, ADAPTERS, load, replace(SETTINGS, max_adapters=1), dtype="float32")
    assert fit.mix.names == ("alto",)


def test_rows_of_the_plain_backbone_give_no_mix_that_beats_it(choir: Path, load: Load) -> None:
    fit = fit_mix(choir / "base", answered_under(choir, {}, 32), ADAPTERS, load, SETTINGS, dtype="float32")
    assert not fit.beats
    assert sum(abs(part.weight) for part in fit.mix.adapters) < 0.15
    assert not fit.over_plain.counts


def test_what_the_router_thinks_possible_is_looked_at_where_a_bank_is_large(
    choir: Path, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dlp_core.train.mixes._MEASURED", 2)
    rows = answered_under(choir, {"treble": 0.5}, 16)
    fit = fit_mix(choir / "base", rows, ADAPTERS, load, replace(SETTINGS, steps=2), likely=["bass"], dtype="float32")
    assert set(fit.looked_through) == {"bass", "treble"}  # the router's, and the steepest


def test_more_adapters_than_fit_on_the_device_are_looked_through(
    choir: Path, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dlp_core.train.mixes._CHUNK", 2)
    monkeypatch.setattr("dlp_core.train.mixes._FITTED_BEST", 1)
    monkeypatch.setattr("dlp_core.train.mixes._FITTED_STEEPEST", 1)
    rows = answered_under(choir, {"tenor": 0.8}, 16)
    fit = fit_mix(choir / "base", rows, ADAPTERS, load, replace(SETTINGS, steps=2), dtype="float32")
    assert set(fit.looked_through) == set(ADAPTERS)
    assert fit.best == "tenor"


def test_an_activated_adapter_answers_as_in_peft(choir: Path, tmp_path: Path) -> None:
    """Beside an ordinary one, and one that is invoked elsewhere."""
    from peft import PeftModel

    row = answered_under(choir, {}, 8, tokens=9)[7]
    codec = TextCodec(word_tokenizer(), context=4096)
    prompt = codec.encode_chat(row.turns).ids
    answer = [*word_tokenizer().convert_tokens_to_ids(row.output.split()), word_tokenizer().eos_token_id]
    invoked = {"ordinary": [], "early": prompt[:1], "late": prompt[7:9], "never": [prompt[8], prompt[7]]}
    for seed, (name, invocation) in enumerate(invoked.items()):
        lora = {"alora_invocation_tokens": invocation or None, "task_type": "CAUSAL_LM"}
        write_adapter(tmp_path / name, tiny_model(), seed, r=4, lora_alpha=16, **lora)
    found = fit_mix(
        choir / "base",
        [row] * MIN_ROWS,
        list(invoked),
        FolderSource({name: tmp_path / name for name in invoked}).load,
        replace(SETTINGS, steps=2),
        dtype="float32",
    )
    ids = torch.tensor([[*prompt, *answer]])
    losses = {}
    for name in invoked:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # PEFT and transformers deprecate each other's calls
            logits = PeftModel.from_pretrained(tiny_model(), tmp_path / name).eval()(ids[:, :-1]).logits
        losses[name] = float(cross_entropy(logits[0, -len(answer) :], ids[0, -len(answer) :]))
    assert found.looked_through == pytest.approx(losses, abs=1e-5)
    assert len({round(loss, 3) for loss in losses.values()}) == len(losses)
    assert found.plain_loss == pytest.approx(losses["never"], abs=1e-5)


def test_too_few_rows_no_adapters_and_unknown_ones_are_refused(choir: Path, load: Load) -> None:
    rows = answered_under(choir, {}, 16, tokens=2)
    with pytest.raises(InvalidRequest, match="15 rows are too few"):
        fit_mix(choir / "base", rows[:15], ADAPTERS, load, SETTINGS)
    with pytest.raises(InvalidRequest, match="no adapter to mix"):
        fit_mix(choir / "base", rows, [], load, SETTINGS)
    with pytest.raises(UnknownModel, match="'soprano'"):
        fit_mix(choir / "base", rows, ["soprano"], load, SETTINGS, dtype="float32")


def test_an_adapter_under_which_the_loss_is_no_number_is_named(choir: Path, load: Load) -> None:
    def with_a_loud_one(name: str) -> Adapter:
        adapter = load(name)
        if name == "tenor":
            for lora in adapter.modules.values():
                lora.b_OR.fill_(3e38)
        return adapter

    with pytest.raises(NotFinite, match="under tenor is not finite"):
        fit_mix(choir / "base", answered_under(choir, {}, 16), ADAPTERS, with_a_loud_one, SETTINGS, dtype="float32")
