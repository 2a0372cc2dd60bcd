"""What is to run on a bare machine with a GPU: the script with a Python that only notes its calls, and the benchmark
without a GPU and without whatever such a machine does not have."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton", reason="the extra `gpu` is not installed")

from benchmarks import gpu_decode
from benchmarks.gpu_decode import Bench, Cell, grid
from tests.support.paths import ROOT

ABSENT = ("accelerate", "boto3", "fastapi", "numba", "peft", "pydantic", "ray", "rich", "sentencex")
"""What the rest of the project needs and neither torch nor transformers brings along."""
STEPS = ["check", "tests", "benchmark", "engine"]
PYTHON = """#!/bin/sh
echo "$*" >> "$CALLS"
case "$*" in
  -c*) exit ${CHECK:-0} ;;
  "-m pytest "*) echo "what pytest says"; exit ${TESTS:-0} ;;
  *gpu_engine*) echo "the engine's" >&2; exit ${ENGINE:-0} ;;
  *) echo "the table" >&2; exit ${BENCHMARK:-0} ;;
esac
"""


class Machine:
    """A folder of programs that come before the system's own, and what was called of them."""

    def __init__(self, folder: Path) -> None:
        self.out = folder / "a" / "results"
        self.programs = folder / "bin"
        self._calls = folder / "calls"
        self.programs.mkdir()
        self.add("python3", PYTHON)
        self.add("git", '#!/bin/sh\necho git >> "$CALLS"\n')
        self.environment = {"CALLS": str(self._calls), "OUT": str(self.out), "PATH": f"{self.programs}:{os.defpath}"}

    def add(self, name: str, text: str) -> Path:
        program = self.programs / name
        program.write_text(text)
        program.chmod(0o755)
        return program

    def script(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(ROOT / "benchmarks" / "gpu.sh"), *words],
            env=self.environment | environment,
            cwd=self.programs,
            capture_output=True,
            text=True,
            check=False,
        )

    def calls(self) -> list[str]:
        """The steps that ran, by what they ran."""
        lines = self._calls.read_text().splitlines() if self._calls.exists() else []
        names = {
            "-c import": "check",
            "-m pytest": "tests",
            "-m benchmarks.gpu_decode": "benchmark",
            "-m benchmarks.gpu_engine": "engine",
        }
        return [next((name for start, name in names.items() if line.startswith(start)), line) for line in lines]

    def words(self, step: str) -> list[str]:
        """What Python was called with for a step."""
        return self._calls.read_text().splitlines()[self.calls().index(step)].split()

    def bare_python(self, code: str, *words: str) -> subprocess.CompletedProcess[str]:
        """Runs this code in the project, in a Python that has none of ABSENT and no plugins of pytest."""
        absent = f"import sys; sys.modules.update(dict.fromkeys({ABSENT})); "
        inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        return subprocess.run(
            [sys.executable, "-c", absent + code, *words],
            env=inherited | self.environment | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_all_steps_run_and_leave_what_they_said(machine: Machine) -> None:
    done = machine.script("--quick", "--minutes", "2")
    assert done.returncode == 0, done.stderr
    assert machine.calls() == STEPS, "and never git"
    out = str(machine.out / "gpu_decode.json")
    assert machine.words("benchmark")[2:] == ["--minutes", "2.5", "--out", out, "--quick", "--minutes", "2"]
    assert (machine.out / "gpu_tests.txt").read_text() == "what pytest says\n"
    assert (machine.out / "gpu_decode.txt").read_text() == "the table\n"
    assert (machine.out / "gpu_engine.txt").read_text() == "the engine's\n"
    assert str(machine.out / "gpu_engine.json") in machine.words("engine")


def test_memory_is_checked_where_there_is_a_tool(machine: Machine) -> None:
    machine.add("compute-sanitizer", "#!/bin/sh\necho sanitized\nexit 1\n")
    done = machine.script()
    assert done.returncode == 1
    assert machine.calls() == STEPS
    assert (machine.out / "gpu_memcheck.txt").read_text() == "sanitized\n"


@pytest.mark.parametrize("red", ["TESTS", "BENCHMARK", "ENGINE"])
def test_one_red_step_keeps_no_other_from_running(machine: Machine, red: str) -> None:
    done = machine.script(**{red: "1"})
    assert done.returncode == 1
    assert machine.calls() == STEPS
    assert "something is red" in done.stderr


def test_without_a_gpu_nothing_runs(machine: Machine) -> None:
    done = machine.script(CHECK="1")
    assert done.returncode == 2
    assert machine.calls() == ["check"]
    assert "no CUDA device" in done.stderr


def test_another_python(machine: Machine) -> None:
    machine.add("python3", "#!/bin/sh\nexit 99\n")
    assert machine.script(PYTHON=str(machine.add("own", PYTHON))).returncode == 0
    assert machine.calls() == STEPS


@pytest.mark.slow
def test_the_benchmark_needs_nothing_that_a_bare_machine_has_not(machine: Machine) -> None:
    """A whole run on a tiny model. One that leaves a graph with a table or plan that has moved is an error in it."""
    out = machine.out / "gpu_decode.json"
    code = "from benchmarks.gpu_decode import main; sys.exit(main(sys.argv[1:]))"
    done = machine.bare_python(code, "--smoke", "--layers", "1", "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert machine.calls() == [], "no git either"
    report = json.loads(out.read_text())
    assert len(report["cells"]) == report["planned"] == 3
    for cell in report["cells"]:
        assert set(cell["ms"]) == {"base", "one", "mix", "loop"}
        assert cell["error_to_loop"] < 0.05, "bfloat16"


@pytest.mark.slow
def test_the_engine_needs_nothing_that_a_bare_machine_has_not(machine: Machine) -> None:
    out = machine.out / "gpu_engine.json"
    code = "from benchmarks.gpu_engine import main; sys.exit(main(sys.argv[1:]))"
    done = machine.bare_python(code, "--smoke", "--layers", "1", "--out", str(out))
    assert done.returncode == 0, done.stderr
    [cell] = json.loads(out.read_text())["cells"]
    assert set(cell["ms"]) == {"plain", "mix", "eager", "sampled"}


@pytest.mark.slow
def test_the_tests_need_nothing_that_a_bare_machine_has_not(machine: Machine) -> None:
    """They are found by the words of the script and imported; the op's own tests say elsewhere that they pass."""
    machine.script()
    module, pytest_name, *words = machine.words("tests")
    assert (module, pytest_name) == ("-m", "pytest")
    done = machine.bare_python("import pytest; sys.exit(pytest.main(sys.argv[1:]))", *words, "--collect-only")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "test_a_graph_captured_without_a_mix_serves_mixes_that_come_and_go" in done.stdout


def test_a_cell_that_fails_costs_no_other(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "new" / "found.json"
    written: list[int] = []

    def measure(bench: Bench, cell: Cell) -> dict[str, Any]:
        written.append(len(json.loads(out.read_text())["cells"]) if out.exists() else 0)
        if cell.ranks == "mixed":
            raise MemoryError("too large a cell")
        return dict(cell._asdict())

    monkeypatch.setattr(Bench, "measure", measure)
    monkeypatch.setattr(gpu_decode, "_line", lambda result: f"row of {result['targets']}")
    assert gpu_decode.main(["--smoke", "--out", str(out)]) == 1
    assert written == [0, 1, 2], "what there is lies in the file before the next cell begins"
    cells = json.loads(out.read_text())["cells"]
    assert [cell.get("error") for cell in cells] == [None, "MemoryError: too large a cell", None]
    shown = capsys.readouterr()
    assert shown.err.count("row of ") == 2
    assert "too large a cell" in shown.err
    assert [path.name for path in out.parent.iterdir()] == ["found.json"]


def test_no_cell_begins_when_the_time_is_over(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu_decode, "_line", lambda result: "")
    now = iter([0.0, 29.0, 31.0])
    monkeypatch.setattr(gpu_decode.time, "monotonic", lambda: next(now))
    monkeypatch.setattr(Bench, "measure", lambda bench, cell: dict(cell._asdict()))
    assert gpu_decode.main(["--smoke", "--minutes", "0.5"]) == 0
    shown = capsys.readouterr()
    report = json.loads(shown.out)
    assert (len(report["cells"]), report["planned"]) == (1, 3)
    assert "1 of 3 cells" in shown.err


def test_what_is_held_to_a_limit_comes_first() -> None:
    quick, everything = grid(quick=True, smoke=False), grid(quick=False, smoke=False)
    assert everything[: len(quick)] == quick
    assert len(set(everything)) == len(everything) > 100
    limited = [cell for cell in quick if any(limit.cells(cell) for limit in gpu_decode.LIMITS)]
    assert len(limited) == 9
