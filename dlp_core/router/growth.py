"""Adds or removes an adapter without retraining the router. numpy only.

The hidden layers stay unchanged. A new adapter gets an output, fitted to where its examples lie among the clusters of
the known tasks (novelty.Clusters), and to what the router remembers of its training:

    p(new | text) = sigmoid(w . whiten(h) + b - logsumexp(z))

is the softmax share of the new output beside the existing logits z: a logistic regression with a fixed offset, convex,
solved by Newton's method. The bias b is then set so that the new adapter takes TAKEN of what the router remembers, no
more: no other logit changes, so that is what the others lose. Novelty needs a cluster too: the examples' mean, and how
wide they lie around it.

A description counts as an example, and so does the adapter's name: what a task is called is mostly what it is about.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlp_core.adapter.names import validate_name
from dlp_core.errors import BankError, InvalidRequest, UnknownModel
from dlp_core.router.encoder import Floats
from dlp_core.router.memory import MEMORY_SIZE, NO_TASK
from dlp_core.router.router import Router

TAKEN = 0.001
"""Fraction of the remembered texts that a new adapter may take."""
DESCRIPTION_TAKEN = 0.005
"""The same for an adapter of which there is only a description."""

_TARGET = 0.95  # probability of the new adapter on its examples
_SHARE = 0.2  # of the examples in the loss, however few they are
_PENALTY = 1e-4  # L2, on weights of standardised inputs
_NEWTON_STEPS = 30
_FOLDS = 4
_MARGIN = 0.2  # in log d2, beyond the widest example that was left out
_UNSEEN = 0.6  # in log d2, for a cluster that no example was left out of


@dataclass(frozen=True, slots=True)
class GrowthSummary:
    """Filled by add_adapter. Fractions are of the examples, each routed by a router that has not seen it; None if there
    are too few to leave any out."""

    adapter: str
    examples: int
    described: bool
    adapters: int
    right: float | None
    """Fraction for which the new adapter is the likeliest."""
    kept: float | None
    """Fraction that is not "none of these"."""
    mistaken_for: str | None
    """The adapter that most of the wrongly routed examples went to."""
    taken: float
    """Fraction of the remembered texts of other adapters that now go to the new one."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def add_adapter(
    router: Router, name: str, examples: Sequence[str], *, description: str | None = None
) -> tuple[Router, GrowthSummary]:
    """Extend a router with `name`, using the prompts in `examples`, a description of what it is for, or both. Takes
    about a second.

    Raises InvalidRequest if the router already knows `name`, or without any text, and BankError for a router without a
    memory of its training.
    """
    validate_name(name)
    texts = list(dict.fromkeys(text for text in examples if text.strip()))
    about = [description, " ".join(_WORDS.findall(name))] if description and description.strip() else []
    if name in router.labels:
        raise InvalidRequest(f"the router already knows {name!r}; remove it first, or train the router again")
    if not texts and not about:
        raise InvalidRequest(f"there is nothing to know {name!r} by; give examples, or a description")
    if not (router.memory.tasks_M >= 0).any():
        raise BankError("the router has no memory of its training, so no adapter can be added; train it again")
    # cross-validation: routers that have not seen an example tell how wide the new task's cluster must be
    folds = [texts[fold::_FOLDS] for fold in range(_FOLDS)] if len(texts) >= _FOLDS else []
    routers = [_with_adapter(router, name, [t for t in texts if t not in fold] + about, _UNSEEN) for fold in folds]
    spread = _UNSEEN
    if folds:
        novelty = np.concatenate([own.novelty(fold) for own, fold in zip(routers, folds, strict=True)])
        spread = max(0.0, _UNSEEN + float(np.sort(novelty)[-2:].mean()) + _MARGIN - router.calibration.threshold)
    routings = [
        routing
        for own, fold in zip(routers, folds, strict=True)
        for routing in _widened(own, name, spread - _UNSEEN).route(fold)
    ]
    wrong = [routing.best for routing in routings if routing.best != name]
    grown = _with_adapter(router, name, texts + about, spread, taken=TAKEN if texts else DESCRIPTION_TAKEN)
    others = router.memory.inputs_MI[router.memory.tasks_M != NO_TASK]
    taken = grown.network.logits(grown.network.hidden(others)).argmax(axis=1) == grown.labels.index(name)
    summary = GrowthSummary(
        adapter=name,
        examples=len(texts),
        described=bool(about),
        adapters=len(grown.labels),
        right=1 - len(wrong) / len(routings) if routings else None,
        kept=sum(routing.fits for routing in routings) / len(routings) if routings else None,
        mistaken_for=max(sorted(set(wrong)), key=wrong.count) if wrong else None,
        taken=float(taken.mean()),
    )
    return grown, summary


