"""Fits a trained network's clusters, calibration and memory. The last two need texts that it has not seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from random import Random

import numpy as np

from dlp_core.router.calibration import Calibration, Curve, conformal_top_p, fit_temperature
from dlp_core.router.encoder import Encoder, Floats
from dlp_core.router.evaluation import MAX_ADAPTERS
from dlp_core.router.memory import MEMORY_SIZE, NO_TASK, Memory
from dlp_core.router.network import Network, softmax
from dlp_core.router.novelty import Clusters, fit_clusters
from dlp_core.router.training.corpus import Corpus
from dlp_core.router.training.examples import Example, sample

_CLUSTER_TEXTS = 24000
_STRANGERS = 128
_MAX_REMEMBERED = 72  # texts per task, as far as the memory has room
_CHUNK = 64


def cluster(
    encoder: Encoder, network: Network, corpus: Corpus, adapters: int, rng: Random, *, limit: int | None = None
) -> Clusters:
    """Clusters of rows, at most `limit`, with the spread of slot values and slips of the keyboard in them."""
    texts = [*corpus.rows, *corpus.swapped, *corpus.degraded]
    texts = rng.sample(texts, min(len(texts), limit or _CLUSTER_TEXTS))
    strangers = corpus.strangers(_STRANGERS, rng)
    return fit_clusters(
        encode(encoder, network, [text.text for text in texts]),
        np.array([text.tasks[0] for text in texts]),
        adapters,
        encode(encoder, network, [text.text for text in strangers]),
    )


def remember(encoder: Encoder, corpus: Corpus, adapters: int, rng: Random) -> Memory:
    """Sample rows of every task, evenly, and texts of no task."""
    background = corpus.strangers(MEMORY_SIZE // 8, rng)
    share = min(MEMORY_SIZE - len(background), _MAX_REMEMBERED * adapters)
    rows = sample([Example(row.text, row.tasks) for row in corpus.rows], share, rng, min_rows=2)
    chosen = [*rows, *(Example(text.text, ()) for text in background)][:MEMORY_SIZE]
    inputs = np.concatenate(
        [
            encoder.encode([example.text for example in chosen[start : start + _CHUNK]])
            for start in range(0, len(chosen), _CHUNK)
        ]
    )
    return Memory(inputs, np.array([[*example.tasks, NO_TASK][0] for example in chosen], np.int16))


def calibrate(
    encoder: Encoder,
    network: Network,
    clusters: Clusters,
    held_back: Sequence[Example],
    *,
    other_values: Sequence[Example],
    keep: float | None,
    coverage: float | None,
) -> tuple[Clusters, Calibration, Curve]:
    """Fit spreads, temperature, threshold and, for a `coverage`, top-p.

    `other_values` are variants of held-back rows that are to be kept as well, for tasks whose rows are few wordings.
    Without `keep`, the threshold is Curve.default_threshold.

    Raises InvalidRequest if no mix of MAX_ADAPTERS covers as much.
    """
    known = [example for example in held_back if example.tasks]
    tasks = np.array([example.tasks[0] for example in known])
    hidden = encode(encoder, network, [example.text for example in known])
    clusters = clusters.with_spreads(hidden, tasks)
    logits = network.logits(hidden)
    temperature = fit_temperature(logits, tasks)
    unknown = encode(encoder, network, [example.text for example in held_back if not example.tasks])
    others = encode(encoder, network, [example.text for example in other_values])
    plain, strangers, values = (clusters.novelty(h, softmax(network.logits(h))) for h in (hidden, unknown, others))
    curve = Curve.of(np.concatenate([plain, values]), strangers)
    threshold = curve.default_threshold() if keep is None else curve.threshold(keep)
    calibration = curve.tune(Calibration(temperature, 0.0, 1.0), threshold)
    if coverage is not None:
        top_p = conformal_top_p(calibration.probabilities(logits), tasks, coverage, largest=MAX_ADAPTERS)
        calibration = replace(calibration, top_p=top_p)
    return clusters, calibration, curve


def encode(encoder: Encoder, network: Network, texts: Sequence[str]) -> Floats:
    """The hidden vectors of texts, (B, H)."""
    chunks = [network.hidden(encoder.encode(texts[start : start + _CHUNK])) for start in range(0, len(texts), _CHUNK)]
    return np.concatenate([np.zeros((0, network.output_NH.shape[1]), np.float32), *chunks])
