"""A trained router does what its users rely on. The made-up tasks are easy; out-of-scope texts are the hard part."""

from __future__ import annotations

from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch

from dlp_core.errors import InvalidRequest
from dlp_core.router.augment import mistype, strip_instruction
from dlp_core.router.evaluation import evaluate
from dlp_core.router.features import featurise
from dlp_core.router.router import CONFIG_FILE, WEIGHTS_FILE
from dlp_core.router.rows import TaskRow
from dlp_core.router.training.train import MIN_ROWS, TrainSettings, _Net, train_router
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


def test_probabilities_are_in_bank_order_and_sum_to_one_with_none() -> None:
    router, _ = trained()
    for routing in router.route([FRESH[0].input, OUT_OF_SCOPE[0], ""]):
        assert tuple(routing.probabilities) == router.labels == tuple(sorted(TASKS))
        assert sum(routing.probabilities.values()) + routing.none == pytest.approx(1.0, abs=1e-5)
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
    assert empty.none == 1.0
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
    settings = TrainSettings(min_steps=4, epochs=0, batch=32)
    for name, seed in (("one", 7), ("two", 7), ("other", 8)):
        router, _ = train_router(make_rows(12, seed=1), TrainSettings(**{**_fields(settings), "seed": seed}))
        router.save(tmp_path / name)
    one, two, other = ((tmp_path / name / WEIGHTS_FILE).read_bytes() for name in ("one", "two", "other"))
    assert one == two
    assert one != other
    assert (tmp_path / "one" / CONFIG_FILE).read_bytes() == (tmp_path / "two" / CONFIG_FILE).read_bytes()


def test_numpy_computes_what_torch_trained() -> None:
    torch.manual_seed(0)
    net = _Net(5, TrainSettings()).eval()
    texts = [FRESH[0].input, "two words", FRESH[-1].input * 9, "x"]
    with torch.no_grad():
        expected = net(texts).numpy()
    network = net.export()
    _, _, logits = network.forward(network.embed(featurise(texts)))
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


def test_the_router_has_the_designed_size() -> None:
    router, summary = trained()
    assert summary.parameters == router.network.parameters
    assert 4.5e6 <= summary.parameters <= 5.5e6


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


def _pairs(rng: Random) -> list[tuple[str, ...]]:
    return [tuple(rng.sample(sorted(TASKS), 2)) for _ in range(12)]


def _fields(settings: TrainSettings) -> dict[str, int | float]:
    return {name: getattr(settings, name) for name in settings.__slots__}
