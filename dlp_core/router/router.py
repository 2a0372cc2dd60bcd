"""A trained router: an encoder, the layers behind it, and what their outputs mean."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlp_core.router.calibration import Calibration, Curve
from dlp_core.router.encoder import Encoder, Floats
from dlp_core.router.features import clip
from dlp_core.router.files import Config, Parts, read, write
from dlp_core.router.memory import Memory
from dlp_core.router.network import Network, softmax
from dlp_core.router.novelty import Clusters
from dlp_core.router.parts import splits
from dlp_core.router.routing import Routing

MAX_LOG_ODDS = 50.0
"""Log-odds are clipped to plus or minus this value."""
_CHUNK = 64  # texts whose features are in memory at once
_UNLIKE_ONE_TASK = 0.5
"""This fraction of the prompts of one task is less novel than what may be two tasks; one in fifty pairs is, too."""
_BOTH_LIKELY, _TIMES_CHANCE, _LIKELY = 0.15, 3.0, 0.8
"""A text is split in two where each part has a likeliest adapter of at least this probability, before calibration, and
so many times that of chance, which is much where a bank has few adapters; one of _LIKELY always will do."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Router:
    """Routes texts over the adapters in `labels`. Immutable; may be used from several threads."""

    labels: tuple[str, ...]
    encoder: Encoder
    network: Network
    clusters: Clusters
    calibration: Calibration
    curve: Curve
    memory: Memory
    training: dict[str, Any]
    """What the training measured on held-back rows."""

    @property
    def parameters(self) -> int:
        return self.encoder.parameters + self.network.parameters + self.clusters.parameters

    def route(self, texts: Sequence[str]) -> list[Routing]:
        """Route each text. Text without visible characters is "none of these". Accepts any text. Raises TypeError for a
        single one, which would be read as a list of its letters."""
        _check_list(texts)
        chunks = (texts[start : start + _CHUNK] for start in range(0, len(texts), _CHUNK))
        return [routing for chunk in chunks for routing in self._route_chunk(chunk)]

    def route_first(self, choices: Sequence[Sequence[str]]) -> list[Routing]:
        """Route each sequence of texts by its first text that fits an adapter, or by its first text if none does. See
        dlp_core.text.chat.routing_texts."""
        routings = self.route([texts[0] for texts in choices])
        for turn in range(1, max(map(len, choices), default=0)):
            undecided = [n for n, texts in enumerate(choices) if turn < len(texts) and not routings[n].fits]
            for n, routing in zip(undecided, self.route([choices[n][turn] for n in undecided]), strict=True):
                if routing.fits:
                    routings[n] = replace(routing, turn=turn)
        return routings

    def log_odds(self, texts: Sequence[str], label: str | None) -> NDArray[np.float64]:
        """Log-odds of one adapter, (B,), exact even where its probability rounds to 1; clipped to MAX_LOG_ODDS. Of
        None: that some adapter fits.

        Texts are not split: this is about the words of one task. Raises TypeError as `route`.
        """
        _check_list(texts)
        logits, none_log_odds = self._infer(texts)
        if label is None:
            return -none_log_odds.astype(np.float64)
        scaled = self.calibration.scale_logits(logits).astype(np.float64)
        own = self.labels.index(label)
        others = np.logaddexp.reduce(np.delete(scaled, own, axis=1), axis=1, initial=-np.inf)
        neg_log_share = np.logaddexp(0, others - scaled[:, own])  # share: its probability given that some adapter fits
        none = none_log_odds.astype(np.float64)
        log_probability = -np.logaddexp(0, none) - neg_log_share
        log_rest = np.logaddexp(others - scaled[:, own] - neg_log_share, -np.logaddexp(0, -none) - neg_log_share)
        odds: NDArray[np.float64] = np.clip(log_probability - log_rest, -MAX_LOG_ODDS, MAX_LOG_ODDS)
        return odds

    def read_runs(self, parts: Sequence[str], runs: Sequence[tuple[int, int]]) -> tuple[Floats, Floats]:
        """Probabilities (B, N) and margins (B,) of B texts, each parts[start:end] joined and read as a prompt of one
        task: see Encoder.encode_runs."""
        logits, none_log_odds = self._read(self.encoder.encode_runs(parts, runs))
        return self.calibration.probabilities(logits), -none_log_odds

    def novelty(self, texts: Sequence[str]) -> Floats:
        """How far each text is from everything the router was trained for, (B,): see novelty.Clusters. Raises TypeError
        as `route`."""
        _check_list(texts)
        chunks = [self._hidden_novelty(texts[start : start + _CHUNK]) for start in range(0, len(texts), _CHUNK)]
        return np.concatenate([np.zeros(0, np.float32), *chunks])

    def _hidden_novelty(self, texts: Sequence[str]) -> Floats:
        hidden = self.network.hidden(self.encoder.encode(texts))
        return self.clusters.novelty(hidden, softmax(self.network.logits(hidden)))

    def _route_chunk(self, texts: Sequence[str]) -> list[Routing]:
        logits, none_log_odds = self._infer(texts)
        probabilities = self.calibration.probabilities(logits)
        self._split(texts, probabilities, none_log_odds)
        return [
            Routing(self.labels, array("f", row.tobytes()), -none, self.calibration.top_p)
            for row, none in zip(probabilities, none_log_odds.tolist(), strict=True)
        ]

    def _split(self, texts: Sequence[str], probabilities_BN: Floats, none_log_odds_B: Floats) -> None:
        """Replace the results of texts that are two tasks one after the other by the means of those of both parts."""
        parts: list[str] = []
        owners: list[int] = []
        for owner in np.flatnonzero(none_log_odds_B > self._unlike_one_task()).tolist():
            for pair in splits(clip(texts[owner])):
                parts += pair
                owners.append(owner)
        if not owners or len(self.labels) < 2:
            return
        logits, none_log_odds = self._infer(parts)
        raw = softmax(logits)
        likeliest = raw.argmax(axis=1)
        sure = raw.max(axis=1)
        calibrated = self.calibration.probabilities(logits)
        least = min(_LIKELY, max(_BOTH_LIKELY, _TIMES_CHANCE / len(self.labels)))
        best = np.full(len(texts), least, np.float32)
        for number, owner in enumerate(owners):
            first, second = 2 * number, 2 * number + 1
            score = min(sure[first], sure[second])
            if likeliest[first] != likeliest[second] and score >= best[owner]:
                best[owner] = score
                probabilities_BN[owner] = (calibrated[first] + calibrated[second]) / 2
                none_log_odds_B[owner] = min(none_log_odds[first], none_log_odds[second])

    def _unlike_one_task(self) -> float:
        known = self.curve.known
        novelty = known[round(_UNLIKE_ONE_TASK * (len(known) - 1))]
        return self.calibration.slope * (novelty - self.calibration.threshold)

    def _infer(self, texts: Sequence[str]) -> tuple[Floats, Floats]:
        """Logits (B, N), and the log-odds of "none of these" (B,), clipped to MAX_LOG_ODDS."""
        return self._read(self.encoder.encode(texts))

    def _read(self, x: Floats) -> tuple[Floats, Floats]:
        """What `_infer` returns, of encoded texts (B, I)."""
        hidden = self.network.hidden(x)
        logits = self.network.logits(hidden)
        novelty = self.clusters.novelty(hidden, softmax(logits))
        none = np.minimum(np.maximum(self.calibration.none_log_odds(novelty), -MAX_LOG_ODDS), MAX_LOG_ODDS)
        none[~x.any(axis=1)] = MAX_LOG_ODDS  # nothing to see
        return logits, none

    def only(self, labels: Sequence[str]) -> Router:
        """Restrict the router to these adapters, in this order. The hidden layers are shared."""
        kept = [self.labels.index(label) for label in labels]
        return replace(
            self,
            labels=tuple(labels),
            network=self.network.only(kept),
            clusters=self.clusters.only(kept),
            memory=self.memory.only(kept),
        )

    def keeping(self, keep: float) -> Router:
        """The router with the threshold that keeps this fraction of prompts of its tasks. Raises InvalidRequest outside
        (0, 1)."""
        return replace(self, calibration=self.curve.tune(self.calibration, self.curve.threshold(keep)))

    def save(self, folder: Path) -> None:
        """Write the router's files, the configuration last: a folder with a router.json is complete.

        Raises InvalidRequest if the folder cannot be written, DiskFull or LocalDiskError if the disk fails.
        """
        config = Config(self.labels, self.calibration, self.curve, self.training)
        write(folder, config, Parts(self.encoder, self.network, self.clusters, self.memory))

    @classmethod
    def load(cls, folder: Path, *, encoder: Path | None = None) -> Router:
        """Read a folder written by `save`; its encoder, if it has one, from another folder if one is given.

        Raises BankError, naming the file and what to do, if a file is missing, damaged or of another version.
        """
        config, parts = read(folder, encoder)
        return cls(**config._asdict(), **parts._asdict())


@lru_cache(maxsize=256)
def restricted(router: Router, allowed: frozenset[str] | None) -> Router:
    """The router for a request that may use only these adapters: it has no output for any other. None allows all.

    Raises ValueError if the router has none of them.
    """
    if allowed is None or allowed.issuperset(router.labels):
        return router
    labels = [label for label in router.labels if label in allowed]
    if not labels:
        raise ValueError("the router has no output for any of the allowed adapters")
    return router.only(labels)


def _check_list(texts: Sequence[str]) -> None:
    if isinstance(texts, str):
        raise TypeError(f"a router takes a list of texts: [{texts[:40]!r}] for this one")
