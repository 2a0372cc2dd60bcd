"""Reports of an evaluation: one self-contained HTML page, and tables and plots in Markdown."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from dlp_core.eval import plots
from dlp_core.eval.arms import SERVED, judged_arm
from dlp_core.eval.headline import arm_title, figures, sentence
from dlp_core.eval.results import Difference, Example, Results, compare_arms
from dlp_core.eval.svg import NARROW, WIDE

REFERENCES = ("oracle", "top1", "plain")
"""Baselines of the comparisons, if they were run."""

SHOWN = ("plain", "random", "oracle", "top1", SERVED, "sentence=0.9")
"""Arms in plots and tables of single tasks, if they were run."""

_CUT = 700
"""Characters of a text that a report shows."""


@dataclass(frozen=True, slots=True)
class Contrast:
    """The difference between an arm and a baseline arm: positive where `arm` scores higher."""

    arm: str
    baseline: str
    difference: Difference

    @property
    def verdict(self) -> str:
        """One of "better", "worse" and "no significant difference", depending on where the interval lies."""
        overall = self.difference.overall
        if overall.low > 0:
            return "better"
        if overall.high < 0:
            return "worse"
        return "no significant difference"


def contrasts(results: Results) -> list[Contrast]:
    """Every arm, counting arms of equal choices once, against each of the references; none without the rows."""
    names = [name for name in results.distinct() if results.by_task(name)]
    return [
        Contrast(arm, baseline, compare_arms(results, arm, baseline))
        for baseline in REFERENCES
        if baseline in names
        for arm in names
        if arm != baseline and _share_a_task(results, arm, baseline)
    ]


def _share_a_task(results: Results, *arms: str) -> bool:
    return bool(set.intersection(*(set(results.arm(arm).tasks) for arm in arms)))


def shown_arms(results: Results) -> list[list[str]]:
    """The arms in plots and tables of tasks, those of equal choices together: the baseline, the judged arm, others.

    They are the arms of SHOWN, any `adapter=`, and the judged arm.
    """
    judged = judged_arm([arm.name for arm in results.arms])
    joint = [arm.name for arm in results.arms if arm.name.startswith("adapter=")]
    groups = [
        group
        for name, same in results.distinct().items()
        if (group := [arm for arm in (name, *same) if arm in (*SHOWN, *joint, judged)])
    ]

    def order(group: Sequence[str]) -> tuple[bool, bool, bool]:
        return ("plain" not in group, judged not in group, "oracle" not in group)

    groups.sort(key=order)
    if "plain" not in groups[0] and len(groups) > 1:
        groups[:2] = groups[1::-1]
    return groups


@dataclass(frozen=True, slots=True)
class Plot:
    """One plot of a report, for a page and for a phone. `name` is the file name without its suffix."""

    name: str
    title: str
    svg: str
    narrow: str
    caption: str = ""


def render_plots(results: Results) -> list[Plot]:
    """Render all plots; those that would show nothing are left out."""
    judged = judged_arm([arm.name for arm in results.arms])
    groups = shown_arms(results)
    arms = {" = ".join(arm_title(name, judged) for name in group): group[0] for group in groups}
    # more lines than these cannot be told apart
    few = dict(list(arms.items())[:3]) | {
        label: name for label, name in arms.items() if name.startswith("adapter=") or name == judged
    }
    labels = list(arms)
    caption = f"Every task by {labels[0]} and {labels[1]}, largest gain on top." if len(arms) > 1 else ""
    drawings: list[tuple[str, str, str, Callable[[float], str]]] = [
        ("tasks", "Tasks", caption, lambda width: plots.task_scores(results, arms, width)),
        ("radar", "All tasks at a glance", "", lambda width: plots.radar(results, few, width)),
        ("sweep", "p against score and mix size", "", lambda width: plots.sweep(results, width)),
        ("composites", "Several questions in one prompt", "", lambda width: plots.composites(results, width)),
        ("confusion", "Confusion matrix of the router", "", lambda width: plots.confusion(results, width)),
    ]
    rendered = [Plot(name, title, draw(WIDE), draw(NARROW), caption) for name, title, caption, draw in drawings]
    return [plot for plot in rendered if plot.svg]


def write_html(results: Results, path: Path) -> None:
    """Write the report as one self-contained page."""
    from jinja2 import Environment

    template = resources.files("dlp_core.eval").joinpath("report.html.j2").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"data_uri": _data_uri, "cut": _cut}
    judged = judged_arm([arm.name for arm in results.arms])
    costs = {name: cost for name in results.distinct() if (cost := results.arm(name).cost) is not None}
    page = environment.from_string(template).render(
        results=results,
        verdict=sentence(results),
        figures=figures(results),
        judged=judged,
        judged_title=arm_title(judged, judged),
        title=lambda name: arm_title(name, judged),
        rows_text=_rows_per_task(results),
        composite_prompts=sum({composite.parts: composite.prompts for composite in results.composites}.values()),
        contrasts=contrasts(results),
        plots=render_plots(results),
        examples=[_Shown(example, _answers(results, example, judged)) for example in results.examples],
        cut=_CUT,
        costs=costs,
        costs_plain=costs.get("plain"),
        mistakes=_mistakes(results),
        tasks=sorted({task for arm in results.arms for task in arm.tasks}),
        arms={", ".join(group): group[0] for group in shown_arms(results)},
        distinct=results.distinct(),
    )
    path.write_text(page, encoding="utf-8")


@dataclass(frozen=True, slots=True)
class _Shown:
    """An example row, and its answers: arms that answered the same are one."""

    row: Example
    answers: list[_ShownAnswer]


@dataclass(frozen=True, slots=True)
class _ShownAnswer:
    arms: list[str]
    text: str
    score: float
    adapters: str


def _answers(results: Results, example: Example, judged: str) -> list[_ShownAnswer]:
    answers: dict[tuple[str, float, str], list[str]] = {}
    for name in dict.fromkeys(name for group in shown_arms(results) for name in group):
        if name in example.answers:
            adapters = ", ".join(example.adapters.get(name, ())) or ("" if name == "plain" else "plain model")
            found = (example.answers[name], example.scores[name], adapters)
            answers.setdefault(found, []).append(arm_title(name, judged))
    return [_ShownAnswer(arms, text, score, adapters) for (text, score, adapters), arms in answers.items()]


def _rows_per_task(results: Results) -> str:
    """How many rows a task has, and how far one of them moves its score: few rows must not look like many."""
    counts = {task: result.rows for arm in results.arms for task, result in arm.tasks.items()}
    low, high = min(counts.values()), max(counts.values())
    of_each = f"{low} of each" if low == high else f"{low} to {high} of each"
    return f"{of_each}, so that one answer can move the score of a task by {100 / low:.3g} points"


def _mistakes(results: Results) -> list[str]:
    if results.router is None:
        return []
    wrong = [
        (count, task, best)
        for task, counts in results.router.confusion.items()
        for best, count in counts.items()
        if best != task
    ]
    return [f"{task}, {best}, {count}" for count, task, best in sorted(wrong, reverse=True)]


def _cut(text: str) -> str:
    return text if len(text) <= _CUT else text[:_CUT] + "…"


def write_markdown(results: Results, folder: Path) -> None:
    """Write report.md with the tables, and its plots as SVG files beside it, for use in another page."""
    rendered = render_plots(results)
    for plot in rendered:
        (folder / f"{plot.name}.svg").write_text(plot.svg, encoding="utf-8")
    images = "".join(f"\n![{plot.title}]({plot.name}.svg)\n" for plot in rendered)
    (folder / "report.md").write_text(_tables(results) + images, encoding="utf-8")


def _tables(results: Results) -> str:
    """Markdown tables of arms, differences, tasks and composite prompts."""
    lines = [sentence(results), "", f"{results.suite.name}: {results.bank}.", ""]
    lines += ["| arm | score | 95% interval | adapters in a mix | left to the backbone |", "|---|---|---|---|---|"]
    for name, same in results.distinct().items():
        arm = results.arm(name)
        lines.append(
            f"| {', '.join([name, *same])} | {arm.score.mean:.1f} | {arm.score.low:.1f} to {arm.score.high:.1f} | "
            f"{arm.adapters:.2f} | {arm.plain:.1%} |"
        )
    if found := contrasts(results):
        lines += [
            "",
            "| arm | baseline | difference | 95% interval | verdict | better on | worse on |",
            "|" + "---|" * 7,
        ]
    for contrast in found:
        overall = contrast.difference.overall
        lines.append(
            f"| {contrast.arm} | {contrast.baseline} "
            f"| {overall.mean:+.1f} | {overall.low:+.1f} to {overall.high:+.1f} | {contrast.verdict} "
            f"| {_names(contrast.difference.better)} | {_names(contrast.difference.worse(0))} |"
        )
    arms = {", ".join(group): group[0] for group in shown_arms(results)}
    lines += ["", f"| task | rows | {' | '.join(arms)} |", "|" + "---|" * (len(arms) + 2)]
    for task in sorted({task for arm in results.arms for task in arm.tasks}):
        cells = [results.arm(name).tasks.get(task) for name in arms.values()]
        rows = max(cell.rows for cell in cells if cell is not None)
        scores = " | ".join("" if cell is None else f"{cell.score.mean:.1f}" for cell in cells)
        lines.append(f"| {task} | {rows} | {scores} |")
    if results.composites:
        methods = list(dict.fromkeys(composite.arm for composite in results.composites))
        lines += ["", f"| questions in a prompt | {' | '.join(methods)} |", "|" + "---|" * (len(methods) + 1)]
        for parts in sorted({composite.parts for composite in results.composites}):
            by_method = {composite.arm: composite.score for composite in results.composites if composite.parts == parts}
            scores = " | ".join(
                f"{by_method[method].mean:.1f} ({by_method[method].low:.1f} to {by_method[method].high:.1f})"
                for method in methods
            )
            lines.append(f"| {parts} | {scores} |")
    return "\n".join(lines) + "\n"


def _names(tasks: Sequence[str]) -> str:
    """The tasks, or only their number if there are more than three; report.html lists them all."""
    return f"{len(tasks)} tasks" if len(tasks) > 3 else ", ".join(tasks) or "none"


def _data_uri(svg: str) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()
