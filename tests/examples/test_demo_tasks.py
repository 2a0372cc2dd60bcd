"""The demo bank: rows are correct, splits share no values, files are small enough for git."""

import json
import re
import shlex
import sqlite3
from collections.abc import Callable
from datetime import date
from pathlib import Path

import pytest

from dlp_core.adapter.weights import read_adapter
from dlp_core.eval.suite import load_suite
from dlp_core.text.rows import read_rows
from dlp_core.train.rows import Row
from examples.bank.build import heldout, in_chats
from examples.bank.recipe import ADAPTERS, CHAT_EVERY, HELDOUT_TEST, HELDOUT_TRAIN
from examples.bank.tasks import (
    TASKS,
    background_rows,
    pools,
    rows,
    sentiment,
    shell,
    text_to_sql,
    ticket_triage,
    tool_call,
)
from examples.bank.tasks.cron import DAYS, MONTHS
from tests.support.paths import ROOT

BANK = ROOT / "examples" / "bank"
MAX_ADAPTER_BYTES = 1_000_000
MAX_BANK_BYTES = 16_000_000
USER_TURN = (1, 4093)
"""`<|im_start|>user` in SmolLM2's tokenizer: what invokes activated adapters."""


@pytest.mark.parametrize("task", TASKS)
def test_rows_are_reproducible_and_their_inputs_distinct(task: str) -> None:
    first = rows(task, "train", 200, seed=1)
    assert first == rows(task, "train", 200, seed=1)
    assert first != rows(task, "train", 200, seed=2)
    assert len({row["input"] for row in first}) == 200


@pytest.mark.parametrize("task", TASKS)
def test_no_held_out_prompt_is_a_training_prompt(task: str) -> None:
    training = {row["input"] for row in rows(task, "train", 2000)}
    assert not training & {row["input"] for row in rows(task, "heldout", 200)}


@pytest.mark.parametrize("task", ["json_extract", "iso_date", "tool_call", "text_to_sql", "shell"])
def test_no_held_out_answer_is_a_training_answer(task: str) -> None:
    training = {row["output"] for row in rows(task, "train", 2000)}
    shared = training & {row["output"] for row in rows(task, "heldout", 200)}
    assert not {answer for answer in shared if not re.search(r"\bls \*|rm \*|find \. -name '\*", answer)}


@pytest.mark.parametrize("task", ["json_extract", "tool_call"])
def test_no_name_of_a_held_out_answer_is_known_from_training(task: str) -> None:
    def names(split: pools.Split, count: int) -> set[str]:
        answers = (json.loads(row["output"]) for row in rows(task, split, count))
        facts = (answer.get("arguments", answer).items() for answer in answers)
        ignored = ("time", "state", "from", "to" if task == "json_extract" else "")
        texts = {
            str(value).lower()
            for pairs in facts
            for key, value in pairs
            if key not in ignored and isinstance(value, str)
        }
        return texts - set(tool_call.CURRENCIES) - {code.lower() for code in tool_call.CURRENCIES}

    shared = names("train", 2000) & names("heldout", 200)
    assert not shared


LISTS = (
    *(pools.FIRST_NAMES, pools.LAST_NAMES, pools.CITIES, pools.COMPANIES, pools.PRODUCTS, pools.JOBS, pools.NOUNS),
    *(shell.STEMS, shell.FOLDERS, shell.WORDS, shell.PROCESSES, text_to_sql.TABLES, sentiment.THINGS),
    *(tool_call.MESSAGES, tool_call.MUSIC, tool_call.ROOMS),
)


@pytest.mark.parametrize("words", LISTS)
def test_both_splits_get_a_share_of_every_list(words: list[str]) -> None:
    held_out = pools.pool("heldout", words)
    assert not set(held_out) & set(pools.pool("train", words))
    assert 0.1 < len(held_out) / len(words) < 0.5


def _is_json_of_the_sentence(prompt: str, answer: str) -> None:
    facts = json.loads(answer)
    assert set(facts) <= {"name", "age", "city", "job", "company"} or set(facts) <= {
        "customer",
        "item",
        "quantity",
        "price",
        "city",
    }
    assert all(str(value) in prompt for key, value in facts.items() if key != "quantity")


def _is_cron(prompt: str, answer: str) -> None:
    fields = answer.split()
    assert len(fields) == 5
    for field, (low, high) in zip(fields, ((0, 59), (0, 23), (1, 31), (1, 12), (0, 6)), strict=True):
        assert re.fullmatch(r"(\*|\d+)([-/,]\d+)*", field)
        assert all(low <= int(number) <= high for number in re.findall(r"\d+", field))
    if fields[3] != "*":
        assert MONTHS[int(fields[3]) - 1].lower() in prompt.lower()
    if fields[4].isdigit():
        assert DAYS[int(fields[4])][:3].lower() in prompt.lower()


def _is_date(prompt: str, answer: str) -> None:
    del prompt
    assert date.fromisoformat(answer).isoformat() == answer


