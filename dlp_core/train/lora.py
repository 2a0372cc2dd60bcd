"""Train one LoRA adapter on one task and write it as a PEFT folder.

The frozen backbone and the LoRA matrices run in bf16, as they are served; the optimizer updates fp32 master copies of
the matrices, because updates this small vanish in bf16. A CPU without instructions for bf16 computes in fp32, with
matrices of the same bf16 numbers. Some rows are held out for validation: the weights with the
lowest validation loss are saved, and training stops early when that loss stops falling. The same rows, settings and
number of threads give the same adapter, bit for bit, also where training was interrupted and resumed.

After each validation, and when it is asked to stop, a training writes its checkpoint (store/checkpoints.py): the
master copies, the optimizer, the best weights, where it is in the data. That is 14 bytes a parameter of the adapter, in
fp32 16.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from dlp_core.adapter.invocation import FIELD as INVOCATION_FIELD
from dlp_core.adapter.invocation import Invocation
from dlp_core.errors import InvalidRequest
from dlp_core.quiet import quiet_transformers
from dlp_core.store.checkpoints import Checkpoints, random_state, restore_random_state
from dlp_core.store.disk import disk_errors
from dlp_core.store.model_folder import CONFIG_FILE, WEIGHTS, check_model_folder
from dlp_core.train.gate import Gate
from dlp_core.train.initial import InitialWeights
from dlp_core.train.packing import (
    IGNORED,
    EndlessBatches,
    PackedBatch,
    batches,
    common_prefix,
    encode,
    user_invocation,
)
from dlp_core.train.precision import training_dtype
from dlp_core.train.rows import Row, hold_back


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """The recipe of one adapter."""

    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    steps: int = 300
    lr: float = 2e-3
    """Peak learning rate of AdamW: linear warmup over a twentieth of the steps, then cosine decay to 5% of it."""
    batch_rows: int = 4
    row_tokens: int = 192
    """Examples are packed into `batch_rows` rows of `row_tokens` tokens."""
    validation_rows: int | None = None
    """Rows held back for validation; None: a tenth, at most 64."""
    validate_every: int = 50
    patience: int = 3
    """Training stops after this many validations without a new lowest loss."""
    seed: int = 0
    activated: bool = False
    """Train an activated LoRA (dlp_core.adapter.invocation), which the chat template's own tokens before a user's turn
    invoke: everything before the last user turn is the plain model's."""
    prefill_only: bool = False
    """Train an activated LoRA that runs to the end of the prompt, and whose answer the plain model writes. An
    experiment (arXiv 2605.14217): no server runs it, dlp_core.eval.arms does."""


@dataclass(frozen=True, slots=True)
class TrainProgress:
    """Progress of a training run, reported after every step."""

    step: int
    steps: int
    loss: float
    validation_loss: float | None
    """None unless this step was followed by a validation."""
    tokens_per_s: float
    """Since this process began to train; validations count as time."""
    seconds_left: float
    """If no validation ends training early."""


