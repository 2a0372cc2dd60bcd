"""Adds or removes an adapter without retraining the router. numpy only.

The hidden layers stay unchanged. A new adapter gets a row of the last layer, fitted to some examples and to what the
router remembers of its training:

    p(new | text) = sigmoid(w . last + b - logsumexp(z))

is the softmax share of the new output z' = w . last + b beside the existing logits z: a logistic regression with a
fixed offset, convex, solved by Newton's method. No other logit changes, so another adapter loses only the texts of
which the new one is more confident. Novelty needs its clusters too: the centres of the examples, and their spread.
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
from dlp_core.router.augment import degrade
from dlp_core.router.features import featurise
from dlp_core.router.memory import MEMORY_SIZE, NO_TASK
from dlp_core.router.network import Floats, Network, join_inputs, softmax
from dlp_core.router.router import Router

MIN_EXAMPLES = 16
"""Fewer do not show how the prompts of a task vary."""

_DEGRADED_COPIES = 8  # of each example
_FOLDS = 4
_PENALTY = 4e-3  # L2, on weights of standardised inputs
_FULL_WEIGHT_ADAPTERS = 26  # with more adapters, a new one weighs less in the fit, as each of them does
_NOVELTY_MARGIN = 0.5  # beyond the most novel example
_NEWTON_STEPS = 30


@dataclass(frozen=True, slots=True)
class GrowthSummary:
    """Filled by add_adapter. Fractions are of the examples, each routed by a router that has not seen it."""

    adapter: str
    examples: int
    adapters: int
    right: float
    """Fraction for which the new adapter is the likeliest."""
    kept: float
    """Fraction that is not "none of these"."""
    mistaken_for: str | None
    """The adapter that most of the wrongly routed examples went to."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def add_adapter(router: Router, name: str, examples: Sequence[str], *, seed: int = 0) -> tuple[Router, GrowthSummary]:
    """Extend a router with `name`, using the prompts in `examples`. Takes less than a second for most banks.

    Raises InvalidRequest if the router already knows `name`, or for fewer than MIN_EXAMPLES different examples, and
    BankError for a router without a memory of its training.
    """
    validate_name(name)
    texts = list(dict.fromkeys(text for text in examples if text.strip()))
    if name in router.labels:
        raise InvalidRequest(f"the router already knows {name!r}; remove it first, or train the router again")
    if len(texts) < MIN_EXAMPLES:
        raise InvalidRequest(f"only {len(texts)} different examples of {name!r}; give at least {MIN_EXAMPLES}")
    # cross-validation: routers that have not seen an example tell how wide the new task's cluster must be
    if not (router.memory.tasks_M >= 0).any():
        raise BankError("the router has no memory of its training, so no adapter can be added; train it again")
    held_back = [texts[fold::_FOLDS] for fold in range(_FOLDS)]
    fold_routers = [
        _with_adapter(router, name, [text for text in texts if text not in fold], seed) for fold in held_back
    ]
    novelty = max(_max_novelty(fold_router, fold) for fold_router, fold in zip(fold_routers, held_back, strict=True))
    extra_spread = max(0.0, novelty + _NOVELTY_MARGIN - router.calibration.threshold)
    routings = [
        routing
        for fold_router, fold in zip(fold_routers, held_back, strict=True)
        for routing in _widened(fold_router, name, extra_spread).route(fold)
    ]
    wrong = [routing.best for routing in routings if routing.best != name]
    summary = GrowthSummary(
        adapter=name,
        examples=len(texts),
        adapters=len(router.labels) + 1,
        right=1 - len(wrong) / len(routings),
        kept=sum(routing.fits for routing in routings) / len(routings),
        mistaken_for=max(sorted(set(wrong)), key=wrong.count) if wrong else None,
    )
    return _widened(_with_adapter(router, name, texts, seed), name, extra_spread), summary


def remove_adapter(router: Router, name: str) -> Router:
    """Remove `name` from a router. Raises UnknownModel if it does not know it, InvalidRequest if it knows no other."""
    if name not in router.labels:
        raise UnknownModel(f"the router does not know {name!r}; it knows {', '.join(router.labels[:8])}")
    if len(router.labels) == 1:
        raise InvalidRequest(f"{name!r} is the only adapter of this router; a bank without a router serves it by name")
    return router.only([label for label in router.labels if label != name])


