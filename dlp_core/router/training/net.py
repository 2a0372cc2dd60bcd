"""The router's network in torch, and how it is fitted: the tables of a word encoder, and the layers behind an encoder.

    loss = cross-entropy to the tasks + MEANING * (1 - cosine to the teacher's embedding) + divergence of two passes

Texts of no task push the softmax flat (Lee et al. 2018, arXiv 1711.09325), at a weight of FLAT. The layer that predicts
the teacher's embedding is thrown away: what matters is what it makes the hidden layer keep. Each batch passes twice,
with other features and units dropped, and both results are drawn together (R-Drop: Liang et al. 2021, arXiv
2106.14448)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from dlp_core.router.encoder import Floats
from dlp_core.router.features import BUCKETS, Indices
from dlp_core.router.network import Network
from dlp_core.router.training.corpus import Corpus, Sample
from dlp_core.router.training.progress import CHECKPOINT_STEPS, Watch
from dlp_core.router.vocabulary import TextFeatures
from dlp_core.router.words import GRAM_SCALE, LENGTH_SCALE, LENGTHS, PIECE_SCALE, lengths

MEANING, FLAT = 5.0, 0.45

_PHASE = "fit"
_TINY = 1e-6
_MOST = 256  # features of a long text that a step looks at: their mean is close to that of all


@dataclass(frozen=True, slots=True)
class NetSettings:
    """How long, on what and how fast the network is trained. The rates of samples are per row and epoch."""

    epochs: int = 12
    min_steps: int = 400
    batch: int = 192
    degraded: float = 0.15
    swapped: float = 0.05
    background: float = 0.4
    everyday: float = 0.5
    widths: tuple[int, ...] = (512,)
    dropout: float = 0.3
    feature_dropout: float = 0.1
    smoothing: float = 0.1
    lr: float = 4e-3
    gram_lr: float = 1e-2
    weight_decay: float = 1e-3


class Inputs(Protocol):
    """Encodes the samples of a corpus."""

    @property
    def width(self) -> int: ...

    def of(self, indices: NDArray[np.int64], *, whole: bool = False) -> Tensor:
        """(B, I); `whole` leaves out nothing of them."""
        ...

    def state(self) -> dict[str, Any]:
        """All that changes in a training."""
        ...

    def restore(self, state: dict[str, Any]) -> None: ...

    def groups(self, settings: NetSettings) -> list[dict[str, object]]:
        """What the optimiser learns of it."""
        ...


class FixedInputs:
    """Of an encoder that stays as it is."""

    def __init__(self, x_NI: Floats) -> None:
        self._x = torch.from_numpy(x_NI)

    @property
    def width(self) -> int:
        return self._x.shape[1]

    def of(self, indices: NDArray[np.int64], *, whole: bool = False) -> Tensor:
        del whole
        return self._x[torch.from_numpy(indices)]

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        pass

    def groups(self, settings: NetSettings) -> list[dict[str, object]]:
        return []


class WordInputs:
    """The formula of words.WordEncoder, with trained tables; some features are left out at random."""

    def __init__(
        self, features: Sequence[TextFeatures], pieces_VD: Floats, grams_width: int, *, drop: float, seed: int
    ) -> None:
        self._features = features
        self._drop = drop
        self._random = np.random.default_rng(seed)
        self.pieces = nn.EmbeddingBag.from_pretrained(torch.from_numpy(pieces_VD.copy()), freeze=False, mode="sum")
        self.grams = nn.EmbeddingBag(BUCKETS, grams_width, mode="sum")
        nn.init.normal_(self.grams.weight, std=0.05)

    @property
    def width(self) -> int:
        return self.pieces.embedding_dim + self.grams.embedding_dim + len(LENGTHS)

    def of(self, indices: NDArray[np.int64], *, whole: bool = False) -> Tensor:
        features = [self._features[index] for index in indices]
        pieces, _ = self._sums(self.pieces, [own.pieces for own in features], whole)
        grams, counts = self._sums(self.grams, [own.grams for own in features], whole)
        unit = pieces / pieces.norm(dim=1, keepdim=True).clamp_min(_TINY)
        logs = np.log(np.array([[max(len(own.grams), 1)] for own in features], np.float32))
        length = torch.from_numpy(LENGTH_SCALE * lengths(logs))
        return torch.cat([PIECE_SCALE * unit, GRAM_SCALE * grams / counts, length], dim=1)

    def groups(self, settings: NetSettings) -> list[dict[str, object]]:
        return [
            {"params": list(self.pieces.parameters()), "lr": settings.lr},
            {"params": list(self.grams.parameters()), "lr": settings.gram_lr},
        ]

    def tables(self) -> tuple[Floats, Floats]:
        return _array(self.pieces.weight), _array(self.grams.weight)

    def state(self) -> dict[str, Any]:
        return {
            "pieces": self.pieces.state_dict(),
            "grams": self.grams.state_dict(),
            "random": self._random.bit_generator.state,
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.pieces.load_state_dict(state["pieces"])
        self.grams.load_state_dict(state["grams"])
        self._random.bit_generator.state = state["random"]

    def _sums(self, bag: nn.EmbeddingBag, rows: Sequence[Indices], whole: bool) -> tuple[Tensor, Tensor]:
        """Sums over a part of each text's rows, (B, D), and how many they are, (B, 1); a single row always counts."""
        kept = [row if whole else self._some(row) for row in rows]
        lengths = [len(row) for row in kept]
        starts = np.cumsum([0, *lengths[:-1]])
        sums = bag(torch.from_numpy(np.concatenate(kept).astype(np.int64)), torch.from_numpy(starts))
        return sums, torch.tensor(lengths, dtype=torch.float32).clamp_min(1.0)[:, None]

    def _some(self, row: Indices) -> Indices:
        """A random part of a text's rows: most of them, or _MOST."""
        if len(row) > _MOST:
            return row[self._random.integers(0, len(row), _MOST)]
        return row[self._random.random(len(row)) >= self._drop] if len(row) > 1 else row


