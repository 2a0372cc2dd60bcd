"""A transformer encoder from a folder, as Hugging Face or sentence-transformers save it. Needs torch and transformers.

    x_I = unit(pooled last hidden states)

Pooling is what `1_Pooling/config.json` says (the mean over tokens, the first or the last token), and the mean where
there is none. A text is cut after as many tokens as `sentence_bert_config.json` says, at most MAX_TOKENS.

`save` writes what `open` needs and nothing else: config.json, model.safetensors, and a tokenizer.json that cuts and
pads."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from safetensors import SafetensorError
from tokenizers import Tokenizer

from dlp_core.errors import BankError, InvalidRequest
from dlp_core.quiet import quiet_transformers
from dlp_core.router.encoder import Floats
from dlp_core.router.features import readable
from dlp_core.store.documents import parse_json, read_regular
from dlp_core.store.transfers import Progress, silent

if TYPE_CHECKING:
    from torch import Tensor

MAX_TOKENS = 256
FILES = ("config.json", "model.safetensors", "tokenizer.json")

Pooling = Literal["mean", "first", "last"]

_POOLING: dict[str, Pooling] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "first",
    "pooling_mode_lasttoken": "last",
}
_BATCH = 64
_MOST_PARTS = 6


@dataclass(frozen=True, slots=True, eq=False)
class SentenceEncoder:
    """Made by `load` and `open`. Texts are encoded in float32, on the CPU unless `model` is moved."""

    model: Any
    tokenizer: Tokenizer
    """It cuts and pads, to the right."""
    pooling: Pooling

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Raises InvalidRequest, naming the folder, if it has no encoder that transformers can read."""
        from transformers import AutoTokenizer

        model = _model(folder, InvalidRequest)
        try:
            with quiet_transformers():
                fast = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            raise InvalidRequest(f"{folder}: its tokenizer cannot be loaded ({error})") from error
        if not fast.is_fast:
            raise InvalidRequest(f"{folder}: has no tokenizer.json; save its tokenizer with transformers first")
        tokenizer = Tokenizer.from_str(fast.backend_tokenizer.to_str())
        limit = int(_settings(folder / "sentence_bert_config.json").get("max_seq_length") or MAX_TOKENS)
        tokenizer.enable_truncation(min(limit, MAX_TOKENS))
        tokenizer.enable_padding(pad_id=fast.pad_token_id or 0, pad_token=fast.pad_token or "[PAD]")
        return cls(model, tokenizer, _pooling(folder / "1_Pooling" / "config.json"))

    @classmethod
    def open(cls, folder: Path, pooling: Pooling) -> Self:
        """Read what `save` has written. Raises BankError, naming the folder, for anything else."""
        try:
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # tokenizers raises nothing narrower
            raise BankError(f"{folder / 'tokenizer.json'}: cannot be read ({error}); train the router again") from error
        return cls(_model(folder, BankError), tokenizer, pooling)

    def save(self, folder: Path) -> None:
        with quiet_transformers():
            self.model.save_pretrained(folder, safe_serialization=True, max_shard_size="100GB")
        self.tokenizer.save(str(folder / "tokenizer.json"))

    @property
    def width(self) -> int:
        """I, the length of an encoded text."""
        return int(self.model.config.hidden_size)

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def vocabulary_size(self) -> int:
        return max(self.tokenizer.get_vocab().values()) + 1

    def encode(self, texts: Sequence[str], *, report: Progress = silent) -> Floats:
        """Encode B texts, (B, I), those of a length together. `report` gets (texts done, all texts)."""
        import torch

        x = np.zeros((len(texts), self.width), np.float32)
        order = sorted((n for n, text in enumerate(texts) if text.strip()), key=lambda n: len(texts[n]))
        with torch.inference_mode():
            for start in range(0, len(order), _BATCH):
                rows = order[start : start + _BATCH]
                x[rows] = self.embed([texts[row] for row in rows]).cpu().numpy()
                report(min(start + _BATCH, len(order)), len(order))
        return x

    @property
    def most_parts(self) -> int:
        """Every run is a pass of the encoder."""
        return _MOST_PARTS

    def encode_runs(self, parts: Sequence[str], runs: Sequence[tuple[int, int]]) -> Floats:
        """Encode parts[start:end], joined, for each of B runs, (B, I)."""
        return self.encode(["".join(parts[start:end]) for start, end in runs])

    def embed(self, texts: Sequence[str]) -> Tensor:
        """One batch, (B, I), through which gradients flow unless they are off."""
        import torch

        encodings = self.tokenizer.encode_batch([readable(text) for text in texts])
        ids = torch.tensor([encoding.ids for encoding in encodings], device=self.model.device)
        mask = torch.tensor([encoding.attention_mask for encoding in encodings], device=self.model.device)
        pooled = self._pool(self.model(input_ids=ids, attention_mask=mask).last_hidden_state, mask)
        return torch.nn.functional.normalize(pooled, dim=1)

    def encode_pieces(self, indices: Sequence[int], *, report: Progress = silent) -> Floats:
        """Encode each piece of the vocabulary as if it were a text, (V, I), without scaling to unit length."""
        import torch

        # what the tokenizer puts around a text
        template = self.tokenizer.encode("a")
        first = template.ids[: template.special_tokens_mask.index(0)]
        last = template.ids[len(first) + template.special_tokens_mask.count(0) :]
        rows = np.zeros((len(indices), self.width), np.float32)
        with torch.inference_mode():
            for start in range(0, len(indices), 8 * _BATCH):
                pieces = [[*first, index, *last] for index in indices[start : start + 8 * _BATCH]]
                ids = torch.tensor(pieces, device=self.model.device)
                hidden = self.model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
                rows[start : start + len(ids)] = hidden.mean(dim=1).cpu().numpy()
                report(start + len(ids), len(indices))
        return rows

    def digest(self) -> str:
        """Of the weights and the tokenizer."""
        digest = hashlib.sha256(self.tokenizer.to_str().encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.cpu().contiguous().view(-1).numpy().tobytes())
        return digest.hexdigest()

    def _pool(self, hidden_BTH: Tensor, mask_BT: Tensor) -> Tensor:
        import torch

        if self.pooling == "first":
            return hidden_BTH[:, 0]
        if self.pooling == "last":
            return hidden_BTH[torch.arange(len(mask_BT)), mask_BT.sum(dim=1) - 1]
        weights = mask_BT.unsqueeze(2).to(hidden_BTH.dtype)
        return (hidden_BTH * weights).sum(dim=1) / weights.sum(dim=1)


def _model(folder: Path, mistake: type[InvalidRequest] | type[BankError]) -> Any:
    import torch
    from transformers import AutoModel

    if not (folder / "config.json").is_file():
        raise mistake(f"{folder}: no config.json; name the folder of a Hugging Face encoder")
    try:
        with quiet_transformers():
            return AutoModel.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, dtype=torch.float32
            ).eval()
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise mistake(f"{folder}: not an encoder that transformers can load ({error})") from error


def _pooling(path: Path) -> Pooling:
    modes = [mode for mode, on in _settings(path).items() if mode.startswith("pooling_mode") and on is True]
    if not modes:
        return "mean"
    if len(modes) > 1 or modes[0] not in _POOLING:
        raise InvalidRequest(f"{path}: pools by {', '.join(modes)}; a router can use one of {', '.join(_POOLING)}")
    return _POOLING[modes[0]]


def _settings(path: Path) -> dict[str, Any]:
    try:
        settings: dict[str, Any] = parse_json(read_regular(path))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise InvalidRequest(f"{path}: cannot be read ({error})") from error
    return settings
