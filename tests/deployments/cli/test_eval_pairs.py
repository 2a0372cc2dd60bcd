"""`dlp eval pairs` as a user meets it: a colluding pair is planted, found, refused by the gate, never mixed again."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from deployments.cli import main
from dlp_core.adapter.names import AUTO
from dlp_core.bank.disk_cache import DiskCache
from dlp_core.bank.folder import read_folder
from dlp_core.bank.publish import publish
from dlp_core.decision import RoutingOptions, choose
from dlp_core.eval.answers import Answerer, Job
from dlp_core.eval.journal import Journal
from dlp_core.eval.judged_bank import JudgedBank, open_bank
from dlp_core.eval.pairs import PairFindings, spoiled_pairs, stored
from dlp_core.mix import EMPTY_MIX, Mix
from dlp_core.router import Routing
from dlp_core.store.opening import open_store
from dlp_core.together import ANY
from tests.support import colluding
from tests.support.eval_bank import running, write_rows, write_suite

pytestmark = pytest.mark.model

Run = Callable[..., tuple[int, str, str]]
SUITE = """
name: tiny
data: [rows.jsonl]
types:
  qa: {metrics: [exact_match], max_tokens: 6}
composite: {parts: [2, 3], prompts: 4}
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return colluding.write_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def suite(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A suite whose right answers are those of each row's own adapter alone, and a bank beside it."""
    folder = tmp_path_factory.mktemp("suite")
    bank = colluding.write_bank(folder / "bank", base)
    suite = write_suite(folder, rows=6, text=SUITE)
    records = [json.loads(line) | {"type": "qa"} for line in (folder / "rows.jsonl").read_text().splitlines()]

    async def ask(judged: JudgedBank) -> list[list[str]]:
        async with running(base, judged) as loaded:
            answerer = Answerer(loaded, judged.manifest, judged.router, Journal(None), setup="x")
            jobs = [
                [Job(record["input"], mix, max_tokens=6) for mix in (Mix.of({record["task"]: 1.0}), EMPTY_MIX)]
                for record in records
            ]
            found = await answerer.answer([job for both in jobs for job in both], concurrency=4)
            return [[found[job].text for job in both] for both in jobs]

    with open_bank(str(bank), DiskCache(folder / "cache", 10**9)) as judged:
        answers = asyncio.run(ask(judged))
    for record, (own, plain) in zip(records, answers, strict=True):
        assert own == plain, f"{record['task']} alone is harmless"
    rights = [record | {"output": own} for record, (own, _) in zip(records, answers, strict=True)]
    write_rows(folder / "rows.jsonl", rights)
    return suite


@pytest.fixture
def bank(suite: Path, base: Path, tmp_path: Path) -> Path:
    return colluding.write_bank(tmp_path / "bank", base)


@pytest.fixture
def dlp(
    suite: Path, base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Run:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DLP_BASE_MODEL", str(base))

    def run(command: str, *arguments: str) -> tuple[int, str, str]:
        given = ["--suite", str(suite), "--out", str(tmp_path / "out"), "--dtype", "float32", "--device", "cpu"]
        monkeypatch.setattr("sys.argv", ["dlp", "eval", command, *given, *arguments])
        with pytest.raises(SystemExit) as end:
            main.main()
        printed = capsys.readouterr()
        return int(end.value.code or 0), printed.out, printed.err

    return run


def test_a_colluding_pair_is_found_refused_and_never_mixed_again(
    dlp: Run, bank: Path, base: Path, tmp_path: Path
) -> None:
    publish(open_store(str(tmp_path / "store")), colluding.write_bank(tmp_path / "clean", base, planted=False))
    baseline = ("--bank", str(bank), "--baseline", str(tmp_path / "store"))
    for arm in ("oracle", "adapter=cron", "adapter=sql", "top-p=0.9"):
        assert dlp("gate", *baseline, "--arm", arm)[0] == 0, "each alone passes"

    code, out, err = dlp("pairs", "--bank", str(bank), "--all", "--json")
    assert code == 0, err
    assert err.startswith("3 pairs of 3 adapters, ")
    found = {tuple(pair["adapters"]): pair for pair in json.loads(out)["pairs"]}
    assert [pair for pair, one in found.items() if one["spoiled"]] == [colluding.PAIR]
    spoiled = found[colluding.PAIR]
    for own in spoiled["own"].values():
        for drop in own.values():
            assert (drop["apart"], drop["together"]) == (100, 0)

    code, out, _ = dlp("gate", *baseline, "--json")
    verdict = json.loads(out)
    assert (code, verdict["passed"], verdict["spoiled"]) == (1, False, [list(colluding.PAIR)])
    assert (verdict["worse"], verdict["mean_worse"]) == ([], False)
    code, out, _ = dlp("gate", *baseline)
    assert code == 1
    assert "spoiled: cron with sql" in out

    code, out, err = dlp("pairs", "--bank", str(bank), "--all", "--write")
    assert code == 0, err
    assert "spoiled: cron with sql" in out
    manifest, _ = read_folder(bank)
    assert manifest.allowed_together == (("cron", "dates"), ("dates", "sql"))
    assert dlp("gate", *baseline)[0] == 0, "the bank does not mix them any more"
    random, joined = Random(0), 0
    options = RoutingOptions(AUTO, 1.0, 3)
    for _ in range(200):
        routing = Routing.of({adapter.name: random.random() for adapter in manifest.adapters})
        free, mix = (choose(options, routing, {}, what)[0] for what in (ANY, manifest.together))
        joined += set(free.names) >= set(colluding.PAIR)
        assert not set(mix.names) >= set(colluding.PAIR)
    assert joined > 150, "they would have been"


def test_what_the_store_knows_of_a_pair_counts_for_every_bank_that_has_it(dlp: Run, bank: Path, tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    published = publish(store, bank)
    code, _, err = dlp("pairs", "--bank", str(tmp_path / "store"), "--json", "--all")
    assert code == 0, err
    findings = stored(store)
    assert [one.spoiled for one in findings] == [[colluding.PAIR]]
    assert spoiled_pairs(published, findings) == [colluding.PAIR]
    (tmp_path / "out/pairs.json").unlink()
    code, out, _ = dlp("gate", "--bank", str(bank), "--baseline", str(tmp_path / "store"))
    assert code == 1
    assert "spoiled: cron with sql" in out

    harmless = findings[0].model_copy(
        update={
            "created": findings[0].created.replace(year=2100),
            "pairs": [pair.model_copy(update={"spoiled": False}) for pair in findings[0].pairs],
        }
    )
    assert spoiled_pairs(published, [*findings, harmless]) == [], "the newest finding of a pair counts"
    others = [one.model_copy(update={"digest": "sha256:" + "0" * 64}) for one in published.adapters]
    assert spoiled_pairs(published.model_copy(update={"adapters": tuple(others)}), findings) == []


def test_only_the_pairs_that_the_router_joins_are_judged(dlp: Run, bank: Path, tmp_path: Path) -> None:
    code, out, err = dlp("pairs", "--bank", str(bank), "--json")
    assert code == 0, err
    found = PairFindings.model_validate_json((tmp_path / "out/pairs.json").read_bytes())
    assert {pair.adapters: pair.joined is not None for pair in found.pairs} == {
        colluding.PAIR: True,
        ("cron", "dates"): True,
    }, "the suite's composite prompts are of other tasks too, but these are what the router mixes"
    assert found.spoiled == [colluding.PAIR]
    assert json.loads(out)["allowed_together"] == [list(pair) for pair in found.allowed(None)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--bank", "STORE", "--write"], "--write changes a bank folder"),
        (["--bank", "FOLDER", "--base-model", "NOWHERE"], "there is no folder"),
        ([], "Missing option '--bank'"),
    ],
)
def test_a_mistake_is_one_line(dlp: Run, suite: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    folder = str(suite.parent / "bank")
    places = {"STORE": str(tmp_path / "store"), "FOLDER": folder, "NOWHERE": str(tmp_path / "nowhere")}
    code, out, err = dlp("pairs", *(places.get(argument, argument) for argument in arguments))
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.splitlines()) == 1