class Layers(nn.Module):
    """The layers behind the encoder, with dropout."""

    def __init__(self, width: int, adapters: int, meaning: int, settings: NetSettings) -> None:
        super().__init__()
        self.hidden = nn.ModuleList(nn.Linear(*pair) for pair in pairwise((width, *settings.widths)))
        self.output = nn.Linear(settings.widths[-1], adapters)
        self.meaning = nn.Linear(settings.widths[-1], meaning) if meaning else None
        self._dropout = nn.Dropout(settings.dropout)

    def forward(self, x_BI: Tensor) -> tuple[Tensor, Tensor | None]:
        """Logits (B, N) and, with a teacher, meanings (B, T)."""
        h = self._dropout(x_BI)
        for layer in self.hidden:
            h = self._dropout(functional.gelu(layer(h), approximate="tanh"))
        return self.output(h), None if self.meaning is None else self.meaning(h)

    def export(self) -> Network:
        layers = [layer for layer in self.hidden if isinstance(layer, nn.Linear)]
        return Network(
            tuple(_array(layer.weight) for layer in layers),
            tuple(_array(layer.bias) for layer in layers),
            _array(self.output.weight),
            _array(self.output.bias),
            np.zeros(self.output.out_features, np.bool_),
        )


def fit(
    inputs: Inputs,
    corpus: Corpus,
    adapters: int,
    settings: NetSettings,
    seed: int,
    *,
    held_back: Sequence[int],
    watch: Watch,
    part: tuple[float, float],
) -> tuple[Network, int]:
    """Fit the layers, and the tables of `inputs` if it has any; returns the layers and the number of steps.

    `inputs` encodes the samples, and after them texts that are not trained on, of the tasks `held_back`. It is `part`
    of all the work, from and to."""
    samples = corpus.samples
    random = np.random.default_rng(seed)
    layers = Layers(inputs.width, adapters, corpus.embeddings_ET.shape[1], settings)
    per_epoch = len(_epoch(corpus, settings, random))
    steps = max(settings.min_steps, settings.epochs * per_epoch // settings.batch)
    groups = [{"params": list(layers.parameters()), "lr": settings.lr}, *inputs.groups(settings)]
    optimizer = torch.optim.AdamW(groups, weight_decay=settings.weight_decay, fused=True)
    rates = [group["lr"] for group in groups]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=steps)  # type: ignore[arg-type]
    queue = np.zeros(0, np.int64)
    first = 0
    if (state := watch.checkpoints.load(_PHASE)) is not None:
        layers.load_state_dict(state["layers"])
        inputs.restore(state["inputs"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        random.bit_generator.state = state["epochs"]
        torch.set_rng_state(state["random"])
        queue, first = state["queue"].numpy(), state["step"]
    report = watch.steps("fit", *part, settings.batch)
    for step in range(first, steps):
        if len(queue) < settings.batch:
            queue = np.concatenate([queue, _epoch(corpus, settings, random)])
        batch, queue = queue[: settings.batch], queue[settings.batch :]
        passes = [layers(inputs.of(batch)) for _ in range(2)]
        loss = _loss(passes, [samples[index] for index in batch], corpus, settings.smoothing)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        done, held_back_loss = step + 1, None
        stopping = watch.checkpoints.stopping()
        if done % CHECKPOINT_STEPS == 0 or done == steps or stopping:
            held_back_loss = _held_back_loss(inputs, layers, len(samples), held_back)
            watch.checkpoints.save(
                _PHASE,
                {
                    "layers": layers.state_dict(),
                    "inputs": inputs.state(),
                    "optimizer": optimizer.state_dict(),
                    "schedule": schedule.state_dict(),
                    "epochs": random.bit_generator.state,
                    "random": torch.get_rng_state(),
                    "queue": torch.from_numpy(queue.copy()),
                    "step": done,
                },
            )
        report(done, steps, loss.item(), held_back_loss)
        if stopping:
            raise watch.interrupted()
    return layers.export(), steps


@torch.no_grad()
def _held_back_loss(inputs: Inputs, layers: Layers, first: int, tasks: Sequence[int]) -> float:
    """Mean cross-entropy of the texts after the `first` ones."""
    layers.eval()
    logits, _ = layers(inputs.of(np.arange(first, first + len(tasks)), whole=True))
    layers.train()
    return functional.cross_entropy(logits, torch.tensor(tasks)).item()


def _epoch(corpus: Corpus, settings: NetSettings, random: np.random.Generator) -> NDArray[np.int64]:
    """The indices of an epoch's samples: all rows, and some of the others."""
    rows, first, indices = len(corpus.rows), len(corpus.rows), [np.arange(len(corpus.rows))]
    for kind in ("degraded", "swapped", "background", "everyday"):
        count = len(getattr(corpus, kind))
        drawn = min(count, round(getattr(settings, kind) * rows))
        indices.append(first + random.choice(count, drawn, replace=False))
        first += count
    return random.permutation(np.concatenate(indices))


def _loss(
    passes: Sequence[tuple[Tensor, Tensor | None]], samples: Sequence[Sample], corpus: Corpus, smoothing: float
) -> Tensor:
    (first, _), (second, _) = passes
    target = _target(samples, first.shape[1], smoothing)
    weight = torch.tensor([_weight(sample) for sample in samples])
    weight = weight / sum(bool(sample.tasks) for sample in samples)
    goals = torch.from_numpy(corpus.meanings(samples))
    known = goals.any(dim=1)
    loss = _divergence(first, second) + _divergence(second, first)
    for logits, meanings in passes:
        loss = loss + (weight * functional.cross_entropy(logits, target, reduction="none")).sum()
        if meanings is not None:
            distance = 1.0 - functional.cosine_similarity(meanings, goals)
            loss = loss + MEANING * (distance * known).sum() / known.sum().clamp_min(1)
    return loss / 2


def _weight(sample: Sample) -> float:
    fits = float(bool(sample.tasks)) if sample.shares is None else sample.shares.fits
    return fits + (1.0 - fits) * FLAT


def _target(samples: Sequence[Sample], adapters: int, smoothing: float) -> Tensor:
    """The distribution of each sample, (B, N): smoothed labels, and flat for texts of no task."""
    target = np.full((len(samples), adapters), 1.0 / adapters, np.float32)
    for row, sample in enumerate(samples):
        if sample.shares is not None:
            sure = sample.shares.fits * (1.0 - smoothing)
            target[row] *= 1.0 - sure
            for index, share in sample.shares.of:
                target[row, index] += sure * share
        elif sample.tasks:
            target[row] *= smoothing
            target[row, list(sample.tasks)] += (1.0 - smoothing) / len(sample.tasks)
    return torch.from_numpy(target)


def _divergence(logits: Tensor, other: Tensor) -> Tensor:
    """Kullback-Leibler divergence of the softmaxes, mean over the batch."""
    return functional.kl_div(
        logits.log_softmax(dim=1), other.log_softmax(dim=1), log_target=True, reduction="batchmean"
    )


def _array(tensor: Tensor) -> Floats:
    array: Floats = tensor.detach().numpy().copy()
    return array