def _with_adapter(router: Router, name: str, texts: list[str], seed: int) -> Router:
    rng = Random(seed)
    network, memory = router.network, router.memory
    plain = network.embed(featurise(texts))
    degraded = network.embed(featurise([degrade(text, rng) for text in texts for _ in range(_DEGRADED_COPIES)]))
    others = np.flatnonzero(memory.tasks_M >= 0)
    partners = others[[rng.randrange(len(others)) for _ in range(2 * len(texts))]]
    pairs = [plain[np.arange(len(partners)) % len(plain)], memory.inputs_MI[partners]]
    joined = np.concatenate([join_inputs(*pairs), join_inputs(*reversed(pairs))])

    weight, bias = _fit_output(
        network,
        new_task=np.concatenate([plain, degraded]),
        joined=joined,
        other_tasks=memory.inputs_MI[others],
        out_of_scope=memory.inputs_MI[memory.tasks_M == NO_TASK],
    )
    clusters = router.clusters.with_task(
        plain=network.forward(plain)[0],
        degraded=network.forward(degraded)[0],
        joined=(network.forward(joined)[0], np.tile(memory.tasks_M[partners], 2)),
        known=(network.forward(memory.inputs_MI[others])[0], memory.tasks_M[others]),
    )
    last = len(router.labels)
    share = max(8, MEMORY_SIZE // (last + 1))
    grown = replace(
        router,
        labels=(*router.labels, name),
        network=network.with_outputs(
            np.insert(network.weights[-1], last, weight, axis=0), np.insert(network.biases[-1], last, bias)
        ),
        clusters=clusters,
        memory=memory.with_texts(np.concatenate([plain, degraded])[:share], last),
    )
    return grown.only(sorted(grown.labels))


def _widened(router: Router, name: str, by: float) -> Router:
    return replace(router, clusters=router.clusters.widened(router.labels.index(name), by))


def _max_novelty(router: Router, texts: Sequence[str]) -> float:
    """The highest novelty of these texts."""
    hidden, _, logits = router.network.forward(router.network.embed(featurise(texts)))
    return float(router.clusters.novelty(hidden, softmax(logits))[0].max())


def _fit_output(
    network: Network, *, new_task: Floats, joined: Floats, other_tasks: Floats, out_of_scope: Floats
) -> tuple[Floats, float]:
    """Fit weight (H + D,) and bias of the new output: probability 1 for `new_task`, half for `joined`, else 0."""
    # inputs, target, and the total weight of these inputs
    portion = min(1.0, _FULL_WEIGHT_ADAPTERS / (len(network.biases[-1]) - 1))
    parts = [
        (new_task, 1.0, 0.35 * portion),
        (joined, 0.5, 0.05 * portion),
        (other_tasks, 0.0, 0.6),
        (out_of_scope, 0.0, 0.15),
    ]
    parts = [part for part in parts if len(part[0])]
    outputs = [network.forward(inputs)[1:] for inputs, _, _ in parts]
    x = np.concatenate([last for last, _ in outputs]).astype(np.float64)
    offset = np.concatenate([_logsumexp(logits) for _, logits in outputs])
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
    w[-1] = np.median(offset[: len(new_task)])
    best = loss(w)
    for _ in range(_NEWTON_STEPS):
        p = 0.5 + 0.5 * np.tanh(0.5 * (x @ w - offset))
        gradient = x.T @ (weight * (p - target)) + penalty * w
        curvature = x.T @ (x * (weight * np.maximum(p * (1 - p), 1e-6))[:, None]) + np.diag(penalty)
        step = np.linalg.solve(curvature, gradient)
        while (new_loss := loss(w - step)) > best and np.abs(step).max() > 1e-6:
            step /= 2
        if new_loss > best - 1e-9:
            break
        w, best = w - step, new_loss
    weights = w[:-1] / scale
    return weights.astype(np.float32), float(w[-1] - weights @ mean)


def _logsumexp(logits: Floats) -> NDArray[np.float64]:
    top = logits.max(axis=1)
    return np.asarray(top + np.log(np.exp(logits - top[:, None]).sum(axis=1)), np.float64)
