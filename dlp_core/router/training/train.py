"""Trains a router on rows: the encoder's tables and the layers with torch, then everything else on the weights as they
are stored.

The same rows, seed and teacher give the same bytes on one machine, also where training was interrupted and resumed. Its
checkpoint (store/checkpoints.py) has a file for each phase that takes long: tuning the encoder, what it makes of texts,
fitting the network.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch

from dlp_core.router import drift
from dlp_core.router.calibration import expected_calibration_error
from dlp_core.router.encoder import Encoder, Floats
from dlp_core.router.files import Parts, pack, unpack
from dlp_core.router.network import Network
from dlp_core.router.router import Router
from dlp_core.router.rows import TaskRow
from dlp_core.router.sentence_encoder import SentenceEncoder
from dlp_core.router.slots import Slots, few_wordings, wording_warnings
from dlp_core.router.training import corpus, everyday, vocabulary
from dlp_core.router.training.calibrate import calibrate, cluster, remember
from dlp_core.router.training.corpus import Corpus
from dlp_core.router.training.examples import MIN_ROWS, Example, label, split
from dlp_core.router.training.fine_tuning import fine_tune
from dlp_core.router.training.net import FixedInputs, NetSettings, WordInputs, fit
from dlp_core.router.training.progress import Report, Watch, unreported
from dlp_core.router.training.soft_labels import settled
from dlp_core.router.training.teacher import Teacher, packaged_teacher, prepare, vectors
from dlp_core.router.words import WordEncoder
from dlp_core.store.checkpoints import Checkpoints
from dlp_core.store.transfers import Progress

_THREADS = 1  # fixed, because the order of sums depends on it; more gain little, and lose much on a busy machine
_ENCODED = 6000  # texts that such an encoder encodes for the clusters
_ENCODED_VARIANTS = 0.3  # variants per row for an encoder that takes milliseconds a text
_VALUES_PER_ROW = 4
_ENCODER_EPOCHS, _ENCODER_STEPS = 3, 150  # of tuning an encoder: epochs, and steps at least
_TEACHER_LAYERS = 2  # of a teacher that are tuned, in one epoch
_JUDGED = 500  # held-back rows whose loss is told while the network is fitted
_READ = 256  # characters of a row that the teacher reads: what it is about shows early
_HELD_BACK_REQUESTS = (
    500  # everyday requests, in frames that are not trained on; with rows of no task, as many as those
)


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """With the default teacher, the sizes give 5.3 million parameters for 150 adapters."""

    seed: int = 0
    net: NetSettings = field(default_factory=NetSettings)
    pieces: int = 128
    """Width of the vectors of word pieces."""
    grams: int = 32
    """Width of the vectors of n-grams."""
    teacher: Path | None = field(default_factory=packaged_teacher)
    """Folder of the teacher; None trains on the rows alone."""
    encoder: Path | None = None
    """Folder of an encoder to put in the place of the built-in one; it is its own teacher."""
    tuned_layers: int = 3
    """How many of that encoder's layers, from the last, are trained on the rows; 0 leaves it as it is."""
    keep: float | None = None
    """Fraction of the prompts of its tasks to keep; None chooses it, see calibrate.calibrate."""
    coverage: float | None = None
    """How often a mix must hold the right adapter, at least; None for mixes of DEFAULT_TOP_P."""
    device: str = "cpu"
    """Where the teacher or encoder runs while the router is trained. The same bytes are only promised on CPUs."""


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
    refused: float | None
    """Of held-back texts of no task; None without any."""
    auroc: float | None
    top_p: float
    teacher: str | None
    """Digest of the teacher or encoder, before it was tuned."""
    warnings: tuple[str, ...]
    seed: int
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def checkpoints_of(
    out: Path,
    rows: Sequence[TaskRow],
    settings: TrainSettings,
    *,
    resume: bool = False,
    stop: Callable[[], bool] = lambda: False,
) -> Checkpoints:
    """The checkpoint of a training of these rows whose router goes to `out`. Raises what Checkpoints raises."""
    fields = {f"--{name.replace('_', '-')}": value for name, value in asdict(settings).items()}
    content = json.dumps(
        [(row.task, row.input, row.weight, *([] if row.labels is None else [row.labels])) for row in rows]
    ).encode()
    depends_on = fields | {
        "--teacher": settings.teacher and settings.teacher.resolve().as_posix(),
        "--encoder": settings.encoder and settings.encoder.resolve().as_posix(),
        "--data": f"{len(rows)} rows {hashlib.sha256(content).hexdigest()[:12]}",
    }
    return Checkpoints(out, depends_on, resume=resume, stop=stop)


