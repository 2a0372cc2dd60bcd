"""A trained router does what its users rely on. The made-up tasks are easy; out-of-scope texts are the hard part."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch

from dlp_core.errors import InvalidRequest
from dlp_core.router import Router
from dlp_core.router.augment import mistype, strip_instruction
from dlp_core.router.evaluation import evaluate
from dlp_core.router.files import CONFIG_FILE, WEIGHTS_FILE
from dlp_core.router.rows import TaskRow
from dlp_core.router.sentence_encoder import SentenceEncoder
from dlp_core.router.training import everyday, fine_tuning, teacher
from dlp_core.router.training.examples import MIN_ROWS
from dlp_core.router.training.net import NetSettings
from dlp_core.router.training.progress import TrainProgress
from dlp_core.router.training.train import checkpoints_of, train_router
from dlp_core.router.words import WordEncoder
from dlp_core.store.checkpoints import Interrupted, checkpoint_folder
from tests.support.encoders import write_encoder
from tests.support.router_rows import QUICK, TASKS, make_rows, trained

FRESH = make_rows(50, seed=99)
OUT_OF_SCOPE = (
    "What should I cook tonight for eight guests who do not eat meat?",
    "My landlord refuses to repair the boiler, what are my rights?",
    "Schreibe mir bitte ein kurzes Gedicht ueber den Herbst.",
    "Explain how a transformer attends to earlier tokens.",
    "qzx vrrp lkj mnbv wqat zzyx oolm",
    'fn main() { println!("{}", vec.iter().map(|x| x * 2).count()); }',
)


def test_fresh_rows_go_to_their_adapter_alone() -> None:
    router, _ = trained()
    routings = router.route([row.input for row in FRESH])
    assert np.mean([routing.mix().names == (row.task,) for routing, row in zip(routings, FRESH, strict=True)]) >= 0.98


def test_probabilities_are_in_bank_order_and_sum_to_one() -> None:
    router, _ = trained()
    for routing in router.route([FRESH[0].input, OUT_OF_SCOPE[0], ""]):
        assert tuple(routing.probabilities) == router.labels == tuple(sorted(TASKS))
        assert sum(routing.probabilities.values()) == pytest.approx(1.0, abs=1e-5)
        assert routing.confidence == max(routing.probabilities.values())


@pytest.mark.parametrize("perturb", [strip_instruction, lambda text: mistype(text, Random(1), 0.05)])
def test_degraded_prompts_still_find_their_adapter(perturb: object) -> None:
    router, _ = trained()
    assert callable(perturb)
    routings = router.route([perturb(row.input) for row in FRESH])
    assert np.mean([routing.best == row.task for routing, row in zip(routings, FRESH, strict=True)]) >= 0.95


def test_out_of_scope_texts_are_none_of_these() -> None:
    router, _ = trained()
    assert [str(routing.mix()) for routing in router.route(OUT_OF_SCOPE)] == ["base"] * len(OUT_OF_SCOPE)


def test_empty_text_is_none_of_these_even_in_a_batch() -> None:
    router, _ = trained()
    first, empty, blank = router.route([FRESH[0].input, "", " \n\t"])
    assert first.mix()
    assert empty.none == pytest.approx(1.0)
    assert not empty.mix()
    assert not blank.mix()


def test_joined_prompts_get_both_adapters() -> None:
    router, _ = trained()
    rng = Random(3)
    pairs = [rng.sample([row for row in FRESH if row.task in names], 2) for names in _pairs(rng) for _ in range(5)]
    pairs = [pair for pair in pairs if pair[0].task != pair[1].task]
    routings = router.route([f"{first.input}\n\n{second.input}" for first, second in pairs])
    both = [
        {first.task, second.task} == set(routing.mix().names)
        for routing, (first, second) in zip(routings, pairs, strict=True)
    ]
    assert np.mean(both) >= 0.8


@pytest.mark.slow
def test_background_rows_teach_what_is_out_of_scope() -> None:
    """Rows close to a task, which only labels can distinguish."""
    rng = Random(5)

    def background(count: int) -> list[TaskRow]:
        return [TaskRow(None, TASKS["word_sorting"](rng).replace("Sort", "Count")) for _ in range(count)]

    router, summary = train_router([*make_rows(80, seed=0), *background(80)], QUICK)
    assert summary.background_rows == 80
    result = evaluate(router, [*FRESH, *background(40)])
    assert result.unknown_rows == 40
    assert result.unknown_refused is not None
    assert result.unknown_refused >= 0.9
    assert result.kept >= 0.95


def test_same_rows_and_seed_give_the_same_bytes(tmp_path: Path) -> None:
    settings = replace(QUICK, net=NetSettings(epochs=0, min_steps=4, batch=32, widths=(16,)))
    for name, seed in (("one", 7), ("two", 7), ("other", 8)):
        router, _ = train_router(make_rows(12, seed=1), replace(settings, seed=seed))
        router.save(tmp_path / name)
    one, two, other = ((tmp_path / name / WEIGHTS_FILE).read_bytes() for name in ("one", "two", "other"))
    assert one == two
    assert one != other
    assert (tmp_path / "one" / CONFIG_FILE).read_bytes() == (tmp_path / "two" / CONFIG_FILE).read_bytes()


def test_the_summary_says_what_was_measured() -> None:
    router, summary = trained()
    assert summary.parameters == router.parameters
    assert summary.accuracy >= 0.95
    assert summary.teacher is None
    assert summary.refused is not None
    assert summary.refused >= 0.9
    assert {"curve", "seconds"} & set(router.training) == set()


def test_rows_of_few_templates_are_warned_about() -> None:
    (warning,) = [warning for warning in trained()[1].warnings if "flight_json" in warning]
    assert "80 rows" in warning
    assert "add rows as people write them" in warning


@pytest.mark.slow
def test_new_values_in_old_templates_are_kept() -> None:
    """What held-back rows cannot show: the names of the next prompt are not those of the training."""
    rng = Random(4)
    places = "Reykjavik Ouagadougou Tegucigalpa Bratislava Kathmandu Antananarivo".split()
    instruction = TASKS["flight_json"](rng).split("from ")[0]
    trips = [rng.sample(places, 2) for _ in range(40)]
    texts = [f"{instruction}from {start} to {end} on Monday, a window seat if possible." for start, end in trips]
    routings = trained()[0].route(texts)
    assert np.mean([routing.best == "flight_json" and routing.fits for routing in routings]) >= 0.95


def test_keep_and_coverage_are_chosen_at_the_training() -> None:
    settings = replace(QUICK, net=NetSettings(epochs=0, min_steps=60, batch=64, widths=(32,)))
    rows = make_rows(40, seed=0)
    strict, _ = train_router(rows, replace(settings, keep=0.8))
    lax, summary = train_router(rows, replace(settings, keep=0.99, coverage=0.8))
    assert strict.calibration.threshold < lax.calibration.threshold
    assert strict.curve == lax.curve
    assert summary.top_p == lax.calibration.top_p != strict.calibration.top_p
    with pytest.raises(InvalidRequest, match="between 0 and 1"):
        train_router(rows, replace(settings, keep=1.5))


@pytest.mark.model
def test_a_teacher_gives_its_vocabulary_and_its_meanings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher, "CACHE", tmp_path / "cache")
    folder = write_encoder(tmp_path / "teacher", [row.input for row in FRESH])
    settings = replace(QUICK, teacher=folder, net=NetSettings(epochs=0, min_steps=20, batch=32, widths=(16,)))
    router, summary = train_router(make_rows(12, seed=1), settings)
    again, _ = train_router(make_rows(12, seed=1), settings)
    assert isinstance(router.encoder, WordEncoder)
    assert summary.teacher == SentenceEncoder.load(folder).digest()
    assert router.encoder.vocabulary.size == SentenceEncoder.load(folder).vocabulary_size
    assert len(list((tmp_path / "cache").iterdir())) == 2  # pieces and everyday requests: not computed twice
    assert router.route(OUT_OF_SCOPE) == again.route(OUT_OF_SCOPE)


@pytest.mark.model
@pytest.mark.parametrize("tuned_layers", [0, 1])
def test_an_encoder_of_ones_own_takes_the_place_of_the_words(
    tuned_layers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teacher, "CACHE", tmp_path / "cache")
    folder = write_encoder(tmp_path / "encoder", [row.input for row in FRESH])
    settings = replace(
        QUICK,
        encoder=folder,
        tuned_layers=tuned_layers,
        net=NetSettings(epochs=1, min_steps=400, batch=64, widths=(64,)),
    )
    router, summary = train_router(make_rows(40, seed=1), settings)
    assert isinstance(router.encoder, SentenceEncoder)
    changed = _changed(SentenceEncoder.load(folder).model, router.encoder.model)
    assert all(name.startswith("encoder.layer.1.") for name in changed)
    assert bool(changed) == bool(tuned_layers)
    assert summary.parameters > router.encoder.parameters
    router.save(tmp_path / "router")
    loaded = Router.load(tmp_path / "router")
    texts = [row.input for row in FRESH[::9]]
    assert loaded.route(texts) == router.route(texts)
    assert np.mean([r.best == row.task for r, row in zip(loaded.route(texts), FRESH[::9], strict=True)]) >= 0.8


class StopAfter:
    """Asks to stop when it was asked so many times."""

    def __init__(self, asked: int) -> None:
        self.asked, self._limit = 0, asked

    def __call__(self) -> bool:
        self.asked += 1
        return self.asked > self._limit


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["words", "teacher", "encoder"])
def test_an_interrupted_training_ends_as_one_that_was_not(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teacher, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(everyday, "COUNT", 200)
    monkeypatch.setattr(teacher, "COUNT", 200)
    monkeypatch.setattr(fine_tuning, "_MOST_STEPS", 12)
    folder = write_encoder(tmp_path / "encoder", [row.input for row in FRESH])
    settings = replace(
        QUICK,
        teacher=folder if kind == "teacher" else None,
        encoder=folder if kind == "encoder" else None,
        tuned_layers=1,
        net=NetSettings(epochs=0, min_steps=24, batch=32, widths=(16,)),
    )
    rows, phases, ended = make_rows(24, seed=1), [], []

    def train(out: Path, stop: StopAfter, *, resume: bool) -> Router:
        checkpoints = checkpoints_of(out, rows, settings, resume=resume, stop=stop)
        router, _ = train_router(rows, settings, checkpoints=checkpoints, report=lambda now: phases.append(now.phase))
        router.save(out)
        checkpoints.remove()
        return router

    stop = StopAfter(10**9)
    whole = train(tmp_path / "whole", stop, resume=False)
    assert set(phases) >= {"fit"} | ({"tune the encoder", "encode rows"} if kind != "words" else set())
    again = None
    while again is None:
        try:
            again = train(tmp_path / "again", StopAfter(stop.asked // 4), resume=bool(ended))
        except Interrupted as end:
            ended.append(end.checkpoint)
    assert len(ended) >= 2
    assert set(ended) == {checkpoint_folder(tmp_path / "again")}
    for file in (tmp_path / "whole").glob("*.*"):
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes(), file.name
    assert again.route(OUT_OF_SCOPE) == whole.route(OUT_OF_SCOPE)
    assert not checkpoint_folder(tmp_path / "again").exists()


def test_the_checkpoint_of_other_rows_or_settings_is_refused(tmp_path: Path) -> None:
    rows = make_rows(12, seed=1)
    settings = replace(QUICK, net=NetSettings(epochs=0, min_steps=20, batch=32, widths=(16,)))
    checkpoints = checkpoints_of(tmp_path / "router", rows, settings, stop=StopAfter(5))
    with pytest.raises(Interrupted):
        train_router(rows, settings, checkpoints=checkpoints)
    with pytest.raises(InvalidRequest, match="--resume goes on from it"):
        checkpoints_of(tmp_path / "router", rows, settings)
    with pytest.raises(InvalidRequest, match=r"--keep was null, is 0\.9; resume with"):
        checkpoints_of(tmp_path / "router", rows, replace(settings, keep=0.9), resume=True)
    with pytest.raises(InvalidRequest, match="--data was"):
        checkpoints_of(tmp_path / "router", rows[1:], settings, resume=True)


def test_the_loss_of_held_back_rows_is_told_at_each_checkpoint() -> None:
    seen: list[TrainProgress] = []
    settings = replace(QUICK, net=NetSettings(epochs=0, min_steps=200, batch=32, widths=(16,)))
    train_router(make_rows(20, seed=1), settings, report=seen.append)
    losses = list(dict.fromkeys(now.held_back_loss for now in seen if now.held_back_loss is not None))
    assert len(losses) == 2
    assert max(losses) < np.log(4) / 2  # of four tasks, by chance: log(4)
    assert seen[-1].fraction == 1.0


def test_too_few_tasks_or_rows_are_refused_by_name() -> None:
    rows = make_rows(MIN_ROWS, seed=0)
    with pytest.raises(InvalidRequest, match="1 task;"):
        train_router([row for row in rows if row.task == "word_sorting"], QUICK)
    with pytest.raises(InvalidRequest, match="'word_sorting' has 7 rows"):
        train_router(rows[:-1], QUICK)


def test_evaluation_needs_rows_of_known_tasks() -> None:
    router, _ = trained()
    with pytest.raises(InvalidRequest, match="flight_json"):
        evaluate(router, [TaskRow("elsewhere", "Hello")])


def test_an_encoder_has_no_more_layers_to_tune_than_it_has(tmp_path: Path) -> None:
    folder = write_encoder(tmp_path / "encoder", [row.input for row in FRESH])
    with pytest.raises(InvalidRequest, match="2 layers; 3 of them"):
        train_router(make_rows(12, seed=1), replace(QUICK, encoder=folder))


def _changed(before: torch.nn.Module, after: torch.nn.Module) -> list[str]:
    old, new = before.state_dict(), after.state_dict()
    return [name for name in old if not torch.equal(old[name], new[name])]


def _pairs(rng: Random) -> list[tuple[str, ...]]:
    return [tuple(rng.sample(sorted(TASKS), 2)) for _ in range(12)]
