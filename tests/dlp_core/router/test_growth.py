"""Adding and removing adapters without training. Three made-up tasks are trained, the fourth is added by examples."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from random import Random

import numpy as np
import pytest

from dlp_core.errors import BankError, InvalidRequest, UnknownModel
from dlp_core.router import Router, restricted
from dlp_core.router.growth import add_adapter, remove_adapter
from dlp_core.router.memory import MEMORY_SIZE, NO_TASK, Memory
from dlp_core.router.training.train import train_router
from tests.support.router_rows import QUICK, TASKS, make_rows, trained

NEW = "object_owner"
FRESH = make_rows(50, seed=99)


@cache
def smaller() -> Router:
    """Knows all tasks but NEW."""
    return train_router([row for row in make_rows(80, seed=0) if row.task != NEW], QUICK)[0]


def examples(count: int = 16) -> list[str]:
    rng = Random(7)
    return [TASKS[NEW](rng) for _ in range(count)]


@cache
def grown() -> Router:
    return add_adapter(smaller(), NEW, examples())[0]


def accuracy(router: Router, tasks: set[str]) -> float:
    rows = [row for row in FRESH if row.task in tasks]
    routings = router.route([row.input for row in rows])
    return float(np.mean([r.best == row.task and r.fits for r, row in zip(routings, rows, strict=True)]))


@pytest.mark.parametrize("count", [4, 16])
def test_a_few_examples_are_enough(count: int) -> None:
    router, summary = add_adapter(smaller(), NEW, examples(count))
    assert router.labels == tuple(sorted(TASKS))
    assert accuracy(router, {NEW}) >= 0.9
    assert (summary.examples, summary.adapters, summary.described) == (count, 4, False)
    assert summary.right is not None
    assert summary.kept is not None
    assert summary.right >= 0.75
    assert summary.kept >= 0.75
    assert summary.taken <= 0.005


def test_a_description_is_enough_to_begin_with() -> None:
    router, summary = add_adapter(
        smaller(), NEW, [], description="Read a story about things that change hands, and say who has the object."
    )
    assert (summary.examples, summary.described, summary.right, summary.kept) == (0, True, None, None)
    own = [row.input for row in FRESH if row.task == NEW]
    assert np.mean([routing.best == NEW for routing in router.route(own)]) >= 0.6
    assert accuracy(router, set(TASKS) - {NEW}) >= accuracy(smaller(), set(TASKS) - {NEW}) - 0.02


@pytest.mark.slow
def test_other_adapters_lose_almost_nothing() -> None:
    others = set(TASKS) - {NEW}
    assert accuracy(grown(), others) >= accuracy(smaller(), others) - 0.005


def test_what_fits_no_adapter_still_fits_none() -> None:
    texts = [
        "What should I cook tonight for eight guests who do not eat meat?",
        "My landlord refuses to repair the boiler, what are my rights?",
        "qzx vrrp lkj mnbv wqat zzyx oolm",
        'fn main() { println!("{}", vec.iter().map(|x| x * 2).count()); }',
    ]
    assert not any(routing.fits for routing in grown().route(texts))


def test_a_text_of_the_new_task_and_another_gets_both() -> None:
    rng = Random(3)
    texts = [f"{TASKS[NEW](rng)}\n\n{TASKS['sum_numbers'](rng)}" for _ in range(40)]
    mixes = [set(routing.mix().names) for routing in grown().route(texts)]
    assert np.mean([mix == {NEW, "sum_numbers"} for mix in mixes]) >= 0.6


def test_removing_it_gives_the_router_back() -> None:
    texts = [row.input for row in FRESH[:40]]
    back = remove_adapter(grown(), NEW)
    assert back.labels == smaller().labels
    assert [r.best for r in back.route(texts)] == [r.best for r in smaller().route(texts)]
    assert np.array_equal(back.network.output_NH, smaller().network.output_NH)
    assert np.array_equal(back.clusters.centres_NK, smaller().clusters.centres_NK)


def test_a_removed_trained_adapter_can_come_back_by_examples() -> None:
    router, _ = add_adapter(remove_adapter(trained()[0], NEW), NEW, examples())
    assert accuracy(router, set(TASKS)) >= 0.95


def test_a_grown_router_is_saved_and_loaded_like_any_other(tmp_path: Path) -> None:
    grown().save(tmp_path)
    texts = [row.input for row in FRESH[::10]]
    loaded = Router.load(tmp_path).route(texts)
    assert [r.best for r in loaded] == [r.best for r in grown().route(texts)]


def test_same_examples_give_the_same_router(tmp_path: Path) -> None:
    for name in ("one", "two"):
        add_adapter(smaller(), NEW, examples())[0].save(tmp_path / name)
    one, two = ((tmp_path / name / "router.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two


def test_invalid_additions_and_removals_are_refused() -> None:
    for texts, description in (([], None), ([" "], " ")):
        with pytest.raises(InvalidRequest, match="give examples, or a description"):
            add_adapter(smaller(), NEW, texts, description=description)
    with pytest.raises(InvalidRequest, match="already knows 'word_sorting'"):
        add_adapter(smaller(), "word_sorting", examples())
    with pytest.raises(InvalidRequest, match="a/b"):
        add_adapter(smaller(), "a/b", examples())
    with pytest.raises(UnknownModel, match="does not know 'nobody'"):
        remove_adapter(smaller(), "nobody")
    with pytest.raises(InvalidRequest, match="only adapter"):
        remove_adapter(smaller().only(["word_sorting"]), "word_sorting")


def test_without_a_memory_no_adapter_can_be_added() -> None:
    router = replace(smaller(), memory=Memory(np.zeros((0, 65), np.float32), np.zeros(0, np.int16)))
    with pytest.raises(BankError, match="no memory of its training"):
        add_adapter(router, NEW, examples())


def test_a_restricted_router_does_not_know_other_adapters() -> None:
    router, _ = trained()
    own = [row.input for row in FRESH if row.task == "word_sorting"]
    assert restricted(router, None) is restricted(router, frozenset([*router.labels, "more"])) is router
    masked = restricted(router, frozenset(["sum_numbers", "word_sorting"]))
    assert masked.labels == ("sum_numbers", "word_sorting")
    assert restricted(router, frozenset(["sum_numbers", "word_sorting"])) is masked
    assert np.mean([routing.mix().names == ("word_sorting",) for routing in masked.route(own)]) >= 0.95
    hidden = [row.input for row in FRESH if row.task == "object_owner"]
    assert np.mean([routing.fits for routing in masked.route(hidden)]) <= 0.1
    with pytest.raises(ValueError, match="any of the allowed"):
        restricted(router, frozenset(["elsewhere"]))


def test_a_router_of_one_adapter_distinguishes_it_from_none() -> None:
    router = trained()[0].only(["word_sorting"])
    own = [row.input for row in FRESH if row.task == "word_sorting"]
    others = [row.input for row in FRESH if row.task != "word_sorting"]
    assert np.mean([routing.mix().names == ("word_sorting",) for routing in router.route(own)]) >= 0.95
    assert np.mean([routing.fits for routing in router.route(others)]) <= 0.05


def test_the_memory_stays_bounded() -> None:
    memory = Memory(np.zeros((MEMORY_SIZE, 3), np.float32), np.arange(MEMORY_SIZE, dtype=np.int16) % 7 - 1)
    more = memory.with_texts(np.ones((50, 3), np.float32), 6)
    assert len(more.tasks_M) == MEMORY_SIZE
    assert (more.tasks_M == 6).sum() == 50
    assert set(more.tasks_M.tolist()) == set(range(-1, 7))
    fewer = more.only([6, 0])
    assert set(fewer.tasks_M.tolist()) == {NO_TASK, 0, 1}
    assert (fewer.inputs_MI[fewer.tasks_M == 0] == 1).all()


def test_a_restricted_router_remembers_adapters_without_texts() -> None:
    memory = Memory(np.ones((3, 2), np.float32), np.array([NO_TASK, 0, 0], np.int16))
    fewer = memory.only([4, 0])
    assert (len(fewer.inputs_MI), fewer.tasks_M.tolist()) == (3, [NO_TASK, 1, 1])
