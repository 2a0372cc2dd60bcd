"""Training one adapter: packing equals training on each example alone, the loss falls, PEFT and the server read it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from dlp_core.adapter.weights import read_adapter
from dlp_core.errors import InvalidRequest
from dlp_core.quiet import quiet_transformers
from dlp_core.store.checkpoints import Interrupted, checkpoint_folder
from dlp_core.text.chat import Message
from dlp_core.text.codec import TextCodec
from dlp_core.train.gate import Gate
from dlp_core.train.lora import TrainProgress, TrainSettings, answer_losses, train_adapter
from dlp_core.train.packing import IGNORED, Example, batches, common_prefix, encode, user_invocation
from dlp_core.train.rows import Row, read_rows
from examples.tiny.model import peft_model, tiny_backbone, tiny_model, tiny_tokenizer
from tests.support.tiny import relative_error

pytestmark = pytest.mark.model

ROWS = [
    Row(f"the adapter {word} {number}", f"{word}{number}") for word in ("of", "and", "user") for number in range(20)
]
SETTINGS = TrainSettings(
    rank=4, alpha=8.0, steps=30, lr=2e-2, batch_rows=2, row_tokens=160, validation_rows=8, validate_every=10, seed=3
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    tiny_backbone(folder)
    return folder


def test_loss_falls_and_the_best_weights_are_kept(base: Path, tmp_path: Path) -> None:
    seen: list[TrainProgress] = []
    summary = train_adapter(base, ROWS, tmp_path / "a", SETTINGS, report=seen.append)
    validated = {now.step: now.validation_loss for now in seen if now.validation_loss is not None}
    assert [now.step for now in seen] == list(range(1, summary.steps + 1))
    assert summary.validation_loss == min(validated.values()) == validated[summary.best_step]
    assert summary.validation_loss < 0.7 * seen[0].loss


def test_saved_folder_is_read_by_peft_and_by_the_server(base: Path, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    settings = replace(SETTINGS, steps=3, rank=2, alpha=6.0, targets=("q_proj", "o_proj"))
    summary = train_adapter(base, ROWS, tmp_path / "shout", settings)
    assert {file.name for file in (tmp_path / "shout").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }

    adapter = read_adapter(tmp_path / "shout", name="shout")
    assert (adapter.base_model, adapter.rank, adapter.parameters) == ("tiny-llama", 2, summary.parameters)
    assert {path.rpartition(".")[2] for path in adapter.modules} == {"q_proj", "o_proj"}
    assert {weights.scaling for weights in adapter.modules.values()} == {3.0}
    assert {weights.a_RD.dtype for weights in adapter.modules.values()} == {torch.bfloat16}
    assert all(weights.b_OR.any() for weights in adapter.modules.values())

    model = AutoModelForCausalLM.from_pretrained(base)
    plain = model(torch.tensor([[1, 5, 9]])).logits
    with quiet_transformers():
        tuned = PeftModel.from_pretrained(model, tmp_path / "shout")(torch.tensor([[1, 5, 9]])).logits
    assert not torch.allclose(plain, tuned)


def test_same_seed_same_bytes(base: Path, tmp_path: Path) -> None:
    def weights(name: str, seed: int) -> bytes:
        train_adapter(base, ROWS, tmp_path / name, replace(SETTINGS, steps=3, seed=seed))
        return (tmp_path / name / "adapter_model.safetensors").read_bytes()

    assert weights("a", 0) == weights("b", 0) != weights("c", 1)


def test_training_stops_when_the_validation_loss_stops_falling(base: Path, tmp_path: Path) -> None:
    settings = replace(SETTINGS, steps=100, lr=0.0, validate_every=2, patience=2)
    assert train_adapter(base, ROWS, tmp_path / "a", settings).steps == 6  # best at 2, and 2 x 2 steps of patience


class StopAfter:
    """Asks to stop when it was asked so many times: before the step of that number, counted from 0."""

    def __init__(self, asked: int) -> None:
        self._left = asked

    def __call__(self) -> bool:
        self._left -= 1
        return self._left < 0


def test_an_interrupted_training_ends_as_one_that_was_not(base: Path, tmp_path: Path) -> None:
    settings = replace(SETTINGS, steps=24)
    whole = train_adapter(base, ROWS, tmp_path / "whole", settings)
    checkpoint = checkpoint_folder(tmp_path / "a")
    for asked, resume in ((13, False), (0, True), (4, True)):  # between validations, at once, in another epoch
        with pytest.raises(Interrupted) as end:
            train_adapter(base, ROWS, tmp_path / "a", settings, resume=resume, stop=StopAfter(asked))
        assert end.value.checkpoint == checkpoint
        assert {path.name for path in checkpoint.iterdir()} == {"run.json", "training.pt"}
        assert "best weights so far, of step 10" in end.value.done
        assert read_adapter(tmp_path / "a", name="a").rank == 4
    summary = train_adapter(base, ROWS, tmp_path / "a", settings, resume=True)
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    assert replace(summary, seconds=0.0) == replace(whole, seconds=0.0)
    assert not checkpoint.exists()


def test_a_training_that_was_stopped_before_a_validation_leaves_no_adapter(base: Path, tmp_path: Path) -> None:
    with pytest.raises(Interrupted, match="after step 3 of 30"):
        train_adapter(base, ROWS, tmp_path / "a", SETTINGS, stop=StopAfter(3))
    assert not (tmp_path / "a").exists()


def test_a_checkpoint_is_neither_overwritten_nor_resumed_with_something_else(base: Path, tmp_path: Path) -> None:
    def train(rows: list[Row] = ROWS, settings: TrainSettings = SETTINGS, **options: Any) -> None:
        train_adapter(base, rows, tmp_path / "a", settings, stop=StopAfter(1), **options)

    with pytest.raises(InvalidRequest, match="there is no checkpoint in"):
        train(resume=True)
    with pytest.raises(Interrupted):
        train()
    with pytest.raises(InvalidRequest, match="--resume goes on from it, or remove that folder"):
        train()
    for change, named in (
        ({"settings": replace(SETTINGS, rank=2)}, "of another run: --rank was 4, is 2;"),
        ({"settings": replace(SETTINGS, seed=4)}, "of another run: --seed was 3, is 4;"),
        ({"rows": ROWS[:-1]}, 'of another run: --data was "60 rows [0-9a-f]{12}", is "59 rows'),
        ({"validation": ROWS[:3]}, "of another run: --validation-data was null, is"),
    ):
        with pytest.raises(InvalidRequest, match=named):
            train(resume=True, **change)
    (checkpoint_folder(tmp_path / "a") / "training.pt").write_bytes(b"half")
    with pytest.raises(InvalidRequest, match=r"training\.pt: cannot be read"):
        train(resume=True)


def test_rows_of_a_file_of_their_own_are_validated_on(base: Path, tmp_path: Path) -> None:
    settings = replace(SETTINGS, steps=2, validation_rows=None)
    assert train_adapter(base, ROWS, tmp_path / "a", settings).held_back == 6
    own = train_adapter(base, ROWS[6:], tmp_path / "b", settings, validation=ROWS[:6])
    assert (own.examples, own.held_back) == (60, 6)


def _logits(model: Any, example: Example) -> torch.Tensor:
    """At the positions that predict the answer, for the example on its own."""
    ids = torch.tensor([[*example.prompt, *example.answer[:-1]]])
    return model(ids).logits[0, len(example.prompt) - 1 :]


def test_packed_examples_see_only_the_prefix_and_themselves(base: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    examples = encode(ROWS[:7], tiny_tokenizer())
    prefix = common_prefix(examples)
    assert prefix > 4
    (batch,) = batches(examples, prefix=prefix, rows=2, row_tokens=60)
    assert len(batch.input_ids_BT) == 2
    logits = model(
        input_ids=batch.input_ids_BT,
        attention_mask=batch.mask_B1TT,
        position_ids=batch.position_ids_BT,
        use_cache=False,
    ).logits
    answers_BT = batch.labels_BT != IGNORED
    alone = {example.answer: _logits(model, example) for example in examples}
    packed = logits[answers_BT]
    at = 0
    while at < len(packed):
        answer = next(a for a in alone if list(a) == batch.labels_BT[answers_BT][at : at + len(a)].tolist())
        torch.testing.assert_close(packed[at : at + len(answer)], alone.pop(answer), rtol=1e-4, atol=1e-4)
        at += len(answer)
    assert not alone


def test_batches_hold_every_example_once_within_the_row(base: Path) -> None:
    del base
    examples = encode(ROWS, tiny_tokenizer())
    prefix = common_prefix(examples)
    made = list(batches(examples, prefix=prefix, rows=3, row_tokens=120))
    assert all(batch.input_ids_BT.shape[0] <= 3 and batch.input_ids_BT.shape[1] <= 120 for batch in made)
    assert sum(int((batch.labels_BT != IGNORED).sum()) for batch in made) == sum(len(e.answer) for e in examples)
    with pytest.raises(InvalidRequest, match="a row holds 12"):
        list(batches(examples, prefix=prefix, rows=3, row_tokens=12))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"input": "a"}', "rows.jsonl:1: the answer is missing or empty"),
        ('{"input": " ", "output": "b"}', "rows.jsonl:1: the prompt is empty"),
        ('{"task": "a", "input": "x", "output": "y"}\n{"task": "b", "input": "x", "output": "y"}', "tasks a, b"),
    ],
)
def test_bad_rows_are_refused_by_name(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(content)
    with pytest.raises(InvalidRequest, match=message) as raised:
        read_rows(path)
    assert str(path) in raised.value.message


def test_a_file_with_several_tasks_needs_a_task_or_joint(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f'{{"task": "{task}", "input": "x{task}", "output": "y"}}\n' for task in "aba"))
    assert [row.input for row in read_rows(path, task="a")] == ["xa", "xa"]
    assert [row.input for row in read_rows(path, joint=True)] == ["xa", "xb", "xa"]
    with pytest.raises(InvalidRequest, match="no rows of task 'c'; its tasks are a, b"):
        read_rows(path, task="c")
    with pytest.raises(InvalidRequest, match="choose one with --task, or train on all with --joint"):
        read_rows(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": ("no_such_layer",)}, "no_such_layer"),
        ({"row_tokens": 12}, "a row holds 12"),
        ({"validation_rows": 59}, "too few"),
    ],
)
def test_settings_that_cannot_work_are_refused(
    base: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidRequest, match=message):
        train_adapter(base, ROWS, tmp_path / "a", replace(SETTINGS, **change))
    assert not (tmp_path / "a").exists()


def test_a_missing_base_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="is not a model folder"):
        train_adapter(tmp_path / "nowhere", ROWS, tmp_path / "a", SETTINGS)


BEFORE = (Message("system", "Be brief."), Message("user", "the user"), Message("assistant", "of"))
CHATS = [
    *(Row((*BEFORE, Message("user", f"and {number}")), f"of {number}") for number in range(3)),
    *(Row(f"the adapter {number} " * (number + 1), f"speak {number}") for number in range(4)),
]
"""Whose last user turns begin at different places."""


def test_an_activated_adapter_is_trained_as_peft_computes_it(tmp_path: Path) -> None:
    """The loss of packed rows and its gradients are those of PEFT's own layers, example by example, and nothing before
    the last user turn sees the adapter."""
    from peft import PeftModel

    tokenizer = tiny_tokenizer()
    invocation = user_invocation(tokenizer)
    assert tokenizer.decode(invocation) == "<|im_start|>user"
    examples = encode(CHATS, tokenizer, invocation=invocation)
    codec = TextCodec(tokenizer, context=10**6)
    for row, example in zip(CHATS, examples, strict=True):
        prompt = codec.encode_chat(row.turns)
        assert example.begins == prompt.token_at(prompt.last_turn)
    assert len({example.begins for example in examples}) == 2
    model = tiny_model()
    tuned = peft_model(model, 5, target_modules=["q_proj", "down_proj"])
    tuned.peft_config["default"].alora_invocation_tokens = list(invocation)
    tuned.peft_config["default"].task_type = "CAUSAL_LM"
    tuned.save_pretrained(tmp_path / "a")
    packed = list(batches(examples, prefix=common_prefix(examples), rows=2, row_tokens=400))
    [batch] = packed
    assert len(batch.input_ids_BT) < len(examples)
    loss = answer_losses(model, batch, Gate(tuned)).mean()
    loss.backward()

    with quiet_transformers():
        theirs = PeftModel.from_pretrained(tiny_model(), tmp_path / "a", is_trainable=True)
    count = sum(len(example.answer) for example in examples)
    total = torch.zeros(())
    for example in examples:
        ids = torch.tensor([[*example.prompt, *example.answer[:-1]]])
        logits = theirs(input_ids=ids).logits[0, len(example.prompt) - 1 :]
        total = total + cross_entropy(logits, torch.tensor(example.answer), reduction="sum") / count
    total.backward()
    assert loss.item() == pytest.approx(total.item(), rel=1e-5)
    expected = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    found = {name: p.grad for name, p in tuned.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys()
    for name, grad in expected.items():
        assert relative_error(found[name], grad) <= 1e-4, name
    assert answer_losses(model, batch).mean().item() != pytest.approx(total.item(), rel=1e-3), (
        "an ordinary one has another"
    )


def test_an_activated_adapter_is_saved_as_one(base: Path, tmp_path: Path) -> None:
    rows = [Row((Message("system", "of"), *row.turns), row.output) for row in ROWS]
    summary = train_adapter(base, rows, tmp_path / "a", replace(SETTINGS, activated=True))
    adapter = read_adapter(tmp_path / "a", name="a")
    assert adapter.invocation == user_invocation(tiny_tokenizer())
    ordinary = train_adapter(base, rows, tmp_path / "b", SETTINGS)
    assert read_adapter(tmp_path / "b", name="b").invocation is None
    assert summary.validation_loss != ordinary.validation_loss


def test_an_adapter_trained_for_the_prompt_alone_leaves_its_answer_to_the_plain_model(tmp_path: Path) -> None:
    """Loss and gradients of packed rows are those of prompts that PEFT computes under the adapter, and of answers that
    the plain model computes after them."""
    from peft import PeftModel

    tokenizer = tiny_tokenizer()
    invocation = user_invocation(tokenizer)
    examples = encode(CHATS, tokenizer, invocation=invocation, prefill_only=True)
    model = tiny_model()
    tuned = peft_model(model, 5, target_modules=["q_proj", "v_proj"])
    tuned.save_pretrained(tmp_path / "a")
    [batch] = batches(examples, prefix=common_prefix(examples), rows=2, row_tokens=400)
    loss = answer_losses(model, batch, Gate(tuned)).mean()
    loss.backward()

    with quiet_transformers():
        theirs = PeftModel.from_pretrained(tiny_model(), tmp_path / "a", is_trainable=True)
    count = sum(len(example.answer) for example in examples)
    total = torch.zeros(())
    for example in examples:
        with theirs.disable_adapter():
            before = theirs(input_ids=torch.tensor([example.prompt[: example.begins]])) if example.begins else None
        past = None if before is None else before.past_key_values
        prompt = theirs(input_ids=torch.tensor([example.prompt[example.begins :]]), past_key_values=past)
        with theirs.disable_adapter():
            answer = theirs(input_ids=torch.tensor([example.answer[:-1]]), past_key_values=prompt.past_key_values)
        logits = torch.cat([prompt.logits[0, -1:], answer.logits[0]])
        total = total + cross_entropy(logits, torch.tensor(example.answer), reduction="sum") / count
    total.backward()
    assert loss.item() == pytest.approx(total.item(), rel=1e-5)
    expected = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    found = {name: p.grad for name, p in tuned.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys()
    for name, grad in expected.items():
        assert relative_error(found[name], grad) <= 1e-4, name


def test_the_prompt_alone_is_trained_of_activated_adapters_only(base: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="add --activated"):
        train_adapter(base, ROWS, tmp_path / "a", replace(SETTINGS, prefill_only=True))
    both = replace(SETTINGS, steps=2, activated=True, prefill_only=True)
    train_adapter(base, ROWS, tmp_path / "a", both)
    assert read_adapter(tmp_path / "a", name="a").invocation == user_invocation(tiny_tokenizer())


def test_rows_without_a_user_turn_cannot_be_trained_activated(base: Path, tmp_path: Path) -> None:
    rows = [*ROWS, Row((Message("system", "the adapter"),), "of")]
    with pytest.raises(InvalidRequest, match="'the adapter' has no user turn"):
        train_adapter(base, rows, tmp_path / "a", replace(SETTINGS, activated=True))
