"""A run from feedback to its end: what each step makes, refuses, and resumes after a kill."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from dlp_core.bank.canary import promote, roll_back_canary, start_canary, stop_canary
from dlp_core.bank.publish import publish, verify
from dlp_core.bank.reading import current, load_manifest
from dlp_core.bank.retention import collect
from dlp_core.bank.revision import download_router, stage_router
from dlp_core.errors import Conflict, InvalidRequest
from dlp_core.eval.pairs import Drop, PairFindings, PairFound, save
from dlp_core.eval.results import BankInfo, SuiteInfo
from dlp_core.improve import run as runs
from dlp_core.improve.judging import right
from dlp_core.improve.loop import Demand, turn, until_waiting, watch
from dlp_core.improve.rows import is_held_back, read_rows
from dlp_core.improve.run import AnswersJudged, Run
from dlp_core.improve.steps import Tools, Waiting, begin, take_step, training_rows
from dlp_core.router.rows import TaskRow
from dlp_core.store.memory import MemoryStore
from dlp_core.store.protocol import AdapterStore
from tests.support import improving
from tests.support.improving import base_rows, give, give_rows, other_words, publish_first, request, said
from tests.support.paths import ROOT

pytestmark = pytest.mark.slow

PROMPTS = other_words(24, seed=5)
UNSEEN = [row for row in other_words(60, seed=6) if row.input not in {known.input for known in PROMPTS}]


@pytest.fixture
def store(tmp_path: Path) -> AdapterStore:
    store = MemoryStore(tmp_path.name)
    publish_first(store, tmp_path / "bank")
    return store


@pytest.fixture
def tools(store: AdapterStore, tmp_path: Path) -> Tools:
    return improving.tools(store, tmp_path)


def demand(min_rows: int = 20, base: list[TaskRow] | None = None) -> Demand:
    return Demand(base_rows() if base is None else base, min_rows)


def states(tools: Tools, wanted: Demand) -> list[str]:
    return [outcome.state for outcome in until_waiting(tools, wanted) if isinstance(outcome, Run)]


def last(store: AdapterStore) -> Run:
    found = runs.latest(store)
    assert found is not None
    return found[0]


def share(store: AdapterStore, version: str | None, rows: list[TaskRow]) -> float:
    served = right(download_router(store, version), rows)
    return sum(served) / len(served)


def test_feedback_becomes_a_router_that_is_promoted(store: AdapterStore, tools: Tools) -> None:
    before = current(store)[0].version
    give_rows(store, PROMPTS)
    assert states(tools, demand()) == ["begun", "collected", "proposed", "trained", "passed", "canary"]
    run = last(store)
    assert run.collected is not None
    assert run.gate is not None
    assert run.trained is not None
    assert (run.collected.new, run.collected.unknown) == (len(PROMPTS), ())
    pointer = current(store)[0]
    assert (pointer.version, pointer.canary and pointer.canary.id) == (before, run.canary)
    assert pointer.canary is not None
    assert (pointer.canary.share, pointer.canary.overlooks) == (0.05, ("abstained",))
    assert verify(store, run.trained.version).problems == ()
    assert load_manifest(store, run.trained.version).adapters == load_manifest(store, before).adapters
    assert share(store, run.trained.version, UNSEEN) > share(store, before, UNSEEN) + 0.2
    assert states(tools, demand()) == []  # it is on trial
    promote(store, reason="no alarm")
    assert states(tools, demand()) == ["promoted"]
    assert last(store).reason == "no alarm"
    assert turn(tools, demand()) == Waiting(0, 20)


def test_too_little_feedback_begins_nothing(store: AdapterStore, tools: Tools) -> None:
    give_rows(store, PROMPTS[:10])
    assert turn(tools, demand(min_rows=11)) == Waiting(10, 11)
    assert runs.latest(store) is None


def test_the_gate_refuses_a_router_that_is_worse(store: AdapterStore, tools: Tools) -> None:
    before = current(store)[0]
    give_rows(store, PROMPTS)
    run = reach(tools, "trained")
    router = download_router(store)
    worse = replace(router, calibration=replace(router.calibration, threshold=-1e3))  # refuses everything
    staged = stage_router(store, worse, of=before.version)
    assert run.trained is not None
    etag = runs.read(store, run.number)[1]
    swapped = run.trained.model_copy(update={"version": staged.version})
    runs.replace(store, etag, run.model_copy(update={"trained": swapped}))
    assert states(tools, demand())[0] == "refused"
    refused = last(store)
    assert refused.gate is not None
    assert refused.gate.base is not None
    assert "worse by more than 8 points" in refused.reason
    assert refused.gate.base.change < -8
    assert refused.gate.base.kept[1] == 0.0
    assert current(store)[0] == before


@pytest.mark.parametrize("passed", [True, False])
def test_answers_are_judged_too_if_there_is_a_suite(store: AdapterStore, tools: Tools, passed: bool) -> None:
    asked: list[tuple[str, str]] = []

    def answers(version: str, baseline: str) -> AnswersJudged:
        asked.append((version, baseline))
        return AnswersJudged(passed=passed, suite="s", change=-9.0, low=-10.0, high=-8.0, worse=("sums",))

    give_rows(store, PROMPTS)
    states(replace(tools, answers=answers), demand())
    run = last(store)
    assert run.trained is not None
    assert asked == [(run.trained.version, run.bank)]
    assert run.state == ("canary" if passed else "refused")
    assert passed or "answers of suite s -9.0 points (sums)" in run.reason


def test_the_gate_refuses_a_bank_that_mixes_what_spoils_each_other(store: AdapterStore, tools: Tools) -> None:
    give_rows(store, PROMPTS)
    reach(tools, "trained")
    pair = ("sum_numbers", "word_sorting")
    bank = load_manifest(store)
    digests = {adapter.name: adapter.digest for adapter in bank.adapters}
    found = PairFound(
        adapters=pair,
        digests=(digests[pair[0]], digests[pair[1]]),
        joined=Drop.of([0.0] * 8, [1.0] * 8),
        own={},
        spoiled=True,
    )
    save(
        store,
        PairFindings(
            created=current(store)[0].published,
            suite=SuiteInfo(name="given", digest="0" * 12, rows=8, seed=0),
            bank=BankInfo(version=bank.version, digest=bank.digest, base_model="m", adapters=4, router=None),
            setup="m in float32",
            seconds=1.0,
            max_drop=1.0,
            pairs=[found],
        ),
    )
    assert states(tools, demand())[0] == "refused"
    refused = last(store)
    assert "spoil each other: sum_numbers with word_sorting" in refused.reason
    assert refused.gate is not None
    assert refused.gate.spoiled == (pair,)


def test_no_row_that_judges_is_trained_on(store: AdapterStore, tools: Tools) -> None:
    give_rows(store, PROMPTS[::3])
    run = reach(tools, "collected")
    collected = read_rows(store, run)
    manifest = load_manifest(store)
    rows, weight = training_rows(base_rows(), collected, manifest.routed_names)
    assert weight > 1
    people = {row.input for row in PROMPTS}
    trained = {row.input: row.weight for row in rows if row.input in people}
    assert set(trained.values()) == {weight}
    held_back = {row.input for row in collected if row.held_back and row.suspect is None}
    assert held_back
    assert held_back.isdisjoint(trained)
    assert all(is_held_back(text) for text in held_back)


def test_wrong_labels_are_found_and_two_keys_settle_them(store: AdapterStore, tools: Tools) -> None:
    wrong = {PROMPTS[n].input for n in range(0, len(PROMPTS), 12)}
    tasks = sorted({str(row.task) for row in PROMPTS})
    rows = [
        TaskRow(tasks[(tasks.index(str(row.task)) + 1) % 4], row.input) if row.input in wrong else row
        for row in PROMPTS
    ]
    give_rows(store, rows)
    run = reach(tools, "collected")
    suspects = {row.input for row in read_rows(store, run) if row.suspect is not None}
    assert len(suspects & wrong) >= len(wrong) / 2
    assert len(suspects - wrong) <= len(PROMPTS) / 10
    assert run.collected is not None
    assert run.collected.suspects == len(suspects)
    settled = sorted(suspects & wrong)[0]
    label = next(row.task for row in rows if row.input == settled)
    give(store, said("again", key="second", text=settled, adapter=label), file="again")
    end(store, run)
    assert isinstance(begin(store, None, min_rows=0, seed=0), Run)
    reach(tools, "collected")
    assert next(row for row in read_rows(store, last(store)) if row.input == settled).suspect is None


def test_rows_add_up_when_the_feedback_is_gone(store: AdapterStore, tools: Tools) -> None:
    give_rows(store, PROMPTS[:30])
    end(store, reach(tools, "collected"))
    for info in store.list("feedback/"):
        store.delete(info.key)
    give_rows(store, PROMPTS[30:60], file="later")
    second = reach(tools, "collected")
    assert second.number == 2
    assert second.collected is not None
    assert second.collected.new == 30
    assert {row.input for row in read_rows(store, second)} == {row.input for row in PROMPTS[:60]}


def test_a_name_that_the_bank_does_not_route_is_left_out(store: AdapterStore, tools: Tools) -> None:
    give_rows(store, [*PROMPTS, TaskRow("gone", "a prompt of a removed adapter")])
    run = reach(tools, "collected")
    assert run.collected is not None
    assert run.collected.unknown == ("gone",)
    assert "gone" not in {row.task for row in read_rows(store, run)}


def test_prompts_without_a_home_are_a_proposal(store: AdapterStore, tools: Tools) -> None:
    topic = [
        request(f"t{n}", f"prune the apple tree in month {n}, or the pear tree", confidence=0.3) for n in range(12)
    ]
    give(store, *topic, request("lone", "zebra"), request("home", PROMPTS[0].input, "word_sorting"), file="kept")
    give_rows(store, PROMPTS)
    run = reach(tools, "proposed")
    found = json.loads(store.get(run.key("proposals.json")).data)
    assert (run.proposals, found["looked_at"]) == (1, 13)
    assert set(found["topics"][0]["requests"]) == {entry.id for entry in topic}
    assert {"prune", "apple", "tree"} <= set(found["topics"][0]["words"])
    assert "prune the" not in store.get(run.key("proposals.json")).data.decode()  # ids, no text
    assert len(load_manifest(store).adapters) == 4


def end(store: AdapterStore, run: Run) -> None:
    runs.replace(store, runs.read(store, run.number)[1], run.moved("ended", "by the test"))


def reach(tools: Tools, state: str) -> Run:
    for outcome in until_waiting(tools, demand()):
        assert isinstance(outcome, Run)
        if outcome.state == state:
            return outcome
    raise AssertionError(f"never {state}")


# --- how a canary ends, and what others do meanwhile


def alarm(store: AdapterStore) -> None:
    canary = current(store)[0].canary
    assert canary is not None
    roll_back_canary(store, canary.id, "errors: 9 of 10")


@pytest.mark.parametrize(
    ("act", "state", "reason"),
    [
        (lambda store: promote(store, reason="no alarm after 500 requests"), "promoted", "no alarm after 500 requests"),
        (alarm, "rolled_back", "errors: 9 of 10"),
        (stop_canary, "ended", "somebody ended the canary"),
    ],
)
def test_watch_follows_a_canary_to_its_end_and_begins_again(
    store: AdapterStore, tools: Tools, act: Callable[[AdapterStore], object], state: str, reason: str
) -> None:
    give_rows(store, PROMPTS[:40])
    waits: list[str] = []

    def wait() -> bool:
        waits.append(last(store).state)
        if len(waits) == 1:
            act(store)
        elif len(waits) == 2:
            give_rows(store, PROMPTS[40:80], file="later")
        return len(waits) < 3

    seen = list(watch(tools, demand(), wait=wait))
    ended = [outcome for outcome in seen if isinstance(outcome, Run) and outcome.over]
    assert [(run.number, run.state) for run in ended][:1] == [(1, state)]
    assert ended[0].reason.startswith(reason)
    assert waits[:2] == ["canary", state]
    assert last(store).number == 2
    assert last(store).collected is not None
    serves = current(store)[0].version
    first = runs.read(store, 1)[0]
    assert serves == (first.trained.version if state == "promoted" and first.trained else first.bank)


def test_a_bank_that_somebody_publishes_ends_the_run(store: AdapterStore, tools: Tools, tmp_path: Path) -> None:
    give_rows(store, PROMPTS)
    reach(tools, "proposed")
    (tmp_path / "bank/adapters/word_sorting/description.txt").write_text("Sorts words.\n")
    version = publish(store, tmp_path / "bank").version
    assert states(tools, demand()) == ["ended"]
    assert version in last(store).reason


def test_a_canary_of_an_operator_is_left_alone(store: AdapterStore, tools: Tools, tmp_path: Path) -> None:
    give_rows(store, PROMPTS)
    reach(tools, "passed")
    (tmp_path / "bank/adapters/word_sorting/description.txt").write_text("Sorts words.\n")
    start_canary(store, publish(store, tmp_path / "bank", stage=True).version)
    with pytest.raises(Conflict, match="is the canary"):
        turn(tools, demand())
    assert last(store).state == "passed"
    waits: list[int] = []
    assert list(watch(tools, demand(), wait=lambda: bool(waits.append(1)))) == []
    stop_canary(store)
    assert states(tools, demand()) == ["canary"]


def test_of_two_workers_one_takes_the_step(store: AdapterStore, tools: Tools) -> None:
    give_rows(store, PROMPTS)
    reach(tools, "begun")
    found = runs.latest(store)
    assert found is not None
    take_step(tools, *found)
    with pytest.raises(Conflict, match="another worker"):
        take_step(tools, *found)
    with pytest.raises(Conflict, match="another worker"):
        runs.create(store, found[0].model_copy(update={"seed": 9}))


def test_collecting_garbage_leaves_the_runs(store: AdapterStore, tools: Tools) -> None:
    give_rows(store, PROMPTS)
    reach(tools, "proposed")
    before = [info.key for info in store.list("improve/")]
    collect(store, keep=0)
    assert [info.key for info in store.list("improve/")] == before


# --- what cannot be improved


def test_the_first_run_needs_the_owners_rows(store: AdapterStore) -> None:
    with pytest.raises(InvalidRequest, match="--data ROWS"):
        begin(store, None, min_rows=0, seed=0)


def test_rows_must_be_of_the_banks_adapters(store: AdapterStore) -> None:
    with pytest.raises(InvalidRequest, match="has rows of nobody, not routed in bank"):
        begin(store, [*base_rows(), TaskRow("nobody", "x")], min_rows=0, seed=0)
    with pytest.raises(InvalidRequest, match="fewer than 8 rows of word_sorting"):
        begin(store, [row for row in base_rows() if row.task != "word_sorting"], min_rows=0, seed=0)
    assert runs.latest(store) is None


# --- kills


def test_a_kill_at_any_write_resumes_to_the_same_end(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.improve_killed", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    assert outcome["killed"] == outcome["whole"]
    assert outcome["kills"] >= 12
