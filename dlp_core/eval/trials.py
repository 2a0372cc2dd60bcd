"""One row under one choice of adapters: the jobs that answer it, and the scores of its answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from dlp_core.eval.answers import Job
from dlp_core.eval.arms import JudgedActivation
from dlp_core.eval.journal import Answer
from dlp_core.eval.metrics import LIKELIHOOD, METRICS
from dlp_core.eval.options import format_option, parse_choice
from dlp_core.eval.rows import EvalRow
from dlp_core.eval.suite import Suite
from dlp_core.mix import EMPTY_MIX, Mix


@dataclass(frozen=True, slots=True)
class Trial:
    """Created by `ask`."""

    row: EvalRow
    generation: Job | None
    scoring: Job | None
    """Scores the options of a multiple choice."""

    @property
    def jobs(self) -> list[Job]:
        return [job for job in (self.scoring, self.generation) if job is not None]

    def metrics(self, answers: Mapping[Job, Answer], suite: Suite) -> dict[str, float]:
        """Every metric of the row's type, from 0 to 1."""
        values = {}
        for metric in suite.settings.types[self.row.type].metrics:
            if metric == LIKELIHOOD:
                values[metric] = float(self.likeliest(answers) == parse_choice(self.row.output, self.row.options))
            else:
                assert self.generation is not None
                values[metric] = METRICS[metric](answers[self.generation].text, self.row)
        return values

    def score(self, answers: Mapping[Job, Answer], suite: Suite) -> float:
        """The metric that counts, from 0 to 1."""
        return self.metrics(answers, suite)[suite.score_metric(self.row)]

    def text(self, answers: Mapping[Job, Answer]) -> str:
        """The answer's text; the likeliest option where none was generated."""
        if self.generation is not None:
            return answers[self.generation].text
        return format_option(self.likeliest(answers), self.row.options)

    def likeliest(self, answers: Mapping[Job, Answer]) -> str:
        """The letter of the likeliest option of a row whose options are scored."""
        assert self.scoring is not None
        likelihoods = answers[self.scoring].likelihoods
        assert likelihoods is not None
        return max(likelihoods, key=likelihoods.__getitem__)


def ask(
    row: EvalRow,
    mix: Mix,
    suite: Suite,
    *,
    sentence: tuple[float, int] | None = None,
    activation: JudgedActivation = "always",
) -> Trial:
    """The trial of a row under a mix, or with one for each `sentence` (see Job.sentence) instead."""
    settings = suite.settings.types[row.type]
    choice = EMPTY_MIX if sentence is not None else mix
    asked = partial(Job, row.input, choice, sentence=sentence, before=row.before, activation=activation)
    generation = scoring = None
    if any(metric != LIKELIHOOD for metric in settings.metrics):
        generation = asked(max_tokens=settings.max_tokens)
    if LIKELIHOOD in settings.metrics:
        options = tuple((letter, format_option(letter, row.options)) for letter in row.options)
        scoring = asked(options=options)
    return Trial(row, generation, scoring)
