"""The demo bank without the server, as an independent check of it: transformers' `generate` and PEFT's LoRA layers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from transformers import AutoModelForCausalLM, AutoTokenizer

from dlp_core.mix import EMPTY_MIX, Mix
from dlp_core.quiet import quiet_transformers
from dlp_core.router import Router

BATCH = 25


class InProcess:
    """Answers as the server does: same chat template, same router, greedy decoding; bf16 instead of fp32."""

    def __init__(self, base: Path, adapters: Sequence[Path], router: Path | None) -> None:
        with quiet_transformers():
            self._tokenizer = AutoTokenizer.from_pretrained(base, padding_side="left")
            model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
            first, *others = adapters
            model = PeftModel.from_pretrained(model, first, first.name, autocast_adapter_dtype=False)
            for folder in others:
                model.load_adapter(folder, folder.name, autocast_adapter_dtype=False)
        self._base_name = base.name
        self._model = model.eval()
        self._lora = [module for module in model.modules() if isinstance(module, LoraLayer)]
        self._router = Router.load(router) if router else None

    def answer(self, prompts: Sequence[str], models: Sequence[str], max_tokens: int) -> list[tuple[str, str]]:
        """One (answer, mix) per prompt; see `demo_quality.Answerer`."""
        mixes = [self._mix(prompt, model) for prompt, model in zip(prompts, models, strict=True)]
        answers = [""] * len(prompts)
        for mix in dict.fromkeys(mixes):
            # Batch prompts of similar length: padding is most of the cost on a CPU.
            indices = sorted((i for i, other in enumerate(mixes) if other == mix), key=lambda i: len(prompts[i]))
            for start in range(0, len(indices), BATCH):
                batch = indices[start : start + BATCH]
                texts = self._generate([prompts[i] for i in batch], mix, max_tokens)
                for i, text in zip(batch, texts, strict=True):
                    answers[i] = text
        return [(text, str(mix)) for text, mix in zip(answers, mixes, strict=True)]

    def _mix(self, prompt: str, model: str) -> Mix:
        if model == "auto":
            if self._router is None:
                raise ValueError("model auto needs a router")
            return self._router.route([prompt])[0].mix()
        return EMPTY_MIX if model == self._base_name else Mix.of({model: 1.0})

    @torch.inference_mode()
    def _generate(self, prompts: list[str], mix: Mix, max_tokens: int) -> list[str]:
        chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
        inputs = self._tokenizer.apply_chat_template(
            chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
        )
        options = {**inputs, "max_new_tokens": max_tokens, "do_sample": False}
        if mix:
            self._model.base_model.set_adapter(list(mix.names))
            for module in self._lora:
                for part in mix.adapters:
                    if part.name in module.scaling:
                        module.set_scale(part.name, part.weight)
            ids = self._model.generate(**options)
        else:
            with self._model.disable_adapter():
                ids = self._model.generate(**options)
        texts: list[str] = self._tokenizer.batch_decode(
            ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )
        return texts
