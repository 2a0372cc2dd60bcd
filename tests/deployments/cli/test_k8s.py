"""`dlp k8s size`: what it prints, where it takes an adapter's size from, and what it warns of. `init` and `render`:
what they write, and what they leave alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from deployments.cli import main
from dlp_core.store.base_model import push
from dlp_core.store.opening import open_store
from k8s.embed import GPU
from tests.deployments.cli.test_grammar import COMMANDS, options
from tests.support.banks import publish_bank
from tests.support.model_folders import LLAMA_8B, write_llama

Run = Callable[..., tuple[int, str, str]]
GIB = 2**30


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "Llama-3.1-8B"
    write_llama(folder, LLAMA_8B)
    return folder


@pytest.fixture
def size(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `dlp k8s size ...`; returns exit code, stdout, stderr."""
    monkeypatch.delenv("DLP_BANK", raising=False)

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["dlp", "k8s", "size", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main.main()
        printed = capsys.readouterr()
        return int(end.value.code or 0), printed.out, printed.err

    return run


def json_of(result: tuple[int, str, str]) -> Any:
    assert result[0] == 0, result
    return json.loads(result[1])


def test_text_and_json_say_the_same(size: Run, model: Path) -> None:
    found = json_of(size(model, "--gpu", 40, "--json"))
    assert found["warnings"] == []
    assert found["device"]["fits"]
    code, out, err = size(model, "--gpu", 40)
    assert (code, err) == (0, "")
    for said in (
        "15.0 GiB",
        f"{found['device']['cache_tokens']:,} tokens",
        f"{found['device']['slots']} of 83.9 MB",
        f"{found['pod']['memory'] / GIB:.1f} GiB",
        "an estimate",
    ):
        assert said in " ".join(out.split())


def test_an_adapters_size_is_a_rank_a_number_or_a_banks_largest(size: Run, model: Path, tmp_path: Path) -> None:
    def adapter(*arguments: object) -> int:
        return int(json_of(size(model, "--gpu", 80, *arguments, "--json"))["device"]["adapter"])

    assert adapter() == adapter("--rank", 16) == 83_886_080
    assert adapter("--rank", 32) == 2 * 83_886_080
    assert adapter("--adapters-mb", 12.5) == 12_500_000
    store = open_store(str(tmp_path / "store"))
    manifest = publish_bank(store, tmp_path / "banks", {"a": 1, "b": 2}, "one")
    assert adapter("--bank", tmp_path / "store") == max(entry.size for entry in manifest.adapters)
    assert adapter("--bank", tmp_path / "store", "--rank", 16) == 83_886_080
    code, _, err = size(model, "--gpu", 80, "--rank", 8, "--adapters-mb", 10)
    assert code == 2
    assert "leave one out" in err


def test_a_model_that_does_not_fit_exits_with_1(size: Run, model: Path) -> None:
    code, out, err = size(model, "--gpu", 16)
    assert code == 1
    assert "weights" in out
    assert "the model does not fit: nothing is left for cached tokens" in err


@pytest.mark.parametrize(
    ("arguments", "warning"),
    [
        (["--gpu", 22, "--requests", 50], "fewer than 50"),
        (["--gpu", 40, "--slots", 4], "4 slots are fewer than the 8 adapters"),
        (["--gpu", 40, "--pod-gib", 8], "16.0 GiB of pinned memory are more than the pod's 8 GiB"),
        (["--gpu", 40, "--pod-gib", 17], "the pod needs 21.0 GiB of memory and has 17"),
        (["--gpu", 40, "--host-gib", 0.1], "does not hold one adapter"),
    ],
)
def test_what_fits_badly_is_warned_of(size: Run, model: Path, arguments: list[Any], warning: str) -> None:
    code, _, err = size(model, *arguments)
    assert code == 0
    assert warning in err
    [said] = json_of(size(model, *arguments, "--json"))["warnings"]
    assert warning in said


def test_a_model_in_a_store_is_sized_without_its_weights(
    size: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    shape = {**LLAMA_8B, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "vocab_size": 500}
    weights = write_llama(tmp_path / "small", shape)
    store = open_store(str(tmp_path / "store"))
    push(store, tmp_path / "small")
    found = json_of(size(tmp_path / "store", "--gpu", 24, "--json"))
    assert weights <= found["device"]["weights"] < weights + 10_000, "headers count"
    assert found["device"]["adapter"] > 0
    assert not list((tmp_path / "home").rglob("*.safetensors"))


def test_mistakes_are_one_line(size: Run, model: Path, tmp_path: Path) -> None:
    for arguments, says in [
        ([tmp_path, "--gpu", 24], "no config.json"),
        ([model, "--gpu", 24, "--dtype", "int3"], "unknown dtype"),
        ([model, "--gpu", 24, "--memory-fraction", 2], "at most 1"),
    ]:
        code, _, err = size(*arguments)
        assert (code, err.count("\n")) == (2, 1)
        assert says in err


def test_defaults_are_the_overlays() -> None:
    defaults = {name: parameter.default for name, parameter in options(COMMANDS["k8s size"]).items()}
    engine = {place.rpartition(".")[2]: value for place, value in GPU.items()}
    for name in ("memory_fraction", "batch_tokens", "max_requests"):
        assert defaults[f"--{name.replace('_', '-')}"] == engine[name]
    assert defaults["--host-gib"] * GIB == engine["host_bytes"]


# init and render

LEAST = "{bank: 's3://dlp/bank/', model: {uri: 's3://dlp/models/M/'}}"

needs_kubectl = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl, which renders, is not installed")


@pytest.fixture
def values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of values, in the folder of this process."""
    monkeypatch.chdir(tmp_path)
    path = Path("values.yaml")
    path.write_text(LEAST)
    return path


def test_init_writes_values_with_their_schema_once(
    command: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command("k8s", "init", "--json")[:2] == (
        0,
        json.dumps({"file": "values.yaml", "schema": "values.schema.json"}) + "\n",
    )
    text = Path("values.yaml").read_text()
    assert "$schema=values.schema.json" in text.splitlines()[0]
    assert json.loads(Path("values.schema.json").read_text())["properties"].keys() > {"bank", "model"}
    Path("values.yaml").write_text(LEAST)
    code, _, err = command("k8s", "init")
    assert code == 2
    assert "--yes replaces it" in err
    assert Path("values.yaml").read_text() == LEAST
    assert command("k8s", "init", "--yes")[0] == 0
    assert Path("values.yaml").read_text() == text


@needs_kubectl
def test_render_prints_and_writes_the_same_objects(command: Run, values: Path) -> None:
    code, out, err = command("k8s", "render", "--values", "values.yaml")
    assert (code, err) == (0, "")
    printed = list(yaml.safe_load_all(out))
    listed = json.loads(command("k8s", "render", "--values", "values.yaml", "--json")[1])
    assert (listed["kind"], listed["items"]) == ("List", printed)
    for _ in range(2):  # rendering again replaces
        said = json.loads(command("k8s", "render", "--values", "values.yaml", "--out", "dlp", "--json")[1])
    assert said["folder"] == "dlp"
    assert said["objects"] == [f"{item['kind']}/{item['metadata']['name']}" for item in printed]
    written = [
        item for name in ("namespace", "objects") for item in yaml.safe_load_all(Path(f"dlp/{name}.yaml").read_text())
    ]
    assert written == printed


@needs_kubectl
def test_a_folder_of_somebody_else_stays_as_it_is(command: Run, values: Path) -> None:
    mine = Path("mine")
    mine.mkdir()
    (mine / "kustomization.yaml").write_text("resources: []\n")
    code, _, err = command("k8s", "render", "--values", "values.yaml", "--out", "mine")
    assert code == 2
    assert "did not write" in err
    assert [path.name for path in mine.iterdir()] == ["kustomization.yaml"]
    assert command("k8s", "render", "--values", "values.yaml", "--out", "values.yaml")[0] == 2


@needs_kubectl
@pytest.mark.parametrize(
    ("values_text", "message"),
    [
        ("args: {engine: {slotz: 1}}", "did you mean slots?"),
        ("pods: {backbone: {memory: 1Gi}}", "set pods.backbone.memory to 3Gi or more"),
        ("args: {engine: {host_bytes: 100000000000}}", "set pods.backbone.memory to 95Gi or more"),
        (
            "{pods: {router: {max: 1}}, replicas: {router: 40}}",
            "pods.router.max is 1; the replicas of ingress and router",
        ),
        ("pods: {router: {cpu: 0.5}}", "pods.router.cpu is 0.5; Ray counts whole CPUs"),
        ("deployments: {Ingress: {ray_actor_options: {num_cpus: 9}}}", "no replica would ever start"),
        ("deployments: {FusedBackbone: {ray_actor_options: {num_cpus: 9}}}", "set pods.backbone.cpu too"),
    ],
)
def test_a_value_that_does_not_fit_ends_with_2_and_one_line(
    values_text: str, message: str, command: Run, values: Path
) -> None:
    values.write_text(yaml.safe_dump(yaml.safe_load(LEAST) | yaml.safe_load(values_text)))
    code, out, err = command("k8s", "render", "--values", "values.yaml", "--out", "dlp")
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.splitlines()) == 1
    assert not Path("dlp").exists()


def test_without_kubectl_render_says_so(command: Run, values: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    code, _, err = command("k8s", "render", "--values", "values.yaml")
    assert code == 2
    assert "kubectl" in err
    assert "needs no cluster" in err
