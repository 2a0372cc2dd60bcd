"""`dlp eval` as a user meets it: a run, a kill in the middle, the gate, history, mistakes in one line."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from deployments.cli import main
from dlp_core.bank.disk_cache import DiskCache
from dlp_core.bank.publish import publish
from dlp_core.bank.retention import collect
from dlp_core.eval.answers import Answerer, Job
from dlp_core.eval.journal import Journal
from dlp_core.eval.judged_bank import JudgedBank, open_bank
from dlp_core.eval.results import Results, latest
from dlp_core.mix import Mix
from dlp_core.store.opening import open_store
from tests.support.eval_bank import TASKS, running, write_bank, write_base, write_rows, write_suite

pytestmark = pytest.mark.model

Run = Callable[..., tuple[int, str, str]]
ARMS = (
    "plain,oracle,top1,top-p=0.5,top-p=0.9,top-p=0.9:softmax,uniform=0.9,random,adapter=joint,sentence=0.9,left-out=0.9"
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def bank(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bank(tmp_path_factory.mktemp("bank"), base)


@pytest.fixture
def dlp(base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Runs `dlp eval ...` with the tiny suite; returns exit code, stdout, stderr."""
    suite = write_suite(tmp_path / "suite")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("DLP_BANK", raising=False)
    monkeypatch.setenv("DLP_BASE_MODEL", str(base))

    def run(*arguments: str, common: bool = True) -> tuple[int, str, str]:
        given = ["--suite", str(suite), "--out", str(tmp_path / "out"), "--dtype", "float32", "--device", "cpu"]
        command = list(arguments[:1]) if arguments[0] in ("gate", "compare") else []
        rest = arguments[len(command) :]
        monkeypatch.setattr("sys.argv", ["dlp", "eval", *command, *(given if common else []), *rest])
        with pytest.raises(SystemExit) as end:
            main.main()
        printed = capsys.readouterr()
        return int(end.value.code or 0), printed.out, printed.err

    return run


