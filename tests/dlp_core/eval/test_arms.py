"""Arms: names and the mixes they choose. Statistics: which differences are significant."""

from __future__ import annotations

import numpy as np
import pytest

from dlp_core.errors import InvalidRequest
from dlp_core.eval.arms import DEFAULT_ARMS, SERVED, Chooser, parse, parse_all
from dlp_core.eval.results import difference
from dlp_core.eval.statistics import estimate, estimate_over_tasks
from dlp_core.eval.suite import Suite, load_suite
from dlp_core.mix import EMPTY_MIX, Mix
from dlp_core.router import Router, Routing
from dlp_core.together import Together
from tests.support.eval_bank import TASKS, trained_router, write_suite

pytestmark = pytest.mark.model

ROUTING = Routing.of({"cron": 0.5, "dates": 0.3, "sql": 0.2})
UNSURE = Routing.of({"cron": 0.5, "dates": 0.3, "sql": 0.2}, margin=-1.0)


@pytest.fixture(scope="module")
def router() -> Router:
    return trained_router()


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Suite:
    return load_suite(write_suite(tmp_path_factory.mktemp("suite")))


@pytest.fixture(scope="module")
def chooser(suite: Suite, router: Router) -> Chooser:
    return Chooser(suite, router, [*TASKS, "joint"])


def test_names_are_read_and_written_back() -> None:
    assert [arm.name for arm in parse_all(DEFAULT_ARMS)] == list(DEFAULT_ARMS)
    assert SERVED in DEFAULT_ARMS
    assert parse(" top-p=.90 ") == parse("top-p=0.9")
    assert parse("adapter=a-b.c").adapter == "a-b.c"
    assert len(parse_all(["plain", "plain", "top-p=0.5", "top-p=0.50"])) == 2
    assert [parse(name).activation for name in ("oracle", "oracle:turn", "top-p=0.9:softmax:prompt")] == [
        "always",
        "turn",
        "prompt",
    ]
    assert parse("top-p=0.90:softmax:prompt").name == "top-p=0.9:softmax:prompt"
    assert parse("adapter=a:turn") != parse("adapter=a")


@pytest.mark.parametrize(
    "name",
    ["", "top", "top-p", "top-p=", "top-p=0", "top-p=1.1", "top-p=x", "plain=1", "oracle:softmax", "adapter=",
     "plain:turn", "sentence=0.9:prompt", "oracle:always", "oracle:prompt:turn", "uniform=0.9:softmax",
     "top-p=0.9:hard", "top-p=nan"],
)  # fmt: skip
def test_unknown_arms_are_refused(name: str) -> None:
    with pytest.raises(InvalidRequest, match="is not an arm"):
        parse(name)


def test_each_arm_chooses_its_mix(chooser: Chooser, suite: Suite) -> None:
    row = suite.rows[0]
    assert row.task == "cron"

    def mix(name: str, routing: Routing | None = ROUTING) -> Mix:
        return chooser.mix(parse(name), row, routing)

    assert mix("plain", None) == EMPTY_MIX
    assert mix("oracle", None) == Mix.of({"cron": 1.0})
    assert mix("adapter=joint", None) == Mix.of({"joint": 1.0})
    assert mix("top1") == Mix.of({"cron": 1.0})
    assert mix("top-p=0.5") == Mix.of({"cron": 1.0})
    assert mix("top-p=0.8").names == ("cron", "dates")
    assert mix("top-p=0.8").adapters[0].weight == pytest.approx(5 / 8)
    assert mix("top-p=0.8:softmax").adapters[0].weight == round(64 / (1 + np.exp(-0.2))) / 64
    assert mix("uniform=0.99") == Mix.of(dict.fromkeys(TASKS, 1 / 3))
    assert mix("sentence=0.8") == mix("top-p=0.8")
    for name in ("top1", "top-p=0.9", "uniform=0.9", "left-out=0.9"):
        assert mix(name, UNSURE) == EMPTY_MIX, "'none of these' leaves the backbone alone"
    assert mix("left-out-forced=0.5", UNSURE) == Mix.of({"cron": 1.0}), "this arm may not answer 'none of these'"


def test_random_is_the_same_every_time_and_differs_by_row(chooser: Chooser, suite: Suite) -> None:
    arm = parse("random")
    first = [chooser.mix(arm, row, None) for row in suite.rows]
    assert first == [chooser.mix(arm, row, None) for row in suite.rows]
    assert {mix.names[0] for mix in first} == set(TASKS)


