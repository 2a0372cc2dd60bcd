"""Metrics of an answer, from 0 to 1. Public implementations where one exists.

accuracy      the answer names the right option (dlp_core/eval/options.py)
likelihood    the right option is the likeliest of the options; needs no generation
exact_match   the same text, ignoring whitespace
f1            over lower-cased words as a bag (SQuAD, arXiv 1606.05250, without dropping articles)
bleu          sentence BLEU by sacrebleu with effective order
rouge1, rougeL    F-measure by rouge-score, unstemmed
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from dlp_core.eval.options import find_options, parse_choice

if TYPE_CHECKING:
    from dlp_core.eval.rows import EvalRow

LIKELIHOOD = "likelihood"
"""The only metric that does not read the answer's text."""


def _accuracy(answer: str, row: EvalRow) -> float:
    options = find_options(row.input)
    expected = parse_choice(row.output, options)
    return float(expected is not None and parse_choice(answer, options) == expected)


def _exact_match(answer: str, row: EvalRow) -> float:
    return float(answer.split() == row.output.split())


def _f1(answer: str, row: EvalRow) -> float:
    answer_words, expected_words = Counter(answer.lower().split()), Counter(row.output.lower().split())
    common = sum((answer_words & expected_words).values())
    return 2 * common / (answer_words.total() + expected_words.total()) if common else 0.0


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
"""By name: functions from an answer's text and its row to a score from 0 to 1."""