@dataclass(frozen=True, slots=True)
class TrainSummary:
    """Outcome of a training run."""

    steps: int
    best_step: int
    validation_loss: float
    examples: int
    held_back: int
    """Of the examples."""
    tokens: int
    seconds: float
    parameters: int
    bytes: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def train_adapter(
    base: Path,
    rows: Sequence[Row],
    out: Path,
    settings: TrainSettings,
    *,
    validation: Sequence[Row] = (),
    init_from: Path | None = None,
    device: str = "cpu",
    resume: bool = False,
    stop: Callable[[], bool] = lambda: False,
    report: Callable[[TrainProgress], None] = lambda _: None,
) -> TrainSummary:
    """Train an adapter for the model folder `base` on `rows`, on `device`, and write it to the folder `out`.

    Without `validation`, some of the rows are held back (rows.hold_back). `init_from` is the folder of an adapter whose
    weights the training begins with; they are kept if no later ones are better. `resume` goes on from the checkpoint of
    an interrupted run; where there is one and it is not set, nothing is overwritten. Once `stop` returns true, the step
    is finished and Interrupted raised; if there was a validation, `out` then holds the best weights so far.

    Raises InvalidRequest if `base` is not a model folder, a target module does not exist, there are too few rows to
    hold some out, an example is longer than a packed row, the checkpoint does not fit, `init_from` is of another shape
    or base model, or `out` cannot be written; AdapterRefused if it holds no adapter; LocalDiskError if the disk fails.
    """
    from transformers import AutoTokenizer

    check_model_folder(base)
    if settings.prefill_only and not settings.activated:
        raise InvalidRequest("--prefill-only trains an activated adapter; add --activated", param="prefill_only")
    initial = None if init_from is None else _initial(init_from, base, settings)
    rng = random.Random(settings.seed)
    training, held_out = (rows, validation) if validation else hold_back(rows, settings.validation_rows, rng)
    dtype = training_dtype(device)
    depends_on = _depends_on(base, rows, validation, settings, f"{device}, {dtype}")
    if initial is not None:
        depends_on["--init-from"] = f"{initial.name} {initial.digest}"
    checkpoints = Checkpoints(out, depends_on, resume=resume, stop=stop)
    started = time.perf_counter()
    torch.manual_seed(settings.seed)

    tokenizer = AutoTokenizer.from_pretrained(base)
    invocation = user_invocation(tokenizer) if settings.activated else None
    examples = encode([*held_out, *training], tokenizer, invocation=invocation, prefill_only=settings.prefill_only)
    packing = {"prefix": common_prefix(examples), "rows": settings.batch_rows, "row_tokens": settings.row_tokens}
    held_out_batches = list(batches(examples[: len(held_out)], **packing))

    backbone, model = _with_lora(base, settings, dtype, device)
    if initial is not None:
        initial.load_into(model)
    training_batches = EndlessBatches(examples[len(held_out) :], rng, **packing)
    run = _Run(backbone, model, training_batches, settings, device, invocation=invocation)
    if (state := checkpoints.load(_PHASE)) is not None:
        run.restore(state)
    elif initial is not None:
        run.validate(held_out_batches)
    before, first_tokens, began = run.seconds, run.tokens, time.perf_counter()
    while not run.finished:
        if checkpoints.stopping():
            checkpoints.save(_PHASE, run.state())
            raise checkpoints.interrupted(_stopped(run, model, base.name, out))
        loss = run.train()
        validation_loss = run.validate(held_out_batches) if run.due else None
        run.seconds = before + time.perf_counter() - started
        if validation_loss is not None:
            checkpoints.save(_PHASE, run.state())
        per_s = (run.tokens - first_tokens) / (time.perf_counter() - began)
        left = (settings.steps - run.step) * run.tokens / run.step / per_s
        report(TrainProgress(run.step, settings.steps, loss, validation_loss, per_s, left))

    size = run.save_best(model, base.name, out)
    checkpoints.remove()
    return TrainSummary(
        steps=run.step,
        best_step=run.best_step,
        validation_loss=run.best_loss,
        examples=len(examples),
        held_back=len(held_out),
        tokens=run.tokens,
        seconds=run.seconds,
        parameters=sum(parameter.numel() for parameter in run.lora),
        bytes=size,
    )


def _initial(folder: Path, base: Path, settings: TrainSettings) -> InitialWeights:
    return InitialWeights.read(folder, base, rank=settings.rank, alpha=settings.alpha, targets=settings.targets)


