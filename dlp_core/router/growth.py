"""An adapter more, or fewer, without training the router again. numpy only.

The hidden layers stay as they are. A new adapter gets a row of the last layer, from some examples and from what the
router remembers of its training:

    p(new | text) = sigmoid(w . last + b - logsumexp(z))

is the share the new output z' = w . last + b takes beside the logits z that were there before: a logistic regression
with a fixed offset, convex, solved by Newton's method. No other logit changes, so another adapter loses only the texts
that the new one is surer of. The none mass needs its clouds too: centres of the examples, and how wide they lie.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlp_core.adapter.names import validate_name
from dlp_core.errors import BankError, InvalidRequest, UnknownModel
from dlp_core.router.augment import wear
from dlp_core.router.features import featurise
from dlp_core.router.memory import NO_TASK, SIZE
from dlp_core.router.network import Floats, Network, join_inputs, softmax
from dlp_core.router.router import Router

MIN_EXAMPLES = 16
"""Fewer do not show how the prompts of a task differ from each other."""

_WORN = 8  # worn copies of each example
_FOLDS = 4
_PENALTY = 4e-3  # on the weights, over inputs of mean 0 and deviation 1
_FEW = 26  # adapters up to which a new one weighs as much as here; among more it weighs less, as each of them does
_MARGIN = 0.5  # of novelty, beyond the strangest example
_NEWTON_STEPS = 30


@dataclass(frozen=True, slots=True)
class GrowthSummary:
    """Filled by add_adapter. Shares are of the examples, each judged by a router that had not seen it."""

    adapter: str
    examples: int
    adapters: int
    right: float
    """The new adapter was the likeliest."""
    kept: float
    """Not "none of these"."""
    mistaken_for: str | None
    """The adapter that most of the others went to."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def add_adapter(router: Router, name: str, examples: Sequence[str], *, seed: int = 0) -> tuple[Router, GrowthSummary]:
    """A router that also knows `name`, by the prompts in `examples`. Takes under a second for most banks.

    Raises InvalidRequest if the router knows `name` already, or for fewer than MIN_EXAMPLES different examples, and
    BankError for a router that remembers nothing.
    """
    validate_name(name)
    texts = list(dict.fromkeys(text for text in examples if text.strip()))
    if name in router.labels:
        raise InvalidRequest(f"the router knows {name!r} already; remove it first, or train the router again")
    if len(texts) < MIN_EXAMPLES:
        raise InvalidRequest(f"{len(texts)} different examples of {name!r}; give at least {MIN_EXAMPLES}")
    # what the examples look like to routers that have not seen them says how wide the new task must be taken
    if not (router.memory.tasks_M >= 0).any():
        raise BankError("the router remembers nothing of its training, so it cannot learn; train it again")
    held_back = [texts[fold::_FOLDS] for fold in range(_FOLDS)]
    parts = [_grown(router, name, [text for text in texts if text not in fold], seed) for fold in held_back]
    novelty = max(_novelty(part, fold) for part, fold in zip(parts, held_back, strict=True))
    missing = max(0.0, novelty + _MARGIN - router.calibration.threshold)
    judged = [
        routing
        for part, fold in zip(parts, held_back, strict=True)
        for routing in _wider(part, name, missing).route(fold)
    ]
    wrong = [routing.best for routing in judged if routing.best != name]
    summary = GrowthSummary(
        adapter=name,
        examples=len(texts),
        adapters=len(router.labels) + 1,
        right=1 - len(wrong) / len(judged),
        kept=sum(routing.fits for routing in judged) / len(judged),
        mistaken_for=max(sorted(set(wrong)), key=wrong.count) if wrong else None,
    )
    return _wider(_grown(router, name, texts, seed), name, missing), summary


def remove_adapter(router: Router, name: str) -> Router:
    """The router without `name`. Raises UnknownModel if it does not know it, InvalidRequest if it knows no other."""
    if name not in router.labels:
        raise UnknownModel(f"the router does not know {name!r}; it knows {', '.join(router.labels[:8])}")
    if len(router.labels) == 1:
        raise InvalidRequest(f"{name!r} is the only adapter of this router; a bank without a router serves it by name")
    return router.only([label for label in router.labels if label != name])


