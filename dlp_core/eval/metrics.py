"""How good an answer is, from 0 to 1. Public implementations wherever there is one.

accuracy      the option that was wanted is the one the answer names (dlp_core/eval/options.py)
likelihood    of the options, the one that was wanted is the likeliest answer; needs no generation
exact_match   the same text, spaces aside
f1            of the words, as a bag, in lower case (SQuAD, arXiv 1606.05250, without dropping articles)
bleu          of the sentence, by sacrebleu with effective order
rouge1, rougeL    F-measure, by rouge-score, unstemmed
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from dlp_core.eval.options import chosen, find_options

if TYPE_CHECKING:
    from dlp_core.eval.rows import EvalRow

LIKELIHOOD = "likelihood"
"""The metric that is no function of the answer's text."""


def _accuracy(answer: str, row: EvalRow) -> float:
    options = find_options(row.input)
    wanted = chosen(row.output, options)
    return float(wanted is not None and chosen(answer, options) == wanted)


def _exact_match(answer: str, row: EvalRow) -> float:
    return float(answer.split() == row.output.split())


def _f1(answer: str, row: EvalRow) -> float:
    said, wanted = Counter(answer.lower().split()), Counter(row.output.lower().split())
    common = sum((said & wanted).values())
    return 2 * common / (said.total() + wanted.total()) if common else 0.0


def _bleu(answer: str, row: EvalRow) -> float:
    import sacrebleu

    return float(sacrebleu.sentence_bleu(answer, [row.output]).score) / 100


def _rouge(kind: str) -> Callable[[str, EvalRow], float]:
    def score(answer: str, row: EvalRow) -> float:
        return float(_scorer().score(row.output, answer)[kind].fmeasure)

    return score


@lru_cache(maxsize=1)
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rouge1", "rougeL"])


METRICS: dict[str, Callable[[str, EvalRow], float]] = {
    "accuracy": _accuracy,
    "exact_match": _exact_match,
    "f1": _f1,
    "bleu": _bleu,
    "rouge1": _rouge("rouge1"),
    "rougeL": _rouge("rougeL"),
}
"""By name: from an answer's text and its row to a number from 0 to 1."""
