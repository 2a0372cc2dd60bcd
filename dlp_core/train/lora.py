"""Train one LoRA adapter on one task and write it as a PEFT folder.

The frozen backbone and the LoRA matrices run in bf16, as they are served; the optimizer updates fp32 master copies of
the matrices, because updates this small vanish in bf16. Some rows are held out for validation: the weights with the
lowest validation loss are saved, and training stops early when that loss stops falling. The same rows, settings and
number of threads give the same adapter, bit for bit.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from dlp_core.errors import InvalidRequest
from dlp_core.quiet import quiet_transformers
from dlp_core.store.base_model import check_model_folder
from dlp_core.store.disk import disk_errors
from dlp_core.train.packing import IGNORED, Example, PackedBatch, batches, common_prefix, encode
from dlp_core.train.rows import Row


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
    validation_rows: int = 64
    validate_every: int = 50
    patience: int = 3
    """Training stops after this many validations without a new lowest loss."""
    seed: int = 0


@dataclass(frozen=True, slots=True)
class TrainProgress:
    """Progress of a training run, reported after every step."""

    step: int
    steps: int
    loss: float
    validation_loss: float | None


@dataclass(frozen=True, slots=True)
class TrainSummary:
    """Outcome of a training run."""

    steps: int
    best_step: int
    validation_loss: float
    examples: int
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
    device: str = "cpu",
    report: Callable[[TrainProgress], None] = lambda _: None,
) -> TrainSummary:
    """Train an adapter for the model folder `base` on `rows`, on `device`, and write it to the folder `out`.

    Raises InvalidRequest if `base` is not a model folder, a target module does not exist, there are too few rows to
    hold some out, an example is longer than a packed row, or `out` cannot be written; LocalDiskError if the disk
    fails.
    """
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    check_model_folder(base)
    if len(rows) < 2 * settings.validation_rows:
        raise InvalidRequest(
            f"{len(rows)} rows are too few to hold out {settings.validation_rows} for validation; "
            f"provide at least {2 * settings.validation_rows}"
        )
    started = time.perf_counter()
    rng = random.Random(settings.seed)
    torch.manual_seed(settings.seed)

    examples = encode(rows, AutoTokenizer.from_pretrained(base))
    rng.shuffle(examples)
    prefix = common_prefix(examples)
    held_out, training = examples[: settings.validation_rows], examples[settings.validation_rows :]
    shape = {"prefix": prefix, "rows": settings.batch_rows, "row_tokens": settings.row_tokens}
    validation = list(batches(held_out, **shape))

    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        target_modules=list(settings.targets),
        task_type="CAUSAL_LM",
    )
    try:
        with quiet_transformers():
            backbone = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).to(device)
            model = get_peft_model(backbone, config, autocast_adapter_dtype=False)
    except ValueError as error:  # PEFT: "Target modules ... not found in the base model"
        raise InvalidRequest(f"{base}: {error}", param="targets") from error
    lora = [parameter for parameter in model.parameters() if parameter.requires_grad]
    masters = [parameter.detach().float() for parameter in lora]
    optimizer = torch.optim.AdamW(masters, lr=settings.lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _lr_factor(step, settings.steps))

    best_loss, best_step, best = math.inf, 0, _copy(lora)
    step = tokens = 0
    training_batches = _endless_batches(training, shape, rng)
    while step < settings.steps and step - best_step < settings.patience * settings.validate_every:
        batch = next(training_batches).to(backbone.device)
        loss = _loss(backbone, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        for parameter, master in zip(lora, masters, strict=True):
            master.grad, parameter.grad = parameter.grad.float(), None
        torch.nn.utils.clip_grad_norm_(masters, 1.0)
        optimizer.step()
        schedule.step()
        _assign(lora, masters)
        step += 1
        tokens += batch.input_ids_BT.numel()
        validation_loss = None
        if step % settings.validate_every == 0 or step == settings.steps:
            validation_loss = _validate(backbone, validation)
            if validation_loss < best_loss:
                best_loss, best_step, best = validation_loss, step, _copy(lora)
        report(TrainProgress(step, settings.steps, loss.item(), validation_loss))

    _assign(lora, best)
    size = _save(model, base.name, out)
    return TrainSummary(
        steps=step,
        best_step=best_step,
        validation_loss=best_loss,
        examples=len(examples),
        tokens=tokens,
        seconds=time.perf_counter() - started,
        parameters=sum(parameter.numel() for parameter in lora),
        bytes=size,
    )


def _lr_factor(step: int, steps: int) -> float:
    warmup = max(1, steps // 20)
    if step < warmup:
        return (step + 1) / warmup
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def _endless_batches(examples: Sequence[Example], shape: dict[str, int], rng: random.Random) -> Iterator[PackedBatch]:
    """Endless batches, shuffled anew for each epoch."""
    while True:
        yield from batches(rng.sample(examples, len(examples)), **shape)


def _loss(backbone: Any, batch: PackedBatch) -> torch.Tensor:
    """Mean cross-entropy over the answer tokens. Logits are computed at those positions only, because the output
    matrix is a large part of a small model."""
    hidden_BTD = backbone.base_model(
        input_ids=batch.input_ids_BT,
        attention_mask=batch.mask_B1TT,
        position_ids=batch.position_ids_BT,
        use_cache=False,
    ).last_hidden_state
    answers_BT = batch.labels_BT != IGNORED
    logits = backbone.get_output_embeddings()(hidden_BTD[answers_BT])
    return cross_entropy(logits.float(), batch.labels_BT[answers_BT])


@torch.no_grad()
def _validate(backbone: Any, validation: Sequence[PackedBatch]) -> float:
    counts = [int((batch.labels_BT != IGNORED).sum()) for batch in validation]
    losses = [_loss(backbone, batch.to(backbone.device)).item() for batch in validation]
    return sum(loss * count for loss, count in zip(losses, counts, strict=True)) / sum(counts)


@torch.no_grad()
def _assign(parameters: Sequence[torch.nn.Parameter], values: Sequence[torch.Tensor]) -> None:
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)


def _copy(parameters: Sequence[torch.nn.Parameter]) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in parameters]


def _save(model: Any, base_name: str, out: Path) -> int:
    """Write weights, then config: a folder without its config is not an adapter. Returns the size of the weights in
    bytes."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import save

    weights = {name: value.cpu().contiguous() for name, value in get_peft_model_state_dict(model).items()}
    config = model.peft_config["default"].to_dict()
    # The name rather than the path, which means nothing on the machine that serves the adapter.
    config |= {"base_model_name_or_path": base_name, "inference_mode": True}
    config["target_modules"] = sorted(config["target_modules"])
    text = json.dumps({key: config[key] for key in sorted(config)}, indent=2, default=str)
    with disk_errors(f"{out}: the adapter cannot be written"):
        out.mkdir(parents=True, exist_ok=True)
        (out / "adapter_model.safetensors").write_bytes(save(weights, metadata={"format": "pt"}))
        (out / "adapter_config.json").write_text(text + "\n", encoding="utf-8")
        return (out / "adapter_model.safetensors").stat().st_size
