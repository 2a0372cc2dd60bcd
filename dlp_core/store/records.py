"""What is stored as JSON: strict pydantic models, and one line for what is wrong with one."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, ValidationError


class Record(BaseModel):
    """What is stored as JSON: immutable, and strict about types and unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


def first_problem(error: ValidationError) -> str:
    """One line of what may be pages."""
    problem = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in problem["loc"])
    return f"{place}: {problem['msg']}" if place else problem["msg"]
