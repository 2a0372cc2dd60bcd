"""An evaluation as one HTML page that needs no network, and as the tables of a Markdown page."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from dlp_core.eval import plots
from dlp_core.eval.arms import SERVED
from dlp_core.eval.results import Difference, Results, between_arms

REFERENCES = ("oracle", "top1", "plain")
"""Arms the served one is compared with, where they were run."""

SHOWN = ("plain", "random", "oracle", "top1", SERVED, "sentence=0.9")
"""Arms in pictures of single tasks, of those that were run."""


@dataclass(frozen=True, slots=True)
class Contrast:
    """One arm against another. `found` is what the first has more."""

    arm: str
    than: str
    found: Difference

    @property
    def verdict(self) -> str:
        """In words, and no more than the interval allows."""
        overall = self.found.overall
        if overall.low > 0:
            return "better"
        if overall.high < 0:
            return "worse"
        return "no difference that holds"


def contrasts(results: Results) -> list[Contrast]:
    """Every arm that chose differently from those before it, against each of the references."""
    names = list(results.distinct())
    return [
        Contrast(arm, than, between_arms(results, arm, than))
        for than in REFERENCES
        if than in names
        for arm in names
        if arm != than
    ]


def shown_arms(results: Results) -> dict[str, str]:
    """Label to arm, for pictures and tables of tasks: those of SHOWN that were run, arms of equal choices once."""
    joint = [arm.name for arm in results.arms if arm.name.startswith("adapter=")]
    labels: dict[str, list[str]] = {}
    for name, same in results.distinct().items():
        if wanted := [arm for arm in (name, *same) if arm in (*SHOWN, *joint)]:
            labels[name] = wanted
    return {", ".join(wanted): name for name, wanted in labels.items()} or {results.arms[0].name: results.arms[0].name}


@dataclass(frozen=True, slots=True)
class Picture:
    """One plot of a report. `name` is that of its file."""

    name: str
    title: str
    svg: str


def pictures(results: Results) -> list[Picture]:
    """Those that would show nothing are left out."""
    arms = shown_arms(results)
    shared = set.intersection(*(set(results.arm(name).tasks) for name in arms.values()))
    drawn = [
        Picture("tasks", "Tasks", plots.task_bars(results, arms)),
        Picture("radar", "All tasks at a glance", plots.radar(results, arms) if len(shared) > 2 else ""),
        Picture("sweep", "p against score and size of the mix", plots.sweep(results)),
        Picture("composites", "Several questions in one prompt", plots.composites(results)),
        Picture("confusion", "What the router takes for what", plots.confusion(results)),
    ]
    return [picture for picture in drawn if picture.svg]


def write_html(results: Results, path: Path) -> None:
    """Writes the report. The page loads nothing."""
    from jinja2 import Environment

    template = resources.files("dlp_core.eval").joinpath("report.html.j2").read_text(encoding="utf-8")
    page = (
        Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
        .from_string(template)
        .render(
            results=results,
            contrasts=contrasts(results),
            pictures={picture.title: _as_data(picture.svg) for picture in pictures(results)},
            tasks=sorted({task for arm in results.arms for task in arm.tasks}),
            arms=shown_arms(results),
            distinct=results.distinct(),
        )
    )
    path.write_text(page, encoding="utf-8")


def write_markdown(results: Results, folder: Path) -> None:
    """Writes report.md, with the tables, and its pictures beside it: to be taken over into a page."""
    drawn = pictures(results)
    for picture in drawn:
        (folder / f"{picture.name}.svg").write_text(picture.svg, encoding="utf-8")
    shown = "".join(f"\n![{picture.title}]({picture.name}.svg)\n" for picture in drawn)
    (folder / "report.md").write_text(_tables(results) + shown, encoding="utf-8")


def _tables(results: Results) -> str:
    """Arms, differences, tasks, composite prompts."""
    lines = ["| arm | score | 95 % interval | adapters in a mix | left to the backbone |", "|---|---|---|---|---|"]
    for name, same in results.distinct().items():
        arm = results.arm(name)
        lines.append(
            f"| {', '.join([name, *same])} | {arm.score.mean:.1f} | {arm.score.low:.1f} to {arm.score.high:.1f} | "
            f"{arm.adapters:.2f} | {arm.plain:.1%} |"
        )
    lines += ["", "| arm | than | difference | 95 % interval | holds? | better on | worse on |", "|" + "---|" * 7]
    for contrast in contrasts(results):
        overall = contrast.found.overall
        lines.append(
            f"| {contrast.arm} | {contrast.than} | {overall.mean:+.1f} | {overall.low:+.1f} to {overall.high:+.1f} | "
            f"{contrast.verdict} | {_names(contrast.found.better)} | {_names(contrast.found.worse(0))} |"
        )
    arms = shown_arms(results)
    lines += ["", f"| task | rows | {' | '.join(arms)} |", "|" + "---|" * (len(arms) + 2)]
    for task in sorted({task for arm in results.arms for task in arm.tasks}):
        cells = [results.arm(name).tasks.get(task) for name in arms.values()]
        rows = max(cell.rows for cell in cells if cell is not None)
        scores = " | ".join("" if cell is None else f"{cell.score.mean:.1f}" for cell in cells)
        lines.append(f"| {task} | {rows} | {scores} |")
    if results.composites:
        ways = list(dict.fromkeys(found.arm for found in results.composites))
        lines += ["", f"| questions in a prompt | {' | '.join(ways)} |", "|" + "---|" * (len(ways) + 1)]
        for parts in sorted({found.parts for found in results.composites}):
            cells_of = {found.arm: found.score for found in results.composites if found.parts == parts}
            scores = " | ".join(
                f"{cells_of[way].mean:.1f} ({cells_of[way].low:.1f} to {cells_of[way].high:.1f})" for way in ways
            )
            lines.append(f"| {parts} | {scores} |")
    return "\n".join(lines) + "\n"


def _names(tasks: Sequence[str]) -> str:
    """All tasks of many are too much for a table's cell; report.html has them."""
    return f"{len(tasks)} tasks" if len(tasks) > 3 else ", ".join(tasks) or "none"


def _as_data(svg: str) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()