def _with_lora(base: Path, settings: TrainSettings, dtype: torch.dtype, device: str) -> tuple[Any, Any]:
    """The backbone, and it as a PEFT model with a new adapter."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        target_modules=list(settings.targets),
        task_type="CAUSAL_LM",
    )
    try:
        with quiet_transformers():
            backbone = AutoModelForCausalLM.from_pretrained(base, dtype=dtype).to(device)
            model = get_peft_model(backbone, config, autocast_adapter_dtype=False)
    except ValueError as error:  # PEFT: "Target modules ... not found in the base model"
        raise InvalidRequest(f"{base}: {error}", param="targets") from error
    return backbone, model


_PHASE = "training"


class _Run:
    """All that changes in a training."""

    def __init__(
        self,
        backbone: Any,
        model: Any,
        training: EndlessBatches,
        settings: TrainSettings,
        device: str,
        *,
        invocation: Invocation | None,
    ) -> None:
        self._backbone, self._training, self._settings, self._device = backbone, training, settings, device
        self._invocation = invocation
        self._gate = None if invocation is None else Gate(model)
        self.lora: list[torch.nn.Parameter] = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._masters = [parameter.detach().float() for parameter in self.lora]
        self._optimizer = torch.optim.AdamW(self._masters, lr=settings.lr, weight_decay=0.0)
        self._schedule = torch.optim.lr_scheduler.LambdaLR(
            self._optimizer, lambda step: _lr_factor(step, settings.steps)
        )
        self._best = _copy(self.lora)
        self.best_loss, self.best_step = math.inf, 0
        self.step = self.tokens = 0
        self.seconds = 0.0

    @property
    def finished(self) -> bool:
        limit = self.best_step + self._settings.patience * self._settings.validate_every
        return self.step >= min(self._settings.steps, limit)

    @property
    def due(self) -> bool:
        """Whether a validation is."""
        return self.step % self._settings.validate_every == 0 or self.step == self._settings.steps

    def train(self) -> float:
        """One step; returns its loss."""
        batch = next(self._training).to(self._backbone.device)
        loss = answer_losses(self._backbone, batch, self._gate).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        for parameter, master in zip(self.lora, self._masters, strict=True):
            assert parameter.grad is not None
            master.grad, parameter.grad = parameter.grad.float(), None
        torch.nn.utils.clip_grad_norm_(self._masters, 1.0)
        self._optimizer.step()
        self._schedule.step()
        _assign_as_served(self.lora, self._masters)
        self.step += 1
        self.tokens += batch.input_ids_BT.numel()
        return loss.item()

    def validate(self, validation: Sequence[PackedBatch]) -> float:
        loss = _validate(self._backbone, validation, self._gate)
        if loss < self.best_loss:
            self.best_loss, self.best_step, self._best = loss, self.step, _copy(self.lora)
        return loss

    def state(self) -> dict[str, Any]:
        return {
            "masters": self._masters,
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "best": self._best,
            "best_loss": self.best_loss,
            "best_step": self.best_step,
            "step": self.step,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "data": self._training.state(),
            "random": random_state(self._device),
        }

    def restore(self, state: dict[str, Any]) -> None:
        _assign(self._masters, state["masters"])
        _assign(self._best, state["best"])
        _assign_as_served(self.lora, self._masters)
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])
        self.best_loss, self.best_step = state["best_loss"], state["best_step"]
        self.step, self.tokens, self.seconds = state["step"], state["tokens"], state["seconds"]
        self._training.restore(state["data"])
        restore_random_state(self._device, state["random"])

    def save_best(self, model: Any, base_name: str, out: Path) -> int:
        _assign(self.lora, self._best)
        return _save(model, base_name, out, self._invocation)


def _stopped(run: _Run, model: Any, base_name: str, out: Path) -> str:
    """Writes the best weights so far, if there was a validation; says how far training came."""
    done = f"stopped after step {run.step:,} of {run._settings.steps:,}"
    if not run.best_step:
        return done
    run.save_best(model, base_name, out)
    return f"{done}; {out} has the best weights so far, of step {run.best_step:,}, held-back loss {run.best_loss:.4f}"


def _depends_on(
    base: Path, rows: Sequence[Row], validation: Sequence[Row], settings: TrainSettings, device: str
) -> dict[str, Any]:
    """What a checkpoint is of. The base model is known by its configuration and the sizes of its weights: to hash
    these takes minutes."""
    model = hashlib.sha256((base / CONFIG_FILE).read_bytes())
    for path in sorted(base.glob(f"*{WEIGHTS}")):
        model.update(f"{path.name} {path.stat().st_size}\n".encode())
    fields = {f"--{name.replace('_', '-')}": value for name, value in asdict(settings).items()}
    for name in ("--activated", "--prefill-only"):  # as in checkpoints of before there was the choice
        if not fields[name]:
            del fields[name]
    return fields | {
        "--base-model": f"{base.resolve().name} {model.hexdigest()[:12]}",
        "--data": _digest(rows),
        "--validation-data": _digest(validation) if validation else None,
        "--device": device,
    }


def _digest(rows: Sequence[Row]) -> str:
    content = repr([(row.turns, row.output) for row in rows]).encode()
    return f"{len(rows)} rows {hashlib.sha256(content).hexdigest()[:12]}"


def _lr_factor(step: int, steps: int) -> float:
    warmup = max(1, steps // 20)
    if step < warmup:
        return (step + 1) / warmup
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def answer_losses(backbone: Any, batch: PackedBatch, gate: Gate | None = None) -> torch.Tensor:
    """Cross-entropy of each answer token, row by row of the batch. Logits are computed at those positions only, because
    the output matrix is a large part of a small model. An adapter that is trained for
    the prompt alone runs at the first of each answer only."""
    with nullcontext() if gate is None else gate.only(batch.active_BT):
        hidden_BTD = backbone.base_model(
            input_ids=batch.input_ids_BT,
            attention_mask=batch.mask_B1TT,
            position_ids=batch.position_ids_BT,
            use_cache=False,
        ).last_hidden_state
    answers_BT = batch.labels_BT != IGNORED
    logits = backbone.get_output_embeddings()(hidden_BTD[answers_BT])
    return cross_entropy(logits.float(), batch.labels_BT[answers_BT], reduction="none")


@torch.no_grad()
def _validate(backbone: Any, validation: Sequence[PackedBatch], gate: Gate | None) -> float:
    counts = [int((batch.labels_BT != IGNORED).sum()) for batch in validation]
    losses = [answer_losses(backbone, batch.to(backbone.device), gate).mean().item() for batch in validation]
    return sum(loss * count for loss, count in zip(losses, counts, strict=True)) / sum(counts)


@torch.no_grad()
def _assign(parameters: Sequence[torch.Tensor], values: Sequence[torch.Tensor]) -> None:
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)


def _assign_as_served(lora: Sequence[torch.Tensor], masters: Sequence[torch.Tensor]) -> None:
    _assign(lora, [master.to(torch.bfloat16) for master in masters])


def _copy(parameters: Sequence[torch.nn.Parameter]) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in parameters]


def _save(model: Any, base_name: str, out: Path, invocation: Invocation | None) -> int:
    """Write weights, then config: a folder without its config is not an adapter. Returns the size of the weights in
    bytes."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import save

    weights = {
        name: value.to("cpu", torch.bfloat16).contiguous() for name, value in get_peft_model_state_dict(model).items()
    }
    config = model.peft_config["default"].to_dict()
    # The name rather than the path, which means nothing on the machine that serves the adapter.
    config |= {"base_model_name_or_path": base_name, "inference_mode": True}
    config["target_modules"] = sorted(config["target_modules"])
    config[INVOCATION_FIELD] = None if invocation is None else list(invocation)
    text = json.dumps({key: config[key] for key in sorted(config)}, indent=2, default=str)
    with disk_errors(f"{out}: the adapter cannot be written"):
        out.mkdir(parents=True, exist_ok=True)
        (out / "adapter_model.safetensors").write_bytes(save(weights, metadata={"format": "pt"}))
        (out / "adapter_config.json").write_text(text + "\n", encoding="utf-8")
        return (out / "adapter_model.safetensors").stat().st_size
