"""The plots of a report, as self-contained SVG text."""

from __future__ import annotations

import io
import math
import re
import textwrap
from collections.abc import Mapping
from typing import Any

from dlp_core.eval.results import ArmScore, Results

_COLOURS = ("#9aa0a6", "#1b7f5c", "#c2571a", "#2457a6", "#8a3f8f", "#b8860b", "#4d4d4d")


def task_bars(results: Results, arms: Mapping[str, str]) -> str:
    """Bars of each task's score under several arms, with intervals. `arms` maps labels to arm names."""
    shown = [results.arm(name) for name in arms.values()]
    labels = list(arms)
    tasks = sorted({task for arm in shown for task in arm.tasks}, reverse=True)
    figure = _figure(9, 1.2 + 0.16 * len(tasks) * (len(shown) + 1))
    axis = figure.subplots()
    height = 0.84 / len(shown)
    for number, arm in enumerate(shown):
        own = [task for task in tasks if task in arm.tasks]
        scores = [arm.tasks[task].score for task in own]
        axis.barh(
            [tasks.index(task) + 0.42 - (number + 0.5) * height for task in own],
            [score.mean for score in scores],
            height,
            xerr=[
                [max(0.0, score.mean - score.low) for score in scores],
                [max(0.0, score.high - score.mean) for score in scores],
            ],
            color=_COLOURS[number % len(_COLOURS)],
            error_kw={"elinewidth": 0.6, "ecolor": "#444"},
            label=labels[number],
        )
    axis.set_yticks(range(len(tasks)), tasks)
    axis.set_ylim(-0.6, len(tasks) - 0.4)
    axis.set_xlim(0, 100)
    axis.set_xlabel("score")
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, 1 + 0.7 / figure.get_figheight()), ncols=4, frameon=False)
    return _svg(figure)


def radar(results: Results, arms: Mapping[str, str]) -> str:
    """All tasks around a circle, one line per arm. `arms` maps labels to arm names."""
    shown = [results.arm(name) for name in arms.values()]
    labels = list(arms)
    tasks = sorted(set.intersection(*(set(arm.tasks) for arm in shown)))
    angles = [2 * math.pi * index / len(tasks) for index in range(len(tasks))]
    figure = _figure(8, 8)
    axis = figure.add_subplot(projection="polar")
    for number, arm in enumerate(shown):
        scores = [arm.tasks[task].score.mean for task in tasks]
        axis.plot(
            [*angles, angles[0]],
            [*scores, scores[0]],
            color=_COLOURS[number % len(_COLOURS)],
            lw=1.6,
            label=labels[number],
        )
    axis.set_xticks(angles, [textwrap.fill(task.replace("_", " "), 18) for task in tasks], fontsize=7)
    for text, angle in zip(axis.get_xticklabels(), angles, strict=True):  # outwards, or labels overlap the circle
        side = math.cos(angle)
        text.set_horizontalalignment("left" if side > 0.1 else "right" if side < -0.1 else "center")
    axis.set_rlabel_position(math.degrees(angles[0] + angles[1]) / 2)
    axis.set_ylim(0, 100)
    axis.legend(loc="upper right", bbox_to_anchor=(1.45, 1.12), frameon=False)
    return _svg(figure)


