"""The peers compute the same outputs as ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import decode_step, peers, prefill
from benchmarks.decode_step import Cell
from benchmarks.measure.models import Models
from benchmarks.measure.peft_folder import write_adapter
from benchmarks.measure.synthetic import TARGETS, twin
from benchmarks.peers.loop import factors, loop_model
from benchmarks.peers.peft import Peft
from dlp_core.adapter.weights import Adapter, read_adapter
from dlp_core.fusion.layers import install
from dlp_core.fusion.segments import Segment
from tests.support.tiny import VOCAB, WHOLE_MODEL, relative_error, tiny_llama

pytestmark = pytest.mark.model

ROWS, LENGTH = 4, 5
MIX = {"a0": 20.0, "a1": 12.0, "a2": 8.0}  # large, because the adapters are small
IDS = torch.randint(3, VOCAB, (ROWS, LENGTH), generator=torch.Generator().manual_seed(1))


class Bench:
    """One tiny model with three adapters of visible effect, for ours and for the peers."""

    def __init__(self, root: Path, targets: str) -> None:
        self.plain = tiny_llama()
        self.ours = twin(self.plain)
        self.fusion = install(self.ours)
        self.adapters: dict[str, Adapter] = {}
        self.folders: dict[str, Path] = {}
        for slot, name in enumerate(MIX):
            self.folders[name] = root / name
            write_adapter(root / name, self.fusion.shapes, targets=TARGETS[targets], rank=4 + 4 * slot, seed=slot)
            self.adapters[name] = read_adapter(root / name, name=name)
            self.fusion.load(slot, self.adapters[name])

    def fused(self, *mixes: Mapping[str, float]) -> Tensor:
        slots = {name: slot for slot, name in enumerate(self.adapters)}
        segments = tuple(Segment(LENGTH, tuple((slots[name], w) for name, w in mix.items())) for mix in mixes)
        with torch.inference_mode(), self.fusion.batch(segments):
            return self.ours(IDS).logits


@pytest.fixture(scope="module", params=TARGETS)
def bench(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("adapters"), request.param)


@pytest.fixture(scope="module")
def peft_sides(bench: Bench) -> dict[str, Callable[[], Any]]:
    peft = Peft(bench.plain, bench.folders, MIX)
    with torch.inference_mode():
        return peft.sides(torch.inference_mode()(lambda **options: peft.model(IDS, **options).logits), ROWS)


@pytest.mark.parametrize("before", ["peft one", "peft rows", "peft active", "peft cat"])
def test_peft_computes_the_same_mixes_whatever_ran_before(
    bench: Bench, peft_sides: dict[str, Callable[[], Any]], before: str
) -> None:
    plain = bench.fused(*[{}] * ROWS)
    one, three = {"a0": 1.0}, [{name: 1.0} for name in MIX]
    expected = {
        "peft one": bench.fused(*[one] * ROWS),
        "peft rows": bench.fused(*three, one),
        "peft active": bench.fused(*[MIX] * ROWS),
        "peft cat": bench.fused(*[MIX] * ROWS),
    }
    assert peft_sides.keys() == expected.keys()
    for name, side in peft_sides.items():
        peft_sides[before]()
        found = side()
        assert relative_error(found, expected[name]) <= WHOLE_MODEL, name
        assert relative_error(found, plain) > 1e-2, name  # or the adapters have no effect and the test proves nothing


def test_the_loop_computes_a_mix_for_each_row(bench: Bench) -> None:
    mixes = [MIX, {"a1": 1.0}, {}, {"a0": 10.0, "a2": 30.0}]
    slots = {name: slot for slot, name in enumerate(MIX)}
    segments = [Segment(LENGTH, tuple((slots[name], w) for name, w in mix.items())) for mix in mixes]
    loop = loop_model(
        bench.plain, {slots[name]: factors(a, torch.float32) for name, a in bench.adapters.items()}, segments
    )
    with torch.inference_mode():
        found = loop(IDS).logits
        assert relative_error(found, bench.fused(*mixes)) <= WHOLE_MODEL
        assert relative_error(found, bench.plain(IDS).logits) > 1e-2


@torch.inference_mode()
def test_every_side_of_the_benchmarks_runs(tmp_path: Path) -> None:
    tiny_llama(dtype=torch.bfloat16).save_pretrained(tmp_path)
    decoding = decode_step.Bench(tmp_path)
    for cell in (Cell("q,v", "8", 2), Cell("all-linear", "mixed", 1), Cell("all-linear", "16", 2)):
        for side in decoding.sides(cell).values():
            side()
    models = Models(tmp_path)
    models.load_adapters("q,v", (8,), peers=True)
    for side in prefill.sides(models, 12, peers=True).values():
        side()


def test_a_missing_peer_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert peers.is_installed("torch")
    assert capsys.readouterr().err == ""
    assert not peers.is_installed("no_such_peer")
    assert capsys.readouterr().err == "no_such_peer is skipped: it is not installed\n"