def test_a_left_out_task_is_unknown_to_its_router(chooser: Chooser, suite: Suite) -> None:
    for row in suite.rows:
        router = chooser.router_for(parse("left-out-forced=0.9"), row)
        assert router is not None
        assert set(router.labels) == set(TASKS) - {row.task}
    assert chooser.router_for(parse("plain"), suite.rows[0]) is None


def test_arms_a_bank_cannot_have_are_refused(suite: Suite, router: Router) -> None:
    with pytest.raises(InvalidRequest, match="needs a router, and this bank has none"):
        Chooser(suite, None, ["cron"]).resolve([SERVED])
    with pytest.raises(InvalidRequest, match="adapter that this bank does not have: 'joint'"):
        Chooser(suite, router, ["cron"]).resolve(["adapter=joint"])
    with pytest.raises(InvalidRequest, match="the tasks are cron, dates, sql, the adapters joint"):
        Chooser(suite, router, ["joint"]).resolve(["oracle"])
    assert [arm.name for arm in Chooser(suite, None, ["cron"]).resolve(None)] == ["plain", "oracle"]
    assert [arm.name for arm in Chooser(suite, router, [*TASKS]).resolve(None)] == list(DEFAULT_ARMS)
    bare = Chooser(suite, router, ["dates", "sql"])
    assert [bare.applies(parse("oracle"), row) for row in suite.rows] == [row.task != "cron" for row in suite.rows]


def test_an_interval_covers_the_mean_at_its_level() -> None:
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        interval = estimate(list(random.binomial(1, 0.7, 60).astype(float)))
        covered += interval.low <= 0.7 <= interval.high
    assert 176 <= covered <= 199


def test_tasks_count_the_same_whatever_their_size() -> None:
    mean = estimate_over_tasks({"many": [1.0] * 90, "few": [0.0] * 10})
    assert (mean.mean, mean.low, mean.high) == (0.5, 0.5, 0.5)
    with pytest.raises(ValueError, match="a row of every task"):
        estimate_over_tasks({"none": []})


def test_a_difference_pairs_rows_and_is_reported_only_where_significant() -> None:
    random = np.random.default_rng(1)
    theirs = {task: {str(n): float(x) for n, x in enumerate(random.random(60))} for task in "abcdefgh"}
    ours = {task: {n: score + random.normal(0, 0.05) for n, score in rows.items()} for task, rows in theirs.items()}
    ours["a"] = {n: score - 0.2 for n, score in theirs["a"].items()}
    ours["b"] = {n: score + 0.2 for n, score in theirs["b"].items()}
    ours["b"]["only here"] = 0.0
    change = difference(ours, theirs)
    assert (change.worse(0), change.better) == (["a"], ["b"])
    assert change.tasks["a"].mean == pytest.approx(-20)
    assert change.worse(19) == ["a"]
    assert change.worse(21) == []
    assert abs(change.overall.mean) < 1
    with pytest.raises(InvalidRequest, match="no row in common"):
        difference(ours, {"a": {"other": 1.0}})


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("top-p=0.99", {"cron", "sql"}),
        ("top-p=0.99:softmax", {"cron", "sql"}),
        ("uniform=0.99", {"cron", "sql"}),
        ("sentence=0.99", {"cron", "sql"}),
        ("left-out=0.99", {"cron", "sql"}),
        ("left-out-forced=0.99", {"cron", "sql"}),
    ],
)
def test_no_arm_mixes_what_may_not_run_together(suite: Suite, router: Router, name: str, kept: set[str]) -> None:
    chooser = Chooser(suite, router, list(TASKS), together=Together((("cron", "sql"),)))
    mix = chooser.mix(parse(name), suite.rows[0], ROUTING)
    assert set(mix.names) == kept
    assert sum(part.weight for part in mix.adapters) == pytest.approx(1.0)


def test_recipes_are_arms_and_outputs_of_the_router_as_adapters_are(suite: Suite, router: Router) -> None:
    blend = Mix(Mix.of({"cron": 0.5, "joint": -0.25}).adapters, ("blend",))
    chooser = Chooser(suite, router, [*TASKS, "joint", "blend"], {"blend": blend})
    [arm, served] = chooser.resolve(["adapter=blend", SERVED])
    row = suite.rows[0]
    assert chooser.mix(arm, row, None) == blend
    assert chooser.mix(served, row, Routing.of({"blend": 1.0})) == blend
    mixed = chooser.mix(served, row, Routing.of({"blend": 0.75, "cron": 0.25}))
    assert {part.name: part.weight for part in mixed.adapters} == {"cron": 0.625, "joint": -0.1875}
    assert chooser.named("blend") == blend
    assert chooser.named("cron") == Mix.of({"cron": 1.0})
