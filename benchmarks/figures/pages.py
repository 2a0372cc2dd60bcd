"""Marks in Markdown pages, and the figures between them.

A figure stands between two comments, which a rendered page does not show:

    The mix costs <!-- figure:decode_mix -->1.07 to 1.08<!-- / --> times the plain step.

A table is marked the same way, on separate lines, and names its raw results below it. A figure in a sentence must not
start a line, because Markdown would parse the line as HTML. Its raw result must be named in its section (from one `##`
to the next): by a table of the same result, or by the figure of that result whose name ends in `_source`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from benchmarks.figures.markdown import Lines
from benchmarks.figures.sources import Results
from dlp_core.errors import InvalidRequest

Figure = Callable[[Results], str | Lines]
"""A function from raw results to a few characters of a sentence, or to the lines of a table."""

END = "<!-- / -->"
MARKED = re.compile(rf"<!-- figure:(\w+) -->((?:(?!<!--).)*){END}", re.DOTALL)
COMMENT = re.compile(r"<!-- *(?:figure|/).*?-->")
LINE_START = re.compile(r"[ \t>]*(?:[-*+]|\d+[.)])?[ \t]*")


class Stale(NamedTuple):
    """A figure that does not match its raw results."""

    page: Path
    line: int
    figure: str
    shown: str
    measured: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {self.figure} is stale: {self.shown!r} should be {self.measured!r}"


class Filled(NamedTuple):
    """A page with up-to-date figures, and the figures that were stale."""

    text: str
    stale: list[Stale]


def fill(root: Path, page: Path, figures: Mapping[str, Figure]) -> Filled:
    """Fill the figures of a page from the raw results. The path of the page and the results are relative to `root`.

    Raises InvalidRequest, naming page and line, for a mark that is not closed or names no figure, for a figure in a
    sentence that starts a line, and for one whose raw result is not named in its section."""
    text = (root / page).read_text()
    pieces: list[str] = []
    stale: list[Stale] = []
    # By section: the raw results that sentences use, with the first figure that uses each; those that tables name.
    used: dict[int, dict[str, tuple[str, int]]] = defaultdict(dict)
    named: dict[int, set[str]] = defaultdict(set)
    end = 0
    for name, shown, start, line in _marks(text, page):
        if name not in figures:
            raise InvalidRequest(f"{page}:{line}: there is no figure {name!r}; see python -m benchmarks.figures --list")
        section = text.count("\n## ", 0, start)
        results = Results(root, page)
        measured = figures[name](results)
        if isinstance(measured, str):
            if LINE_START.fullmatch(text[text.rfind("\n", 0, start) + 1 : start]):
                raise InvalidRequest(f"{page}:{line}: figure {name} starts a line; move a word in front of it")
            used[section] |= {source: (name, line) for source in results.names if source not in used[section]}
        else:
            blocks = ["\n".join(block) for block in (measured, results.origin()) if block]
            measured = "\n" + "\n\n".join(blocks) + "\n"
            named[section].update(results.names)
        if shown != measured:
            stale.append(_first_difference(page, line, name, shown, measured))
        pieces += [text[end:start], f"<!-- figure:{name} -->{measured}{END}"]
        end = start + len(f"<!-- figure:{name} -->{shown}{END}")
    for section, sources in used.items():
        for source, (name, line) in sources.items():
            if source not in named[section]:
                raise InvalidRequest(
                    f"{page}:{line}: the section of figure {name} does not name its raw result; "
                    f"add the figure {source}_source"
                )
    return Filled("".join([*pieces, text[end:]]), stale)


def _marks(text: str, page: Path) -> Iterator[tuple[str, str, int, int]]:
    """Name, content, offset and line of every mark."""
    paired = {offset for mark in MARKED.finditer(text) for offset in (mark.start(), mark.end() - len(END))}
    for comment in COMMENT.finditer(text):
        if comment.start() not in paired:
            line = _line(text, comment.start())
            raise InvalidRequest(f"{page}:{line}: {comment[0]} is not part of a pair <!-- figure:NAME -->...{END}")
    for mark in MARKED.finditer(text):
        yield mark[1], mark[2], mark.start(), _line(text, mark.start())


def _first_difference(page: Path, line: int, name: str, shown: str, measured: str) -> Stale:
    """The stale figure, at its first line that differs."""
    blocks = [*shown.split("\n")], [*measured.split("\n")]
    count = max(map(len, blocks))
    padded = (lines + [""] * (count - len(lines)) for lines in blocks)
    for offset, (shown_line, measured_line) in enumerate(zip(*padded, strict=True)):
        if shown_line != measured_line:
            return Stale(page, line + offset, name, shown_line, measured_line)
    raise AssertionError("there is no difference")


def _line(text: str, offset: int) -> int:
    return text.count("\n", 0, offset) + 1
