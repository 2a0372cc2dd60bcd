"""Trains one LoRA adapter on one task and writes it as a PEFT folder.

The frozen backbone and the LoRA matrices run in bf16, as they will be served; the optimizer updates fp32
copies of the matrices, because steps this small vanish in bf16. Part of the rows is held back: the weights
with the lowest loss on them are the ones saved, and training stops early when that loss no longer falls.
Same rows, settings and number of threads: same adapter, bit for bit.
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
    """Peak learning rate of AdamW: reached after a twentieth of the steps, then a cosine down to 5%."""
    batch_rows: int = 4
    row_tokens: int = 192
    """Examples are packed into `batch_rows` rows of `row_tokens` tokens."""
    validation_rows: int = 64
    validate_every: int = 50
    patience: int = 3
    """Validations without a new lowest loss after which training stops."""
    seed: int = 0


@dataclass(frozen=True, slots=True)
class TrainProgress:
    """Where training stands; handed to the caller after every step."""

    step: int
    steps: int
    loss: float
    validation_loss: float | None


@dataclass(frozen=True, slots=True)
class TrainSummary:
    """What came out."""

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
    """Trains an adapter for the model folder `base` on `rows`, on `device`, and writes it to the folder `out`.

    Raises InvalidRequest if `base` is not a model folder, a target module does not exist, there are too few rows to
    hold some back, an example is longer than a packed row, or `out` cannot be written; LocalDiskError if the disk
    fails.
    """
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    check_model_folder(base)
    if len(rows) < 2 * settings.validation_rows:
        raise InvalidRequest(
            f"{len(rows)} rows are too few to hold {settings.validation_rows} back; give at least twice as many"
        )
    started = time.perf_counter()
    order = random.Random(settings.seed)
    torch.manual_seed(settings.seed)

    examples = encode(rows, AutoTokenizer.from_pretrained(base))
    order.shuffle(examples)
    prefix = common_prefix(examples)
    held_back, training = examples[: settings.validation_rows], examples[settings.validation_rows :]
    shape = {"prefix": prefix, "rows": settings.batch_rows, "row_tokens": settings.row_tokens}
    validation = list(batches(held_back, **shape))

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
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, settings.steps))

    best_loss, best_step, best = math.inf, 0, _copy(lora)
    step = tokens = 0
    stream = _forever(training, shape, order)
    while step < settings.steps and step - best_step < settings.patience * settings.validate_every:
        batch = next(stream).to(backbone.device)
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


def _rate(step: int, steps: int) -> float:
    warm = max(1, steps // 20)
    if step < warm:
        return (step + 1) / warm
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def _forever(examples: Sequence[Example], shape: dict[str, int], order: random.Random) -> Iterator[PackedBatch]:
    """Batches without end, in a new order each time round."""
    while True:
        yield from batches(order.sample(examples, len(examples)), **shape)


def _loss(backbone: Any, batch: PackedBatch) -> torch.Tensor:
    """Mean cross-entropy over the answers' tokens. Logits are computed at those positions only: the
    vocabulary is most of a small model's last matrix."""
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
    answers = [int((batch.labels_BT != IGNORED).sum()) for batch in validation]
    losses = [_loss(backbone, batch.to(backbone.device)).item() for batch in validation]
    return sum(loss * count for loss, count in zip(losses, answers, strict=True)) / sum(answers)


@torch.no_grad()
def _assign(parameters: Sequence[torch.nn.Parameter], values: Sequence[torch.Tensor]) -> None:
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)


def _copy(parameters: Sequence[torch.nn.Parameter]) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in parameters]


def _save(model: Any, base_name: str, out: Path) -> int:
    """Writes weights, then config: a folder without its config is no adapter. Returns the weights' bytes."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import save

    weights = {name: value.cpu().contiguous() for name, value in get_peft_model_state_dict(model).items()}
    config = model.peft_config["default"].to_dict()
    # The name, not the path: the path means nothing on the machine that serves the adapter.
    config |= {"base_model_name_or_path": base_name, "inference_mode": True}
    config["target_modules"] = sorted(config["target_modules"])
    text = json.dumps({key: config[key] for key in sorted(config)}, indent=2, default=str)
    with disk_errors(f"{out}: the adapter cannot be written"):
        out.mkdir(parents=True, exist_ok=True)
        (out / "adapter_model.safetensors").write_bytes(save(weights, metadata={"format": "pt"}))
        (out / "adapter_config.json").write_text(text + "\n", encoding="utf-8")
        return (out / "adapter_model.safetensors").stat().st_size
