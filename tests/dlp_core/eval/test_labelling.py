"""Labels from planted adapters: one that helps, one that hurts, and a task that has none."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from dlp_core.adapter.weights import read_adapter
from dlp_core.bank.disk_cache import DiskCache
from dlp_core.errors import InvalidRequest
from dlp_core.eval import labelling
from dlp_core.eval.judged_bank import open_bank
from dlp_core.eval.labelling import Labelled, Question, choose, label_rows, summary, write
from dlp_core.eval.run import Setup
from dlp_core.router.rows import TaskRow, read_task_rows
from dlp_core.store.checkpoints import Interrupted
from dlp_core.text.rows import Row, read_rows
from tests.support import eval_bank
from tests.support.planted import answered_rows, write_base, write_planted_bank, write_records

pytestmark = [pytest.mark.model, pytest.mark.slow]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def bank(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_planted_bank(tmp_path_factory.mktemp("bank"), base)


@pytest.fixture
def rows(tmp_path: Path) -> list[Row]:
    return list(read_rows(write_records(tmp_path / "rows.jsonl", answered_rows(3, seed=1))))


def labels_of(
    rows: Sequence[Row],
    bank: Path,
    base: Path,
    cache: Path,
    *,
    journal: Path | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> list[Labelled]:
    setup = Setup(base, "float32", "cpu", 1)
    return label_rows(rows, str(bank), setup, cache=DiskCache(cache, 10**9), journal=journal, stop=stop)


def test_labels_say_what_helps(rows: list[Row], bank: Path, base: Path, tmp_path: Path) -> None:
    labelled = labels_of(rows, bank, base, tmp_path / "cache")
    best = {each.row.task: each.best for each in labelled}
    assert best == {
        "flight_json": "flight_json",
        "object_owner": "flight_json",  # it has no adapter
        "sum_numbers": None,  # its own hurts
        "word_sorting": "word_sorting",
    }
    found = summary(labelled)
    assert (found["rows"], found["own"], found["other"], found["none"], found["own_hurts"]) == (12, 6, 3, 3, 3)
    write(labelled, tmp_path / "labels.jsonl")
    assert read_task_rows([tmp_path / "labels.jsonl"]) == [
        TaskRow.labelled(each.row.turns[0].content, each.labels) for each in labelled
    ]


def test_scores_are_those_of_the_plain_model_and_of_the_merged_one(
    rows: list[Row], bank: Path, base: Path, tmp_path: Path
) -> None:
    [labelled] = labels_of(rows[:1], bank, base, tmp_path / "cache")
    tokenizer = AutoTokenizer.from_pretrained(base)
    turns = [{"role": "user", "content": rows[0].turns[0].content}]
    prompt = list(tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False))
    answer = [*tokenizer.encode(rows[0].output, add_special_tokens=False), tokenizer.eos_token_id]
    assert labelled.scores.tokens == len(answer)
    for name, found in {None: labelled.scores.plain, **labelled.scores.adapters}.items():
        model = AutoModelForCausalLM.from_pretrained(base)
        modules = dict(model.named_modules())
        with torch.no_grad():
            if name is not None:
                for path, lora in read_adapter(bank / "adapters" / name, name=name).modules.items():
                    modules[path].weight += lora.scaling * (lora.b_OR.float() @ lora.a_RD.float())
            logprobs = model(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
        alone = sum(float(logprobs[len(prompt) + n - 1, token]) for n, token in enumerate(answer))
        assert found == pytest.approx(alone, rel=1e-3), name


def test_an_activated_adapter_that_nothing_invokes_scores_as_the_plain_model(
    rows: list[Row], bank: Path, base: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(bank, tmp_path / "bank"))
    config = copy / "adapters" / "flight_json" / "adapter_config.json"
    activated = {"task_type": "CAUSAL_LM", "alora_invocation_tokens": [5] * 50}
    config.write_text(json.dumps(json.loads(config.read_text()) | activated))
    [labelled] = labels_of(rows[:1], copy, base, tmp_path / "cache")
    scores = labelled.scores
    assert scores.adapters["flight_json"] == pytest.approx(scores.plain, rel=1e-4)
    assert scores.adapters["word_sorting"] != pytest.approx(scores.plain, rel=1e-2)


def test_adapters_that_do_not_fit_into_one_pass_take_several(
    rows: list[Row], bank: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [together] = labels_of(rows[:1], bank, base, tmp_path / "cache")
    monkeypatch.setattr(labelling, "_PASS_TOKENS", 1)
    [apart] = labels_of(rows[:1], bank, base, tmp_path / "cache")
    assert apart.scores.plain == pytest.approx(together.scores.plain, rel=1e-4)
    assert apart.scores.adapters == pytest.approx(together.scores.adapters, rel=1e-3)


def test_an_interrupted_labelling_goes_on_to_the_same_bytes(
    rows: list[Row], bank: Path, base: Path, tmp_path: Path
) -> None:
    write(labels_of(rows, bank, base, tmp_path / "cache"), tmp_path / "whole.jsonl")
    journal = tmp_path / "kept" / "scores.jsonl"
    asked = 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        return asked > 5

    with pytest.raises(Interrupted, match="stopped after 5 of 12 rows") as stopped:
        labels_of(rows, bank, base, tmp_path / "cache", journal=journal, stop=stop)
    assert stopped.value.checkpoint == journal.parent
    kept = journal.read_text()
    assert kept.count("\n") == 5
    write(labels_of(rows, bank, base, tmp_path / "cache", journal=journal), tmp_path / "resumed.jsonl")
    assert journal.read_text().startswith(kept)
    assert journal.read_text().count("\n") == 12
    assert (tmp_path / "resumed.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_of_a_multiple_choice_the_other_options_are_scored_in_the_form_of_the_right_one(
    bank: Path, base: Path, tmp_path: Path
) -> None:
    question = "Who?\n(A) Ada\n(B) Bo\n(C) Cleo"
    records = [{"input": question, "output": output} for output in ("(B) Bo", "(B)", "B", "Bo", "Dan")]
    rows = list(read_rows(write_records(tmp_path / "rows.jsonl", records)))
    assert [Question.of(row).answers for row in rows] == [
        ("(B) Bo", "(A) Ada", "(C) Cleo"),
        ("(B)", "(A)", "(C)"),
        ("B", "A", "C"),
        ("Bo", "Ada", "Cleo"),
        ("Dan",),
    ]
    labelled = labels_of(rows[:1], bank, base, tmp_path / "cache")
    measured = labelled[0].record()["benefit"]
    assert measured["plain_choice"] < 0
    assert set(measured["choices"]) == {"flight_json", "sum_numbers", "word_sorting"}


def test_candidates_are_the_routers_likeliest_for_the_task_and_its_own(base: Path, tmp_path: Path) -> None:
    folder = eval_bank.write_bank(tmp_path / "bank", base)
    records = [
        {"task": "sql", "input": eval_bank.TASKS["sql"].format(1), "output": "x"},
        {"task": "dates", "input": eval_bank.TASKS["sql"].format(2), "output": "x"},
        {"task": "elsewhere", "input": eval_bank.TASKS["cron"].format(3), "output": "x"},
        {"task": "elsewhere", "input": eval_bank.TASKS["cron"].format(4), "output": "x"},
        {"task": "elsewhere", "input": eval_bank.TASKS["dates"].format(5), "output": "x"},
        {"input": eval_bank.TASKS["dates"].format(6), "output": "x"},
        {"task": "joint", "input": eval_bank.TASKS["dates"].format(7), "output": "x"},
    ]
    questions = [Question.of(row) for row in read_rows(write_records(tmp_path / "rows.jsonl", records))]
    with open_bank(str(folder), DiskCache(tmp_path / "cache", 10**9)) as judged:
        asked = choose(questions, judged, 1)
        assert asked == [("sql",), ("dates", "sql"), ("cron",), ("cron",), ("cron",), ("dates",), ("dates", "joint")]
        assert choose(questions[:1], judged, 3) == [("cron", "dates", "sql")]


def test_without_a_router_all_adapters_must_be_asked(rows: list[Row], bank: Path, tmp_path: Path) -> None:
    questions = [Question.of(row) for row in rows]
    with open_bank(str(bank), DiskCache(tmp_path / "cache", 10**9)) as judged:
        with pytest.raises(InvalidRequest, match=r"the bank has no router .* ask all 3 with --candidates 3"):
            choose(questions, judged, 2)
        assert set(choose(questions, judged, 3)) == {("flight_json", "sum_numbers", "word_sorting")}