def train_router(
    rows: Sequence[TaskRow],
    settings: TrainSettings | None = None,
    *,
    checkpoints: Checkpoints | None = None,
    report: Report = unreported,
) -> tuple[Router, TrainSummary]:
    """Train on rows of two or more tasks.

    Labels are the sorted task names, and the adapters that soft labels call the best often enough. With `checkpoints`,
    from checkpoints_of, an interrupted training can be resumed; remove them once the router is saved. Raises
    InvalidRequest for rows or settings that it cannot be trained with: fewer than two tasks, a task with fewer than
    MIN_ROWS rows, a folder that has no encoder, a coverage out of reach; Interrupted when it was asked to stop.
    """
    watch = Watch(report, checkpoints)
    settings = settings or TrainSettings()
    began = time.monotonic()
    rows, left_out = settled(rows, min_rows=MIN_ROWS)
    labels, examples = label(rows)
    texts_by_task: dict[str, list[str]] = {}
    for row in rows:
        if row.task is not None:
            texts_by_task.setdefault(row.task, []).append(row.input)
    rng = Random(settings.seed)
    training, held_back = split(examples, rng)
    strangers = sum(not example.tasks for example in held_back)
    requests = everyday.requests(strangers or _HELD_BACK_REQUESTS, held_back=True)
    held_back += [Example(text, ()) for text in requests]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        teacher = _teacher(settings, training, len(labels), rng, watch)
    texts = corpus.build(
        training,
        teacher,
        rng,
        characters=None if settings.encoder else _READ,
        variants=_ENCODED_VARIANTS if settings.encoder else 1.0,
        watch=watch,
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(_THREADS)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            encoder, network, steps = _fit(texts, teacher, len(labels), held_back, settings=settings, watch=watch)
    finally:
        torch.set_num_threads(threads)
    if isinstance(encoder, SentenceEncoder):
        encoder.model.to("cpu")
    clusters = cluster(encoder, network, texts, len(labels), rng, limit=_ENCODED if settings.encoder else None)
    memory = remember(encoder, texts, len(labels), rng)
    given = encoder if settings.encoder else None
    encoder, network, clusters, memory = unpack(pack(Parts(encoder, network, clusters, memory)), given)
    clusters, calibration, curve = calibrate(
        encoder,
        network,
        clusters,
        held_back,
        other_values=_other_values(held_back, labels, texts_by_task, teacher, rng),
        keep=settings.keep,
        coverage=settings.coverage,
    )
    router = Router(
        labels=tuple(labels),
        encoder=encoder,
        network=network,
        clusters=clusters,
        calibration=calibration,
        curve=curve,
        memory=memory,
        training={},
    )
    known = [example for example in held_back if example.tasks]
    routings = router.route([example.text for example in known])
    correct = np.array(
        [routing.best == labels[example.tasks[0]] for routing, example in zip(routings, known, strict=True)]
    )
    summary = TrainSummary(
        rows=len(rows),
        background_rows=sum(row.task is None for row in rows),
        adapters=len(labels),
        parameters=router.parameters,
        steps=steps,
        held_back=len(known),
        accuracy=float(correct.mean()),
        ece=expected_calibration_error(np.array([routing.confidence for routing in routings]), correct),
        kept=float(np.mean([routing.fits for routing in routings])),
        refused=curve.refused(calibration.threshold),
        auroc=curve.auroc,
        top_p=calibration.top_p,
        teacher=None if teacher is None else teacher.digest,
        warnings=(*left_out, *wording_warnings(texts_by_task)),
        seed=settings.seed,
        seconds=time.monotonic() - began,
    )
    router.training.update({name: value for name, value in summary.as_dict().items() if name != "seconds"})
    router.training[drift.NOVELTY] = drift.reference(router, [example.text for example in known])
    return router, summary


def _other_values(
    held_back: Sequence[Example],
    labels: Sequence[str],
    texts_by_task: Mapping[str, Sequence[str]],
    teacher: Teacher | None,
    rng: Random,
) -> list[Example]:
    """Held-back rows with other slot values, of the tasks whose rows are few wordings."""
    few = few_wordings(texts_by_task)
    slots, values = Slots({task: texts_by_task[task] for task in few}), corpus.slot_values(teacher, rng)
    return [
        Example(slots.swap(example.text, labels[example.tasks[0]], values, rng), example.tasks)
        for example in held_back
        if example.tasks and labels[example.tasks[0]] in few
        for _ in range(_VALUES_PER_ROW)
    ]


def _teacher(
    settings: TrainSettings, training: Sequence[Example], adapters: int, rng: Random, watch: Watch
) -> Teacher | None:
    """What the router learns from, tuned to the rows: they say which differences matter."""
    own, folder = settings.encoder is not None, settings.encoder or settings.teacher
    if folder is None:
        return None
    encoder = SentenceEncoder.load(folder)
    encoder.model.to(settings.device)
    digest = encoder.digest()
    pieces = None if own else vectors(encoder, settings.pieces, report=watch.part("encode pieces", 0.0, 0.1))
    layers = settings.tuned_layers if own else _TEACHER_LAYERS
    epochs, min_steps = (_ENCODER_EPOCHS, _ENCODER_STEPS) if own else (1, 0)
    if layers:
        fine_tune(
            encoder,
            training,
            adapters,
            rng,
            layers=layers,
            epochs=epochs,
            min_steps=min_steps,
            watch=watch,
            part=(0.1, 0.4),
        )
    return prepare(encoder, pieces, digest=digest, watch=watch)


def _fit(
    texts: Corpus,
    teacher: Teacher | None,
    adapters: int,
    held_back: Sequence[Example],
    *,
    settings: TrainSettings,
    watch: Watch,
) -> tuple[Encoder, Network, int]:
    known = [example for example in held_back if example.tasks][:_JUDGED]
    judged, tasks = [example.text for example in known], [example.tasks[0] for example in known]
    if settings.encoder is not None and teacher is not None:
        encode = partial(_encoded, texts, judged, teacher, watch.part("encode samples", 0.6, 0.9))
        x = watch.checkpoints.once("samples", encode)
        network, steps = fit(
            FixedInputs(x),
            texts,
            adapters,
            settings.net,
            settings.seed,
            held_back=tasks,
            watch=watch,
            part=(0.9, 1.0),
        )
        return teacher.encoder, network, steps
    samples = [sample.text for sample in texts.samples]
    tokenizer = teacher.tokenizer if teacher else vocabulary.learn(samples)
    words = vocabulary.with_words(
        tokenizer, [sample.text for sample in (*texts.rows, *texts.background, *texts.everyday)]
    )
    random = np.random.default_rng(settings.seed)
    pieces = teacher.pieces_VD if teacher else random.normal(size=(words.size, settings.pieces)).astype(np.float32)
    inputs = WordInputs(
        words.features([*samples, *judged]),
        pieces,
        settings.grams,
        drop=settings.net.feature_dropout,
        seed=settings.seed,
    )
    network, steps = fit(
        inputs, texts, adapters, settings.net, settings.seed, held_back=tasks, watch=watch, part=(0.6, 1.0)
    )
    return WordEncoder(words, *inputs.tables()), network, steps


def _encoded(texts: Corpus, judged: Sequence[str], teacher: Teacher, report: Progress) -> Floats:
    """The samples, encoded by the teacher: what it has embedded for their meaning, and the others now; then `judged`,
    which are not trained on."""
    samples = texts.samples
    x = texts.meanings(samples)
    first, end = len(texts.rows), len(texts.rows) + len(texts.degraded) + len(texts.swapped)
    missing = [row for row, sample in enumerate(samples) if first <= row < end or sample.meaning is None]
    encoded = teacher.encoder.encode([*(samples[row].text for row in missing), *judged], report=report)
    x[missing] = encoded[: len(missing)]
    return np.concatenate([x, encoded[len(missing) :]])
