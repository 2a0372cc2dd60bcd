"""Reports of an evaluation: one self-contained HTML page, and tables and plots in Markdown."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from dlp_core.eval import plots
from dlp_core.eval.arms import SERVED
from dlp_core.eval.results import Difference, Results, compare_arms

REFERENCES = ("oracle", "top1", "plain")
"""Baselines of the comparisons, if they were run."""

SHOWN = ("plain", "random", "oracle", "top1", SERVED, "sentence=0.9")
"""Arms in plots and tables of single tasks, if they were run."""


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
    """Every arm, counting arms of equal choices once, against each of the references."""
    names = list(results.distinct())
    return [
        Contrast(arm, baseline, compare_arms(results, arm, baseline))
        for baseline in REFERENCES
        if baseline in names
        for arm in names
        if arm != baseline
    ]


def shown_arms(results: Results) -> dict[str, str]:
    """Label to arm name, for plots and tables of tasks: the arms of SHOWN that were run, equal choices once."""
    joint = [arm.name for arm in results.arms if arm.name.startswith("adapter=")]
    labels: dict[str, list[str]] = {}
    for name, same in results.distinct().items():
        if group := [arm for arm in (name, *same) if arm in (*SHOWN, *joint)]:
            labels[name] = group
    return {", ".join(group): name for name, group in labels.items()} or {results.arms[0].name: results.arms[0].name}


@dataclass(frozen=True, slots=True)
class Plot:
    """One plot of a report. `name` is the file name without its suffix."""

    name: str
    title: str
    svg: str


def render_plots(results: Results) -> list[Plot]:
    """Render all plots; those that would show nothing are left out."""
    arms = shown_arms(results)
    shared_tasks = set.intersection(*(set(results.arm(name).tasks) for name in arms.values()))
    rendered = [
        Plot("tasks", "Tasks", plots.task_bars(results, arms)),
        Plot("radar", "All tasks at a glance", plots.radar(results, arms) if len(shared_tasks) > 2 else ""),
        Plot("sweep", "p against score and mix size", plots.sweep(results)),
        Plot("composites", "Several questions in one prompt", plots.composites(results)),
        Plot("confusion", "Confusion matrix of the router", plots.confusion(results)),
    ]
    return [plot for plot in rendered if plot.svg]


def write_html(results: Results, path: Path) -> None:
    """Write the report as one self-contained page."""
    from jinja2 import Environment

    template = resources.files("dlp_core.eval").joinpath("report.html.j2").read_text(encoding="utf-8")
    page = (
        Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
        .from_string(template)
        .render(
            results=results,
            contrasts=contrasts(results),
            plots={plot.title: _data_uri(plot.svg) for plot in render_plots(results)},
            tasks=sorted({task for arm in results.arms for task in arm.tasks}),
            arms=shown_arms(results),
            distinct=results.distinct(),
        )
    )
    path.write_text(page, encoding="utf-8")


def write_markdown(results: Results, folder: Path) -> None:
    """Write report.md with the tables, and its plots as SVG files beside it, for use in another page."""
    rendered = render_plots(results)
    for plot in rendered:
        (folder / f"{plot.name}.svg").write_text(plot.svg, encoding="utf-8")
    images = "".join(f"\n![{plot.title}]({plot.name}.svg)\n" for plot in rendered)
    (folder / "report.md").write_text(_tables(results) + images, encoding="utf-8")


def _tables(results: Results) -> str:
    """Markdown tables of arms, differences, tasks and composite prompts."""
    lines = ["| arm | score | 95 % interval | adapters in a mix | left to the backbone |", "|---|---|---|---|---|"]
    for name, same in results.distinct().items():
        arm = results.arm(name)
        lines.append(
            f"| {', '.join([name, *same])} | {arm.score.mean:.1f} | {arm.score.low:.1f} to {arm.score.high:.1f} | "
            f"{arm.adapters:.2f} | {arm.plain:.1%} |"
        )
    lines += ["", "| arm | baseline | difference | 95 % interval | verdict | better on | worse on |", "|" + "---|" * 7]
    for contrast in contrasts(results):
        overall = contrast.difference.overall
        lines.append(
            f"| {contrast.arm} | {contrast.baseline} "
            f"| {overall.mean:+.1f} | {overall.low:+.1f} to {overall.high:+.1f} | {contrast.verdict} "
            f"| {_names(contrast.difference.better)} | {_names(contrast.difference.worse(0))} |"
        )
    arms = shown_arms(results)
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
