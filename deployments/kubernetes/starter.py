"""A file of values to begin with: every value with its explanation, those that may be left out as comments."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Any, get_args

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from deployments.kubernetes.values import Values

SCHEMA_FILE = "values.schema.json"
_WIDTH = 118
_HEADER = f"""\
# yaml-language-server: $schema={SCHEMA_FILE}
#
# An installation of dlp-serve on Kubernetes. What is left out is as shipped. To see its objects, and to apply them:
#
#   dlp k8s render --values values.yaml
#   dlp k8s render --values values.yaml --out dlp && kubectl apply -k dlp
#
# To use a value, take the first "# " away from its name and from all lines below it that are further in.
"""


def starter() -> str:
    """The text of the file. Each value that may be left out is valid as it stands in its comment."""
    return "\n".join([_HEADER, *blocks(Values, hidden=False)])


def blocks(model: type[BaseModel], *, hidden: bool) -> Iterator[str]:
    """A block of lines for each value. Those that may be left out are comments, unless all of it is one (`hidden`)."""
    for name, field in model.model_fields.items():
        about = textwrap.wrap(" ".join((field.description or "").split()), _WIDTH)
        comment = not hidden and not field.is_required()
        nested = _nested(field)
        if nested is None:
            block = _yaml(name, field)
        else:
            block = f"{name}:\n" + textwrap.indent("".join(blocks(nested, hidden=hidden or comment)), "  ")
        yield "".join(f"# {line}\n" for line in about) + textwrap.indent(block, "# " * comment)


def _nested(field: FieldInfo) -> type[BaseModel] | None:
    """The model of a value that has an example for each of its own values."""
    for kind in (field.annotation, *get_args(field.annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel) and not field.examples:
            return kind
    return None


def _yaml(name: str, field: FieldInfo) -> str:
    value: Any = field.examples[0] if field.examples else field.get_default(call_default_factory=True)
    text: str = yaml.safe_dump({name: value}, sort_keys=False, width=_WIDTH)
    return text
