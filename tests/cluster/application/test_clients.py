"""Other people's clients against the whole application: what they send is accepted, and they understand the answers.

OpenAI's client is always there. The others are installed with `pip install -c constraints.txt '.[clients]'`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import openai
import pytest
import torch
import yaml
from pydantic import BaseModel, Field

from dlp_core.adapter.weights import read_adapter
from examples.tiny.build import BASE, TASKS
from examples.tiny.model import CONTEXT, tiny_model, tiny_tokenizer
from tests.support.application import Application

pytestmark = pytest.mark.filterwarnings("ignore")  # of the clients

TEXT = TASKS["sql"].format(3)
TOO_LONG = "word " * CONTEXT


class Person(BaseModel):
    name: str = Field(max_length=8)
    age: int = Field(ge=0, le=150)
    sort: Literal["a", "b"]


@pytest.fixture(scope="module")
def alone(app: Application) -> str:
    """The answer to TEXT."""
    return str(ask(app.client).choices[0].message.content)


def ask(client: openai.OpenAI, **changes: Any) -> Any:
    question: dict[str, Any] = {"model": "sql", "messages": [{"role": "user", "content": TEXT}], "max_tokens": 20}
    return client.chat.completions.create(**question | changes)


class TestOpenAI:
    def test_documents_of_a_schema_are_parsed(self, app: Application) -> None:
        for model in ("auto", "sql", BASE):
            reply = app.client.chat.completions.parse(
                model=model, messages=[{"role": "user", "content": TEXT}], response_format=Person, max_tokens=200
            )
            assert isinstance(reply.choices[0].message.parsed, Person)

    def test_a_document_in_a_stream_is_parsed(self, app: Application) -> None:
        with app.client.chat.completions.stream(
            model="auto", messages=[{"role": "user", "content": TEXT}], response_format=Person, max_tokens=200
        ) as stream:
            assert isinstance(stream.get_final_completion().choices[0].message.parsed, Person)

    def test_a_schema_that_cannot_be_followed_is_refused(self, app: Application) -> None:
        schema = {"name": "x", "schema": {"type": "nope"}}
        with pytest.raises(openai.BadRequestError) as refused:
            ask(app.client, response_format={"type": "json_schema", "json_schema": schema}, stream=True)
        assert refused.value.param == "response_format"

    def test_several_prompts_and_token_ids(self, app: Application) -> None:
        ids = tiny_tokenizer()(TEXT).input_ids
        texts = app.client.completions.create(model="auto", prompt=[TEXT, "the user"], max_tokens=12)
        tokens = app.client.completions.create(model="auto", prompt=[ids], max_tokens=12)
        assert [choice.index for choice in texts.choices] == [0, 1]
        assert tokens.choices[0].text == texts.choices[0].text
        assert (tokens.model_extra or {})["dlp"]["reason"] == "routed"

    def test_token_ids_that_the_model_does_not_have_are_refused(self, app: Application) -> None:
        for ids in ([10**6], [2**31 - 1]):
            with pytest.raises(openai.BadRequestError):
                app.client.completions.create(model="sql", prompt=ids, max_tokens=2)
            with pytest.raises(openai.BadRequestError):
                app.client.completions.create(model="auto", prompt=ids, max_tokens=2)

    def test_penalties_change_the_answer(self, app: Application, alone: str) -> None:
        assert ask(app.client, presence_penalty=2.0, frequency_penalty=2.0).choices[0].message.content != alone
        assert ask(app.client, presence_penalty=0.0).choices[0].message.content == alone


class TestLangChain:
    @pytest.fixture
    def model(self, app: Application) -> Any:
        langchain = pytest.importorskip("langchain_openai", reason="the extra `clients` is not installed")
        return langchain.ChatOpenAI(base_url=f"{app.url}/v1", api_key="unused", model="sql", max_tokens=20)

    def test_plain_and_streamed_answers_are_the_same(self, model: Any, alone: str) -> None:
        assert model.invoke(TEXT).content == alone
        assert "".join(chunk.content for chunk in model.stream(TEXT)) == alone

    def test_a_conversation_with_names_and_a_system_turn(self, model: Any) -> None:
        from langchain_core.messages import AIMessage, HumanMessage, SystemMessage

        turns = [SystemMessage("Be brief."), HumanMessage("hello", name="ann"), AIMessage("hi"), HumanMessage(TEXT)]
        assert model.invoke(turns).usage_metadata["output_tokens"] == 20

    def test_structured_output(self, model: Any) -> None:
        longer = model.model_copy(update={"max_tokens": 200})
        structured = longer.with_structured_output(Person, method="json_schema")
        assert isinstance(structured.invoke(TEXT), Person)

    def test_a_prompt_too_long_is_recognised(self, model: Any) -> None:
        from langchain_core.exceptions import ContextOverflowError

        with pytest.raises(ContextOverflowError):
            model.invoke(TOO_LONG)
        with pytest.raises(ContextOverflowError):
            model.model_copy(update={"max_tokens": CONTEXT}).invoke(TEXT)

    def test_the_older_interface_sends_several_prompts(self, app: Application, model: Any) -> None:
        from langchain_openai import OpenAI

        older = OpenAI(base_url=f"{app.url}/v1", api_key="unused", model="sql", max_tokens=8, temperature=0)
        batch = older.generate([TEXT, "the user"])
        assert [texts[0].text for texts in batch.generations] == [older.invoke(TEXT), older.invoke("the user")]
        assert "".join(older.stream(TEXT)) == older.invoke(TEXT)


class TestLiteLLM:
    @pytest.fixture
    def litellm(self, app: Application, monkeypatch: pytest.MonkeyPatch) -> Any:
        monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # not from the network
        litellm = pytest.importorskip("litellm", reason="the extra `clients` is not installed")
        monkeypatch.setattr(litellm, "api_base", f"{app.url}/v1")
        monkeypatch.setattr(litellm, "api_key", "unused")
        monkeypatch.setattr(litellm, "num_retries", 0)
        return litellm

    def test_plain_and_streamed_answers_are_the_same(self, litellm: Any, alone: str) -> None:
        question: dict[str, Any] = {
            "model": "openai/sql",
            "messages": [{"role": "user", "content": [{"type": "text", "text": TEXT}]}],
            "max_tokens": 20,
        }
        assert litellm.completion(**question).choices[0].message.content == alone
        chunks = litellm.completion(**question, stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == alone

    def test_text_completions(self, litellm: Any, app: Application) -> None:
        reply = litellm.text_completion(model="text-completion-openai/sql", prompt=TEXT, max_tokens=8)
        assert (
            reply.choices[0].text
            == app.client.completions.create(model="sql", prompt=TEXT, max_tokens=8).choices[0].text
        )

    def test_a_schema(self, litellm: Any) -> None:
        reply = litellm.completion(
            model="openai/auto", messages=[{"role": "user", "content": TEXT}], response_format=Person, max_tokens=200
        )
        Person.model_validate_json(reply.choices[0].message.content)

    def test_a_prompt_too_long_is_recognised(self, litellm: Any) -> None:
        with pytest.raises(litellm.ContextWindowExceededError):
            litellm.completion(model="openai/sql", messages=[{"role": "user", "content": TOO_LONG}])
        with pytest.raises(litellm.ContextWindowExceededError):
            litellm.completion(model="openai/sql", messages=[{"role": "user", "content": TEXT}], max_tokens=CONTEXT)


class TestEvaluationHarness:
    ROWS = (
        {"question": "the user and", "choices": [" the assistant", " speak"], "gold": 0},
        {"question": "the adapter", "choices": [" of the user", " 日本", " and"], "gold": 2},
        {"question": "speak of", "choices": [" the adapter"], "gold": 0},
    )

    @pytest.fixture
    def tasks(self, tmp_path: Path) -> Path:
        """A folder with one multiple-choice task and one that generates, over ROWS."""
        rows = tmp_path / "rows.jsonl"
        rows.write_text("".join(json.dumps(row) + "\n" for row in self.ROWS))
        shared = {
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(rows)}},
            "test_split": "test",
            "doc_to_text": "{{question}}",
        }
        chosen = {
            "task": "tiny_choice",
            "output_type": "multiple_choice",
            "doc_to_choice": "choices",
            "doc_to_target": "gold",
            "target_delimiter": "",
            "metric_list": [{"metric": "acc"}],
        }
        written = {
            "task": "tiny_generate",
            "output_type": "generate_until",
            "doc_to_target": "{{choices[gold]}}",
            "generation_kwargs": {"until": ["\n"], "max_gen_toks": 6, "do_sample": False},
            "metric_list": [{"metric": "exact_match"}],
        }
        for task in (chosen, written):
            (tmp_path / f"{task['task']}.yaml").write_text(yaml.safe_dump(shared | task))
        return tmp_path

    def test_it_scores_the_adapter_as_the_merged_model(self, app: Application, tasks: Path, tmp_path: Path) -> None:
        pytest.importorskip("lm_eval", reason="the extra `clients` is not installed")
        arguments = {
            "model": "sql",
            "base_url": f"{app.url}/v1/completions",
            "tokenizer": str(app.folder / BASE),
            "tokenizer_backend": "huggingface",
            "max_length": 512,
            "num_concurrent": 2,
            "max_retries": 1,
        }
        command = [
            sys.executable, "-m", "lm_eval", "run", "--model", "local-completions",
            "--model_args", ",".join(f"{name}={value}" for name, value in arguments.items()),
            "--tasks", "tiny_choice,tiny_generate", "--include_path", str(tasks), "--batch_size", "4",
            "--output_path", str(tmp_path / "out"), "--log_samples",
        ]  # fmt: skip
        offline = {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
        ran = subprocess.run(
            command, env=os.environ | offline, capture_output=True, text=True, check=False, timeout=600
        )
        assert ran.returncode == 0, ran.stderr[-3000:]
        [samples] = (tmp_path / "out").rglob("samples_tiny_choice_*.jsonl")
        found = [json.loads(line) for line in samples.read_text().splitlines()]
        for sample in found:
            row = self.ROWS[sample["doc_id"]]
            scores = [float(response[0][0]) for response in sample["resps"]]
            assert scores == pytest.approx(likelihoods(app, row["question"], row["choices"]), abs=1e-3)
        [written] = (tmp_path / "out").rglob("samples_tiny_generate_*.jsonl")
        for line in written.read_text().splitlines():
            sample = json.loads(line)
            ids = tiny_tokenizer()(self.ROWS[sample["doc_id"]]["question"]).input_ids
            assert sample["resps"][0][0] == app.expected(ids, {"sql": 1.0}, 6).split("\n")[0]


def likelihoods(app: Application, question: str, choices: list[str]) -> list[float]:
    """Log-likelihood of each choice after the question, by the backbone with adapter sql merged into it."""
    model = tiny_model()
    modules = dict(model.named_modules())
    encode = tiny_tokenizer()
    scores = []
    with torch.no_grad():
        for path, lora in read_adapter(app.folder / "bank" / "adapters" / "sql", name="sql").modules.items():
            modules[path].weight += lora.scaling * (lora.b_OR.float() @ lora.a_RD.float())
        for choice in choices:
            before, ids = encode(question).input_ids, encode(question + choice).input_ids
            logprobs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
            scores.append(sum(float(logprobs[n - 1, ids[n]]) for n in range(len(before), len(ids))))
    return scores