def test_a_folder_is_judged_and_reported(dlp: Run, bank: Path, tmp_path: Path) -> None:
    code, out, err = dlp("--bank", str(bank), "--arms", ARMS, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert [arm["name"] for arm in found["arms"]] == ARMS.split(",")
    results = Results.model_validate_json((tmp_path / "out" / "results.json").read_bytes())
    assert results.suite.rows == len(results.rows) == 12
    for arm in results.arms:
        assert set(arm.tasks) == set(TASKS)
        assert 0 <= arm.score.low <= arm.score.mean <= arm.score.high <= 100
    assert set(results.arm("plain").tasks["cron"].metrics) == {"likelihood", "accuracy"}
    assert results.router is not None
    assert results.router.accuracy == 1
    top1, served, oracle = (results.by_task(name) for name in ("top1", "top-p=0.5", "oracle"))
    assert top1 == served == oracle, "the router is sure of these rows, so all three are the same requests"
    assert {(found.parts, found.arm) for found in results.composites} == {
        (parts, way)
        for parts in (2, 3)
        for way in ("plain", "by request", "by sentence", "oracle by part", "by task", "apart")
    }
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("data:image/svg+xml") == 2 * 4
    for title in ("Tasks", "10 rows and their answers", "Time and tokens", "p against score", "Confusion matrix"):
        assert title in page
    assert found["judged"] == f"bank folder {bank}, unpublished (version {results.bank.version})"
    assert found["judged"] in page
    assert found["verdict"].startswith("On 12 prompts of 3 tasks, the routed bank scores ")
    assert len(results.examples) == 10
    assert all(set(example.answers) == set(ARMS.split(",")) for example in results.examples)
    for arm in results.arms:
        assert arm.cost is not None
        assert arm.cost.answers == 12
        assert arm.cost.seconds > 0
        assert arm.cost.prompt_tokens > arm.cost.completion_tokens > 0
    assert results.router.seconds is not None
    assert results.conditions.endswith("16 requests at a time")
    check_markdown(tmp_path / "out")
    assert not re.search(r'(?:src|href)="(?!data:)|@import|url\(', page), "nothing is loaded"


def check_markdown(out: Path) -> None:
    text = (out / "report.md").read_text()
    assert "| oracle, top1, top-p=0.5" in text, "arms that chose the same are one line"
    drawn = re.findall(r"\]\((\w+\.svg)\)", text)
    assert len(drawn) == 4, "three tasks make no radar"
    assert all((out / name).read_text().startswith("<svg") for name in drawn)


def test_for_a_person_it_is_a_table(dlp: Run, bank: Path) -> None:
    code, out, err = dlp("--bank", str(bank), "--arms", "plain,top-p=0.9", "--rows", "1")
    assert code == 0, err
    assert "top-p=0.9" in out
    assert "oracle by part" in out
    assert "report.html" in out
    said = " ".join(out.split())
    assert "Judged: bank folder " in said
    assert ", the routed bank scores " in said


KILLED = """
import os, signal
from deployments.cli.main import main
from dlp_core.eval.journal import Journal

add = Journal.add

def add_and_die(journal, key, answer):
    add(journal, key, answer)
    if len(journal._records) == 20:
        os.kill(os.getpid(), signal.SIGKILL)

Journal.add = add_and_die
main()
"""


def test_a_killed_run_goes_on(dlp: Run, bank: Path, tmp_path: Path) -> None:
    arguments = ["--bank", str(bank), "--arms", "plain,oracle,random", "--at-once", "1", "--json"]
    suite, out = str(tmp_path / "suite" / "suite.yaml"), tmp_path / "out"
    given = ["--suite", suite, "--out", str(out), "--dtype", "float32", "--device", "cpu"]
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, "eval", *given, *arguments], check=False, capture_output=True, text=True
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (out / "results.json").exists()
    before = (out / "answers.jsonl").read_text().splitlines()
    assert len(before) == 20
    code, resumed, err = dlp(*arguments)
    assert code == 0, err
    after = (out / "answers.jsonl").read_text().splitlines()
    assert after[:20] == before
    keys = [json.loads(line)["key"] for line in after]
    assert len(keys) == len(set(keys)) > 20
    code, again, err = dlp(*arguments, "--out", str(tmp_path / "fresh"))
    assert code == 0, err
    resumed, again = json.loads(resumed), json.loads(again)
    for changing in ("created", "seconds"):
        again.pop(changing), resumed.pop(changing)
    for found in (again, resumed):
        found["router"].pop("seconds")
        for arm in found["arms"]:
            assert arm["cost"].pop("seconds") > 0
            arm["cost"].pop("seconds_p95")
    assert again == resumed, "a killed run finds what an undisturbed one finds"


def test_the_gate_names_what_got_worse(dlp: Run, base: Path, bank: Path, tmp_path: Path) -> None:
    """The answers wanted are those of the bank itself, so any other bank is worse."""
    rows = tmp_path / "suite" / "rows.jsonl"
    records = [json.loads(line) | {"type": "qa"} for line in rows.read_text().splitlines()]
    answers = answers_of(bank, base, tmp_path, [(record["input"], record["task"]) for record in records])
    write_rows(rows, [record | {"output": answer} for record, answer in zip(records, answers, strict=True)])
    store = open_store(str(tmp_path / "store"))
    good = publish(store, bank)
    worse = write_bank(tmp_path / "worse", base, seeds={"sql": 99})
    baseline = ("--baseline", str(tmp_path / "store"))

    code, out, err = dlp("gate", "--bank", str(bank), *baseline, "--json")
    assert code == 0, err
    assert json.loads(out)["passed"] is True

    code, out, err = dlp("gate", "--bank", str(worse), *baseline, "--json")
    found = json.loads(out)
    assert code == 1, err
    assert (found["passed"], found["worse"], found["baseline"]) == (False, ["sql"], good.version)
    assert found["tasks"]["dates"]["mean"] == 0

    code, out, _ = dlp("gate", "--bank", str(worse), *baseline)
    assert code == 1
    assert "worse: sql" in out
    assert dlp("gate", "--bank", str(worse), *baseline, "--max-drop", "100")[0] == 0

    results = latest(store, found["bank"], suite="tiny", arms=["top-p=0.9"])
    assert results.bank.version == found["bank"], "both are kept with their versions, beside the baseline"
    code, out, _ = dlp(
        "compare", good.version, found["bank"], "--bank", str(tmp_path / "store"), "--json", common=False
    )
    compared = json.loads(out)
    assert (code, compared["worse"], compared["better"]) == (0, ["sql"], [])
    code, out, _ = dlp("compare", good.version, found["bank"], "--bank", str(tmp_path / "store"), common=False)
    assert code == 0
    assert "mean over tasks" in out