def _is_sql(prompt: str, answer: str) -> None:
    """Runs on a table that has every word of the prompt as a column."""
    columns = ", ".join(f'"{name}"' for name in dict.fromkeys(re.findall(r"[a-z_]+", prompt.lower())))
    table = answer.split(" FROM ")[1].rstrip(";").split()[0]
    with sqlite3.connect(":memory:") as database:
        database.execute(f"CREATE TABLE {table} ({columns})")
        database.execute(answer).fetchall()
    database.close()


def _is_command(prompt: str, answer: str) -> None:
    words = shlex.split(answer)
    assert words[0] in {command.split()[0] for _, command in shell._FORMS}
    for word in words[1:]:
        if re.fullmatch(r"\w+\.\w+", word):
            assert word.partition(".")[0].lower() in prompt.lower()


def _is_call(prompt: str, answer: str) -> None:
    del prompt
    call = json.loads(answer)
    assert ", ".join(call["arguments"]) == tool_call.TOOLS[call["name"]]


def _is_ticket(prompt: str, answer: str) -> None:
    found = re.fullmatch(r"category=(\w+) priority=(high|normal|low)", answer)
    assert found
    assert found[1] in ticket_triage.CAUSES
    prompt = prompt.lower().replace("how urgent", "")  # one of the instructions
    relaxed = any(words.lower() in prompt for words in ticket_triage.RELAXED)
    pressed = any(words.lower() in prompt for words in ticket_triage.URGENT) and not relaxed
    assert found[2] == ("high" if pressed else "low" if relaxed else "normal")


def _is_sentiment(prompt: str, answer: str) -> None:
    del prompt
    assert answer in sentiment.REMARKS


CHECKS: dict[str, Callable[[str, str], None]] = {
    "cron": _is_cron,
    "iso_date": _is_date,
    "json_extract": _is_json_of_the_sentence,
    "sentiment": _is_sentiment,
    "shell": _is_command,
    "text_to_sql": _is_sql,
    "ticket_triage": _is_ticket,
    "tool_call": _is_call,
}


@pytest.mark.parametrize("task", TASKS)
def test_every_answer_is_right(task: str) -> None:
    for row in rows(task, "train", 600) + rows(task, "heldout", 100):
        CHECKS[task](row["input"], row["output"])


def test_rows_that_nothing_was_trained_on_are_a_suite_and_none_is_both_fitted_and_tested(tmp_path: Path) -> None:
    heldout(tmp_path)
    suite = load_suite(BANK / "heldout.yaml", data=tmp_path)
    assert suite.tasks == tuple(sorted(TASKS))
    tested = {row.input for row in load_suite(BANK / "heldout.yaml", data=tmp_path, rows=HELDOUT_TEST).rows}
    fitted = {row.prompt for row in read_rows(tmp_path / "train.jsonl.gz")}
    assert (len(tested), len(fitted)) == (8 * HELDOUT_TEST, 8 * HELDOUT_TRAIN)
    assert not tested & fitted
    written = (tmp_path / "train.jsonl.gz").read_bytes()
    heldout(tmp_path)
    assert (tmp_path / "train.jsonl.gz").read_bytes() == written


def test_background_prompts_have_no_task_and_are_split() -> None:
    training, held_out = background_rows("train", 1500), background_rows("heldout", 200)
    assert all(row["task"] is None for row in training + held_out)
    assert not {row["input"] for row in training} & {row["input"] for row in held_out}


def test_bank_has_one_adapter_per_task() -> None:
    assert {folder.name for folder in (BANK / "adapters").iterdir()} == set(TASKS) == set(ADAPTERS)


@pytest.mark.parametrize("name", ADAPTERS)
def test_committed_adapter_is_small_and_can_be_served(name: str) -> None:
    folder = BANK / "adapters" / name
    assert {file.name for file in folder.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    assert (folder / "adapter_model.safetensors").stat().st_size <= MAX_ADAPTER_BYTES
    adapter = read_adapter(folder, name=name)
    assert adapter.base_model == json.loads((BANK / "bank.json").read_text())["base_model"]
    assert adapter.rank == ADAPTERS[name].rank
    assert {path.rpartition(".")[2] for path in adapter.modules} == set(ADAPTERS[name].targets)
    assert adapter.invocation == (USER_TURN if ADAPTERS[name].activated else None)


def test_some_rows_follow_on_a_turn_of_another_task() -> None:
    training = [Row(row["input"], row["output"]) for row in rows("cron", "train", 40)]
    chats = in_chats("cron", training)
    assert [(chat.turns[-1], chat.output) for chat in chats] == [(row.turns[-1], row.output) for row in training]
    assert [len(chat.turns) for chat in chats] == [1 if number % CHAT_EVERY else 3 for number in range(40)]
    before = {tuple(turn.content for turn in chat.turns[:2]) for chat in chats if len(chat.turns) == 3}
    others = {(row["input"], row["output"]) for task in TASKS if task != "cron" for row in rows(task, "train", 2)}
    assert before <= others
    assert len(before) == 14


def test_bank_is_small_enough_for_git() -> None:
    sizes = [file.stat().st_size for file in BANK.rglob("*") if file.is_file() and "__pycache__" not in file.parts]
    assert sum(sizes) <= MAX_BANK_BYTES
    assert max(sizes) <= 6_500_000