def _grown(router: Router, name: str, texts: list[str], seed: int) -> Router:
    rng = Random(seed)
    network, memory = router.network, router.memory
    plain = network.embed(featurise(texts))
    worn = network.embed(featurise([wear(text, rng) for text in texts for _ in range(_WORN)]))
    others = np.flatnonzero(memory.tasks_M >= 0)
    partners = others[[rng.randrange(len(others)) for _ in range(2 * len(texts))]]
    both = [plain[np.arange(len(partners)) % len(plain)], memory.inputs_MI[partners]]
    joined = np.concatenate([join_inputs(*both), join_inputs(*reversed(both))])

    weight, bias = _fit_output(
        network,
        ours=np.concatenate([plain, worn]),
        shared=joined,
        others=memory.inputs_MI[others],
        none=memory.inputs_MI[memory.tasks_M == NO_TASK],
    )
    clouds = router.clouds.with_task(
        plain=network.forward(plain)[0],
        worn=network.forward(worn)[0],
        joined=(network.forward(joined)[0], np.tile(memory.tasks_M[partners], 2)),
        known=(network.forward(memory.inputs_MI[others])[0], memory.tasks_M[others]),
    )
    last = len(router.labels)
    share = max(8, SIZE // (last + 1))
    grown = replace(
        router,
        labels=(*router.labels, name),
        network=network.with_outputs(
            np.insert(network.weights[-1], last, weight, axis=0), np.insert(network.biases[-1], last, bias)
        ),
        clouds=clouds,
        memory=memory.and_also(np.concatenate([plain, worn])[:share], last),
    )
    return grown.only(sorted(grown.labels))


def _wider(router: Router, name: str, by: float) -> Router:
    return replace(router, clouds=router.clouds.wider(router.labels.index(name), by))


def _novelty(router: Router, texts: Sequence[str]) -> float:
    """Of the strangest of these texts."""
    hidden, _, logits = router.network.forward(router.network.embed(featurise(texts)))
    return float(router.clouds.novelty(hidden, softmax(logits))[0].max())


def _fit_output(
    network: Network, *, ours: Floats, shared: Floats, others: Floats, none: Floats
) -> tuple[Floats, float]:
    """Weight (H + D,) and bias of the new output: it should take all of `ours`, half of `shared`, nothing else."""
    # texts, target, and how much all of them together count
    portion = min(1.0, _FEW / (len(network.biases[-1]) - 1))
    parts = [(ours, 1.0, 0.35 * portion), (shared, 0.5, 0.05 * portion), (others, 0.0, 0.6), (none, 0.0, 0.15)]
    parts = [part for part in parts if len(part[0])]
    seen = [network.forward(inputs)[1:] for inputs, _, _ in parts]
    x = np.concatenate([last for last, _ in seen]).astype(np.float64)
    offset = np.concatenate([_logsumexp(logits) for _, logits in seen])
    target = np.repeat([target for _, target, _ in parts], [len(inputs) for inputs, _, _ in parts])
    weight = np.repeat([share / len(inputs) for inputs, _, share in parts], [len(inputs) for inputs, _, _ in parts])
    mean, scale = x.mean(axis=0), x.std(axis=0) + 1e-2 * x.std()
    x = np.column_stack([(x - mean) / scale, np.ones(len(x))])
    penalty = np.full(x.shape[1], _PENALTY * portion)
    penalty[-1] = 1e-9

    def loss(w: NDArray[np.float64]) -> float:
        margin = x @ w - offset
        return float(weight @ (np.logaddexp(0, margin) - target * margin) + penalty @ np.square(w) / 2)

    w = np.zeros(x.shape[1])
    w[-1] = np.median(offset[: len(ours)])
    best = loss(w)
    for _ in range(_NEWTON_STEPS):
        p = 0.5 + 0.5 * np.tanh(0.5 * (x @ w - offset))
        gradient = x.T @ (weight * (p - target)) + penalty * w
        curvature = x.T @ (x * (weight * np.maximum(p * (1 - p), 1e-6))[:, None]) + np.diag(penalty)
        step = np.linalg.solve(curvature, gradient)
        while (found := loss(w - step)) > best and np.abs(step).max() > 1e-6:
            step /= 2
        if found > best - 1e-9:
            break
        w, best = w - step, found
    weights = w[:-1] / scale
    return weights.astype(np.float32), float(w[-1] - weights @ mean)


def _logsumexp(logits: Floats) -> NDArray[np.float64]:
    top = logits.max(axis=1)
    return np.asarray(top + np.log(np.exp(logits - top[:, None]).sum(axis=1)), np.float64)