def answers_of(bank: Path, base: Path, tmp_path: Path, asked: list[tuple[str, str]]) -> list[str]:
    """What each text's own adapter says."""

    async def ask(judged: JudgedBank) -> list[str]:
        async with running(base, judged) as loaded:
            answerer = Answerer(loaded, judged.manifest, judged.router, Journal(None), setup="x")
            jobs = [Job(text, Mix.of({task: 1.0}), max_tokens=6) for text, task in asked]
            found = await answerer.answer(jobs, concurrency=4)
            return [found[job].text or "?" for job in jobs]

    with open_bank(str(bank), DiskCache(tmp_path / "cache", 10**9)) as judged:
        return asyncio.run(ask(judged))


def test_a_published_bank_keeps_its_results_through_a_collection(
    dlp: Run, base: Path, bank: Path, tmp_path: Path
) -> None:
    store = open_store(str(tmp_path / "store"))
    old = publish(store, bank)
    for seed in (7, 8):
        publish(store, write_bank(tmp_path / f"bank{seed}", base, seeds={"sql": seed}))
    where = f"{tmp_path / 'store'}#{old.version}"
    code, out, err = dlp("--bank", where, "--arms", "plain", "--rows", "1", "--json")
    assert code == 0, err
    assert json.loads(out)["judged"] == f"bank {tmp_path / 'store'} version {old.version}"
    assert latest(store, old.version).bank.version == old.version
    assert old.version in collect(store, keep=0).versions
    assert latest(store, old.version).bank.digest == old.digest, "history outlives the bank"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--arms", "plain"], "Missing option '--bank' (env var: 'DLP_BANK')"),
        (["--bank", "BANK", "--arms", "best"], "'best' is not an arm"),
        (["--bank", "BANK", "--arms", "adapter=none"], "does not have: 'none'"),
        (["--bank", "BANK", "--dtype", "int8"], "--dtype is 'int8'"),
        (["--bank", "BANK", "--device", "tpu"], "--device is 'tpu'"),
        (["--bank", "NOWHERE"], "no bank is published in"),
        (["--bank", "BANK", "--data", "NOWHERE"], "with --suite it is the folder"),
        (["--bank", "BANK", "--base-model", "NOWHERE"], "there is no folder"),
        (["gate", "--bank", "BANK"], "Missing option '--baseline'"),
        (["gate", "--bank", "BANK", "--baseline", "NOWHERE.json"], "NOWHERE.json: cannot be read"),
    ],
)
def test_a_mistake_is_one_line(dlp: Run, bank: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    places = {"BANK": str(bank), "NOWHERE": str(tmp_path / "NOWHERE"), "NOWHERE.json": str(tmp_path / "NOWHERE.json")}
    code, out, err = dlp(*(places.get(argument, argument) for argument in arguments))
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.splitlines()) == 1


def test_compare_says_what_is_not_there(dlp: Run, bank: Path, tmp_path: Path) -> None:
    publish(open_store(str(tmp_path / "store")), bank)
    code, _, err = dlp("compare", "a", "b", "--bank", str(tmp_path / "store"), common=False)
    assert code == 2
    assert "has no results of bank a" in err
    assert dlp("compare", "a", "b", common=False)[2].startswith("dlp: Missing option '--bank'")