_WORDS = re.compile(r"[A-Za-z]+|\d+")


def remove_adapter(router: Router, name: str) -> Router:
    """Remove `name` from a router. Raises UnknownModel if it does not know it, InvalidRequest if it knows no other."""
    if name not in router.labels:
        raise UnknownModel(f"the router does not know {name!r}; it knows {', '.join(router.labels[:8])}")
    if len(router.labels) == 1:
        raise InvalidRequest(f"{name!r} is the only adapter of this router; a bank without a router serves it by name")
    return router.only([label for label in router.labels if label != name])


def _with_adapter(router: Router, name: str, texts: list[str], spread: float, *, taken: float = TAKEN) -> Router:
    network, clusters, memory = router.network, router.clusters, router.memory
    inputs = router.encoder.encode(texts)
    hidden, remembered = network.hidden(inputs), network.hidden(memory.inputs_MI)
    own, others = clusters.whiten(hidden), clusters.whiten(remembered)
    logits = network.logits(hidden), network.logits(remembered)
    weight_K = _fit_output(own, others, _logsumexp(logits[0]), _logsumexp(logits[1]))
    lead = others @ weight_K - logits[1].max(axis=1)
    bias = -float(np.quantile(lead, 1 - taken))
    index = sum(label < name for label in router.labels)
    tasks = memory.tasks_M + (memory.tasks_M >= index)
    share = max(8, MEMORY_SIZE // (len(router.labels) + 1))
    return replace(
        router,
        labels=(*router.labels[:index], name, *router.labels[index:]),
        network=network.with_output(index, weight_K @ clusters.whitening_KH, bias),
        clusters=clusters.with_task(index, own, spread=spread),
        memory=replace(memory, tasks_M=tasks.astype(np.int16)).with_texts(inputs[:share], index),
    )


def _widened(router: Router, name: str, by: float) -> Router:
    spreads = router.clusters.spreads_N.copy()
    spreads[router.labels.index(name)] += by
    return replace(router, clusters=replace(router.clusters, spreads_N=spreads))


def _fit_output(
    own_BK: Floats, others_MK: Floats, own_offset_B: NDArray[np.float64], others_offset_M: NDArray[np.float64]
) -> Floats:
    """Fit the weight of the new output, (K,): probability _TARGET for its own texts, 0 for the others. What bias goes
    with it is set by what it may take."""
    x = np.concatenate([own_BK, others_MK]).astype(np.float64)
    offset = np.concatenate([own_offset_B, others_offset_M])
    target = np.repeat([_TARGET, 0.0], [len(own_BK), len(others_MK)])
    weight = np.repeat([_SHARE / len(own_BK), (1 - _SHARE) / len(others_MK)], [len(own_BK), len(others_MK)])
    mean, scale = others_MK.mean(axis=0), others_MK.std(axis=0) + 1e-2 * others_MK.std()
    x = np.column_stack([(x - mean) / scale, np.ones(len(x))])
    penalty = np.full(x.shape[1], _PENALTY)
    penalty[-1] = 1e-9

    def loss(w: NDArray[np.float64]) -> float:
        margin = x @ w - offset
        return float(weight @ (np.logaddexp(0, margin) - target * margin) + penalty @ np.square(w) / 2)

    w = np.zeros(x.shape[1])
    w[-1] = np.median(own_offset_B)
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
    weight_K: Floats = (w[:-1] / scale).astype(np.float32)
    return weight_K


def _logsumexp(logits: Floats) -> NDArray[np.float64]:
    top = logits.max(axis=1)
    return np.asarray(top + np.log(np.exp(logits - top[:, None]).sum(axis=1)), np.float64)
