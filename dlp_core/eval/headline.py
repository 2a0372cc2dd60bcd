"""What a report begins with: a verdict in a sentence, and four numbers. Every word follows from the results."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from statistics import fmean

from dlp_core.eval.arms import judged_arm
from dlp_core.eval.results import Interval, Results, compare_arms

FIGURES = 4

_RIGHT_OR_WRONG = {"accuracy", "likelihood", "exact_match"}
"""Metrics whose mean is the share of right answers."""

TITLES = {
    "plain": "plain model",
    "oracle": "right adapter",
    "random": "random adapter",
    "top1": "router's first choice",
}


@dataclass(frozen=True, slots=True)
class Figure:
    """One number of the headline."""

    value: str
    label: str
    note: str


def arm_title(name: str, served: str) -> str:
    """An arm in words; `served` is the arm that is judged."""
    if name == served and name.startswith(("top-p=", "uniform=", "top1")):
        return "routed bank"
    kind, _, value = name.partition("=")
    if kind == "adapter":
        return f"adapter {value}"
    return "routed by sentence" if kind == "sentence" else TITLES.get(name, name)


def sentence(results: Results) -> str:
    """The verdict: the judged arm beside the plain backbone and the right adapter."""
    name, names = _judged(results), [arm.name for arm in results.arms]
    suite = results.suite
    scope = f"On {_count(suite.rows, 'prompt')} of {_count(len(_tasks(results)), 'task')}"
    unit = "answers {} right" if _counts_right(results) else "scores {} of 100"
    scores = {arm: results.arm(arm).score.mean for arm in names}
    compared = [baseline for baseline in ("plain", "oracle") if baseline in scores and baseline != name]
    shown = _written([scores[arm] for arm in (name, *compared)], "%" if _counts_right(results) else "")
    text = f"{scope}, the {arm_title(name, name)} {unit.format(shown[0])}"
    if len({task.rows for task in results.arm(name).tasks.values()}) > 1:
        text += ", counting every task equally"
    differences = [_difference(results, name, baseline) for baseline in compared]
    titles = [_titled(results, baseline) for baseline in compared]
    if any(difference is None for difference in differences):  # without the rows, nobody can say what is chance
        text += "; " + ", ".join(f"the {title} {score}" for title, score in zip(titles, shown[1:], strict=True))
    elif compared:
        clauses = map(_clause, compared, differences, titles, shown[1:])
        text += f": it {' and '.join(clauses)}"
    text += "."
    router = results.router
    if router is not None and arm_title(name, name) == "routed bank":
        known = sum(sum(counts.values()) for counts in router.confusion.values())
        of = "" if known == suite.rows else f" of the {known} whose task has an adapter"
        text += f" The router ranks the right adapter first for {_percent(router.accuracy)}{of}."
    return text


def figures(results: Results) -> list[Figure]:
    """The first four numbers that these results have."""
    return list(islice(_figures(results), FIGURES))


def _figures(results: Results) -> Iterator[Figure]:
    name = _judged(results)
    arm = results.arm(name)
    title = arm_title(name, name)
    right = _counts_right(results)
    score = _written([arm.score.mean], "%" if right else "")[0]
    yield Figure(score, f"{'right answers' if right else 'points'}, {title}", f"{_range(arm.score)} (95% interval)")
    names = {arm.name for arm in results.arms}
    if "plain" in names and name != "plain":
        difference = _difference(results, name, "plain")
        mean = arm.score.mean - results.arm("plain").score.mean if difference is None else difference.mean
        yield Figure(f"{mean:+.1f}", "points over the plain model", _interval_note(difference))
    if "oracle" in names and name != "oracle":
        shared = sorted(set(arm.tasks) & set(results.arm("oracle").tasks))
        best = fmean(results.arm("oracle").tasks[task].score.mean for task in shared) if shared else 0.0
        if best:
            kept = fmean(arm.tasks[task].score.mean for task in shared) / best
            difference = _difference(results, name, "oracle")
            note = "" if difference is None else f"{difference.mean:+.1f} points, {_signed_range(difference)}"
            yield Figure(_percent(kept), "of the right adapter's score", note or "intervals need the rows")
    if results.router is not None:
        refused = f"{_percent(results.router.refused)} left to the plain model"
        yield Figure(_percent(results.router.accuracy), "of prompts: right adapter ranked first", refused)
    if arm.cost is not None:
        yield Figure(f"{arm.cost.seconds:.2f} s", "per answer", results.conditions)
        if arm.cost.completion_tokens:
            tokens = arm.cost.completion_tokens / arm.cost.answers
            yield Figure(f"{tokens:.0f}", "tokens written per answer", f"{arm.cost.tokens_per_second:.0f} a second")
    yield Figure(str(results.suite.rows), "prompts", _count(len(_tasks(results)), "task"))
    yield Figure(f"{arm.adapters:.2f}", "adapters in a mix", "mean")


def _judged(results: Results) -> str:
    return judged_arm([arm.name for arm in results.arms])


def _tasks(results: Results) -> set[str]:
    return {task for arm in results.arms for task in arm.tasks}


def _counts_right(results: Results) -> bool:
    return bool(results.suite.metrics) and set(results.suite.metrics) <= _RIGHT_OR_WRONG


def _titled(results: Results, baseline: str) -> str:
    """The title of a baseline, with the tasks its score covers where these are not all."""
    tasks = len(results.arm(baseline).tasks)
    return TITLES[baseline] + (
        "" if tasks == len(_tasks(results)) else f" of the {_count(tasks, 'task')} with an adapter"
    )


def _difference(results: Results, arm: str, baseline: str) -> Interval | None:
    """None where the rows are not kept, or none is shared."""
    ours, theirs = results.by_task(arm), results.by_task(baseline)
    shared = any(row in theirs.get(task, ()) for task, rows in ours.items() for row in rows)
    return compare_arms(results, arm, baseline).overall if shared else None


def _clause(baseline: str, difference: Interval | None, title: str, score: str) -> str:
    assert difference is not None
    if difference.low > 0:
        return f"beats the {title} ({score})"
    if difference.high < 0:
        return f"falls short of the {title} ({score})"
    if baseline == "oracle":
        return f"does not differ measurably from the {title} ({score})"
    chance = "the same score" if difference.low == difference.high else "a difference within chance"
    return f"does not beat the {title} ({score}, {chance})"


def _written(scores: list[float], unit: str) -> list[str]:
    """The scores without decimals, or with one where different scores would look the same; out of 100, always."""
    whole = [f"{score:.0f}" for score in scores]
    if unit and len(set(whole)) == len({round(score, 6) for score in scores}) and not _too_round(scores):
        return [text + unit for text in whole]
    return [f"{score:.1f}{unit}" for score in scores]


def _too_round(scores: list[float]) -> bool:
    """Whether a score would be rounded to none or all of the answers."""
    return any(0 < score < 0.5 or 99.5 <= score < 100 for score in scores)


def _percent(share: float) -> str:
    return _written([100 * share], "%")[0]


def _range(interval: Interval) -> str:
    return f"{interval.low:.1f} to {interval.high:.1f}"


def _signed_range(interval: Interval) -> str:
    return f"{interval.low:+.1f} to {interval.high:+.1f}"


def _interval_note(interval: Interval | None) -> str:
    return "the interval needs the rows" if interval is None else f"{_signed_range(interval)} (95% interval)"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
