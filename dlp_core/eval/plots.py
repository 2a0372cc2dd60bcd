"""The plots of a report, as self-contained SVG text. `width` is svg.WIDE or svg.NARROW."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from dlp_core.eval.results import ArmScore, Interval, Results
from dlp_core.eval.svg import GREEN, GRID, INK, MUTED, NARROW, RED, SERIES, figure, settings, write

RADAR_TASKS = 5
"""Fewer tasks than these make no circle: the scores of tasks say it all."""

_MARKERS = ("o", "D", "s", "^", "v", "P", "X")


def task_scores(results: Results, arms: Mapping[str, str], width: float) -> str:
    """A line per task with the score of every arm; best gain of the second arm over the first on top.

    `arms` maps labels to arm names: the baseline, the judged arm, others. The judged arm has its interval. The third
    one's marker is the largest, to be seen around the judged arm's where both score the same.
    """
    shown = [results.arm(name) for name in arms.values()]
    base, judged = shown[0], shown[min(1, len(shown) - 1)]

    def gain(task: str) -> float:
        scores = [arm.tasks[task].score.mean if task in arm.tasks else 0.0 for arm in (judged, base)]
        return scores[0] - scores[1]

    tasks = sorted({task for arm in shown for task in arm.tasks}, key=lambda task: (gain(task), task))
    with settings():
        rows = math.ceil(len(arms) / _columns(width))
        drawn = figure(width, 0.75 + 0.2 * rows + 0.29 * len(tasks))
        axis = drawn.subplots()
        for y, task in enumerate(tasks):
            if task in base.tasks and task in judged.tasks and base is not judged:
                change = gain(task)
                colour = GREEN if change > 0 else RED if change < 0 else MUTED
                ends = [base.tasks[task].score.mean, judged.tasks[task].score.mean]
                axis.plot(ends, [y, y], color=colour, lw=3.5, alpha=0.45, solid_capstyle="butt", zorder=1)
        for number, (label, arm) in enumerate(zip(arms, shown, strict=True)):
            own = [task for task in tasks if task in arm.tasks]
            scores = [arm.tasks[task].score for task in own]
            at = [tasks.index(task) for task in own]
            if arm is judged:
                axis.errorbar(
                    [score.mean for score in scores],
                    at,
                    xerr=_errors(scores),
                    fmt="none",
                    ecolor=INK,
                    elinewidth=0.8,
                    capsize=2,
                    zorder=2,
                )
            axis.scatter(
                [score.mean for score in scores],
                at,
                s={1: 46, 2: 80}.get(number, 26),
                marker=_MARKERS[number % len(_MARKERS)],
                facecolors=_colour(number) if number < 2 else "none",
                edgecolors=_colour(number),
                linewidths=1.3,
                label=label,
                zorder=4 if number in (1, 2) else 3,
                clip_on=False,
            )
        axis.set_yticks(range(len(tasks)), [_shortened(task, width) for task in tasks])
        axis.tick_params(axis="y", length=0)
        axis.set_ylim(-0.6, len(tasks) - 0.4)
        axis.set_xlim(0, 100)
        axis.grid(axis="both")
        axis.set_axisbelow(True)
        axis.set_xlabel("score")
        _legend(drawn, width, axis)
        return write(drawn)


def radar(results: Results, arms: Mapping[str, str], width: float) -> str:
    """All tasks around a circle, a line per arm; empty with fewer than RADAR_TASKS tasks that all arms answered.

    `arms` as for task_scores. A narrow radar numbers its tasks, with the names below.
    """
    shown = [results.arm(name) for name in arms.values()]
    tasks = sorted(set.intersection(*(set(arm.tasks) for arm in shown)))
    if len(tasks) < RADAR_TASKS:
        return ""
    angles = [2 * math.pi * index / len(tasks) for index in range(len(tasks))]
    narrow = width <= NARROW
    with settings():
        drawn = figure(width, width + 0.18 * len(tasks) if narrow else 6.9)
        axis = drawn.add_subplot(projection="polar")
        for number, (label, arm) in enumerate(zip(arms, shown, strict=True)):
            scores = [arm.tasks[task].score.mean for task in tasks]
            axis.plot(
                [*angles, angles[0]],
                [*scores, scores[0]],
                color=_colour(number),
                lw=2.6 if number == 1 else 1.4,
                ls="--" if number == 2 else "-",
                zorder=2 + (number == 2),
                label=label,
            )
            if number == 1:
                axis.fill(angles, scores, color=_colour(number), alpha=0.1)
        names = [str(number) for number in range(1, len(tasks) + 1)] if narrow else _wrapped(tasks)
        axis.set_xticks(angles, names, fontsize=8)
        for text, angle in zip(axis.get_xticklabels(), angles, strict=True):  # outwards, or labels overlap the circle
            side = math.cos(angle)
            if not narrow:
                height = math.sin(angle)
                text.set_horizontalalignment("left" if side > 0.05 else "right" if side < -0.05 else "center")
                text.set_verticalalignment("bottom" if height > 0.3 else "top" if height < -0.3 else "center")
        axis.tick_params(axis="x", pad=3 if narrow else 0)
        axis.set_theta_zero_location("E")
        axis.set_rlabel_position(math.degrees(angles[0] + angles[1]) / 2)
        axis.set_yticks([25, 50, 75, 100], ["25", "50", "75", "100"], fontsize=7, color=MUTED)
        axis.set_ylim(0, 100)
        axis.spines["polar"].set_color(GRID)
        _legend(drawn, width, axis)
        if narrow:
            key = "\n".join(f"{number}  {task}" for number, task in enumerate(tasks, start=1))
            drawn.supxlabel(key, fontsize=8.5, ha="left", x=0.08, linespacing=1.15)
        return write(drawn)


def sweep(results: Results, width: float) -> str:
    """Score and mean mix size against p, for both weightings; empty if fewer than two values of p were run."""
    points_by_weights: dict[str, list[tuple[float, ArmScore]]] = {"renormalised": [], "softmax": []}
    for arm in results.arms:
        if match := re.fullmatch(r"top-p=([0-9.e-]+)(:softmax)?", arm.name):
            points_by_weights["softmax" if match[2] else "renormalised"].append((float(match[1]), arm))
    if max(map(len, points_by_weights.values())) < 2:
        return ""
    with settings():
        drawn = figure(width, 4.2)
        axis = drawn.subplots()
        sizes = axis.twinx()
        for number, (weights, points) in enumerate(points_by_weights.items(), start=2):
            points.sort(key=lambda point: point[0])
            ps = [p for p, _ in points]
            if ps:
                colour = _colour(number)
                axis.plot(ps, [arm.score.mean for _, arm in points], "o-", color=colour, label=f"score, {weights}")
                lows, highs = [arm.score.low for _, arm in points], [arm.score.high for _, arm in points]
                axis.fill_between(ps, lows, highs, color=colour, alpha=0.12)
                if number == 2:
                    mean_sizes = [arm.adapters for _, arm in points]
                    sizes.plot(ps, mean_sizes, "s--", color=MUTED, ms=4, label="adapters in a mix")
        for name, label, style in (("oracle", "right adapter", "-."), ("plain", "plain model", ":")):
            for arm in results.arms:
                if arm.name == name:
                    axis.axhline(arm.score.mean, ls=style, lw=1, color=INK, label=label)
        axis.set_xlabel("p")
        axis.set_ylabel("score")
        sizes.set_ylabel("adapters in a mix, mean")
        sizes.set_ylim(0, 1.15 * max(arm.adapters for points in points_by_weights.values() for _, arm in points) or 1)
        _legend(drawn, width, axis, sizes)
        return write(drawn)


def confusion(results: Results, width: float) -> str:
    """Confusion matrix of tasks and the router's likeliest adapters; empty without a router."""
    if results.router is None:
        return ""
    rows = results.router.confusion
    tasks = sorted({*rows, *(best for counts in rows.values() for best in counts)})
    numbers = [str(number) for number in range(1, len(tasks) + 1)]
    names = [f"{_shortened(task, width)}  {number}" for task, number in zip(tasks, numbers, strict=True)]
    cell = min(0.32, (width - 3.4) / len(tasks)) if width > NARROW else min(0.3, 2.4 / len(tasks))
    with settings():
        drawn = figure(min(width, 3.4 + cell * len(tasks)), 0.7 + cell * len(tasks))
        axis = drawn.subplots()
        for y, task in enumerate(tasks):
            counts = rows.get(task, {})
            for x, best in enumerate(tasks):
                if count := counts.get(best, 0):
                    share = count / sum(counts.values())
                    colour = GREEN if x == y else RED
                    axis.bar(x, 1, 1, y - 0.5, color=colour, alpha=0.2 + 0.6 * share, lw=0)
                    if x != y:
                        axis.text(x, y, str(count), ha="center", va="center", fontsize=min(8, 50 * cell), color=INK)
        axis.set_xlim(-0.5, len(tasks) - 0.5)
        axis.set_ylim(len(tasks) - 0.5, -0.5)
        axis.set_box_aspect(1)
        size = min(8, 34 * cell) if width > NARROW else min(8, 48 * cell)
        axis.set_xticks(range(len(tasks)), numbers, fontsize=size)
        axis.set_yticks(range(len(tasks)), names, fontsize=max(size, 5))
        axis.tick_params(length=0)
        axis.set_xlabel("likeliest adapter, by its number")
        return write(drawn)