def sweep(results: Results) -> str:
    """Score and mean mix size against p, for both weightings; empty if fewer than two values of p were run."""
    points_by_weights: dict[str, list[tuple[float, ArmScore]]] = {"renormalised": [], "softmax": []}
    for arm in results.arms:
        if match := re.fullmatch(r"top-p=([0-9.e-]+)(:softmax)?", arm.name):
            points_by_weights["softmax" if match[2] else "renormalised"].append((float(match[1]), arm))
    if max(map(len, points_by_weights.values())) < 2:
        return ""
    figure = _figure(8, 4)
    axis = figure.subplots()
    sizes = axis.twinx()
    for number, (weights, points) in enumerate(points_by_weights.items(), start=2):
        points.sort(key=lambda point: point[0])
        ps = [p for p, _ in points]
        if ps:
            colour = _COLOURS[number]
            axis.plot(ps, [arm.score.mean for _, arm in points], "o-", color=colour, label=f"score, {weights}")
            lows, highs = [arm.score.low for _, arm in points], [arm.score.high for _, arm in points]
            axis.fill_between(ps, lows, highs, color=colour, alpha=0.12)
            if number == 2:
                sizes.plot(ps, [arm.adapters for _, arm in points], "s--", color="#777", label="adapters in a mix")
    for name, style in (("oracle", "-."), ("plain", ":")):
        for arm in results.arms:
            if arm.name == name:
                axis.axhline(arm.score.mean, ls=style, lw=1, color="#333", label=name)
    axis.set_xlabel("p")
    axis.set_ylabel("score")
    sizes.set_ylabel("adapters in a mix, mean")
    sizes.set_ylim(0, 1.15 * max(arm.adapters for points in points_by_weights.values() for _, arm in points) or 1)
    handles = [pair for axes in (axis, sizes) for pair in zip(*axes.get_legend_handles_labels(), strict=True)]
    axis.legend(*zip(*handles, strict=True), loc="center left", bbox_to_anchor=(1.1, 0.5), frameon=False)
    return _svg(figure)


def confusion(results: Results) -> str:
    """Confusion matrix of tasks and the router's likeliest adapters; empty without a router."""
    if results.router is None:
        return ""
    rows = results.router.confusion
    tasks = sorted({*rows, *(best for counts in rows.values() for best in counts)})
    shares = [
        [rows.get(task, {}).get(best, 0) / max(1, sum(rows.get(task, {}).values())) for best in tasks] for task in tasks
    ]
    side = 2.5 + 0.24 * len(tasks)
    figure = _figure(side, side)
    axis = figure.subplots()
    axis.imshow(shares, cmap="Greens", vmin=0, vmax=1)
    axis.set_xticks(range(len(tasks)), tasks, rotation=90, fontsize=7)
    axis.set_yticks(range(len(tasks)), tasks, fontsize=7)
    axis.set_xlabel("likeliest adapter")
    axis.set_ylabel("task")
    for y, task in enumerate(tasks):
        for x, best in enumerate(tasks):
            if x != y and (count := rows.get(task, {}).get(best, 0)):
                axis.text(x, y, str(count), ha="center", va="center", fontsize=6, color="#b00020")
    return _svg(figure)


def composites(results: Results) -> str:
    """Score against the number of questions in a prompt; empty without composite prompts."""
    if not results.composites:
        return ""
    figure = _figure(7, 3.6)
    axis = figure.subplots()
    methods = list(dict.fromkeys(composite.arm for composite in results.composites))
    for number, method in enumerate(methods):
        own = [composite for composite in results.composites if composite.arm == method]
        axis.errorbar(
            [composite.parts + 0.06 * (number - len(methods) / 2) for composite in own],
            [composite.score.mean for composite in own],
            yerr=[
                [max(0.0, composite.score.mean - composite.score.low) for composite in own],
                [max(0.0, composite.score.high - composite.score.mean) for composite in own],
            ],
            fmt="o-",
            color=_COLOURS[number % len(_COLOURS)],
            lw=1.2,
            elinewidth=0.7,
            label=method,
        )
    axis.set_xticks(sorted({composite.parts for composite in results.composites}))
    axis.set_xlabel("questions in a prompt")
    axis.set_ylabel("score")
    axis.set_ylim(0, None)
    axis.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False)
    return _svg(figure)


def _figure(width: float, height: float) -> Any:
    """A figure without pyplot, which would keep global state."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height))


def _svg(figure: Any) -> str:
    import matplotlib as mpl

    buffer = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "dlp", "font.size": 9}):
        figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    return buffer.getvalue()[buffer.getvalue().index("<svg") :]
