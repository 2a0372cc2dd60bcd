"""Trains a router on rows: the network with torch, then novelty and calibration on the weights as they are stored.

The same rows and seed give the same bytes on one machine.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from random import Random
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from dlp_core.errors import InvalidRequest
from dlp_core.router.augment import degrade, join, out_of_scope
from dlp_core.router.calibration import (
    Calibration,
    expected_calibration_error,
    fit_joined_temperature,
    fit_none,
    fit_temperature,
)
from dlp_core.router.features import BUCKETS, Features, featurise
from dlp_core.router.memory import MEMORY_SIZE, NO_TASK, Memory
from dlp_core.router.network import WINDOW, Floats, Network, softmax
from dlp_core.router.novelty import Clusters, fit_clusters
from dlp_core.router.router import Router, pack, unpack
from dlp_core.router.rows import TaskRow
from dlp_core.store.transfers import Progress, silent

MIN_ROWS = 8
"""Minimum rows per task: fewer cannot be both trained on and held back."""

KEEP = {"plain": 0.995, "degraded": 0.93, "joined": 0.93}
"""Fraction of the held-back texts of each kind that must not become "none of these"."""

_THREADS = 1  # fixed, because the order of sums depends on it; more gain little, and lose much on a busy machine
_HELD_BACK = 1 / 16
_CLUSTER_TEXTS = 8000
_MAX_REMEMBERED = 72  # texts per task, as far as the memory has room


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """The sizes give 4.9 million parameters; the rates are the fractions of a batch that are augmented."""

    seed: int = 0
    epochs: int = 6
    min_steps: int = 200
    batch: int = 256
    out_of_scope: float = 0.2
    joined: float = 0.2
    degraded: float = 0.3
    lr: float = 3e-3
    embedding: int = 72
    widths: tuple[int, int, int] = (256, 128, 96)
    dropout: float = 0.1


@dataclass(frozen=True, slots=True)
class TrainSummary:
    """Filled by train_router. Fractions and errors are over held-back rows."""

    rows: int
    background_rows: int
    adapters: int
    parameters: int
    steps: int
    held_back: int
    accuracy: float
    ece: float
    kept: float
    seed: int
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Example(NamedTuple):
    """A text and its tasks: one, two for joined texts, none for background rows and other out-of-scope texts."""

    text: str
    tasks: tuple[int, ...]


def train_router(
    rows: Sequence[TaskRow], settings: TrainSettings | None = None, *, report: Progress = silent
) -> tuple[Router, TrainSummary]:
    """Train on rows of two or more tasks; `report` gets (steps done, total steps).

    Labels are the sorted task names. Raises InvalidRequest for fewer than two tasks or a task with fewer than MIN_ROWS
    rows.
    """
    settings = settings or TrainSettings()
    began = time.monotonic()
    labels, examples = _label(rows)
    rng = Random(settings.seed)
    training, held_back = _split(examples, rng)
    settings = replace(settings, batch=min(settings.batch, len(training)))
    net, steps = _fit_network(training, len(labels), settings, rng, report)
    single = [example for example in training if example.tasks]
    clusters = _fit_clusters(net, single, len(labels), rng)
    network, clusters, memory = unpack(pack(net, clusters, _remember(net, training, len(labels), rng)))
    known = [example for example in held_back if example.tasks]
    background = [example for example in held_back if not example.tasks]
    clusters, calibration = _calibrate(network, clusters, known, background, rng)

    router = Router(
        labels=tuple(labels), network=network, clusters=clusters, calibration=calibration, memory=memory, training={}
    )
    routings = router.route([example.text for example in known])
    correct = np.array(
        [routing.best == labels[example.tasks[0]] for routing, example in zip(routings, known, strict=True)]
    )
    summary = TrainSummary(
        rows=len(rows),
        background_rows=sum(row.task is None for row in rows),
        adapters=len(labels),
        parameters=network.parameters,
        steps=steps,
        held_back=len(known),
        accuracy=float(correct.mean()),
        ece=expected_calibration_error(np.array([routing.confidence for routing in routings]), correct),
        kept=float(np.mean([bool(routing.mix()) for routing in routings])),
        seed=settings.seed,
        seconds=time.monotonic() - began,
    )
    router.training.update({name: value for name, value in summary.as_dict().items() if name != "seconds"})
    return router, summary


def _label(rows: Sequence[TaskRow]) -> tuple[list[str], list[Example]]:
    counts = Counter(row.task for row in rows if row.task is not None)
    labels = sorted(counts)
    if len(labels) < 2:
        raise InvalidRequest(
            f"the rows name {len(labels)} task{'' if len(labels) == 1 else 's'}; a router chooses between two or more"
        )
    for task in labels:
        if counts[task] < MIN_ROWS:
            raise InvalidRequest(f"task {task!r} has {counts[task]} rows; give each task at least {MIN_ROWS}")
    index_of = {task: index for index, task in enumerate(labels)}
    return labels, [Example(row.input, () if row.task is None else (index_of[row.task],)) for row in rows]


def _split(examples: list[Example], rng: Random) -> tuple[list[Example], list[Example]]:
    """Split into shuffled training examples and held-back ones, which get a share of every task, at least two."""
    by_task: dict[tuple[int, ...], list[Example]] = defaultdict(list)
    for example in examples:
        by_task[example.tasks].append(example)
    training: list[Example] = []
    held_back: list[Example] = []
    for _, members in sorted(by_task.items()):
        rng.shuffle(members)
        cut = max(2, round(len(members) * _HELD_BACK)) if len(members) >= MIN_ROWS else 0
        held_back += members[:cut]
        training += members[cut:]
    rng.shuffle(training)
    return training, held_back


class _Net(nn.Module):
    """The formula of network.Network in torch, with dropout."""

    def __init__(self, outputs: int, settings: TrainSettings) -> None:
        super().__init__()
        widths = [3 * settings.embedding + 1, *settings.widths, outputs]
        self.table = nn.EmbeddingBag(BUCKETS, settings.embedding, mode="sum")
        nn.init.normal_(self.table.weight, std=0.1)
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(widths))
        self.dropout = nn.Dropout(settings.dropout)

    def forward(self, texts: Sequence[str]) -> Tensor:
        features = featurise(texts)
        views = (features, features.ends(WINDOW), features.ends(-WINDOW))
        counts = torch.from_numpy(np.maximum([view.counts() for view in views], 1)).float().unsqueeze(2)
        joined = Features.concatenate(views)  # one lookup, because each has a dense gradient of the table's size
        sums = self.table(torch.from_numpy(joined.buckets), torch.from_numpy(joined.starts)).unflatten(0, (3, -1))
        x = torch.cat([*(sums / counts.sqrt()), counts[0].log()], dim=1)
        for layer in self.layers[:-1]:
            x = self.dropout(functional.relu(layer(x)))
        logits: Tensor = self.layers[-1](x)
        return logits

    def export(self) -> Network:
        def array(tensor: Tensor) -> Floats:
            return tensor.detach().numpy().copy()

        linears = [layer for layer in self.layers if isinstance(layer, nn.Linear)]
        weights = [array(layer.weight) for layer in linears]
        weights[-1] = np.pad(weights[-1], ((0, 0), (0, self.table.embedding_dim)))  # only outputs added later use x_D
        return Network(array(self.table.weight), tuple(weights), tuple(array(layer.bias) for layer in linears))


def _fit_network(
    examples: list[Example], adapters: int, settings: TrainSettings, rng: Random, report: Progress
) -> tuple[Network, int]:
    real_examples = settings.batch - int(settings.batch * settings.out_of_scope)
    steps = max(settings.min_steps, settings.epochs * len(examples) // real_examples)
    threads = torch.get_num_threads()
    torch.set_num_threads(_THREADS)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            net = _Net(adapters + 1, settings)
            optimizer = torch.optim.AdamW(net.parameters(), lr=settings.lr, weight_decay=1e-4, fused=True)
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.lr, total_steps=steps, pct_start=0.1)
            batches = _Batches(examples, adapters, settings, rng)
            for step in range(steps):
                texts, targets = batches.draw()
                loss = functional.cross_entropy(net(texts), targets)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
                report(step + 1, steps)
            return net.export(), steps
    finally:
        torch.set_num_threads(threads)


class _Batches:
    """Endless batches: every row once per epoch, some of them degraded or joined, plus out-of-scope texts."""

    def __init__(self, examples: list[Example], adapters: int, settings: TrainSettings, rng: Random) -> None:
        self._examples = examples
        self._texts = [example.text for example in examples if example.tasks]
        self._none = adapters
        self._settings = settings
        self._rng = rng
        self._queue: list[Example] = []

    def draw(self) -> tuple[list[str], Tensor]:
        """A batch of texts and their target distributions over N + 1 outputs."""
        out_of_scope_count = int(self._settings.batch * self._settings.out_of_scope)
        examples = [self._next() for _ in range(self._settings.batch - out_of_scope_count)]
        examples += [Example(out_of_scope(self._texts, self._rng), ()) for _ in range(out_of_scope_count)]
        labelled = [Example(text, tasks or (self._none,)) for text, tasks in examples]
        return [example.text for example in labelled], torch.from_numpy(_targets(labelled, self._none + 1))

    def _next(self) -> Example:
        if not self._queue:
            self._queue = self._rng.sample(self._examples, len(self._examples))
        example = self._queue.pop()
        draw = self._rng.random()
        if draw < self._settings.joined:
            return _join_any(example, self._examples, self._rng)
        if draw < self._settings.joined + self._settings.degraded:
            return Example(degrade(example.text, self._rng), example.tasks)
        return example


def _join_any(first: Example, examples: Sequence[Example], rng: Random) -> Example:
    """Join `first` with a random row into one text; `first` alone unless both have a task and the tasks differ."""
    second = rng.choice(examples)
    if not first.tasks or not second.tasks or first.tasks == second.tasks:
        return first
    return Example(join(first.text, second.text, rng), first.tasks + second.tasks)


def _fit_clusters(network: Network, examples: list[Example], adapters: int, rng: Random) -> Clusters:
    plain = _sample(examples, _CLUSTER_TEXTS, rng)
    degraded = [Example(degrade(example.text, rng), example.tasks) for example in plain]
    return fit_clusters(
        plain=_hidden(network, plain),
        degraded=_hidden(network, degraded),
        joined=_hidden(network, _joined(examples, _CLUSTER_TEXTS, rng)),
        adapters=adapters,
    )


def _remember(network: Network, examples: list[Example], adapters: int, rng: Random) -> Memory:
    """Sample plain and degraded prompts of every task and out-of-scope texts, with background rows among them."""
    single = [example for example in examples if example.tasks]
    no_task = [Example(out_of_scope([example.text for example in single], rng), ()) for _ in range(MEMORY_SIZE // 16)]
    background = [example for example in examples if not example.tasks]
    no_task += rng.sample(background, min(MEMORY_SIZE // 4, len(background)))
    plain = _sample(single, min(MEMORY_SIZE - len(no_task), _MAX_REMEMBERED * adapters) * 2 // 3, rng, min_rows=2)
    degraded = [Example(degrade(example.text, rng), example.tasks) for example in plain[::2]]
    chosen = [*plain, *degraded, *no_task]
    inputs = np.concatenate(
        [network.embed(featurise([example.text for example in chosen[i : i + 64]])) for i in range(0, len(chosen), 64)]
    )
    return Memory(inputs, np.array([[*example.tasks, NO_TASK][0] for example in chosen], np.int16))


def _calibrate(
    network: Network, clusters: Clusters, held_back: list[Example], background: list[Example], rng: Random
) -> tuple[Clusters, Calibration]:
    """Fit spreads, threshold and temperatures, on texts the network has not seen."""
    kinds = {
        "plain": held_back,
        "degraded": [Example(degrade(example.text, rng), example.tasks) for example in held_back],
        "joined": _joined(held_back, len(held_back), rng),
    }
    outputs = {kind: _forward(network, examples) for kind, examples in kinds.items()}
    tasks = np.array([example.tasks[0] for example in held_back])
    clusters = clusters.with_spreads({kind: (outputs[kind][0], tasks) for kind in ("plain", "degraded")})
    novelty = {kind: clusters.novelty(hidden, softmax(logits))[0] for kind, (hidden, logits) in outputs.items()}
    background_novelty = np.zeros(0, np.float32)
    if background:
        hidden, logits = _forward(network, background)
        background_novelty = clusters.novelty(hidden, softmax(logits))[0]
    threshold, slope = fit_none(novelty, KEEP, background_novelty)
    adapters = outputs["plain"][1].shape[1] - 1
    temperature = fit_temperature(outputs["plain"][1][:, :-1], tasks)
    joined_temperature = fit_joined_temperature(outputs["joined"][1][:, :-1], _targets(kinds["joined"], adapters))
    return clusters, Calibration(temperature, joined_temperature, threshold, slope)


def _targets(examples: Sequence[Example], outputs: int) -> Floats:
    """The target distribution of each example, (B, outputs): half and half for a joined text."""
    targets = np.zeros((len(examples), outputs), np.float32)
    for row, example in enumerate(examples):
        targets[row, list(example.tasks)] = 1.0 / len(example.tasks)
    return targets


def _sample(examples: list[Example], count: int, rng: Random, *, min_rows: int = MIN_ROWS) -> list[Example]:
    """Sample about `count` examples, evenly over tasks, at least `min_rows` of each: rare tasks need a cluster too."""
    by_task: dict[tuple[int, ...], list[Example]] = defaultdict(list)
    for example in examples:
        by_task[example.tasks].append(example)
    share = max(min_rows, count // len(by_task))
    return [e for _, members in sorted(by_task.items()) for e in rng.sample(members, min(share, len(members)))]


def _joined(examples: list[Example], count: int, rng: Random) -> list[Example]:
    """Make `count` texts of two different tasks each, all tasks equally likely."""
    by_task: dict[tuple[int, ...], list[Example]] = defaultdict(list)
    for example in examples:
        by_task[example.tasks].append(example)
    tasks = sorted(by_task)
    pairs = [tuple(rng.choice(by_task[task]) for task in rng.sample(tasks, 2)) for _ in range(count)]
    return [Example(join(first.text, second.text, rng), first.tasks + second.tasks) for first, second in pairs]


def _forward(network: Network, examples: Sequence[Example]) -> tuple[Floats, Floats]:
    chunks = [
        network.forward(network.embed(featurise([example.text for example in examples[start : start + 64]])))
        for start in range(0, len(examples), 64)
    ]
    return np.concatenate([hidden for hidden, _, _ in chunks]), np.concatenate([logits for _, _, logits in chunks])


def _hidden(network: Network, examples: Sequence[Example]) -> tuple[Floats, NDArray[np.int64]]:
    return _forward(network, examples)[0], np.array([example.tasks for example in examples])
