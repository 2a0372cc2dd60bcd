"""The project's performance targets and the measured ratios."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Target:
    """A target and the ratio measured for it."""

    what: str
    ratio: float
    bound: float
    at_least: bool = False
    """Whether the bound is a minimum; by default it is a maximum."""

    @property
    def met(self) -> bool:
        return self.ratio >= self.bound if self.at_least else self.ratio <= self.bound

    def __str__(self) -> str:
        sign = ">=" if self.at_least else "<="
        return f"{self.what}: {self.ratio:.3f}, target {sign} {self.bound:g}: {'met' if self.met else 'MISSED'}"


def target_rows(targets: Sequence[Target]) -> list[dict[str, Any]]:
    """Print a line for each target on stderr and return the targets as rows of a result."""
    for target in targets:
        print(target, file=sys.stderr)
    return [{**asdict(target), "ratio": round(target.ratio, 3), "met": target.met} for target in targets]
