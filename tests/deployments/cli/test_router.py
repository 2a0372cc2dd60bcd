"""`dlp router` and `dlp route` as a user meets them: exit codes, one line for a mistake, JSON for machines."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import get_args

import pytest
from typer.testing import CliRunner

from deployments.cli import main
from dlp_core.bank.publish import publish
from dlp_core.mix import WeightRule
from dlp_core.router import Router
from dlp_core.router.rows import TaskRow, read_task_rows
from dlp_core.router.training import retrain, train
from dlp_core.router.training.net import NetSettings
from dlp_core.router.training.train import TrainSettings
from dlp_core.store.opening import open_store
from tests.support.banks import write_bank
from tests.support.router_rows import TASKS, make_rows, trained, write_rows

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def dlp(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `dlp ...` with its handling of mistakes; returns exit code, stdout, stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["dlp", *arguments])
        with pytest.raises(SystemExit) as end:
            main.main()
        printed = capsys.readouterr()
        return int(end.value.code or 0), printed.out, printed.err

    return run


@pytest.fixture
def router(tmp_path: Path) -> str:
    trained()[0].save(tmp_path / "router")
    return str(tmp_path / "router")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings take seconds: without a teacher, and few steps."""
    net = NetSettings(min_steps=80, epochs=1, batch=32, widths=(32,))
    settings = partial(TrainSettings, teacher=None, pieces=16, grams=16, net=net)
    for module in (train, retrain):
        monkeypatch.setattr(module, "TrainSettings", settings)


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_train_then_eval(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", make_rows(12, seed=0))
    runner = CliRunner()
    out = tmp_path / "out"
    trained = runner.invoke(
        main.app, ["router", "train", "--data", str(rows), "--out", str(out), "--seed", "3", "--json"]
    )
    assert trained.exit_code == 0, trained.output
    summary = json.loads(trained.stdout)
    assert (summary["rows"], summary["adapters"], summary["seed"]) == (48, 4, 3)
    judged = runner.invoke(main.app, ["router", "eval", "--router", str(out), "--data", str(rows), "--json"])
    assert judged.exit_code == 0, judged.output
    result = json.loads(judged.stdout)
    assert {"accuracy", "ece", "p50_ms", "p99_ms", "parameters", "rows"} <= set(result)
    assert result["rows"] == 48
    assert {point["keep"] for point in summary["curve"]} >= {0.9, 0.97}
    assert result["accuracy"] > 0.9


@pytest.mark.slow
def test_eval_prints_a_table_for_people(dlp: Run, router: str, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", make_rows(2, seed=4))
    code, out, _ = dlp("router", "eval", "--router", router, "--data", str(rows))
    assert code == 0
    assert "accuracy" in out
    assert "p99_ms" in out


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_training_prints_the_curve_and_warns_of_few_wordings(dlp: Run, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", make_rows(20, seed=0))
    command = ["router", "train", "--data", str(rows), "--out", str(tmp_path / "out")]
    code, out, err = dlp(*command, "--keep", "0.9")
    assert code == 0
    assert "--keep" in out
    assert "strangers refused" in out
    assert "warning: the teacher is not installed" in err
    assert "warning: the 20 rows of 'flight_json' are 1 wording" in err
    code, out, err = dlp(*command, "--keep", "2")
    assert (code, out) == (2, "")
    assert "keep must be between 0 and 1, not 2" in err


def test_tune_moves_the_threshold(dlp: Run, router: str, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", make_rows(40, seed=6))
    tuned = str(tmp_path / "tuned")
    command = ["router", "tune", "--router", router, "--data", str(rows), "--out", tuned]
    code, out, _ = dlp(*command, "--keep", "0.7", "--coverage", "0.9", "--json")
    assert code == 0
    assert json.loads(out)["kept"] == pytest.approx(0.7, abs=0.02)
    routings = Router.load(Path(tuned)).route([row.input for row in make_rows(40, seed=6)])
    assert sum(routing.fits for routing in routings) / len(routings) == pytest.approx(0.7, abs=0.03)
    code, out, _ = dlp("router", "tune", "--router", tuned, "--keep", "0.99")  # in place
    assert code == 0
    assert "strangers refused" in out
    code, out, err = dlp("router", "tune", "--router", tuned)
    assert (code, out) == (2, "")
    assert "give the fraction to keep" in err


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_eval_can_train_again(dlp: Run, tmp_path: Path) -> None:
    """Six tasks: the least that four can be left out of."""
    rows = [
        TaskRow(f"{row.task}-{half}", f"{row.input} {'in german' if half else ''}")
        for row in make_rows(10, seed=0)
        for half in range(2)
    ]
    file = write_rows(tmp_path / "rows.jsonl", rows)
    out = str(tmp_path / "out")
    assert dlp("router", "train", "--data", str(file), "--out", out)[0] == 0
    code, printed, _ = dlp("router", "eval", "--router", out, "--data", str(file), "--train-data", str(file), "--json")
    assert code == 0
    result = json.loads(printed)
    assert result["reproduced"] is True
    assert result["training_s"] > 0
    assert 0 <= result["unseen_auroc"] <= 1
    assert {
        "typos",
        "bare",
        "pairs",
        "other_values",
        "reworded",
        "in_mix",
        "kept",
        "unseen_kept",
        "unseen_refused",
    } <= set(result)


def test_add_and_remove_an_adapter(dlp: Run, tmp_path: Path, router: str) -> None:
    rows = [row for row in make_rows(20, seed=3) if row.task == "object_owner"]
    examples = write_rows(tmp_path / "examples.jsonl", rows)
    smaller, again = str(tmp_path / "smaller"), str(tmp_path / "again")
    command = ["router", "remove", "--router", router, "--adapter", "object_owner", "--out", smaller, "--json"]
    code, out, _ = dlp(*command)
    assert (code, json.loads(out)["adapters"]) == (0, 3)
    command = ["router", "add", "--router", smaller, "--adapter", "object_owner", "--examples", str(examples)]
    code, out, _ = dlp(*command, "--out", again, "--json")
    summary = json.loads(out)
    assert (code, summary["adapters"], summary["examples"]) == (0, 4, 20)
    code, out, _ = dlp("route", rows[0].input, "--router", again, "--json")
    assert json.loads(out)["mix"][0]["adapter"] == "object_owner"
    code, out, _ = dlp(*command)  # in place
    assert code == 0
    assert "4 adapters" in out
    code, out, err = dlp(*command)
    assert (code, out) == (2, "")
    assert "already knows 'object_owner'" in err
    about = tmp_path / "owner"
    about.mkdir()
    (about / "description.txt").write_text("Says who has the object at the end of a story.\n")
    command = ["router", "add", "--router", smaller, "--adapter", "owner", "--out", again, "--describe"]
    for describe in (str(about), "Says who has the object at the end of a story."):
        code, out, _ = dlp(*command, describe, "--json")
        assert (code, json.loads(out)["described"], json.loads(out)["right"]) == (0, True, None)
    code, _, err = dlp(*command, "two\nlines")
    assert (code, "one line of text" in err) == (2, True)
    code, _, err = dlp("router", "add", "--router", router, "--adapter", "other", "--examples", str(examples))
    assert code == 2
    assert "examples.jsonl:1: a row of task 'object_owner' is not an example of 'other'" in err


def test_route_by_a_published_bank(dlp: Run, tmp_path: Path, router: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = write_bank(tmp_path / "bank", sorted(TASKS), router=False)
    Path(router).rename(folder / "router")
    publish(open_store(str(tmp_path / "store")), folder)
    text = make_rows(1, seed=8)[0].input
    code, out, _ = dlp("route", text, "--bank", str(tmp_path / "store"), "--json")
    assert code == 0
    assert json.loads(out)["mix"][0]["adapter"] == "flight_json"


def test_route_a_text(dlp: Run, router: str) -> None:
    text = make_rows(1, seed=8)[0].input
    code, out, _ = dlp("route", text, "--router", router, "--json")
    answer = json.loads(out)
    assert code == 0
    assert set(answer) == {
        "confidence",
        "none",
        "none_threshold",
        "margin",
        "mix",
        "probabilities",
        "explains",
        "words",
    }
    assert {word["text"] for word in answer["words"]} == set(text.split())
    assert answer["mix"] == [{"adapter": "flight_json", "weight": pytest.approx(1.0)}]
    code, out, _ = dlp("route", text, "--router", router)
    assert code == 0
    assert "kept: flight_json=1.00" in out
    assert "above the threshold" in out
    assert "words for (+) and against (-) flight_json" in out


def test_route_shows_the_passages_of_a_text(dlp: Run, router: str, tmp_path: Path) -> None:
    flight, words = make_rows(1, seed=8)[0].input, make_rows(1, seed=9)[3].input
    command = ["route", "--router", router, "--granularity", "sentence"]
    code, out, _ = dlp(*command, f"{flight}\n\n{words}", "--json")
    found = json.loads(out)["passages"]
    assert (code, found[0]["start"], found[-1]["end"]) == (0, 0, len(f"{flight}\n\n{words}"))
    assert [part["mix"][0]["adapter"] for part in found] == ["flight_json", "word_sorting"]
    code, out, _ = dlp(*command, f"{flight}\n\n{words}")
    assert code == 0
    assert [line.split()[-1] for line in out.splitlines()[-2:]] == ["flight_json=1.00", "word_sorting=1.00"]
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"task": None, "input": f"{flight}\n\n{words}"}) + "\n")
    code, out, _ = dlp(*command, "--file", str(file))
    assert (code, out.startswith("flight_json=1.00 | word_sorting=1.00  confidence")) == (0, True)


def test_route_weighs_as_asked(dlp: Run, router: str) -> None:
    text = " ".join(row.input for row in (make_rows(1, seed=8)[0], make_rows(1, seed=9)[3]))

    def weights(*more: str) -> list[float]:
        code, out, _ = dlp("route", text, "--router", router, "--top-p", "1", "--json", *more)
        assert code == 0
        return [part["weight"] for part in json.loads(out)["mix"]]

    found = Router.load(Path(router)).route([text])[0]
    for rule in get_args(WeightRule):
        expected = found.mix(top_p=1, weights=rule)
        assert weights("--weights", rule) == [part.weight for part in expected.adapters]
    assert weights() == weights("--weights", "renormalise") != weights("--weights", "softmax")
    code, out, err = dlp("route", text, "--router", router, "--weights", "equal")
    assert (code, out) == (2, "")
    assert "softmax" in err


def test_route_a_file_gives_one_object_a_row(dlp: Run, router: str, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl.gz"
    file.write_bytes(
        gzip.compress(b'{"input": "Sort the following words alphabetically:\\nlamp river"}\n\n{"input": ""}\n')
    )
    code, out, _ = dlp("route", "--file", str(file), "--router", router, "--json")
    assert code == 0
    first, second = map(json.loads, out.splitlines())
    assert first["probabilities"]["word_sorting"] == first["confidence"]
    assert (second["mix"], second["none"]) == ([], pytest.approx(1.0))


def test_route_wants_one_source_of_text(dlp: Run, router: str, tmp_path: Path) -> None:
    for extra in ([], ["a text", "--file", str(tmp_path / "rows.jsonl")]):
        code, out, err = dlp("route", *extra, "--router", router)
        assert (code, out) == (2, "")
        assert "give either" in err


BAD_FILES = {
    "missing": (None, "cannot be read"),
    "empty": ("", "holds no rows"),
    "not JSON": ('{"task": "a", "input": "b"}\n{"task"', ":2: not JSON"),
    "no object": ("[]", ":1: a row must be an object"),
    "no task": ('{"input": "b"}', ':1: "task" is missing'),
    "task a number": ('{"task": 3, "input": "b"}', ':1: "task" must be'),
    "task a path": ('{"task": "../a", "input": "b"}', ":1: adapter name '../a'"),
    "no input": ('{"task": "a"}', ':1: no prompt among the keys "task"'),
    "empty input": ('{"task": "a", "input": " "}', ":1: the prompt is empty"),
    "one task": ('{"task": "a", "input": "b"}', "1 task;"),
    "few rows": ('{"task": "a", "input": "b"}\n{"task": "c", "input": "d"}', "'a' has 1 rows"),
}


@pytest.mark.parametrize("bad", BAD_FILES)
def test_a_mistake_in_the_rows_is_one_line_and_exit_2(dlp: Run, tmp_path: Path, bad: str) -> None:
    content, message = BAD_FILES[bad]
    file = tmp_path / "rows.jsonl"
    if content is not None:
        file.write_text(content)
    code, out, err = dlp("router", "train", "--data", str(file), "--out", str(tmp_path / "out"))
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "content", [b"not gzip", gzip.compress(b'{"task": "a", "input": "b"}')[:-9]], ids=["not gzip", "cut short"]
)
def test_a_damaged_gz_file_is_one_line_and_exit_2(dlp: Run, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "rows.jsonl.gz").write_bytes(content)
    code, _, err = dlp("router", "train", "--data", str(tmp_path / "rows.jsonl.gz"), "--out", str(tmp_path / "out"))
    assert code == 2
    assert "rows.jsonl.gz: cannot be read" in err


def test_no_router_is_one_line_and_exit_2(dlp: Run, tmp_path: Path) -> None:
    code, _, err = dlp("route", "hello", "--router", str(tmp_path / "nowhere"))
    assert code == 2
    assert "router.json: cannot be read" in err


def test_several_files_are_read_as_one(tmp_path: Path) -> None:
    paths = [write_rows(tmp_path / name, [TaskRow(name, "text")]) for name in ("a", "b")]
    assert read_task_rows(paths) == [TaskRow("a", "text"), TaskRow("b", "text")]