def composites(results: Results, width: float) -> str:
    """Score against the number of questions in a prompt; empty without composite prompts."""
    if not results.composites:
        return ""
    with settings():
        drawn = figure(width, 3.8)
        axis = drawn.subplots()
        methods = list(dict.fromkeys(composite.arm for composite in results.composites))
        for number, method in enumerate(methods):
            own = [composite for composite in results.composites if composite.arm == method]
            axis.errorbar(
                [composite.parts + 0.06 * (number - len(methods) / 2) for composite in own],
                [composite.score.mean for composite in own],
                yerr=_errors([composite.score for composite in own]),
                fmt=f"{_MARKERS[number % len(_MARKERS)]}-",
                color=_colour(number),
                lw=1.4,
                elinewidth=0.8,
                label=method,
            )
        axis.set_xticks(sorted({composite.parts for composite in results.composites}))
        axis.set_xlabel("questions in a prompt")
        axis.set_ylabel("score")
        axis.set_ylim(0, None)
        axis.grid(axis="y")
        _legend(drawn, width, axis)
        return write(drawn)


def _colour(number: int) -> str:
    return SERIES[number % len(SERIES)]


def _errors(scores: Sequence[Interval]) -> list[list[float]]:
    """Lengths of error bars, downwards and upwards."""
    return [
        [max(0.0, score.mean - score.low) for score in scores],
        [max(0.0, score.high - score.mean) for score in scores],
    ]


def _columns(width: float) -> int:
    return 4 if width > NARROW else 2


def _legend(drawn: Any, width: float, *axes: Any) -> None:
    """One legend above the figure, of all `axes`."""
    pairs = [pair for each in axes for pair in zip(*each.get_legend_handles_labels(), strict=True)]
    handles, labels = zip(*pairs, strict=True)
    drawn.legend(handles, labels, loc="outside upper left", ncols=_columns(width), fontsize=8.5)


def _shortened(task: str, width: float) -> str:
    limit = 44 if width > NARROW else 20
    return task if len(task) <= limit else task[: limit - 1] + "…"


def _wrapped(tasks: Sequence[str]) -> list[str]:
    return [textwrap.fill(task.replace("_", " "), 20) for task in tasks]
