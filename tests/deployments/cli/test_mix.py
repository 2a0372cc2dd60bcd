"""`dlp mix` as a user meets it: a recipe that beats the others is kept, others are not, and mistakes are one line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dlp_core.bank.folder import write_pairs
from dlp_core.bank.publish import publish
from dlp_core.bank.reading import load_manifest
from dlp_core.bank.recipes import entry_of, read_recipes, write_recipe
from dlp_core.store.opening import open_store
from dlp_core.train.rows import Row
from examples.tiny.build import TASKS
from tests.deployments.cli.conftest import Run
from tests.support.banks import write_bank
from tests.support.eval_bank import trained_router
from tests.support.known_mix import ADAPTERS, answered_under, write_choir

pytestmark = [pytest.mark.model, pytest.mark.slow]

KNOWN = {"alto": 0.7, "treble": -0.4}


def write_rows(path: Path, rows: Sequence[Row]) -> Path:
    path.write_text("".join(json.dumps({"input": row.input, "output": row.output}) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def choir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bank folder, its base model, rows that a mix of its adapters answers, and rows that the plain backbone does."""
    folder = tmp_path_factory.mktemp("choir")
    write_choir(folder)
    (folder / "bank.json").write_text('{"base_model": "base"}')
    write_rows(folder / "rows.jsonl", answered_under(folder, KNOWN, 32))
    write_rows(folder / "plain.jsonl", answered_under(folder, {}, 16, tokens=8))
    return folder


