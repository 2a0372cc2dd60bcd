"""Finds rows whose label is probably wrong, by confident learning (Northcutt, Jiang and Chuang 2021, arXiv 1911.00068).

Each row gets probabilities from a classifier that was not fitted on it, by cross-validation. The threshold of a label
is the mean probability that its own rows give it. A row is suspect if another label reaches its threshold and is
likelier than the row's own: an entry off the diagonal of the confident joint. The classifier is a softmax regression on
what prompts mean (dlp_core/improve/meaning.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
from numpy.typing import NDArray

from dlp_core.improve.meaning import Meaning
from dlp_core.router.encoder import Floats
from dlp_core.router.rows import TaskRow

PER_TASK = 150
"""Trusted rows of each label that the classifier also learns from."""
_FOLDS = 5
_SCALE = 20.0  # of the vectors, so that the regression can be sure
_DECAY = 0.5
_STEPS = 60


@dataclass(frozen=True, slots=True)
class Suspicion:
    """What the other rows say of a row's label."""

    label: str | None
    """The label that fits."""
    probability: float
    own: float
    """Probability of the row's own label."""

    def __str__(self) -> str:
        name = "no adapter" if self.label is None else self.label
        return f"{name} fits with probability {self.probability:.2f}, its own label with {self.own:.2f}"


def suspicions(
    rows: Sequence[TaskRow], trusted: Sequence[TaskRow], meaning: Meaning, *, seed: int
) -> list[Suspicion | None]:
    """For each of `rows`, why its label is suspect; None if it is not. `trusted` rows are learnt from, PER_TASK of each
    label, and never suspect. The same arguments give the same answer."""
    if not rows:
        return []
    rng = Random(seed)
    known = [*rows, *_some(trusted, rng)]
    labels = sorted({row.task for row in known}, key=lambda name: (name is None, name or ""))
    label_B = np.array([labels.index(row.task) for row in known])
    x_BD = meaning([row.input for row in known]) * _SCALE
    probability_BL = _cross_validated(x_BD, label_B, len(labels), rng)
    threshold_L = np.array([probability_BL[label_B == label, label].mean() for label in range(len(labels))])
    confident_BL = np.where(probability_BL >= threshold_L, probability_BL, 0.0)
    found: list[Suspicion | None] = []
    for row, own in enumerate(label_B[: len(rows)].tolist()):
        likeliest = int(confident_BL[row].argmax())
        own_probability, probability = float(probability_BL[row, own]), float(confident_BL[row, likeliest])
        wrong = likeliest != own and probability > own_probability
        found.append(Suspicion(labels[likeliest], probability, own_probability) if wrong else None)
    return found


def _some(rows: Sequence[TaskRow], rng: Random) -> list[TaskRow]:
    by_label: dict[str | None, list[TaskRow]] = {}
    for row in rows:
        by_label.setdefault(row.task, []).append(row)
    return [row for own in by_label.values() for row in rng.sample(own, min(PER_TASK, len(own)))]


def _cross_validated(x_BD: Floats, label_B: NDArray[np.int64], labels: int, rng: Random) -> NDArray[np.float64]:
    """Probabilities of each label, (B, L), each row's from a regression on the other folds."""
    fold_B = np.array([rng.randrange(_FOLDS) for _ in label_B])
    probability_BL = np.zeros((len(label_B), labels))
    for fold in range(_FOLDS):
        out = fold_B == fold
        if out.any() and not out.all():
            probability_BL[out] = _fitted(x_BD[~out], label_B[~out], x_BD[out], labels)
    return probability_BL


def _fitted(x_BD: Floats, label_B: NDArray[np.int64], other_ED: Floats, labels: int) -> NDArray[np.float64]:
    import torch
    from torch.nn import functional

    x, y, other = torch.from_numpy(x_BD), torch.from_numpy(label_B), torch.from_numpy(other_ED)
    weights = torch.zeros(x.shape[1], labels, requires_grad=True)
    biases = torch.zeros(labels, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights, biases], max_iter=_STEPS, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = functional.cross_entropy(x @ weights + biases, y) + _DECAY * (weights**2).sum() / len(y)
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        probabilities: NDArray[np.float64] = torch.softmax(other @ weights + biases, dim=1).double().numpy()
        return probabilities
