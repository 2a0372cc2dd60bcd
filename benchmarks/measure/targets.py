"""The ratios the project promises, beside what was measured."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Target:
    """One promise and the ratio that was measured for it."""

    what: str
    ratio: float
    bound: float
    at_least: bool = False
    """Whether the ratio has to reach the bound; by default it must not exceed it."""

    @property
    def met(self) -> bool:
        return self.ratio >= self.bound if self.at_least else self.ratio <= self.bound

    def __str__(self) -> str:
        sign = ">=" if self.at_least else "<="
        return f"{self.what}: {self.ratio:.3f}, target {sign} {self.bound:g}: {'met' if self.met else 'MISSED'}"


def judged(targets: Sequence[Target]) -> list[dict[str, Any]]:
    """The targets for a result; on stderr, a line for each."""
    for target in targets:
        print(target, file=sys.stderr)
    return [{**asdict(target), "ratio": round(target.ratio, 3), "met": target.met} for target in targets]