@pytest.fixture
def fit(command: Run, choir: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("DLP_BASE_MODEL", str(choir / "base"))
    monkeypatch.setattr("dlp_core.train.mixes.training_dtype", lambda device: torch.float32)

    def run(*arguments: str, bank: Path = choir, data: str = "rows.jsonl") -> tuple[int, str, str]:
        return command("mix", "fit", "--bank", str(bank), "--data", str(choir / data), "--device", "cpu", *arguments)

    return run


def test_a_recipe_is_fitted_kept_published_and_removed(fit: Any, command: Run, choir: Path, tmp_path: Path) -> None:
    code, out, _ = fit("--name", "duet", "--adapters", "alto,bass,treble", "--description", "Two voices.")
    assert code == 0, out
    assert "duet beats alto alone and the plain backbone" in out
    assert "Next: dlp bank publish" in out
    [recipe] = read_recipes(choir)
    assert {part.adapter: part.weight for part in recipe.adapters} == pytest.approx(KNOWN, abs=0.15)
    assert recipe.description == "Two voices."
    assert recipe.fitted is not None
    assert (recipe.fitted.rows, recipe.fitted.held_back, recipe.fitted.best_adapter) == (32, 8, "alto")
    assert recipe.fitted.loss < recipe.fitted.best_adapter_loss < recipe.fitted.plain_loss

    said: list[str] = []
    manifest = publish(open_store(str(tmp_path / "store")), choir, report=lambda verdict: said.extend(verdict.warnings))
    assert [one.name for one in manifest.recipes] == ["duet"]
    assert said == []
    code, out, _ = command("bank", "show", "--bank", str(tmp_path / "store"))
    assert code == 0
    assert "duet" in out
    assert "Two voices." in out
    code, out, _ = command("mix", "remove", "duet", "--bank", str(tmp_path / "store"), "--json")
    assert (code, load_manifest(open_store(str(tmp_path / "store"))).recipes) == (0, ())
    assert json.loads(out)["version"] != manifest.version
    code, _, err = fit("--name", "duet")
    assert (code, "is a recipe of this bank already; --replace" in err) == (2, True)
    assert command("mix", "remove", "duet", "--bank", str(choir))[0] == 0
    assert read_recipes(choir) == []
    code, _, err = command("mix", "remove", "duet", "--bank", str(choir))
    assert (code, "there is no recipe 'duet'" in err) == (2, True)


def test_what_beats_nothing_is_not_kept_unless_told(fit: Any, choir: Path, tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    before = publish(store, choir)
    code, out, _ = fit("--name", "noise", "--json", data="plain.jsonl", bank=tmp_path / "store")
    found = json.loads(out)
    assert (code, found["beats"], found["written"]) == (1, False, None)
    assert load_manifest(store) == before
    if not found["mix"]:
        return
    code, out, _ = fit("--name", "noise", "--yes", "--stage", "--json", data="plain.jsonl", bank=tmp_path / "store")
    assert code == 0
    assert load_manifest(store) == before
    assert [one.name for one in load_manifest(store, json.loads(out)["written"]).recipes] == ["noise"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--name", "alto"], "'alto', which is a model of this bank already"),
        (["--name", "auto"], "'auto', which is a model of this bank already"),
        (["--name", "a b"], "name 'a b' is not valid"),
        (["--name", "duet", "--adapters", "alto,soprano"], "there is no adapter 'soprano' in this bank"),
        (["--name", "duet", "--max-adapters", "9"], "--max-adapters is 9; servers mix at most 8"),
        (["--name", "duet", "--task", "sums"], "holds no rows of task 'sums'"),
    ],
)
def test_mistakes_are_one_line_before_anything_is_computed(fit: Any, arguments: list[str], says: str) -> None:
    code, out, err = fit(*arguments)
    assert (code, out) == (2, "")
    assert says in err
    assert err.count("\n") == 1


def test_adapters_that_may_not_run_together_are_not_mixed(fit: Any, choir: Path, tmp_path: Path) -> None:
    bank = tmp_path / "bank"
    (bank / "adapters").mkdir(parents=True)
    for name in ADAPTERS:
        (bank / "adapters" / name).symlink_to(choir / "adapters" / name)
    (bank / "bank.json").write_text('{"base_model": "base", "allowed_together": [["bass", "tenor"]]}')
    code, out, err = fit("--name", "duet", "--adapters", "bass,alto,treble", bank=bank)
    assert (code, out) == (2, "")
    assert "--adapters: 'alto' and 'bass' may not run together in this bank" in err
    assert err.count("\n") == 1
    code, out, _ = fit("--name", "duet", "--yes", "--json", bank=bank)
    assert [part["adapter"] for part in json.loads(out)["mix"]] == ["alto"], "what fits best alone has no partner"


def test_too_few_rows_are_refused(fit: Any, choir: Path) -> None:
    (choir / "few.jsonl").write_text((choir / "rows.jsonl").read_text().partition("\n")[0] + "\n")
    code, out, err = fit("--name", "duet", data="few.jsonl")
    assert (code, out) == (2, "")
    assert "1 rows are too few" in err


def test_ctrl_c_leaves_nothing_behind(fit: Any, choir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dlp_core.train.mixes._Descent.run", interrupted)
    code, out, err = fit("--name", "duet")
    assert (code, out) == (130, "")
    assert "stopped; nothing was written" in err
    assert read_recipes(choir) == []


def test_route_shows_the_adapters_of_a_recipe_and_its_name(command: Run, tmp_path: Path) -> None:
    folder = write_bank(tmp_path / "bank", ["cron", "dates"], router=False)
    write_recipe(folder, entry_of("report", {"cron": 0.5, "dates": -0.25}, {}))
    router = trained_router()
    labels = tuple("report" if label == "sql" else label for label in router.labels)
    replace(router, labels=labels).save(folder / "router")
    publish(open_store(str(tmp_path / "store")), folder)
    question = TASKS["sql"].format(7)
    for bank in (folder, tmp_path / "store"):
        code, out, _ = command("route", question, "--bank", str(bank), "--json")
        found = json.loads(out)
        assert (code, found["recipes"], max(found["probabilities"], key=found["probabilities"].get)) == (
            0,
            ["report"],
            "report",
        )
        assert found["mix"] == [{"adapter": "cron", "weight": 0.5}, {"adapter": "dates", "weight": -0.25}]
    code, out, _ = command("route", question, "--bank", str(folder))
    assert (code, "its adapters" in out) == (0, True)
    code, out, _ = command("route", question, "--bank", str(folder), "--max-adapters", "1", "--json")
    assert "report" not in json.loads(out)["probabilities"]


def test_route_says_what_may_not_run_together(command: Run, tmp_path: Path) -> None:
    folder = write_bank(tmp_path / "bank", list(TASKS), router=False)
    write_pairs(folder, [("cron", "dates")])
    trained_router().save(folder / "router")
    publish(open_store(str(tmp_path / "store")), folder)
    question = f"1. {TASKS['cron'].format(7)}\n\n2. {TASKS['sql'].format(7)}"
    for bank in (folder, tmp_path / "store"):
        code, out, _ = command("route", question, "--bank", str(bank), "--top-p", "1", "--json")
        found = json.loads(out)
        assert code == 0
        assert {("cron", "sql"), ("dates", "sql")} >= {tuple(one["not_together"]) for one in found["left_out"]}
        assert {frozenset(part["adapter"] for part in found["mix"])} <= {
            frozenset({"sql"}),
            frozenset({"cron", "dates"}),
        }
    code, out, _ = command("route", question, "--bank", str(folder), "--top-p", "1", "--granularity", "sentence")
    assert code == 0
    assert "as the bank does not allow" in " ".join(out.split())
