"""Reads the file of values. What does not fit is one line that names the value."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError
from pydantic_core import from_json, to_json

from deployments.kubernetes.schema import check_names
from deployments.kubernetes.values import FORMS, Values
from dlp_core.errors import InvalidRequest
from dlp_core.store.documents import parse_yaml, read_regular


def read_values(path: Path) -> Values:
    """The values in a YAML or JSON file. Raises InvalidRequest, which names the value."""
    try:
        document = parse_yaml(read_regular(path))
    except FileNotFoundError:
        raise InvalidRequest(f"{path} does not exist; `dlp k8s init {path}` writes one to edit") from None
    except (OSError, ValueError) as error:
        raise InvalidRequest(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if not isinstance(document, dict):
        raise InvalidRequest(f"{path} has no values; `dlp k8s init` writes a file that has")
    try:
        document = from_json(to_json(document))  # as JSON has it: keys are strings, and there are no dates
        check_names(document)
        return Values.model_validate_json(to_json(document))
    except ValidationError as error:
        raise InvalidRequest(problem(error)) from None
    except ValueError as error:
        raise InvalidRequest(str(error)) from None


def problem(error: ValidationError, prefix: str = "") -> str:
    """The first error in one line: the place of the value, what is wrong, and the value if it is a short one."""
    first = error.errors(include_url=False)[0]
    place = ".".join([prefix] * bool(prefix) + [str(part) for part in first["loc"]])
    given, message = first.get("input"), first["msg"].removeprefix("Value error, ")
    if form := FORMS.get(first.get("ctx", {}).get("pattern", "")):
        message = f"{given!r} is not {form}"
    elif first["type"] not in ("missing", "value_error") and not isinstance(given, (dict, list)):
        message = f"{message}, not {to_json(given).decode()}"
    return f"{place}: {message}" if place else message
